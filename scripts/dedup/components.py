"""Candidates that share a band bucket, directly or through others, belong together; the rest need not know of them.

The components of this graph are *not* the clusters: they only say which documents can influence each other's fate, so
that components can be resolved by different workers, at different times, within a memory limit, with the same result.
How: union-find over whole buckets, path halving, the smaller number as the root (the result depends on no order).
Cost: 8 bytes per candidate; a component larger than the wished size makes a group of its own.
"""

import numpy as np

from pipeline_lib.compiled import kernel

NO_BUCKET = -1


@kernel
def _root(parent, node):
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@kernel
def join_neighbours(parent, members, buckets):
    """Unite members that stand side by side in one bucket; `members` are sorted by bucket."""
    for at in range(1, len(members)):
        if buckets[at] == buckets[at - 1]:
            left, right = _root(parent, members[at - 1]), _root(parent, members[at])
            parent[max(left, right)] = min(left, right)


@kernel
def _flatten(parent):
    for node in range(len(parent)):
        parent[node] = _root(parent, node)


def groups_of(parent: np.ndarray, wished_size: int) -> np.ndarray:
    """Return int32[nodes]: a group per node such that components stay whole and groups have about `wished_size`."""
    _flatten(parent)
    sizes = np.bincount(parent, minlength=len(parent))
    before = np.cumsum(sizes) - sizes  # nodes in components with a smaller root
    return (before[parent] // wished_size).astype(np.int32)


def bucket_matrix(rows: np.ndarray, bands: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, int]:
    """Return (int32[rows, bands] bucket numbers, number of buckets) for ascending `rows`.

    `bands` holds per band (row, bucket) of the members of all buckets; members that are not among `rows` are ignored.
    Numbers are unique over all bands; a row that is in no bucket of a band has NO_BUCKET there.
    """
    numbers = np.full((len(rows), len(bands)), NO_BUCKET, np.int32)
    used = 0
    for band, (members, buckets) in enumerate(bands):
        place = np.minimum(np.searchsorted(rows, members), max(len(rows) - 1, 0))
        mine = rows[place] == members if len(rows) else np.zeros(len(members), np.bool_)
        distinct, number = np.unique(buckets[mine], return_inverse=True)
        numbers[place[mine], band] = used + number
        used += len(distinct)
    return numbers, used
