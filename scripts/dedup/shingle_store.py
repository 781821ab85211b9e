"""The second pass: the real shingle sets of the documents that have a candidate, in one file on disk.

Only documents that share a band with another one are read again. Their sets go to a scratch file in reading order and
are mapped into memory, so that the operating system, not this process, decides what of them stays in RAM.
Cost: 8 bytes per distinct shingle, about 1.2 times the size of the text of these documents.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline_lib.stage import ordered_threads

from .corpus import Corpus, split_by_size, text_batch
from .normalise import TextBatch, normalise
from .parameters import DedupParameters
from .shingles import shingle_sets

HASH_BYTES = 8


def _wanted_texts(corpus: Corpus, rows: np.ndarray) -> Iterator[TextBatch]:
    """Yield the texts of `rows` (ascending positions in the corpus), in order."""
    first = 0
    for table in corpus.tables([corpus.text_column]):
        low, high = np.searchsorted(rows, [first, first + len(table)])
        if low < high:
            chosen = table.column(corpus.text_column).take(rows[low:high] - first)
            yield from (part for _, part in split_by_size(text_batch(chosen)))
        first += len(table)


@contextmanager
def stored_shingle_sets(
    corpus: Corpus, rows: np.ndarray, parameters: DedupParameters, workers: int, scratch: Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (hashes uint64[...], starts int64[rows + 1]): the set of row `rows[i]` is hashes[starts[i]:starts[i + 1]].

    `rows` ascend. The file in `scratch` is deleted when the block ends. Raises OSError when the disk is full.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / "shingle_sets.u64"

    def sets(batch: TextBatch) -> tuple[np.ndarray, np.ndarray]:
        return shingle_sets(normalise(batch), parameters.shingle, parameters.ngram)

    sizes = [np.zeros(1, np.int64)]
    try:
        with open(path, "wb") as stream:
            for hashes, starts in ordered_threads(sets, _wanted_texts(corpus, rows), workers):
                hashes.tofile(stream)
                sizes.append(np.diff(starts))
        starts = np.cumsum(np.concatenate(sizes))
        has_content = path.stat().st_size > 0  # an empty file cannot be mapped
        stored = np.memmap(path, np.uint64, "r") if has_content else np.empty(0, np.uint64)
        yield stored.view(np.ndarray), starts
    finally:
        path.unlink(missing_ok=True)
