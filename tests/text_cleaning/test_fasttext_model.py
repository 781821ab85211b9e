"""The compiled prediction is the fasttext package's; a model file that is not what it should be is one clear line."""

import platform

import fasttext
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.stage import StageFailure
from pipeline_lib.text_cleaning.fasttext_model import huffman_tree, load_model, reciprocal_of
from pipeline_lib.text_cleaning.fasttext_prediction import bucket_of, predict_line, row_room
from pipeline_lib.text_cleaning.language import model_file

CANDIDATES = 8


@pytest.fixture(scope="module")
def model():
    return load_model(model_file())


@pytest.fixture(scope="module")
def package():
    return fasttext.load_model(str(model_file()))


def predicted(model, line):
    """{label: probability} of the likeliest labels."""
    raw = np.frombuffer(line.encode(), np.uint8)
    tables = model.tables
    word, rows = np.empty(raw.size + 2, np.uint8), np.empty(row_room(raw.size, tables.buckets.max_ngram), np.int32)
    hidden = np.empty(tables.vectors.shape[1], np.float32)
    labels, probabilities = np.empty(CANDIDATES, np.int32), np.empty(CANDIDATES, np.float32)
    stack, scores = np.empty(2 * len(model.labels), np.int32), np.empty(2 * len(model.labels), np.float32)
    number = predict_line(raw, 0, raw.size, tables, word, rows, hidden, labels, probabilities, stack, scores)
    names = [model.labels[label] for label in labels[:number]]
    return dict(zip(names, probabilities[:number].tolist(), strict=True))


def by_package(package, line):
    labels, probabilities = package.predict(line.replace("\n", " "), k=CANDIDATES)
    return {label.removeprefix("__label__"): value for label, value in zip(labels, probabilities, strict=True)}


def assert_same(found, expected):
    assert max(found, key=found.get) == max(expected, key=expected.get)
    assert found == pytest.approx(expected, abs=1e-5)
    if platform.machine() == "x86_64":  # elsewhere compilers join multiplication and addition
        assert found == expected


pieces = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["the", "und", "</s>", "__label__en", "__label__", "<", ">", "a", "\0", "\n", " ", "\t\v\f\r", "\u00a0",
         "😀👩‍👩‍👧", "né", "\u0301", "мир", "世界", "ΑΣ", "x" * 300]
    ),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces, max_size=12), st.sampled_from(["", " "]))
def test_labels_and_probabilities_of_any_line_are_the_packages(model, package, parts, joint):
    line = joint.join(parts)
    assert_same(predicted(model, line), by_package(package, line))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_read_as_the_stage_reads_them_give_the_packages_labels(model, package, raw):
    line = raw.decode("utf-8", "replace")
    assert_same(predicted(model, line), by_package(package, line))


def test_every_word_of_the_dictionary_is_found(model, package):
    words = model.tables.words.data.tobytes()
    offsets = model.tables.words.offsets.tolist()
    for start, end in zip(offsets[:-1:50], offsets[1::50], strict=False):
        line = words[start:end].decode()
        assert_same(predicted(model, line), by_package(package, line))


def test_the_model_is_what_its_file_says(model):
    assert len(model.labels) == 176 and {"en", "de", "zh"} < set(model.labels)
    words = model.tables.words.offsets.size - 1
    assert model.tables.vectors.shape == (words + (model.tables.buckets.rows >= 0).sum(), 16)
    assert np.isfinite(model.tables.vectors).all()


@settings(deadline=None)
@given(st.integers(1, 2**31 - 1), st.integers(0, 2**32 - 1), st.sampled_from([-1, 0, 1]))
def test_the_bucket_is_the_hash_modulo_their_number(number, value, beside):
    reciprocal, shift = reciprocal_of(number)
    for hashed in (value, max(0, min(2**32 - 1, value // number * number + beside)), 2**32 - 1):
        assert bucket_of(np.uint32(hashed), reciprocal, shift, np.uint64(number)) == hashed % number


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=60))
def test_the_tree_has_the_least_weighted_depth(counts):
    import heapq

    counts = sorted(counts, reverse=True)
    left, right = huffman_tree(counts)
    weights = list(counts)
    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        weights.append(weights[a] + weights[b])
    assert sorted([*left.tolist(), *right.tolist()]) == list(range(2 * len(counts) - 2))
    heap, best = list(counts), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        best += joined
        heapq.heappush(heap, joined)
    assert sum(weights[len(counts) :]) == best


def refusal(tmp_path, raw):
    path = tmp_path / "model.ftz"
    path.write_bytes(raw)
    with pytest.raises(StageFailure) as error:
        load_model(path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (0, 1, "magic number 1, not 793712314"),
        (4, 13, "file version 13, not 12"),
        (8, 17, "17"),  # dimension
        (28, 2, "word n-grams up to 2, not 1"),
        (32, 3, "loss 3, not 1"),
        (36, 1, "kind of model 1, not 3"),
        (40, 100, "buckets or rows that it does not have"),
        (44, 0, "n-grams of 0 to 4"),
        (64, 7, "7 entries"),
    ],
)
def test_a_model_of_another_kind_is_refused_in_one_line(tmp_path, place, value, complaint):
    raw = bytearray(model_file().read_bytes())
    raw[place : place + 4] = value.to_bytes(4, "little")
    message = refusal(tmp_path, bytes(raw))
    assert complaint in message and "set clean.language.engine to fasttext" in message


@pytest.mark.parametrize("count", [10**15, -1])
def test_counts_that_make_no_tree_are_refused(tmp_path, count):
    raw = bytearray(model_file().read_bytes())
    place = raw.index(b"__label__en\0") + len(b"__label__en\0")
    raw[place : place + 8] = count.to_bytes(8, "little", signed=True)
    assert "has label counts that are" in refusal(tmp_path, bytes(raw))


def test_a_model_cut_anywhere_or_with_more_behind_is_refused(tmp_path):
    raw = model_file().read_bytes()
    for size in [0, 3, 7, 40, 63, 80, 93, *range(100, len(raw), len(raw) // 40), len(raw) - 1]:
        assert "is cut short or damaged" in refusal(tmp_path, raw[:size])
    assert "has 1 bytes too many" in refusal(tmp_path, raw + b"\0")


def test_a_missing_model_is_one_line(tmp_path):
    with pytest.raises(StageFailure, match="cannot be read: No such file"):
        load_model(tmp_path / "none.ftz")
