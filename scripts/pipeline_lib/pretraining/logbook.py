"""What a run writes as it goes: metrics (deterministic), timings and curves (records of this machine)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline_lib.config.pretrain import PretrainSettings

from .run_state import TrainingRun
from .step_lines import StepLines, lines_of
from .trackers import Curves, lasting_identity, open_trackers


@dataclass
class Logbook:
    """The open files of a run that stands at `resumed_at` (None: at its start), and the clock of this process.

    metrics, timings and curves are None in processes that only follow the first one.
    """

    metrics: StepLines | None
    timings: StepLines | None
    curves: Curves | None
    resumed_at: int | None
    _clock: float = field(default_factory=time.monotonic)
    _spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def spending(self, purpose: str) -> Iterator[None]:
        """Note the time the block takes as spent on `purpose`.

        "loader": reading the next batch; "text": waiting for stage 03 to make it; "validation".
        """
        start = time.monotonic()
        try:
            yield
        finally:
            self._spent[purpose] = self._spent.get(purpose, 0.0) + time.monotonic() - start

    def write(self, run: TrainingRun, line: dict[str, Any]) -> str | None:
        """Write the line of `run.step` and its wall time; return the verdict on the first repeated step, if this is it.

        The time since the previous line counts, whatever it was spent on, so the times add up to the wall clock.
        """
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        run.seconds += seconds
        spent, self._spent = self._spent, {}
        if self.metrics is None:
            return None
        self.metrics.append(line)
        at = {"at": time.time(), "seconds": seconds}
        machine = {"processes": run.processes.size, "peak_flops": run.choices.peak_flops}
        self.timings.append({"step": run.step, **at, **machine, **spent})
        self.curves.add(line, {"tokens_per_second": run.horizon.step_tokens_at(run.step) / seconds})
        return self._verdict(line)

    def sync(self) -> None:
        """Make all lines durable."""
        if self.metrics is not None:
            self.metrics.sync()
            self.timings.sync()

    def close(self) -> None:
        """Write what is buffered and release the files."""
        if self.metrics is not None:
            self.metrics.close()
            self.timings.close()
            self.curves.close()

    def __enter__(self) -> Logbook:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _verdict(self, line: dict[str, Any]) -> str | None:
        before = self.metrics.replay.get(line["step"])
        if before is None or line["step"] != min(self.metrics.replay):
            return None
        changed = [key for key in {**line, **before} if line.get(key) != before.get(key)]
        details = ", ".join(f"{key} {before.get(key)} -> {line.get(key)}" for key in changed)
        origin = "began again at the start" if self.resumed_at is None else f"continued after step {line['step'] - 1}"
        answer = f"no ({details})" if changed else "yes"
        return f"{origin}; step {line['step']} replayed, continues bit for bit: {answer}"


def open_logbook(
    work: Path,
    run: TrainingRun,
    resumed: bool,
    settings: PretrainSettings,
    project: str,
    note: Callable[[str], object] = print,
) -> Logbook:
    """Open the files below `work` at the step where `run` stands. Raises StageFailure when lines are missing.

    resumed: whether the run was restored from a checkpoint; project: what trackers call it; note: told of a tracker
    that fails. Only the first process of a run writes.
    """
    if resumed:
        _take_back_the_last_line(work, run)
    last = -1 if not resumed else run.step - (run.unwritten is not None)
    resumed_at = last if resumed else None
    if not run.processes.first:
        return Logbook(None, None, None, resumed_at)
    identity = lasting_identity(work) if settings.trackers else ""
    shown, folder = settings.model_dump(mode="json"), work / "trackers"
    trackers = open_trackers(settings.trackers, project, folder, identity, shown, note)
    metrics = StepLines(work / "metrics.jsonl", last)
    if run.unwritten is not None:
        metrics.replay.pop(run.step, None)  # no proof: it may be in the file too, and is written again as it is
    return Logbook(
        metrics=metrics,
        timings=StepLines(work / "timings.jsonl", last),
        curves=Curves(work / "tensorboard" if settings.tensorboard else None, last, trackers, note),
        resumed_at=resumed_at,
    )


def _take_back_the_last_line(work: Path, run: TrainingRun) -> None:
    """Take the line of a step back that is the last one only now, because the horizon was shortened to it.

    It was no end when it was written, so it has no validation; written again it gets one. The first process looks for
    all of them: it then writes the file anew, and who looks later would not find the line.
    """
    if run.step != run.horizon.steps or run.unwritten is not None:
        return
    lines = lines_of(work / "metrics.jsonl") if run.processes.first else []
    line = run.processes.share(next((line for line in lines if line["step"] == run.step), None))
    if line is not None and "val_loss" not in line:
        run.unwritten = line
