"""Star clusters: every removed document was compared with the very document that stays in its place.

Why not connected components: A resembles B, B resembles C, ... joins documents that have nothing in common; such chains
have deleted 99.99 % of templated data sets. Here documents are taken best first. Each one is compared with survivors it
shares a band with. Verified: it is removed and the most similar of them is its survivor. Otherwise it survives, and
later documents are compared with it. A survivor is final when it is decided, so no chain can form: in A ~ B ~ C with A
unlike C, C stays unless it resembles a document that itself stays.
Cost: at most bands x candidates_per_band comparisons per document, however large a bucket is. The order is serial by
nature (who survives depends on who survived before), but only among documents that buckets connect: components.py cuts
the candidates into groups that know nothing of each other, and these are resolved in parallel.
"""

from collections.abc import Callable

import numpy as np

from pipeline_lib.compiled import kernel

from .components import NO_BUCKET
from .verify import is_duplicate, shared_shingles, sizes_allow

SURVIVES = -1
NO_LIMIT = np.iinfo(np.int64).max
PAGES_PER_FAULT = 1 << 16
"""Bytes that the kernel maps at once when a mapped file is read at a new place."""


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
def _resolve(
    first, numbers, heads, stamp, sets, begin, size, fixed, joins, thresholds, touch_limit, survivor, shared_with
):
    """Decide documents from `first` on until about `touch_limit` bytes of `sets` were read; returns the next one."""
    jaccard_parts, containment_parts = thresholds
    found = np.empty(numbers.shape[1] * heads.shape[1], np.int64)
    touched = np.int64(0)
    for document in range(first, len(begin)):
        if document < fixed:
            survivor[document] = SURVIVES
            _enter(document, numbers, heads)
            continue
        if touched > touch_limit:
            return document
        mine = sets[begin[document] : begin[document] + size[document]]
        best, best_shared, best_union = SURVIVES, np.int64(0), np.int64(1)
        for index in range(_candidates(document, numbers, heads, stamp, found)):
            other = found[index]
            if not sizes_allow(len(mine), size[other], jaccard_parts):
                continue
            theirs = sets[begin[other] : begin[other] + size[other]]
            touched += 8 * (len(mine) + len(theirs)) + 2 * PAGES_PER_FAULT
            shared = shared_shingles(mine, theirs)
            if not is_duplicate(shared, len(mine), len(theirs), jaccard_parts, containment_parts):
                continue
            union = len(mine) + len(theirs) - shared
            gain = shared * best_union - best_shared * union
            if best == SURVIVES or gain > 0 or (gain == 0 and other < best):
                best, best_shared, best_union = other, shared, union
        survivor[document] = best
        shared_with[document] = best_shared
        if best == SURVIVES and joins:
            _enter(document, numbers, heads)
    return len(begin)


def resolve(
    numbers: np.ndarray,
    bucket_count: int,
    sets: np.ndarray,
    begin: np.ndarray,
    size: np.ndarray,
    *,
    jaccard_parts: int,
    containment_parts: int,
    candidates_per_band: int,
    fixed: int = 0,
    joins: bool = True,
    touch_limit: int = NO_LIMIT,
    release: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (survivor int64[documents], shared int64[documents]); survivor is SURVIVES where the document stays.

    `numbers` int32[documents, bands] are bucket numbers below `bucket_count`, the documents best first; document i's
    shingle set is `sets[begin[i]:begin[i] + size[i]]`, ascending and distinct. `shared` counts the hashes in common
    with the survivor. The first `fixed` documents stay without a comparison; unless `joins`, only these are compared
    with. `release` is called whenever about `touch_limit` bytes of `sets` were read, to give mapped pages back.
    """
    heads = np.full((bucket_count, candidates_per_band), -1, np.int32)
    stamp = np.full(len(begin), -1, np.int32)
    survivor = np.full(len(begin), SURVIVES, np.int64)
    shared = np.zeros(len(begin), np.int64)
    thresholds = (np.int64(jaccard_parts), np.int64(containment_parts))
    document = 0
    while document < len(begin):
        document = _resolve(
            document, numbers, heads, stamp, sets, begin, size, fixed, joins, thresholds, touch_limit, survivor, shared
        )
        release()
    return survivor, shared
