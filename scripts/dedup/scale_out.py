"""Dedup on many machines: the steps of steps.py as datatrove pipelines, local, on Slurm or on Ray.

Every step of a job is one executor that depends on the one before; rank r of n does the units r, r + n, r + 2 n, ...
that have no result yet. After the six steps of a job come `decide` (one task, no text: guard and receipts), `filter`
(one shard per unit: writes what stays) and `clean` (one task: deletes the results of all steps). All ranks see one
shared folder. No rank holds more than its unit: a piece of the corpus, one band's keys (sorted within --max-ram), a
group of candidates, a shard. Which documents stay does not depend on the number of tasks or the engine.
"""

import inspect
import shutil
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from pipeline_lib.stage import StageFailure, UserError
from pipeline_lib.stage.memory import free_bytes
from pipeline_lib.stage.node_environment import search_paths

from . import steps
from .array_files import load_arrays, save_arrays
from .corpus import Corpus
from .cpu_dedup import RECEIPTS_NAME, check_outputs, write_kept_shard
from .guard import check_limits
from .job import DedupJob
from .leftovers import SCRATCH_NAME, forget_what_does_not_belong, refuse_another_run, scratch_folder
from .memory_limit import MemoryLimit
from .parameters import DedupParameters
from .removals import collect, finished
from .weights import passed_on, refuse_mixed_columns

ENGINES = ("local", "slurm", "ray")
LEAST_TASK_BYTES = 512 << 20
AFTER = ("decide", "filter", "clean")
SINGLE = ("exact", "group", "decide", "clean")


@dataclass(frozen=True)
class ScaledRun:
    """What the ranks of all steps share; small, and pickled by the executors."""

    corpus: Corpus
    output: Path
    parameters: DedupParameters
    max_ram: int | None = None

    def job(self) -> DedupJob:
        """Return the job in the output's work folder."""
        return DedupJob(self.corpus, self.parameters, self.output / SCRATCH_NAME, MemoryLimit(self.max_ram))

    @property
    def stays_file(self) -> Path:
        """Where `decide` leaves for `filter` which rows stay."""
        return self.output / SCRATCH_NAME / "stays.arrays"


