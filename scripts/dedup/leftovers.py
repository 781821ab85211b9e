"""What an earlier start left in a run's folder: results that count, and those that must go before the next step.

Sketches know by themselves what they are of (sketch.py). All other results belong to one set of documents and one set
of parameters, named in `run.json`; and a power cut can leave a file without its content.
"""

import shutil
from pathlib import Path

from pipeline_lib.stage.digests import canonical_json

from .array_files import is_whole, scratch_path
from .job import DedupJob
from .set_file import sets_are_whole


def forget_what_does_not_belong(job: DedupJob) -> None:
    """Delete results of another run and results that are damaged. Once, before the steps after the first."""
    _forget_another_run(job)
    _forget_damage(job)


def _forget_another_run(job: DedupJob) -> None:
    identity = canonical_json(
        {
            "sketches": [file.made_from for file in job.sketch_files],
            "known": [str(path) for path in job.known.sketches],
            "parameters": job.parameters.decisive(),
            "among_themselves": job.among_themselves,
        }
    )
    mark = job.folder / "run.json"
    if mark.is_file() and mark.read_bytes() == identity:
        return
    clear_results(job.folder)
    with scratch_path(mark) as temporary:
        temporary.write_bytes(identity)


def _forget_damage(job: DedupJob) -> None:
    results = [path for name in ("bands", "resolved") for path in sorted((job.folder / name).glob("*.npz"))]
    for path in (job.copies_file, job.groups_file, *results):
        if path.exists() and not is_whole(path):
            path.unlink()
    if not job.groups_file.exists():
        shutil.rmtree(job.folder / "resolved", ignore_errors=True)  # the next grouping can be another one
        return
    for unit in job.pieces_with_candidates:
        if job.size_file(unit).exists() and not sets_are_whole(job, unit):
            job.size_file(unit).unlink()


def clear_results(folder: Path) -> None:
    """Delete everything of a run but its sketches."""
    for name in ("bands", "sets", "resolved", "runs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("copies.npz", "groups.npz", "shingles.u64", "run.json"):
        (folder / name).unlink(missing_ok=True)
