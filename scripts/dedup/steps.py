"""A dedup run as steps on disk: every step cuts into units, every unit leaves one file, whole or absent.

    sketch   a piece of the corpus       -> sketches/PIECE.arrow
    exact    (one unit)                  -> copies.arrays      rows with an equal digest, and who is kept of them
    bands    a band                      -> bands/BAND.arrays  the buckets: rows that share this band's key
    group    (one unit)                  -> groups.arrays      candidates, and which of them can influence each other
    sets     a piece that has candidates -> shingles.u64 and sets/PIECE.arrays
    resolve  a group                     -> resolved/GROUP.arrays

Units of a step are independent: threads of this process, ranks of a datatrove executor or a later start can do them, in
any order, any number of times. So a run that was killed goes on where it was, and nothing that depends on how the work
was divided can show in the result. Text is read in the first step and, only where there are candidates, in `sets`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline_lib.stage import ordered_threads

from .candidates import find_buckets, group_candidates
from .decisions import resolve_group
from .equal_texts import find_equal_texts
from .job import DedupJob
from .leftovers import forget_what_does_not_belong
from .set_file import write_sets
from .sketch import write_sketch

Say = Callable[[str], None]
Pause = Callable[[], None]
DoStep = Callable[[DedupJob, str], None]


class Step(NamedTuple):
    """How the units of a step are listed, how one is known to have its result, and how one is done."""

    units: Callable[[DedupJob], Sequence[int]]  # the steps before it must be finished
    is_done: Callable[[DedupJob, int], bool]
    do: Callable[[DedupJob, int, int], None]  # the last argument: how many workers share the memory left


def sketch_piece(job: DedupJob, unit: int, workers: int = 1) -> None:
    """Sketch one piece, on `workers` threads."""
    write_sketch(job.corpus, job.new_pieces[unit], job.parameters, job.sketch_files[unit], workers)


_STEPS = {
    "sketch": Step(
        lambda job: range(len(job.sketch_files)),
        lambda job, unit: job.sketch_files[unit].is_done(),
        lambda job, unit, share: sketch_piece(job, unit),
    ),
    "exact": Step(
        lambda job: [0],
        lambda job, unit: job.copies_file.exists(),
        lambda job, unit, share: find_equal_texts(job),
    ),
    "bands": Step(
        lambda job: range(job.parameters.bands),
        lambda job, unit: job.band_file(unit).exists(),
        find_buckets,
    ),
    "group": Step(
        lambda job: [0],
        lambda job, unit: job.groups_file.exists(),
        lambda job, unit, share: group_candidates(job),
    ),
    "sets": Step(
        lambda job: job.pieces_with_candidates,
        lambda job, unit: job.size_file(unit).exists(),
        lambda job, unit, share: write_sets(job, unit),
    ),
    "resolve": Step(
        lambda job: job.groups,
        lambda job, unit: job.resolved_file(unit).exists(),
        resolve_group,
    ),
}
STEPS = tuple(_STEPS)


def waiting(job: DedupJob, name: str) -> list[int]:
    """Return the units of a step that have no result yet; the steps before it must be finished."""
    step = _STEPS[name]
    return [unit for unit in step.units(job) if not step.is_done(job, unit)]


def do(job: DedupJob, name: str, unit: int, share: int) -> None:
    """Do one unit of a step, in an n-th of the memory left (`share` workers do the same in this process)."""
    _STEPS[name].do(job, unit, share)


def run(
    job: DedupJob,
    say: Say = lambda line: None,
    pause: Pause = lambda: None,
    do_step: DoStep | None = None,
) -> None:
    """Do what is not done yet, in this process, on the job's threads; `pause` is called after every unit.

    `do_step` does the waiting units of a step somewhere else instead. Raises UserError for files that cannot be used,
    OSError when the disk is full; what is finished stays.
    """
    if do_step is None:
        sketch_all(job, say, pause)
    else:
        job.corpus.check()
        do_step(job, STEPS[0])
    forget_what_does_not_belong(job)
    for name in STEPS[1:]:
        if do_step is None:
            _each(job, name, waiting(job, name), say, pause)
        else:
            do_step(job, name)


def sketch_all(job: DedupJob, say: Say = lambda line: None, pause: Pause = lambda: None) -> None:
    """Sketch the pieces that have no valid sketch yet."""
    job.corpus.check()
    job.limit.prepare()
    units = waiting(job, "sketch")
    if len(units) >= 2 * job.workers:
        _each(job, "sketch", units, say, pause)
    else:  # fewer pieces than threads: the threads share a piece
        for unit in units:
            sketch_piece(job, unit, job.workers)
            pause()


def _each(job: DedupJob, name: str, units: list[int], say: Say, pause: Pause) -> None:
    results = ordered_threads(lambda unit: do(job, name, unit, job.workers), units, job.workers)
    for done, _ in enumerate(results, 1):
        if done % max(len(units) // 10, 1) == 0 and len(units) > 20:
            say(f"dedup: {name} {done}/{len(units)}")
        pause()
