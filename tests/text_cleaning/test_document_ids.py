"""Ids are unique, whatever the memory; where they are not, the error names both documents."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.stage import UserError
from pipeline_lib.text_cleaning.document_ids import check_ids

ROOM = 1 << 28


def write(folder, shards):
    paths = [folder / f"part-{number:05d}.parquet" for number in range(len(shards))]
    for path, ids in zip(paths, shards, strict=True):
        pq.write_table(pa.table({"id": pa.array(ids, pa.string())}), path, row_group_size=3)
    return paths


def first_repeat(shards):
    """The oracle: (id, first place, second place) of the repeat that is met first."""
    seen = {}
    for shard, ids in enumerate(shards):
        for row, identity in enumerate(ids):
            if identity in seen:
                return identity, seen[identity], (shard, row)
            if identity is not None:
                seen[identity] = (shard, row)
    return None


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.one_of(st.none(), st.text("aé", max_size=3)), max_size=8), min_size=1, max_size=4))
def test_the_first_repeat_is_named_with_both_places(tmp_path_factory, shards):
    folder = tmp_path_factory.mktemp("ids")
    paths = write(folder, shards)
    repeat = first_repeat(shards)
    if repeat is None:
        check_ids(paths, folder / "scratch", ROOM)
        return
    _, _, (shard, row) = repeat
    with pytest.raises(UserError) as error:
        check_ids(paths, folder / "scratch", ROOM)
    assert f"{paths[shard]} row {row} (rows count from 0)" in str(error.value)
    assert f"the id {repeat[0]!r} stands in" in str(error.value)


def test_little_memory_gives_the_same_answer_and_leaves_nothing_behind(tmp_path):
    ids = [f"document-{number}" for number in range(20_000)]
    random.Random(1).shuffle(ids)
    paths = write(tmp_path, [ids[:9000], ids[9000:]])
    check_ids(paths, tmp_path / "scratch", 1)
    assert list((tmp_path / "scratch").iterdir()) == [], "it spilled, and cleared away"
    repeated = [*ids[9000:], ids[4321]]
    paths = write(tmp_path, [ids[:9000], repeated])
    with pytest.raises(
        UserError, match=rf"{ids[4321]}' stands in .*00000.parquet row 4321 and .*00001.parquet row 11000"
    ):
        check_ids(paths, tmp_path / "scratch", 1)


def test_ids_that_cannot_be_read_are_named(tmp_path):
    (path,) = write(tmp_path, [[f"d{n}" for n in range(500)]])
    raw = bytearray(path.read_bytes())
    raw[100:700] = bytes(600)
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"part-00000.parquet: ids from row \d+ cannot be read"):
        check_ids([path], tmp_path / "scratch", ROOM)
