"""What a run writes as it goes: metrics (deterministic), timings and TensorBoard curves (records of this machine)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .curves import Curves
from .run_state import TrainingRun
from .step_lines import StepLines


@dataclass
class Logbook:
    """The open files of a run that stands at `resumed_at` (None: at its start), and the clock of this process."""

    metrics: StepLines
    timings: StepLines
    curves: Curves
    resumed_at: int | None
    _clock: float = field(default_factory=time.monotonic)

    def write(self, run: TrainingRun, line: dict[str, Any]) -> str | None:
        """Write the line of `run.step` and its wall time; return the verdict on the first repeated step, if this is it.

        The time since the previous line counts, whatever it was spent on, so the times add up to the wall clock.
        """
        self.metrics.append(line)
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        run.seconds += seconds
        self.timings.append({"step": run.step, "seconds": seconds})
        self.curves.add(line, seconds, run.horizon.step_tokens)
        return self._verdict(line)

    def tokens_per_second(self, run: TrainingRun) -> float:
        """Return the tokens of all steps so far per second of wall clock, validation and checkpoints included."""
        return run.step * run.horizon.step_tokens / run.seconds

    def sync(self) -> None:
        """Make all lines durable."""
        self.metrics.sync()
        self.timings.sync()

    def close(self) -> None:
        """Write what is buffered and release the files."""
        self.metrics.close()
        self.timings.close()
        self.curves.close()

    def __enter__(self) -> Logbook:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _verdict(self, line: dict[str, Any]) -> str | None:
        before = self.metrics.replay.get(line["step"])
        first = 0 if self.resumed_at is None else self.resumed_at + 1
        if before is None or line["step"] != first:
            return None
        changed = [key for key in {**line, **before} if line.get(key) != before.get(key)]
        details = ", ".join(f"{key} {before.get(key)} -> {line.get(key)}" for key in changed)
        origin = "began again at the start" if self.resumed_at is None else f"continued after step {self.resumed_at}"
        answer = f"no ({details})" if changed else "yes"
        return f"{origin}; step {line['step']} replayed, continues bit for bit: {answer}"


def open_logbook(work: Path, run: TrainingRun, resumed: bool, tensorboard: bool) -> Logbook:
    """Open the files below `work` at the step where `run` stands. Raises StageFailure when lines are missing.

    `resumed`: whether the run was restored from a checkpoint.
    """
    last = -1 if not resumed else run.step - (run.unwritten is not None)
    return Logbook(
        metrics=StepLines(work / "metrics.jsonl", last),
        timings=StepLines(work / "timings.jsonl", last),
        curves=Curves(work / "tensorboard" if tensorboard else None, last),
        resumed_at=last if resumed else None,
    )
