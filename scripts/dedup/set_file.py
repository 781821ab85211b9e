"""The step `sets`: the real shingle sets of all candidates in one file, eight bytes per shingle, each set ascending.

Pieces of the corpus write their sets at places that `group` reserved for them, at the same time and in any order. The
size of every set, and a digest of what was written, follow in a file per piece; only then the sets of a piece count.
"""

import mmap
import os
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import xxhash

from pipeline_lib.compiled import kernel
from pipeline_lib.stage import StageFailure

from .array_files import is_whole, load_arrays, save_arrays
from .corpus import Piece, text_batch
from .exact import digests
from .job import DedupJob
from .normalise import normalise
from .shingles import shingle_sets

SET_PAGE = 8192
"""Shingles (64 KiB) to which the sets of a piece are aligned in their file, so that no two writers share a page."""


def set_places(shingles: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Return where each set begins: one after the other, each piece from a page of its own."""
    ends = np.cumsum(shingles)
    begins = ends - shingles
    first = np.ones(len(piece), np.bool_)
    first[1:] = piece[1:] != piece[:-1]
    number = np.cumsum(first) - 1
    start = begins[first]  # without alignment
    length = np.diff(np.append(start, ends[-1] if len(ends) else 0))
    aligned = -(-length // SET_PAGE) * SET_PAGE
    return begins - start[number] + (np.cumsum(aligned) - aligned)[number]


def write_sets(job: DedupJob, unit: int) -> None:
    """Write the shingle sets of a piece's candidates. Raises StageFailure when a text is not the sketched one."""
    corpus, piece = job.pieces[unit]
    mine = _candidates_of(job, piece)
    rows, begin = job.candidates["row"][mine], job.candidates["begin"][mine]
    high = job.sketches.take(rows, ["digest_high"])[0].to_numpy()
    sizes = np.zeros(len(rows), np.int64)
    seen = xxhash.xxh3_128()
    first, at = piece.first, 0
    job.sets_path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(job.sets_path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        for table in corpus.read(piece, [corpus.text_column]):
            count = int(np.searchsorted(rows[at:], first + len(table)))
            if count:
                chosen = table.column(corpus.text_column).take(pa.array(rows[at : at + count] - first))
                normal = normalise(text_batch(chosen))
                changed = np.flatnonzero(digests(normal)[:, 0] != high[at : at + count])
                if len(changed):
                    raise _changed_text(piece, int(rows[at + changed[0]]))
                hashes, starts = shingle_sets(normal, job.parameters.shingle, job.parameters.ngram)
                places = begin[at : at + count]
                _write_all(descriptor, _laid_out(hashes, starts, places - places[0]), int(places[0]) * 8)
                sizes[at : at + count] = np.diff(starts)
                seen.update(hashes[: starts[-1]])
            first, at = first + len(table), at + count
        if at < len(rows):  # the file has become shorter
            raise _changed_text(piece, int(rows[at]))
    finally:
        os.close(descriptor)
    save_arrays(job.size_file(unit), size=sizes, digest=_digest_words(seen))


def sets_are_whole(job: DedupJob, unit: int) -> bool:
    """Tell whether the sets of a piece lie in the file as they were written (reads all of them)."""
    if not is_whole(job.size_file(unit)) or not job.sets_path.exists():
        return False
    record = load_arrays(job.size_file(unit))
    begins = job.candidates["begin"][_candidates_of(job, job.pieces[unit][1])]
    seen = xxhash.xxh3_128()
    with open(job.sets_path, "rb") as stream:
        for begin, size in zip(begins.tolist(), record["size"].tolist(), strict=True):
            stream.seek(begin * 8)
            seen.update(stream.read(size * 8))
    return bool((record["digest"] == _digest_words(seen)).all())


def page_release(stored: np.memmap) -> Callable[[], None]:
    """Return a function that gives the pages of a mapped file back to the system."""
    mapping = stored._mmap
    return lambda: mapping.madvise(mmap.MADV_DONTNEED)


def _candidates_of(job: DedupJob, piece: Piece) -> slice:
    low, high = np.searchsorted(job.candidates["row"], [piece.first, piece.first + piece.rows])
    return slice(int(low), int(high))


def _digest_words(state: xxhash.xxh3_128) -> np.ndarray:
    return np.frombuffer(state.digest(), np.uint64)


def _changed_text(piece: Piece, row: int) -> StageFailure:
    return StageFailure(
        f"dedup: the text of {piece.file}:{row - piece.first + piece.row_in_file} is not the one that was sketched; the"
        " file was changed. Put it back, or make again what was made from it (for an index: undo that source, add it)"
    )


def _laid_out(hashes: np.ndarray, starts: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the sets as they lie in the file: between them zeros, in the room of the repeats that a set has not."""
    out = np.zeros(int(places[-1] + starts[-1] - starts[-2]), np.uint64)
    _lay_out(hashes, starts, places, out)
    return out


@kernel
def _lay_out(hashes, starts, places, out):
    for index in range(len(places)):
        shift = places[index] - starts[index]
        for here in range(starts[index], starts[index + 1]):
            out[here + shift] = hashes[here]


def _write_all(descriptor: int, values: np.ndarray, offset: int) -> None:
    view = memoryview(values).cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
