"""TensorBoard curves while the run goes; a continued run overwrites the points after its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Curves:
    """Event files below `folder`, or nothing when `folder` is None."""

    def __init__(self, folder: Path | None, last_step: int):
        """Open for a run that stands at `last_step`; TensorBoard hides older points of later steps."""
        self._writer = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=last_step + 1, flush_secs=30)

    def add(self, line: dict[str, Any], seconds: float, tokens: int) -> None:
        """Add the numbers of a metrics line, and the speed of its step (`tokens` in `seconds`)."""
        if self._writer is None:
            return
        step = line["step"]
        for key, value in line.items():
            if key != "step":
                group = "validation" if key.startswith("val_") else "training"
                self._writer.add_scalar(f"{group}/{key.removeprefix('val_')}", value, step)
        if step:
            self._writer.add_scalar("speed/tokens_per_second", tokens / seconds, step)

    def close(self) -> None:
        """Write what is buffered."""
        if self._writer is not None:
            self._writer.close()
