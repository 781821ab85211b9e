"""The reader: every token once per epoch, exact resume, ranks that share the work, and boundaries that are kept."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.packing.reading_order import ReadingOrder
from pipeline_lib.packing.sequence_arrays import IGNORED
from pipeline_lib.stage import UserError

ARRAYS = ("input_ids", "labels", "position_ids", "segment_ids")
PINNED_ORDER = [2, 7, 8, 0, 1, 5, 10, 6, 11, 9, 4, 3]
quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def cache(packed_run) -> PackedCache:
    return PackedCache(packed_run.packed, window_chunks=2)


def rows(batches) -> list[np.ndarray]:
    return [np.array(row) for batch in batches for row in batch["input_ids"]]


def assert_equal(one: list[dict], two: list[dict]) -> None:
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        assert left["state"] == right["state"]
        for name in (*ARRAYS, "sequences"):
            np.testing.assert_array_equal(left[name], right[name])


def test_an_epoch_visits_every_sequence_once(cache: PackedCache):
    for split in ("train", "val"):
        for context in cache.contexts:
            batches = list(cache.batches(context, 7, seed=3, split=split))
            visited = np.concatenate([batch["sequences"] for batch in batches])
            assert sorted(visited.tolist()) == list(range(cache.sequences(context, split)))


def test_the_sequences_hold_every_token_of_every_document_once(cache: PackedCache, documents):
    tokens = {document.id: document.tokens for split in ("train", "val") for document in cache.documents(split)}
    assert tokens.keys() == {document["id"] for document in documents}
    for context in cache.contexts:
        seen = {identity: np.full(len(own), -1) for identity, own in tokens.items()}
        for split in ("train", "val"):
            for number in range(cache.sequences(context, split)):
                sequence = cache.sequence(number, context, split)
                pieces = cache.pieces(number, context, split)
                assert len(pieces) == sequence["segment_ids"].max()
                for segment, piece in enumerate(pieces, 1):
                    places = np.flatnonzero(sequence["segment_ids"] == segment)
                    assert (places[0], len(places)) == (piece.first, piece.length)
                    own = seen[piece.id][piece.offset : piece.offset + len(places)]
                    assert (own == -1).all()
                    own[:] = sequence["input_ids"][places]
        for identity, own in seen.items():
            np.testing.assert_array_equal(own, tokens[identity])


def test_documents_come_back_as_text(cache: PackedCache, documents, packed_run):
    from pipeline_lib.packing.text_encoder import TextEncoder

    encoder = TextEncoder(packed_run.packed / "tokenizer")
    by_id = {document["id"]: document for document in documents}
    for split in ("train", "val"):
        for document in cache.documents(split):
            assert document.tokens[-1] == cache.separator_id
            assert encoder.decode(document.tokens[:-1]).decode() == by_id[document.id]["text"]
            assert document.source == by_id[document.id]["source"]
            assert cache.token_bytes[document.tokens].sum() == len(by_id[document.id]["text"].encode())


def test_labels_positions_and_segments_keep_documents_apart(cache: PackedCache):
    for batch in cache.batches(64, 16, arrays="numpy"):
        for ids, labels, positions, segments in zip(*(batch[name] for name in ARRAYS), strict=True):
            assert all(array.dtype == np.int64 for array in (ids, labels, positions, segments))
            starts = np.concatenate([[True], segments[1:] != segments[:-1]])
            expected = np.zeros(64, int)
            for place in range(1, 64):
                expected[place] = 0 if starts[place] else expected[place - 1] + 1
            np.testing.assert_array_equal(positions, expected)
            target = (segments > 0) & ~starts
            np.testing.assert_array_equal(labels, np.where(target, ids, IGNORED))
            assert (ids[segments == 0] == cache.pad_id).all()
            assert (np.diff(np.where(segments == 0, 10**6, segments)) >= 0).all()


@quick
@given(st.integers(0, 200), st.sampled_from(["train", "val"]), st.integers(1, 3), st.integers(1, 20))
def test_resume_at_any_position_continues_as_if_never_interrupted(cache: PackedCache, cut, split, epochs, size):
    whole = list(cache.batches(256, size, seed=5, split=split, epochs=epochs))
    assert sum(len(batch["input_ids"]) for batch in whole) == epochs * cache.sequences(256, split) > 0
    cut = min(cut, len(whole) - 1)
    state = json.loads(json.dumps(whole[cut]["state"]))
    again = PackedCache(cache.path, window_chunks=2)
    assert_equal(list(again.batches(256, size, seed=5, split=split, epochs=epochs, state=state)), whole[cut + 1 :])


@quick
@given(st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_ranks_together_read_what_one_rank_reads(cache: PackedCache, world, size, drop_last):
    alone = list(cache.batches(256, size * world, seed=1, epochs=2, drop_last=drop_last))
    ranks = [
        list(cache.batches(256, size, rank, world, seed=1, epochs=2, drop_last=drop_last)) for rank in range(world)
    ]
    assert {len(batches) for batches in ranks} == {len(alone)}
    for step, batch in enumerate(alone):
        parts = [batches[step] for batches in ranks]
        for name in ARRAYS:
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), batch[name])
        assert all(part["state"] == batch["state"] for part in parts)


def test_a_run_continues_on_another_number_of_ranks(cache: PackedCache):
    one = rows(cache.batches(256, 12, seed=9))
    assert len(one) == cache.sequences(256) > 12
    before = [next(cache.batches(256, 6, rank, 2, seed=9)) for rank in range(2)]
    after = [list(cache.batches(256, 4, rank, 3, seed=9, state=before[0]["state"])) for rank in range(3)]
    read = rows(before) + [row for step in zip(*after, strict=True) for row in rows(step)]
    np.testing.assert_array_equal(read, one)


def test_seeds_and_epochs_have_different_orders(cache: PackedCache):
    n = cache.sequences(256)
    visited = [batch["sequences"][0] for batch in cache.batches(256, 1, seed=1, epochs=2)]
    assert sorted(visited[:n]) == sorted(visited[n:]) == list(range(n)) and visited[:n] != visited[n:]
    assert visited[:n] != [batch["sequences"][0] for batch in cache.batches(256, 1, seed=2)]


def test_without_an_end_the_epochs_follow_without_a_seam(cache: PackedCache):
    endless = cache.batches(256, 5, seed=1, epochs=None)
    steps = 3 * cache.sequences(256) // 5
    assert all(len(next(endless)["input_ids"]) == 5 for _ in range(steps))


def test_the_order_is_pinned():
    order = ReadingOrder(np.array([0, 3, 7, 9, 12]), np.array([0, 4]), seed=42, window=2)
    assert list(order.iterate(order.start(), 1)) == PINNED_ORDER
    for start in range(25):
        position = order.advance(order.start(), start)
        assert list(order.iterate(position, 2)) == list(order.iterate(order.start(), 2))[start:]


def test_a_state_of_other_data_is_refused(cache: PackedCache):
    state = next(cache.batches(256, 4, seed=1))["state"]
    for arguments in ({"context": 64, "seed": 1}, {"context": 256, "seed": 2}):
        with pytest.raises(UserError, match="repeat or skip text"):
            next(cache.batches(batch_size=4, state=state, **arguments))
    with pytest.raises(UserError, match="'window'|window"):
        next(PackedCache(cache.path, window_chunks=3).batches(256, 4, seed=1, state=state))


def test_a_context_without_a_plan_is_an_error_that_says_how_to_get_one(cache: PackedCache):
    with pytest.raises(UserError, match=r"add 100 to pack\.contexts"):
        next(cache.batches(100, 1))
    with pytest.raises(IndexError):
        cache.sequence(cache.sequences(256), 256)


@pytest.mark.parametrize("name", ["chunks/chunk-00000.lz4", "plan-256.parquet", "index.json"])
def test_damage_on_disk_is_noticed_when_it_is_read(cache: PackedCache, tmp_path: Path, name: str):
    copy = tmp_path / "cache"
    shutil.copytree(cache.path, copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    if name == "index.json":
        content = content[:-20]
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        list(PackedCache(copy).batches(256, 8))


def test_reading_loads_no_heavy_library(cache: PackedCache, scripts: Path):
    """pandas alone takes a third of a second, before the first step of every start of 05."""
    code = (
        f"import sys; sys.path.insert(0, {str(scripts)!r})\n"
        "from pipeline_lib.packing.reader import PackedCache\n"
        f"cache = PackedCache({str(cache.path)!r})\n"
        "next(iter(cache.batches(64, 2, arrays='numpy')))\n"
        "print(sorted({'pandas', 'datasets', 'torch'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
