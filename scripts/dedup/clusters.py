"""Star clusters: every removed document was compared with the very document that stays in its place.

Why not connected components: A resembles B, B resembles C, ... joins documents that have nothing in common; such chains
have deleted 99.99 % of templated data sets. Here documents are taken best first. Each one is compared with survivors it
shares a band with. Verified: it is removed and the most similar of them is its survivor. Otherwise it survives, and
later documents are compared with it. A survivor is final when it is decided, so no chain can form: in A ~ B ~ C with A
unlike C, C stays unless it resembles a document that itself stays.
Cost: at most bands x candidates_per_band comparisons per document, however large a bucket is. The order is serial by
nature (who survives depends on who survived before); it is the cheap part.
"""

import numpy as np

from pipeline_lib.compiled import kernel

from .lsh import NO_BUCKET
from .verify import is_duplicate, shared_shingles, sizes_allow

SURVIVES = -1


@kernel
def _candidates(document, numbers, heads, stamp, found):
    """Write the distinct survivors of the document's buckets to `found`; returns how many."""
    count = 0
    for band in range(numbers.shape[1]):
        bucket = numbers[document, band]
        if bucket == NO_BUCKET:
            continue
        for slot in range(heads.shape[1]):
            other = heads[bucket, slot]
            if other < 0:
                break
            if stamp[other] != document:
                stamp[other] = document
                found[count] = other
                count += 1
    return count


@kernel
def _enter(document, numbers, heads):
    for band in range(numbers.shape[1]):
        bucket = numbers[document, band]
        if bucket == NO_BUCKET:
            continue
        for slot in range(heads.shape[1]):
            if heads[bucket, slot] < 0:
                heads[bucket, slot] = document
                break


@kernel
def _resolve(numbers, heads, sets, begin, end, jaccard_parts, containment_parts, survivor, shared_with):
    stamp = np.full(len(begin), -1, np.int64)
    found = np.empty(numbers.shape[1] * heads.shape[1], np.int64)
    for document in range(len(begin)):
        mine = sets[begin[document] : end[document]]
        best, best_shared, best_union = SURVIVES, np.int64(0), np.int64(1)
        for index in range(_candidates(document, numbers, heads, stamp, found)):
            other = found[index]
            theirs = sets[begin[other] : end[other]]
            if not sizes_allow(len(mine), len(theirs), jaccard_parts):
                continue
            shared = shared_shingles(mine, theirs)
            if not is_duplicate(shared, len(mine), len(theirs), jaccard_parts, containment_parts):
                continue
            union = len(mine) + len(theirs) - shared
            gain = shared * best_union - best_shared * union
            if best == SURVIVES or gain > 0 or (gain == 0 and other < best):
                best, best_shared, best_union = other, shared, union
        survivor[document] = best
        shared_with[document] = best_shared
        if best == SURVIVES:
            _enter(document, numbers, heads)


def resolve(
    numbers: np.ndarray,
    bucket_count: int,
    sets: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    *,
    jaccard_parts: int,
    containment_parts: int,
    candidates_per_band: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (survivor int64[documents], shared int64[documents]); survivor is SURVIVES where the document stays.

    `numbers` int32[documents, bands] and `bucket_count` come from lsh.buckets with the documents best first; document
    i's shingle set is `sets[begin[i]:end[i]]`, ascending and distinct. `shared` counts the hashes in common with the
    survivor.
    """
    heads = np.full((bucket_count, candidates_per_band), -1, np.int64)
    survivor = np.empty(len(begin), np.int64)
    shared = np.empty(len(begin), np.int64)
    _resolve(numbers, heads, sets, begin, end, jaccard_parts, containment_parts, survivor, shared)
    return survivor, shared
