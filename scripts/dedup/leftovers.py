"""What an earlier start left in a run's folder: results that count, and those that must go before the next step.

Sketches know by themselves what they are of (sketch.py). All other results belong to one set of documents and one set
of parameters, named in `run.json`; and a power cut can leave a file without its content.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline_lib.stage import StageFailure
from pipeline_lib.stage.atomic import remove
from pipeline_lib.stage.digests import canonical_json
from pipeline_lib.stage.lock import LOCK, StageLock

from .array_files import is_whole, scratch_path
from .job import DedupJob
from .set_file import sets_are_whole

SCRATCH_NAME = ".dedup-work"
RESULTS_FORMAT = 2


@contextmanager
def scratch_folder(parent: str | Path, say: Callable[[str], None] = lambda line: None) -> Iterator[Path]:
    """Yield a folder of our own below `parent`, which no other process writes meanwhile; empty, it goes at the end.

    Raises StageIsLocked when another process works there.
    """
    folder = Path(parent) / SCRATCH_NAME
    lock = StageLock(folder / LOCK, say)
    try:
        yield folder
    finally:
        lock.release(remove=True)
        with suppress(OSError):  # what is unfinished stays for the next start
            folder.rmdir()


def forget_what_does_not_belong(job: DedupJob) -> None:
    """Delete results of another run, results that are damaged, and runs of a sort that was stopped.

    Once, before the steps after the first.
    """
    _forget_another_run(job)
    _forget_damage(job)
    shutil.rmtree(job.folder / "runs", ignore_errors=True)


def _identity(job: DedupJob) -> bytes:
    return canonical_json(
        {
            "format": RESULTS_FORMAT,
            "sketches": [file.made_from for file in job.sketch_files],
            "known": [str(path) for path in job.known.sketches],
            "parameters": job.parameters.decisive(),
            "among_themselves": job.among_themselves,
        }
    )


def _holds_results_of(job: DedupJob, identity: bytes) -> bool:
    mark = job.folder / "run.json"
    return mark.is_file() and mark.read_bytes() == identity


def _forget_another_run(job: DedupJob) -> None:
    identity = _identity(job)
    if _holds_results_of(job, identity):
        return
    clear_results(job.folder)
    for path in job.folder.glob("*.npz"):  # of a version with another format
        path.unlink()
    with scratch_path(job.folder / "run.json") as temporary:
        temporary.write_bytes(identity)


def refuse_another_run(job: DedupJob) -> None:
    """Raise StageFailure when the results in the folder are not those of this job.

    For a step that nobody waits for: since its run was submitted, another one may have begun in the folder.
    """
    if not _holds_results_of(job, _identity(job)):
        raise StageFailure(
            f"dedup: {job.folder} holds the work of another run, of other files or parameters; give each run an output"
            " folder of its own, and start this one again"
        )


def _forget_damage(job: DedupJob) -> None:
    results = [path for name in ("bands", "resolved") for path in sorted((job.folder / name).glob("*.arrays"))]
    for path in (job.copies_file, job.groups_file, *results):
        if path.exists() and not is_whole(path):
            path.unlink()
    if not job.groups_file.exists():  # the next grouping can be another one, with the sets at other places
        for name in ("sets", "resolved"):
            shutil.rmtree(job.folder / name, ignore_errors=True)
        job.sets_path.unlink(missing_ok=True)
        return
    for unit in job.pieces_with_candidates:
        if job.size_file(unit).exists() and not sets_are_whole(job, unit):
            job.size_file(unit).unlink()


def clear_results(folder: Path) -> None:
    """Delete everything of a run but its sketches."""
    for name in ("bands", "sets", "resolved", "runs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("copies.arrays", "groups.arrays", "shingles.u64", "run.json"):
        (folder / name).unlink(missing_ok=True)


def empty(folder: Path) -> None:
    """Delete everything in a scratch folder but its lock, files first: without its record the rest is of nobody."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.name != LOCK:
            remove(path)
