"""Which documents make up which chunk: ranges of hashes, so that a chunk can be made again from the shards alone.

What: a document's place in its part of the cache is a 64-bit hash of its id, its split another. A chunk is all
documents of a split whose place lies in a range, and the index records the range: no list of rows is needed to find a
missing chunk's documents, and none can be damaged.
How: places are counted in 2^20 buckets (their highest bits); chunks are cut at bucket borders into equal shares of the
tokens. Memory is one number per bucket, whatever the corpus.
Trap: a corpus of few long documents has chunks of unequal size; no chunk is empty.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .encoded_runs import RunStatistics

BUCKET_BITS = 20
BUCKETS = 1 << BUCKET_BITS
_SHIFT = 64 - BUCKET_BITS
_TOP = 1 << 64
SPLITS = ("train", "val")


@dataclass(frozen=True)
class ChunkRange:
    """A chunk's documents: split keys below `val_below` are val, and the order key's bucket is in [first, stop)."""

    split: str
    first: int
    stop: int
    val_below: int

    @property
    def first_key(self) -> np.uint64:
        """The lowest order key of the range."""
        return np.uint64(self.first << _SHIFT)

    @property
    def last_key(self) -> np.uint64:
        """The highest order key of the range."""
        return np.uint64((self.stop << _SHIFT) - 1)

    def in_split(self, split_keys: np.ndarray) -> np.ndarray:
        """Return which documents belong to the split, bool [documents]."""
        val = _below(split_keys, self.val_below)
        return val if self.split == "val" else ~val

    def wants(self, order: np.ndarray, split_keys: np.ndarray) -> np.ndarray:
        """Return which documents belong to the chunk, bool [documents]."""
        bucket = (order >> np.uint64(_SHIFT)).astype(np.int64)
        return (bucket >= self.first) & (bucket < self.stop) & self.in_split(split_keys)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers for the index; the threshold as a string, since it needs more than 53 bits."""
        return {**asdict(self), "val_below": str(self.val_below)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ChunkRange":
        """Read what `to_json` wrote."""
        return cls(value["split"], value["first"], value["stop"], int(value["val_below"]))


@dataclass(frozen=True)
class Cut:
    """The chunks of a part; val_is_one_document: none fell into the share, so the one nearest to it was taken."""

    ranges: list[ChunkRange]
    val_is_one_document: bool


def cut_into_chunks(runs: Iterable["RunStatistics"], chunk_tokens: int, val_fraction: float) -> Cut:
    """Return the chunks of about `chunk_tokens` tokens each, train before val, in the order of their ranges."""
    share = int(val_fraction * _TOP)
    sizes = {split: np.zeros(BUCKETS, np.int64) for split in SPLITS}
    documents = val_documents = 0
    lowest: tuple[int, int, int] | None = None
    for run in runs:
        if not len(run.order):
            continue
        val = _below(run.split, share)
        bucket = (run.order >> np.uint64(_SHIFT)).astype(np.int64)
        np.add.at(sizes["train"], bucket[~val], run.tokens[~val])
        np.add.at(sizes["val"], bucket[val], run.tokens[val])
        documents += len(val)
        val_documents += int(val.sum())
        place = int(np.argmin(run.split))
        nearest = (int(run.split[place]), int(bucket[place]), int(run.tokens[place]))
        lowest = nearest if lowest is None else min(lowest, nearest)
    taken = bool(val_fraction > 0 and documents > 1 and not val_documents)
    if taken:
        split_key, bucket, tokens = lowest
        sizes["train"][bucket] -= tokens
        sizes["val"][bucket] += tokens
        share = split_key + 1
    ranges = []
    for split, size in sizes.items():
        ranges += [ChunkRange(split, first, stop, share) for first, stop in _equal_shares(size, chunk_tokens)]
    return Cut(ranges, taken)


def _equal_shares(sizes: np.ndarray, chunk_tokens: int) -> list[tuple[int, int]]:
    """Cut the buckets, given the tokens in each, into ranges of about `chunk_tokens` tokens, none of them empty."""
    buckets = np.flatnonzero(sizes)
    if not len(buckets):
        return []
    ends = np.cumsum(sizes[buckets])
    total = int(ends[-1])
    count = max(1, round(total / chunk_tokens))
    targets = [total * share // count for share in range(1, count)]
    reached = np.unique(np.searchsorted(ends, targets))  # a chunk ends with the bucket that brings it to its share
    cuts = [0, *(1 + buckets[reached[reached < len(ends) - 1]]).tolist(), BUCKETS]
    return list(pairwise(cuts))


def _below(keys: np.ndarray, threshold: int) -> np.ndarray:
    """Compare with a threshold that may be 2^64, one more than a uint64 holds."""
    if threshold >= _TOP:
        return np.ones(len(keys), bool)
    return keys < np.uint64(threshold)