class DedupStep(PipelineStep):
    """One step of a run as a datatrove block: it reads no documents and passes none on."""

    type = "dedup"

    def __init__(self, run: ScaledRun, step: str):
        super().__init__()
        self.name = f"dedup {step}"
        self.shared = run
        self.step = step

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Do this rank's units. Raises StageFailure when another run has taken the folder since `exact`.

        What goes wrong is also left as a file: on Ray an error of a rank reaches nobody.
        """
        try:
            self._run(rank, world_size)
        except Exception as error:
            path = error_file(self.shared.output, self.step, rank)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{error}" if isinstance(error, (UserError, StageFailure)) else traceback.format_exc())
            raise

    def _run(self, rank: int, world_size: int) -> None:
        job = self.shared.job()
        job.limit.prepare()
        if self.step == "exact":
            forget_what_does_not_belong(job)
        elif self.step != "sketch":
            refuse_another_run(job)
        if self.step == "decide":
            _decide(self.shared, job)
        elif self.step == "filter":
            for number in range(len(job.corpus.files))[rank::world_size]:
                _filter(self.shared, number)
        elif self.step == "clean":
            self.shared.stays_file.unlink(missing_ok=True)
            finished(job.folder)
        else:
            mine = {unit for unit in steps.waiting(job, self.step) if unit % world_size == rank}
            for unit in sorted(mine):
                steps.do(job, self.step, unit, 1)
            self.stat_update("units", value=len(mine))


def error_file(output: Path, step: str, rank: int) -> Path:
    """Return where a rank of a step leaves what went wrong."""
    return output / SCRATCH_NAME / "errors" / f"{step}-{rank:05d}.txt"


def _decide(run: ScaledRun, job: DedupJob) -> None:
    removals = collect(job)
    check_limits(removals, run.parameters)
    save_arrays(run.stays_file, stays=removals.stays(), **passed_on(run.corpus, removals))
    removals.write_receipts(run.output / RECEIPTS_NAME)


def _filter(run: ScaledRun, number: int) -> None:
    stored = load_arrays(run.stays_file)
    write_kept_shard(run.corpus, stored.pop("stays"), run.output, number, stored)


def executors(run: ScaledRun, engine: str, tasks: int, workers: int, options: dict[str, Any] | None = None) -> list:
    """Return one executor per step, each depending on the one before; running them in order runs everything.

    `tasks` ranks per step (one for those of SINGLE), at most `workers` at a time (-1: all). `options` go to datatrove's
    executor: Slurm needs `partition` and `time`. Raises UserError for unusable files or options, and for an output that
    would overwrite its input.
    """
    if engine not in ENGINES:
        raise UserError(f"dedup: engine is {engine!r}; choose one of {', '.join(ENGINES)}")
    run.corpus.check()
    refuse_mixed_columns(run.corpus)
    check_outputs(run.corpus, run.output)
    options = dict(options or {})
    if engine == "slurm" and not {"partition", "time"} <= options.keys():
        raise UserError("dedup: engine slurm needs the options partition and time")
    kind = _executor_class(engine)
    _refuse_unknown(options, kind, engine)
    if engine == "slurm":
        options["env_command"] = "\n".join([*search_paths(), *filter(None, [options.get("env_command")])])
    made: list = []
    for number, step in enumerate([*steps.STEPS, *AFTER]):
        common = {
            "pipeline": [DedupStep(run, step)],
            "tasks": 1 if step in SINGLE else tasks,
            "workers": workers,
            "logging_dir": str(run.output / SCRATCH_NAME / f"log-{number}-{step}"),
            "skip_completed": False,  # every unit looks for itself whether it has a result
            "depends": made[-1] if made else None,
        }
        if engine == "slurm":
            common["job_name"] = f"dedup-{step}"
        made.append(kind(**{**common, **options}))
    return made


OURS = ("pipeline", "tasks", "workers", "logging_dir", "skip_completed", "depends", "condaenv", "venv_path")
"""Options of an executor that differ from step to step, that have a flag of their own, or that `env_command` makes
datatrove ignore."""


def _refuse_unknown(options: dict[str, Any], kind: type, engine: str) -> None:
    known = sorted(inspect.signature(kind).parameters.keys() - set(OURS))
    for name in options:
        if name not in known:
            raise UserError(f"dedup: engine {engine} has no option {name!r} to set; it has {', '.join(known)}")


def _executor_class(engine: str) -> type:
    if engine == "slurm":
        from datatrove.executor.slurm import SlurmPipelineExecutor

        return SlurmPipelineExecutor
    if engine == "ray":
        from datatrove.executor.ray import RayPipelineExecutor

        return RayPipelineExecutor
    from datatrove.executor.local import LocalPipelineExecutor

    return LocalPipelineExecutor


def dedup_at_scale(
    corpus: Corpus,
    output: Path,
    parameters: DedupParameters,
    engine: str,
    tasks: int,
    workers: int = -1,
    max_ram: int | None = None,
    options: dict[str, Any] | None = None,
) -> None:
    """Deduplicate `corpus` to `output`, shard by shard; on Slurm the jobs are submitted and this call returns.

    Without `max_ram` the tasks of engine local share half of the memory that is free. Until it returns, no other
    process can work on this output. Raises what `executors` raises.
    """
    if engine == "local" and max_ram is None:
        max_ram = max(free_bytes() // 2 // (min(tasks, workers) if workers > 0 else tasks), LEAST_TASK_BYTES)
    absolute = replace(corpus, files=tuple(file.resolve() for file in corpus.files))
    run = ScaledRun(absolute, output.resolve(), parameters, max_ram)
    made = executors(run, engine, tasks, workers, options)
    with scratch_folder(run.output, print):
        shutil.rmtree(run.output / SCRATCH_NAME / "errors", ignore_errors=True)
        if engine == "ray":
            for step, executor in zip([*steps.STEPS, *AFTER], made, strict=True):
                _run_to_its_end(run, step, executor)
        else:
            made[-1].run()  # runs or submits what it depends on first


def _run_to_its_end(run: ScaledRun, step: str, executor: Any) -> None:
    """Run one step on Ray. Raises StageFailure with what went wrong in its first rank that did not finish.

    datatrove's own order would wait for ever for a rank that failed, and take the marks of an earlier run for today's.
    """
    executor.depends = None
    for name in executor.logging_dir.list_files("completions"):
        executor.logging_dir.rm_file(name)
    executor.run()
    left = executor.get_incomplete_ranks(skip_completed=True)
    if left:
        path = error_file(run.output, step, left[0])
        what = path.read_text().strip() if path.is_file() else f"no word of it; see {executor.logging_dir.path}"
        raise StageFailure(f"dedup: {len(left)} of {executor.world_size} ranks of step {step} failed: {what}")
