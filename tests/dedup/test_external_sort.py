"""Sorting with and without spilling, and repeated keys, against their plain definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup.equal_texts import whole_groups
from dedup.external_sort import BYTES_PER_RECORD, ExternalSorter, repeated

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
