"""Which documents go, and in whose favour: the whole of exact and fuzzy dedup in one call.

    sketch every document -> order them best first -> equal digests -> shared bands -> real shingle sets of those
    documents -> star clusters -> guard -> one row per removed document

The answer is a function of the documents and the parameters: file names, file order, rows, threads and the device do
not enter it.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.stage import UserError

from .clusters import SURVIVES, resolve
from .corpus import Corpus
from .exact import best_first, best_of_equal_digests
from .guard import check_no_source_is_wiped_out
from .lsh import NO_BUCKET, buckets
from .parameters import DedupParameters
from .receipts import Removals
from .shingle_store import stored_shingle_sets
from .sketch import Sketches, sketch_corpus


def _source_ranks(sources: list[str], preferred: tuple[str, ...]) -> np.ndarray:
    """Return the rank of each source: its place in `preferred`, or one place after all of them."""
    places = {name: place for place, name in reversed(list(enumerate(preferred)))}
    return np.array([places.get(name, len(preferred)) for name in sources], np.int32)


def find_removals(corpus: Corpus, parameters: DedupParameters, workers: int, scratch: Path) -> Removals:
    """Return what to remove from `corpus`. Raises UserError for unusable files, StageFailure from the guard."""
    sketches = sketch_corpus(corpus, parameters, workers)
    ranks = _source_ranks(sketches.sources, parameters.source_rank)[sketches.source]
    order = best_first(sketches.ids, sketches.quality, sketches.length, ranks, sketches.digest)
    # From here to _assemble documents are numbered best first; order[number] is the row.
    keeper = best_of_equal_digests(sketches.digest[order])
    is_exact = keeper != np.arange(len(order))
    comparable = np.flatnonzero(~is_exact & (sketches.shingles[order] > 0))
    numbers, bucket_count = buckets(sketches.keys[order[comparable]])
    has_candidates = (numbers != NO_BUCKET).any(axis=1)
    candidates = comparable[has_candidates]
    rows = np.sort(order[candidates])
    with stored_shingle_sets(corpus, rows, parameters, workers, scratch) as (sets, starts):
        place = np.searchsorted(rows, order[candidates])
        begin, end = starts[place], starts[place + 1]
        survivor, shared = resolve(
            numbers[has_candidates],
            bucket_count,
            sets,
            begin,
            end,
            jaccard_parts=parameters.jaccard_parts,
            containment_parts=parameters.containment_parts,
            candidates_per_band=parameters.candidates_per_band,
        )
    removals = _assemble(sketches, order, keeper, candidates, survivor, shared, end - begin)
    check_no_source_is_wiped_out(corpus, removals, parameters)
    return removals


def _assemble(
    sketches: Sketches,
    order: np.ndarray,
    keeper: np.ndarray,
    candidates: np.ndarray,
    survivor: np.ndarray,
    shared: np.ndarray,
    sizes: np.ndarray,
) -> Removals:
    """Join exact and fuzzy removals; all numbers but `order`'s values count documents best first.

    An exact copy of a document that was itself removed takes that one's survivor: it has the same shingles, so the
    same comparison holds, and no receipt names a survivor that is gone.
    """
    count = len(order)
    fuzzy = survivor != SURVIVES
    final, hits = np.full(count, -1, np.int64), np.zeros((3, count), np.int64)
    removed = candidates[fuzzy]
    final[removed] = candidates[survivor[fuzzy]]
    hits[:, removed] = shared[fuzzy], sizes[fuzzy], sizes[survivor[fuzzy]]
    is_copy = keeper != np.arange(count)
    target = np.where(is_copy, np.where(final[keeper] >= 0, final[keeper], keeper), final)
    is_exact = is_copy & (final[keeper] < 0)
    hits = hits[:, keeper]
    gone = np.flatnonzero(target >= 0)
    gone = gone[np.argsort(order[gone])]
    return Removals(
        sketches=sketches,
        row=order[gone],
        survivor=order[target[gone]],
        is_exact=is_exact[gone],
        shared=hits[0, gone],
        size=hits[1, gone],
        other_size=hits[2, gone],
    )


def find_duplicates(files: list[Path], settings: DedupParameters, workers: int, scratch: Path) -> pa.Table:
    """Return one row per document to remove: id, survivor_id, kind ("exact" | "fuzzy"), jaccard, containment, bands.

    `files` are parquet with id, text and, optionally, source and quality. `scratch` is a folder for a temporary file.
    Rows are sorted by id. Raises UserError for unusable files and for ids that are missing or repeated (a receipt
    would name two documents), StageFailure when a source would lose more than its limit.
    """
    corpus = Corpus(tuple(Path(file) for file in files))
    corpus.check()
    _check_ids_are_present(corpus)
    removals = find_removals(corpus, settings, workers, Path(scratch))
    _check_ids_are_unique(corpus, removals.sketches.ids)
    return removals.receipts()


def _check_ids_are_present(corpus: Corpus) -> None:
    for file in corpus.files:
        if corpus.id_column not in pq.read_schema(file).names:
            raise UserError(f"dedup: {file} has no column {corpus.id_column!r}; every document needs an id")
    first = 0
    for table in corpus.tables([corpus.id_column]):
        missing = pc.indices_nonzero(pc.is_null(table.column(0)))
        if len(missing):
            raise UserError(f"dedup: {corpus.where(first + missing[0].as_py())} has no id; every document needs one")
        first += len(table)


def _check_ids_are_unique(corpus: Corpus, ids: pa.Array) -> None:
    order = pc.sort_indices(ids)
    ordered = ids.take(order)
    repeats = pc.indices_nonzero(pc.equal(ordered.slice(1), ordered.slice(0, max(len(ordered) - 1, 0))))
    if len(repeats):
        at = repeats[0].as_py()
        first, second = corpus.where(order[at].as_py()), corpus.where(order[at + 1].as_py())
        raise UserError(
            f"dedup: {len(repeats)} ids occur again, the first is {ordered[at].as_py()!r} in {first} and {second}; "
            "give every document an id of its own"
        )
