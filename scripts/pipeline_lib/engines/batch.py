"""The units of one step as the tasks see them: a datatrove block that does a task's share, one result file per unit.

A task writes the result of a unit when everything else of that unit lies on the disk, so a result that can be read is a
unit that is done. What a task cannot do it reports in a file too, in the words a local run would end with.
Trap: a task can outlive the work it belongs to (`--force`, other settings). It looks at the mark of the work folder
before and after every unit, and stops when the folder has been given to other work.
"""

import json
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from pipeline_lib.stage import StageFailure, UserError, write_bytes_atomic, write_json_atomic
from pipeline_lib.stage.system_errors import spell_system_error
from pipeline_lib.stage.workspace import Workspace

Job = Any


@dataclass(frozen=True)
class Batch:
    """The units of a step that are to be done; pickled by the executors.

    jobs: (key, what `function` is called with) of every unit; initializer: called once in every task; folder: of the
    step, on the shared disk; work, mark: the work folder of the stage, and whose it is.
    """

    step: str
    function: Callable[[Job], dict[str, Any]]
    jobs: tuple[tuple[str, Job], ...]
    initializer: Callable[..., None] | None
    initargs: tuple[Any, ...]
    folder: Path
    work: Path
    mark: str

    def result_file(self, key: str) -> Path:
        """Return where the result of a unit lies."""
        return self.folder / "results" / f"{key}.json"

    def result(self, key: str) -> dict[str, Any] | None:
        """Return the result of a unit, None while it is not done."""
        try:
            return json.loads(self.result_file(key).read_bytes())
        except FileNotFoundError:
            return None

    def share(self, task: int, tasks: int) -> tuple[tuple[str, Job], ...]:
        """Return the units that one of several tasks does."""
        return self.jobs[task::tasks]

    def only(self, keys: Iterable[str]) -> "Batch":
        """Return the batch of some of the units."""
        wanted = set(keys)
        return replace(self, jobs=tuple((key, job) for key, job in self.jobs if key in wanted))

    @property
    def reports(self) -> Path:
        """The folder in which tasks report what they cannot do."""
        return self.folder / "reports"

    def check_mark(self) -> None:
        """Raise StageFailure when the work folder belongs to other work by now."""
        if Workspace.mark(self.work) != self.mark:
            raise StageFailure(f"{self.work} has been given to other work; this task stops")

    def do(self, key: str, job: Job) -> None:
        """Do one unit and write its result, unless it has one."""
        if self.result_file(key).exists():
            return
        self.check_mark()
        result = self.function(job)
        self.check_mark()
        write_json_atomic(self.result_file(key), result)

    def report(self, task: int, key: str | None, error: Exception) -> None:
        """Leave word of what ended a task: its kind decides with which exit code the stage ends."""
        kind, message = type(error).__name__, str(error)
        if isinstance(error, OSError):
            kind, message = StageFailure.__name__, spell_system_error(error)
        trace = self.reports / f"{task}.txt"
        write_bytes_atomic(trace, "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace"))
        report = {"kind": kind, "message": message, "task": task, "unit": key, "trace": str(trace)}
        write_json_atomic(self.reports / f"{task}.json", report)


class UnitsOfStep(PipelineStep):
    """A task's share of a batch, as a datatrove block: it reads no documents and passes none on."""

    type = "stage"

    def __init__(self, batch: Batch):
        super().__init__()
        self.name = batch.step
        self.batch = batch

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Do every world_size-th unit, from number `rank` on."""
        key = None
        try:
            if self.batch.initializer is not None:
                self.batch.initializer(*self.batch.initargs)
            for key, job in self.batch.share(rank, world_size):
                self.batch.do(key, job)
                self.stat_update("units")
        except Exception as error:
            self.batch.report(rank, key, error)
            raise


def reported_error(report: dict[str, Any]) -> Exception:
    """Return what a task reported as the error that a local run would have ended with."""
    if report["kind"] == UserError.__name__:
        return UserError(report["message"])
    if report["kind"] == StageFailure.__name__:
        return StageFailure(report["message"])
    return StageFailure(
        f"task {report['task']} failed at {report['unit'] or 'its start'} ({report['kind']}: {report['message']}); its"
        f" traceback is {report['trace']}; finished units are kept"
    )
