"""The steps of deduplication, done by an engine: a unit of dedup (dedup/steps.py) is a unit of the engine."""

from contextlib import closing
from typing import Any

from dedup import steps
from dedup.corpus import Corpus
from dedup.job import DedupJob
from dedup.memory_limit import MemoryLimit
from dedup.parameters import DedupParameters
from pipeline_lib import engines
from pipeline_lib.stage import Stage

from .memory_share import memory_limit


def do_step(stage: Stage, job: DedupJob, name: str) -> None:
    """Do the units of a step that have no result yet."""
    step = f"dedup-{name}"
    # Dedup knows better than a result of an earlier start whether a unit is done: its files can be damaged. A task that
    # is at work now writes its files first, so a unit that is not done here will have a result that is not forgotten.
    engines.forget_results(stage, step)
    waiting = {f"{name}-{unit:06d}": (name, unit) for unit in steps.waiting(job, name)}
    room = stage.config.scale_out.task_memory
    own = memory_limit(stage.settings).bytes
    limit = MemoryLimit(room if own is None else min(room, own))
    known = (job.corpus, job.parameters, job.folder, limit)
    with closing(engines.results_of(stage, step, do_unit, waiting, initializer=start_dedup, initargs=known)) as results:
        for _ in results:
            stage.stop_if_interrupted()


_job: DedupJob


def start_dedup(corpus: Corpus, parameters: DedupParameters, folder: Any, limit: MemoryLimit) -> None:
    """Prepare this process for `do_unit`."""
    global _job
    limit.prepare()
    _job = DedupJob(corpus, parameters, folder, limit)


def do_unit(unit: tuple[str, int]) -> dict[str, Any]:
    """Do one unit of a step; what it leaves is dedup's own file."""
    steps.do(_job, *unit, 1)
    return {}
