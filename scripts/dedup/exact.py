"""Exact duplicates, and the order that says which of several duplicates is the best.

Two documents are exact duplicates when their normalised texts have the same 128-bit xxh3 digest. Nothing is verified
afterwards: two different texts among 10^12 documents share a digest with probability 10^-15.
"""

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


def best_first(
    ids: pa.Array, quality: np.ndarray, length: np.ndarray, source_rank: np.ndarray, digest: np.ndarray
) -> np.ndarray:
    """Return the documents, best first: quality high, length high, source rank low, id low, digest low.

    The order depends on the documents alone, never on their rows, unless two of them are equal in all of these; then
    nothing distinguishes them and the earlier row comes first.
    """
    table = pa.table(
        {
            "quality": quality,
            "length": length,
            "source": source_rank,
            "id": ids,
            "high": digest[:, 0],
            "low": digest[:, 1],
            "row": np.arange(len(quality)),
        }
    )
    directions = {"quality": "descending", "length": "descending"}
    keys = [(name, directions.get(name, "ascending")) for name in table.column_names]
    return pc.sort_indices(table, sort_keys=keys).to_numpy().astype(np.int64)


def best_of_equal_digests(digest: np.ndarray) -> np.ndarray:
    """Return int64[documents]: for each document the first one with the same digest (itself when it is the first)."""
    order = np.lexsort((np.arange(len(digest)), digest[:, 1], digest[:, 0]))
    ordered = digest[order]
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[is_new][np.cumsum(is_new) - 1] if len(order) else 0
    return first
