"""Sorting with and without spilling, repeated keys, and buckets and components against their plain definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup.components import NO_BUCKET, bucket_matrix, groups_of, join_neighbours
from dedup.external_sort import BYTES_PER_RECORD, ExternalSorter, repeated
from dedup.job import Table, whole_groups, with_known

small_keys = st.lists(st.lists(st.integers(0, 12), max_size=40), max_size=6)


def sorter_of(folder, capacity: int, monkeypatch, batches: list[list[int]]) -> ExternalSorter:
    monkeypatch.setattr("dedup.external_sort.LEAST_RECORDS", 1)
    sorter = ExternalSorter(folder, "keys", capacity * BYTES_PER_RECORD)
    row = 0
    for batch in batches:
        sorter.add(np.array(batch, np.uint64), np.arange(row, row + len(batch)))
        row += len(batch)
    return sorter


@settings(max_examples=60, deadline=None)
@given(batches=small_keys, capacity=st.sampled_from([1, 2, 7, 1000]))
def test_every_record_comes_back_once_by_ascending_key(tmp_path_factory, batches, capacity):
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        blocks = list(sorter_of(folder, capacity, monkeypatch, batches).blocks())
    keys, rows = (np.concatenate(part) for part in zip(*blocks, strict=True)) if blocks else ([], [])
    flat = [key for batch in batches for key in batch]
    assert list(keys) == sorted(flat)
    assert sorted(rows) == list(range(len(flat)))
    assert [flat[row] for row in rows] == list(keys)
    assert list(folder.iterdir()) == []


@settings(max_examples=100, deadline=None)
@given(batches=small_keys, capacity=st.sampled_from([1, 3, 1000]), least=st.integers(1, 9))
def test_repeated_keys_are_the_groups_of_two_and_more(tmp_path_factory, batches, capacity, least):
    with pytest.MonkeyPatch.context() as monkeypatch:
        sorter = sorter_of(tmp_path_factory.mktemp("runs"), capacity, monkeypatch, batches)
        parts = list(whole_groups(repeated(sorter.blocks()), least))
    flat = [key for batch in batches for key in batch]
    found: dict[int, set[int]] = {}
    for rows, groups in parts:
        assert not set(groups.tolist()) & set(found)
        for row, group in zip(rows.tolist(), groups.tolist(), strict=True):
            found.setdefault(group, set()).add(row)
    expected = [{row for row, key in enumerate(flat) if key == wanted} for wanted in sorted(set(flat))]
    assert [found[group] for group in sorted(found)] == [rows for rows in expected if len(rows) > 1]


def test_known_rows_join_their_keys_up_to_the_limit():
    blocks = [(np.array([3, 5], np.uint64), np.array([100, 101])), (np.array([5, 9], np.uint64), np.array([102, 103]))]
    table = Table(np.array([1, 5, 5, 5, 9], np.uint64), np.array([-10, -9, -8, -7, -6]), 10)
    parts = [
        dict(zip(*map(np.ndarray.tolist, block[::-1]), strict=True)) for block in with_known(iter(blocks), [table], 2)
    ]
    assert parts == [{100: 3, 101: 5, 1: 5, 2: 5}, {102: 5, 1: 5, 2: 5, 103: 9, 4: 9}]


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
