"""Which documents go, and in whose favour: the whole of exact and fuzzy dedup in one call.

    sketch every document -> equal digests -> shared bands -> real shingle sets of those documents -> star clusters,
    best first -> guard -> one row per removed document

The answer is a function of the documents and the parameters: file names, file order, rows, threads, memory, the device
and interruptions do not enter it. The steps, and what they leave on disk, are in steps.py.
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.stage import UserError

from . import steps
from .array_files import load_arrays
from .corpus import Corpus
from .external_sort import repeated
from .guard import check_limits
from .job import DedupJob
from .leftovers import clear_results, scratch_folder
from .memory_limit import MemoryLimit
from .parameters import DedupParameters
from .receipts import Removals

SKETCHES = "sketches"


def collect(job: DedupJob) -> Removals:
    """Join what the steps of a finished job decided.

    An exact copy of a document that was itself removed takes that one's survivor: it has the same shingles, so the
    same comparison holds, and no receipt names a survivor that is gone. A copy that is compared exactly only stays.
    """
    copies = load_arrays(job.copies_file)
    names = ("row", "survivor", "shared", "size", "other_size")
    parts = [load_arrays(job.resolved_file(group)) for group in job.groups]
    fuzzy = {name: np.concatenate([np.empty(0, np.int64), *(part[name] for part in parts)]) for name in names}
    order = np.argsort(fuzzy["row"])
    fuzzy = {name: values[order] for name, values in fuzzy.items()}
    place = np.searchsorted(fuzzy["row"], copies["keeper"])
    place = np.minimum(place, max(len(order) - 1, 0))
    passed_on = fuzzy["row"][place] == copies["keeper"] if len(order) else np.zeros(len(place), np.bool_)
    copies, passed_on = _spare_exact_only(job, copies, passed_on)
    place = place[copies.pop("number")]
    taken = {name: np.where(passed_on, fuzzy[name][place] if len(order) else 0, 0) for name in names}
    taken["row"] = copies["row"]
    taken["survivor"] = np.where(passed_on, taken["survivor"], copies["keeper"])
    both = {name: np.concatenate([fuzzy[name], taken[name]]) for name in names}
    is_exact = np.concatenate([np.zeros(len(order), np.bool_), ~passed_on])
    order = np.argsort(both["row"])
    return Removals(
        sketches=job.sketches,
        first_new=job.first_new,
        bands=job.parameters.bands,
        is_exact=is_exact[order],
        **{name: values[order] for name, values in both.items()},
    )


def _spare_exact_only(
    job: DedupJob, copies: dict[str, np.ndarray], passed_on: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Take from the copies of near duplicates those that are compared exactly only, the best of each text.

    Returns the copies that go (`number`: which of those given) and which of them go with the near duplicate; the others
    of such a text are copies of the one that stays.
    """
    keeper, goes = copies["keeper"].copy(), np.ones(len(passed_on), np.bool_)
    spared = np.flatnonzero(passed_on)
    if len(spared):
        shingles = job.sketches.numbers("shingles", len(job.known.sketches))
        spared = spared[shingles[copies["row"][spared] - job.first_new] == 0]
    if len(spared):
        rows, texts = copies["row"][spared], keeper[spared]
        order = job.rank_columns(rows).best_first((texts,))
        spared, rows, texts = spared[order], rows[order], texts[order]
        begins = np.concatenate([[True], texts[1:] != texts[:-1]])
        keeper[spared] = rows[begins][np.cumsum(begins) - 1]
        passed_on = passed_on.copy()
        passed_on[spared] = False
        goes[spared[begins]] = False
    numbers = np.flatnonzero(goes)
    return {"row": copies["row"][numbers], "keeper": keeper[numbers], "number": numbers}, passed_on[numbers]


def find_removals(
    corpus: Corpus,
    parameters: DedupParameters,
    workers: int,
    scratch: Path,
    max_ram: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    pause: Callable[[], None] = lambda: None,
) -> Removals:
    """Return what to remove from `corpus`.

    `scratch` holds what is finished, so that the next call goes on after a kill; `finished` empties it. `max_ram` is in
    bytes; `pause` is called after every unit of work, and may raise to stop. Raises UserError for unusable files,
    StageFailure from the guard, OSError when the disk is full.
    """
    return decided(DedupJob(corpus, parameters, Path(scratch), MemoryLimit(max_ram), workers), say, pause)


