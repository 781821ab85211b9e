"""The exact comparison of two shingle sets: what turns a candidate into a duplicate, or acquits it.

Half of all candidates of a MinHash search are not duplicates (templates, boilerplate, chance), so every removal is
decided here, on whole numbers: shared / union >= threshold is tested as shared * 10^6 >= threshold_parts * union.
Cost: one pass over two ascending arrays, without a data-dependent branch; none when the sizes alone rule it out.
"""

import numpy as np

from pipeline_lib.compiled import kernel

from .parameters import PARTS


@kernel
def shared_shingles(left, right):
    """Return how many hashes two ascending, distinct uint64 arrays have in common."""
    i, j, shared = 0, 0, 0
    while i < len(left) and j < len(right):
        x, y = left[i], right[j]
        shared += x == y
        i += x <= y
        j += y <= x
    return shared


@kernel(inline="always")
def sizes_allow(size, other, jaccard_parts):
    """Tell whether sets of these sizes can reach the similarity at all: J <= smaller / larger."""
    return min(size, other) * PARTS >= jaccard_parts * max(size, other)


@kernel(inline="always")
def is_duplicate(shared, size, other, jaccard_parts, containment_parts):
    """Tell whether a set of `size` hashes, `shared` of them in the `other`, reaches both thresholds."""
    union = size + other - shared
    return shared * PARTS >= jaccard_parts * union and shared * PARTS >= containment_parts * size


def similarity(left: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Return (Jaccard similarity, fraction of `left` that is in `right`) of two ascending, distinct, non-empty sets."""
    shared = int(shared_shingles(left, right))
    return shared / (len(left) + len(right) - shared), shared / len(left)
