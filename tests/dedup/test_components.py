"""Buckets and components against their plain definitions."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup.components import NO_BUCKET, bucket_matrix, groups_of, join_neighbours


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sets(st.integers(0, 20), min_size=2, max_size=6), max_size=8), st.integers(1, 30))
def test_components_stay_whole_and_buckets_keep_their_members(buckets, wished):
    members = np.array([row for bucket in buckets for row in sorted(bucket)], np.int64)
    numbers = np.array([n for n, bucket in enumerate(buckets) for _ in bucket], np.int64)
    rows = np.unique(members)
    parent = np.arange(len(rows))
    join_neighbours(parent, np.searchsorted(rows, members), numbers)
    groups = groups_of(parent, wished)
    place = dict(zip(rows.tolist(), groups.tolist(), strict=True))
    for bucket in buckets:
        assert len({place[row] for row in bucket}) == 1
    assert all(np.bincount(groups)[:-1] <= max(wished, len(rows)))
    matrix, count = bucket_matrix(rows[::2], [(members, numbers), (members[:0], numbers[:0])])
    assert matrix[:, 1].tolist() == [NO_BUCKET] * len(rows[::2])
    assert set(matrix.ravel().tolist()) - {NO_BUCKET} <= set(range(count))
