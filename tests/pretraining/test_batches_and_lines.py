"""What the loop reads and what it writes: targets, resumable data, one line per step."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.pretraining.batches import PackedData
from pipeline_lib.pretraining.loss import IGNORED
from pipeline_lib.pretraining.machine import MatmulSpeed, choose_dtype
from pipeline_lib.pretraining.step_lines import StepLines, read_lines
from pipeline_lib.stage import StageFailure


@pytest.fixture(scope="module")
def cache(packed_run) -> PackedCache:
    return PackedCache(packed_run[1] / "03_packed")


def make_data(cache, validation_tokens=640, seed=5) -> PackedData:
    return PackedData(cache, 64, 8, seed, validation_tokens)


def test_a_target_is_the_next_token_of_the_same_document(cache):
    data = make_data(cache)
    seen = 0
    for (batch, _), _ in zip(data.training_batches(None), range(10), strict=False):
        for row in range(8):
            for place in range(64):
                target = int(batch.targets[row, place])
                documents = batch.documents[row]
                follows = place < 63 and documents[place] == documents[place + 1] != 0
                assert target == (int(batch.inputs[row, place + 1]) if follows else IGNORED)
                seen += follows
    assert seen > 4000


def test_reading_goes_on_where_a_state_ends_even_across_epochs(cache):
    data = make_data(cache)
    stream = data.training_batches(None)
    steps = cache.sequences(64) // 8 + 5  # into the second epoch
    batches = [next(stream) for _ in range(steps)]
    for place in (0, 3, steps - 3):
        state = json.loads(json.dumps(batches[place][1]))
        again = data.training_batches(state)
        for batch, expected_state in batches[place + 1 : place + 3]:
            found, found_state = next(again)
            assert found_state == expected_state
            assert (found.inputs == batch.inputs).all() and (found.documents == batch.documents).all()


def test_an_epoch_reads_every_sequence_once(cache):
    data = make_data(cache)
    total = cache.sequences(64)
    steps = -(-total // 8)
    rows = [
        tuple(row)
        for batch, _ in zip(data.training_batches(None), range(steps), strict=False)
        for row in batch[0].inputs.tolist()
    ]
    assert len(set(rows[:total])) == total
    assert data.epochs(steps) == pytest.approx(steps * 8 / total)


def test_epochs_are_those_that_were_read_whatever_the_batches_were(cache):
    state = None
    for sequences, steps in ((8, 3), (16, 2)):  # a batch that was changed between two starts
        stream = PackedData(cache, 64, sequences, 5, 640).training_batches(state)
        for _ in range(steps):
            _, state = next(stream)
    assert make_data(cache).epochs_read(state) == pytest.approx((3 * 8 + 2 * 16) / cache.sequences(64))


def test_validation_is_always_the_same_sequences_whatever_the_batch(cache):
    def tokens(sequences: int) -> np.ndarray:
        parts = [batch.inputs.numpy() for batch in make_data(cache).validation_batches(sequences)]
        return np.concatenate(parts)

    assert tokens(3).shape == (10, 64)
    assert (tokens(3) == tokens(3)).all() and (tokens(3) == tokens(7)).all()
    everything = list(make_data(cache, validation_tokens=10**9).validation_batches(4))
    assert sum(len(batch.inputs) for batch in everything) == cache.sequences(64, "val")


def make_lines(count: int) -> list[dict]:
    return [{"step": step, "loss": 1 / (step + 1)} for step in range(count)]


@given(count=st.integers(0, 12), last=st.integers(-1, 14), cut=st.integers(0, 60))
def test_a_torn_file_opens_exactly_at_the_step_of_the_checkpoint(tmp_path_factory, count, last, cut):
    path = tmp_path_factory.mktemp("lines") / "metrics.jsonl"
    book = StepLines(path, -1)
    for line in make_lines(count):
        book.append(line)
    book.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    survived = path.read_bytes().count(b"\n")
    if last >= survived:
        with pytest.raises(StageFailure, match="--force"):
            StepLines(path, last)
        return
    book = StepLines(path, last)
    assert book.replay == {line["step"]: line for line in make_lines(survived) if line["step"] > last}
    for line in make_lines(15)[last + 1 :]:
        book.append(line)
    book.close()
    assert read_lines(path) == make_lines(15)


def test_a_step_cannot_be_written_twice_or_skipped(tmp_path):
    book = StepLines(tmp_path / "m.jsonl", -1)
    book.append({"step": 0})
    for step in (0, 2):
        with pytest.raises(ValueError, match="expected the line of step 1"):
            book.append({"step": step})


def test_a_finished_file_with_a_torn_line_is_called_damaged(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 0}\n{"ste')
    with pytest.raises(StageFailure, match="damaged after line 1"):
        read_lines(path)


def test_the_format_is_the_faster_one_and_float32_on_a_draw():
    assert choose_dtype(MatmulSpeed(float32=237, bfloat16=48)) == "float32"
    assert choose_dtype(MatmulSpeed(float32=100, bfloat16=500)) == "bfloat16"
    assert choose_dtype(MatmulSpeed(float32=100, bfloat16=110)) == "float32"
