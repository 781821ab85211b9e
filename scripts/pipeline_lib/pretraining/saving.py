"""When a checkpoint is taken, and how it leaves the loop's way.

due        by time, by step, after the best validation so far, and when something happened that must not be forgotten
emergency  whatever ends the run early (signal, time limit, exception, a loss that is not finite) saves first; the
           result is a checkpoint like any other
never      weights that are not finite: as the newest checkpoint they would be where every start goes on
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_lib.checkpoints import BackgroundSaver, Retention
from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.stage import StageFailure

from .divergence import broken_weights, lost_weights
from .run_state import TrainingRun, checkpoint_content

if TYPE_CHECKING:
    from .logbook import Logbook


class Saving:
    """The checkpoints of a run at work. Use as a context manager: leaving it waits for the save in hand."""

    def __init__(self, settings: PretrainSettings, folder: Path, book: Logbook, note: Callable[[str], None] = print):
        """`note` is told when checkpoints have to be saved in another way than the settings say."""
        retention = Retention(settings.keep_checkpoints, settings.keep_every, settings.keep_best)
        self.saver = BackgroundSaver(folder, retention, settings.background_saving, note)
        self.saver.last_step = book.resumed_at
        self._settings = settings
        self._book = book
        self._saved = time.monotonic()

    def save_if_due(self, run: TrainingRun, last: bool) -> None:
        """Begin a checkpoint of `run` when it is time for one; raises as `start` does."""
        settings = self._settings
        by_step = any(every is not None and run.step % every == 0 for every in _step_rules(settings))
        by_time = time.monotonic() - self._saved >= settings.checkpoint_seconds and not self.saver.busy
        best = settings.keep_best and run.score is not None and run.score == run.best_score
        # The first process has the clock and the writer; what it says holds for all.
        if run.processes.share(last or by_step or by_time or best or run.save_soon):
            self.start(run)

    def start(self, run: TrainingRun) -> None:
        """Begin a checkpoint of `run`; with several processes all must call it, and the first one writes.

        Raises StageFailure, with what to do, when weights are not finite, and the error of an earlier save that failed.
        """
        cut = run.processes.strategy == "fsdp"
        if cut:
            self.saver.finish()  # the state it holds need not be in host memory beside the one put together next
        with self.saver.stalling():
            broken = broken_weights(run)
        if broken:
            raise StageFailure(lost_weights(run, broken, self.saver))
        self._saved = time.monotonic()
        run.save_soon = False
        with self.saver.stalling():
            tensors, state = checkpoint_content(run)
        if not run.processes.first:
            self.saver.last_step = run.step
            return
        # The metrics lines must be durable before the checkpoint that has them behind it.
        self.saver.start(tensors, state, run.score, first=self._book.sync, owned=cut)

    def emergency(self, run: TrainingRun, keep_older: bool = False) -> bool:
        """Save before the run ends early, and wait for it; return whether the state of `run` is on disk.

        A state in the middle of an update is never saved: the checkpoint before it stands. keep_older: remove no
        checkpoint for this one, from which perhaps nothing can go on. Raises as `start` does.
        """
        if not run.between_steps:
            return False
        if keep_older:
            self.saver.retention = replace(self.saver.retention, newest=self.saver.retention.newest + 1)
        if self.saver.last_step != run.step or run.unwritten is not None:
            self.start(run)
        self.saver.finish()
        return True

    def __enter__(self) -> Saving:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.saver.finish()


def _step_rules(settings: PretrainSettings) -> tuple[int | None, ...]:
    return settings.checkpoint_steps, settings.keep_every
