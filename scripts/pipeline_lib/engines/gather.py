"""The side of the numbered script: start the tasks of a step, wait for the results of its units, hand them on in order.

Results lie on the shared disk, so nothing is lost when this process is killed: the next start takes the results that
are there, goes on waiting for a Slurm job that is still at work, and starts tasks for what is left only.
Trap: such a job may be past a unit whose files have gone since. It is waited for, then a new job does those units.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline_lib.stage import Stage, StageFailure
from pipeline_lib.stage.atomic import remove
from pipeline_lib.stage.workspace import Workspace, read_json

if TYPE_CHECKING:
    from .batch import Batch

FOLDER = "scale_out"
SILENCE_SECONDS = 1800.0  # of a scheduler that does not answer, such as one that is being restarted


class Crew(Protocol):
    """Tasks at work on a batch."""

    name: str

    def task_of(self, key: str) -> int:
        """The number of the task that does a unit."""
        ...

    def may_work(self, task: int) -> bool | None:
        """Whether a task waits, works or will be started again; None when that cannot be told now."""
        ...

    def log_of(self, task: int) -> Path:
        """What a task wrote."""
        ...

    def fate_of(self, task: int) -> str:
        """How a task ended, in the engine's word, or nothing when the engine does not tell."""
        ...

    def passed_over(self, task: int) -> bool:
        """Whether a task that is gone can have done its units well before a result of them was withdrawn."""
        ...

    def has_ended(self) -> bool:
        """Whether all tasks are known to be gone."""
        ...

    def cancel(self) -> str:
        """End all tasks; return what became of them, as the rest of a sentence."""
        ...


def works_elsewhere(stage: Stage) -> bool:
    """Whether an engine does the units of this stage, not processes of this machine."""
    return stage.config.scale_out.engine != "local"


def prepare(stage: Stage) -> None:
    """Before the first unit: see that the engine is there, and end jobs of an earlier start that nobody waits for.

    Raises UserError, with what to install or where to go, when the engine is not there.
    """
    settings = stage.config.scale_out
    if settings.engine == "slurm":
        from .on_slurm import require

        require()
        return
    for record in sorted((stage.work / FOLDER).glob("*/job.json")):
        from .on_slurm import SlurmJob

        job = SlurmJob.read(record)
        if job.at_work() != set():
            stage.say(f"  {job.name} of an earlier start {job.cancel()}")
    if settings.engine == "ray":
        from .on_ray import require

        require()


def forget_results(stage: Stage, step: str) -> None:
    """Remove the results of a step, whose units know by their own files whether they are done."""
    remove(stage.work / FOLDER / step / "results")


