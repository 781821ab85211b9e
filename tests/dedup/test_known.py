"""Rows that an index already keeps stand beside the new rows that share their key."""

import numpy as np

from dedup.known import Table, with_known


def test_known_rows_join_their_keys_up_to_the_limit():
    blocks = [(np.array([3, 5], np.uint64), np.array([100, 101])), (np.array([5, 9], np.uint64), np.array([102, 103]))]
    table = Table(np.array([1, 5, 5, 5, 9], np.uint64), np.array([-10, -9, -8, -7, -6]), 10)
    parts = [
        dict(zip(*map(np.ndarray.tolist, block[::-1]), strict=True)) for block in with_known(iter(blocks), [table], 2)
    ]
    assert parts == [{100: 3, 101: 5, 1: 5, 2: 5}, {102: 5, 1: 5, 2: 5, 103: 9, 4: 9}]