def decided(
    job: DedupJob,
    say: Callable[[str], None] = lambda line: None,
    pause: Callable[[], None] = lambda: None,
    do_step: steps.DoStep | None = None,
) -> Removals:
    """Run a job to its end and return its decisions, after the guard has seen them.

    Raises UserError for a file that changed meanwhile: rows, by which documents are known, would be other ones.
    """
    steps.run(job, say, pause, do_step)
    removals = collect(job)
    job.corpus.refuse_changes()
    check_limits(removals, job.parameters)
    return removals


def finished(scratch: Path) -> None:
    """Delete what a run left in `scratch`, and the folder when nothing else is in it."""
    clear_results(scratch)
    for name in (SKETCHES, "planted"):
        shutil.rmtree(scratch / name, ignore_errors=True)
    with suppress(OSError):
        scratch.rmdir()


def find_duplicates(files: list[Path], settings: DedupParameters, workers: int, scratch: Path) -> pa.Table:
    """Return one row per document to remove (receipts.RECEIPT_SCHEMA), sorted by id.

    `files` are parquet with id, text and, optionally, source and quality; temporary files lie in a folder of our own in
    `scratch`. Raises what `identified_removals` raises, and UserError while another process works there.
    """
    corpus = Corpus(tuple(Path(file) for file in files))
    with scratch_folder(scratch) as folder:
        receipts = identified_removals(DedupJob(corpus, settings, folder, MemoryLimit(), workers)).receipts()
        finished(folder)
    return receipts


def identified_removals(
    job: DedupJob, pause: Callable[[], None] = lambda: None, do_step: steps.DoStep | None = None
) -> Removals:
    """Return the decisions of a job in which every document has an id of its own.

    A run that was interrupted goes on with what it left in the job's folder; `do_step` as in steps.run. Raises
    UserError for unusable files and for ids that are missing or repeated (a receipt would name two documents),
    StageFailure when a source or a cluster would lose more than its limit, OSError when the disk is full.
    """
    job.corpus.check()
    _check_ids_are_present(job.corpus)
    removals = decided(job, pause=pause, do_step=do_step)
    _check_ids_are_unique(job, removals)
    return removals


def _check_ids_are_present(corpus: Corpus) -> None:
    for file in corpus.files:
        if corpus.id_column not in pq.read_schema(file).names:
            raise UserError(f"dedup: {file} has no column {corpus.id_column!r}; every document needs an id")
    for piece in corpus.pieces:
        row = piece.row_in_file
        for table in corpus.read(piece, [corpus.id_column]):
            missing = pc.indices_nonzero(pc.is_null(table.column(0)))
            if len(missing):
                raise UserError(f"dedup: {piece.file}:{row + missing[0].as_py()} has no id; every document needs one")
            row += len(table)


def _check_ids_are_unique(job: DedupJob, removals: Removals) -> None:
    corpus = job.corpus
    sorter = job.sorter("ids", 1)
    for row, (hashes,) in removals.sketches.batches(["id_hash"]):
        sorter.add(hashes.to_numpy().copy(), np.arange(row, row + len(hashes)))
    repeats: dict[str, int] = {}
    found = []
    for rows, _ in repeated(sorter.blocks()):
        for row, identity in zip(rows.tolist(), removals.sketches.take(rows, ["id"])[0].to_pylist(), strict=True):
            if identity in repeats:
                found.append((identity, repeats[identity], row))
            repeats.setdefault(identity, row)
    if found:
        identity, first, second = min(found, key=lambda repeat: (repeat[2], repeat[1]))
        raise UserError(
            f"dedup: {len(found)} ids occur again, the first is {identity!r} in {_where(corpus, first)} and"
            f" {_where(corpus, second)}; give every document an id of its own"
        )


def _where(corpus: Corpus, row: int) -> str:
    for piece in corpus.pieces:
        if piece.first <= row < piece.first + piece.rows:
            return f"{piece.file}:{row - piece.first + piece.row_in_file}"
    raise IndexError("there is no such document")