def results_of(
    stage: Stage,
    step: str,
    function: Callable[[Any], dict[str, Any]],
    jobs: Mapping[str, Any],
    is_whole: Callable[[Any, dict[str, Any]], bool] = lambda job, result: True,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[dict[str, Any]]:
    """Yield function(job) for every job, in their order, computed by the tasks of the stage's engine.

    What `function` returns is JSON; it and `initializer` are defined at module level below scripts/. A result of an
    earlier start counts when `is_whole(job, result)`: what it names is still there. Close the generator (it ends the
    tasks). Raises what `function` raised, and StageFailure, naming the log, for a task that ended without a word.
    """
    from .batch import Batch

    folder = stage.work / FOLDER / step
    batch = Batch(step, function, tuple(jobs.items()), initializer, initargs, folder, stage.work, _mark(stage))
    missing = _missing(batch, is_whole)
    if not missing:
        yield from map(batch.result, jobs)
        return
    watch = _Watch(stage, batch, _start(stage, batch, missing))
    left = set(missing)
    try:
        for key in jobs:
            while key in left and not watch.waited_for(key):  # at most once: a job of this start passes nothing over
                again = watch.passed_over([unit for unit in missing if unit in left])
                watch = _Watch(stage, batch, _start(stage, batch, again))
            left.discard(key)
            yield batch.result(key)
    finally:
        if left:
            stage.say(f"  {watch.crew.name} {watch.crew.cancel()}; results that are there are kept")


def _mark(stage: Stage) -> str:
    mark = Workspace.mark(stage.work)
    if mark is None:
        raise StageFailure(f"{stage.work} was removed while the stage ran; start it again")
    return mark


def _missing(batch: "Batch", is_whole: Callable[[Any, dict[str, Any]], bool]) -> list[str]:
    """Return the units without a result; a result whose files have gone is removed."""
    missing = []
    for key, job in batch.jobs:
        result = batch.result(key)
        if result is not None and not is_whole(job, result):
            batch.result_file(key).unlink()
            result = None
        if result is None:
            missing.append(key)
    return missing


def _start(stage: Stage, batch: "Batch", missing: list[str]) -> Crew:
    settings = stage.config.scale_out
    if settings.engine == "ray":
        from .on_ray import start

        crew = start(stage, batch, missing)
    else:
        from .on_slurm import find_or_submit

        crew = find_or_submit(stage, batch, missing)
    stage.say(f"  {batch.step}: {len(missing)} units, {crew.name}")
    return crew


@dataclass
class _Watch:
    """Looks for results, for reports of failure and for tasks that are gone."""

    stage: Stage
    batch: "Batch"
    crew: Crew
    _gone_since: dict[int, float] = field(default_factory=dict)
    _silent_since: float | None = None

    def waited_for(self, key: str) -> bool:
        """Wait for the result of a unit; return False when these tasks have ended and had passed it over."""
        settings = self.stage.config.scale_out
        while self.batch.result(key) is None:
            self._raise_report()
            if self._is_gone(self.crew.task_of(key), settings.patience_seconds):
                self._raise_unless_passed_over(key)
                if self.crew.has_ended():
                    return False
            with self.stage.signals.while_waiting():
                time.sleep(settings.poll_seconds)
        return True

    def passed_over(self, units: list[str]) -> list[str]:
        """Return the first unit and those without a result. Raises StageFailure when the task of one of them failed."""
        first, *others = units
        without = [first, *(unit for unit in others if self.batch.result(unit) is None)]
        for unit in without:
            self._raise_unless_passed_over(unit)
        self.stage.say(
            f"  {self.crew.name} of an earlier start was past units whose files have gone since: {len(without)}, the"
            f" first is {first}"
        )
        return without

    def _raise_report(self) -> None:
        from .batch import reported_error

        for file in sorted(self.batch.reports.glob("*.json")):
            report = read_json(file)
            if report is not None:
                raise reported_error(report)

    def _is_gone(self, task: int, patience: float) -> bool:
        """Whether a task has been gone for longer than its results need to become visible."""
        now = time.monotonic()
        at_work = self.crew.may_work(task)
        if at_work is None:
            self._bear_silence(now)
            return False
        self._silent_since = None
        if at_work:
            self._gone_since.pop(task, None)
            return False
        return now - self._gone_since.setdefault(task, now) > patience

    def _raise_unless_passed_over(self, key: str) -> None:
        task = self.crew.task_of(key)
        if self.crew.passed_over(task):
            return
        fate = self.crew.fate_of(task)
        ended = f"ended as {fate}" if fate else "is gone"
        raise StageFailure(
            f"{self.crew.name}: task {task} {ended} without a result for {key}; its log is"
            f" {self.crew.log_of(task)}; finished units are kept, start again to do the others"
        )

    def _bear_silence(self, now: float) -> None:
        if self._silent_since is None:
            self._silent_since = now
            self.stage.say(f"  {self.crew.name}: the scheduler does not answer; asking again")
        elif now - self._silent_since > SILENCE_SECONDS:
            raise StageFailure(
                f"{self.crew.name}: the scheduler has not answered for {SILENCE_SECONDS / 60:.0f} minutes; see to it"
                " and start again: results that are there are kept"
            )
