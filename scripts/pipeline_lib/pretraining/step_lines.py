"""metrics.jsonl: exactly one line per step, whatever killed the run and however often.

Line 0 is the untrained model's validation; line n belongs to optimizer step n. Lines are appended as steps finish and
made durable before the checkpoint that follows them. When a run continues from the checkpoint of step n, the lines
after n are work that will be done again: they leave the file and are kept aside as the *record* against which the
replayed steps are compared. A line holds no time, so replayed lines must be equal to the last digit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pipeline_lib.stage import StageFailure, write_bytes_atomic


class StepLines:
    """An append-only file of JSON lines with consecutive steps; `replay` holds the lines that were cut off."""

    def __init__(self, path: Path, last_step: int, first_step: int = 0):
        """Open `path` for a run that stands at `last_step` (first_step - 1: nothing done yet).

        Raises StageFailure when a line up to `last_step` is missing or torn.
        """
        lines = lines_of(path)
        kept = [line for line in lines if line["step"] <= last_step]
        if [line["step"] for line in kept] != list(range(first_step, last_step + 1)):
            raise StageFailure(
                f"{path} does not hold steps {first_step} to {last_step} that the checkpoint has behind it;"
                " start the stage again with --force"
            )
        self.path = path
        self.replay = {line["step"]: line for line in lines if line["step"] > last_step}
        self.next_step = last_step + 1
        write_bytes_atomic(path, b"".join(_encode(line) for line in kept))
        self._stream = open(path, "ab")  # noqa: SIM115 (closed by close)

    def append(self, line: dict[str, Any]) -> None:
        """Add the line of the next step. Raises ValueError when it is another step's."""
        if line["step"] != self.next_step:
            raise ValueError(f"expected the line of step {self.next_step}, not of step {line['step']}")
        self._stream.write(_encode(line))
        self._stream.flush()
        self.next_step += 1

    def sync(self) -> None:
        """Make all lines durable."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Make all lines durable and release the file."""
        self.sync()
        self._stream.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a finished file. Raises StageFailure when one is torn."""
    lines = lines_of(path)
    if sum(len(_encode(line)) for line in lines) != path.stat().st_size:
        raise StageFailure(f"{path} is damaged after line {len(lines)}")
    return lines


def _encode(line: dict[str, Any]) -> bytes:
    return json.dumps(line, allow_nan=False).encode() + b"\n"


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines before the first torn one."""
    lines = []
    for raw in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            line = json.loads(raw)
        except ValueError:
            break
        if not raw.endswith(b"\n") or not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        lines.append(line)
    return lines
