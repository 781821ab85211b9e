"""Exact duplicates, and the order that says which of several duplicates is the best.

Two documents are exact duplicates when their normalised texts have the same 128-bit xxh3 digest. Nothing is verified
afterwards: two different texts among 10^12 documents share a digest with probability 10^-15.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from .normalise import TextBatch


def digests(batch: TextBatch) -> np.ndarray:
    """Return uint64[documents, 2]: xxh3-128 of each text, high word first."""
    data = memoryview(batch.data)
    starts = batch.starts.tolist()
    joined = b"".join([xxhash.xxh3_128_digest(data[start:end]) for start, end in zip(starts, starts[1:], strict=False)])
    return np.frombuffer(joined, ">u8").astype(np.uint64).reshape(-1, 2)


@dataclass(frozen=True)
class RankColumns:
    """What decides which of several duplicates is the best; one entry per document."""

    era: np.ndarray  # int64: 0 for what an index already keeps, in the order it was added; later is worse
    quality: np.ndarray  # float32, -inf where unknown
    length: np.ndarray  # int64
    source_rank: np.ndarray  # int64
    ids: pa.Array
    digest_high: np.ndarray  # uint64
    digest_low: np.ndarray  # uint64
    row: np.ndarray  # int64

    def best_first(self, before: tuple[np.ndarray, ...] = ()) -> np.ndarray:
        """Return the documents, best first: era low, quality high, length high, source rank low, id low, digest low.

        The order depends on the documents alone, never on their rows, unless two of them are equal in all of these;
        then nothing here distinguishes them (texts may, before they were normalised) and the earlier row comes first.
        `before` are keys that count more than all of these, the most important one last.
        """
        if not len(self.row):
            return np.empty(0, np.int64)
        id_rank = pc.rank(self.ids, "ascending", tiebreaker="min").to_numpy()
        weakest_first = (self.row, self.digest_low, self.digest_high, id_rank, self.source_rank)
        return np.lexsort((*weakest_first, -self.length, -self.quality, self.era, *before))
