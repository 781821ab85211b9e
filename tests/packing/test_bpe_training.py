"""The trainer learns exactly what Hugging Face's BpeTrainer learns from the same text."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from pipeline_lib.packing import bpe_training
from pipeline_lib.packing.pretoken_counts import CL100K_PATTERN
from pipeline_lib.packing.tokenizer_folder import SPECIAL_TOKENS
from pipeline_lib.packing.trained_tokenizer import tokenizer_json, train_tokenizer
from pipeline_lib.stage import UserError


def batch(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = [text.encode() for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in encoded])]).astype(np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def reference_model(texts: list[str], vocab_size: int, min_pair_count: int) -> dict:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CL100K_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_pair_count,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return json.loads(tokenizer.to_str())["model"]


@pytest.mark.slow
def test_real_text_gives_the_vocabulary_and_merges_of_the_peer(documents):
    texts = [document["text"] for document in documents]
    ours = json.loads(tokenizer_json(train_tokenizer([batch(texts)], 3000, 2)))["model"]
    theirs = reference_model(texts, 3000, 2)
    assert ours["vocab"] == theirs["vocab"]
    assert ours["merges"] == theirs["merges"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("aab é", max_size=30), min_size=1, max_size=8), st.integers(1, 3), st.data())
def test_repetitive_text_gives_the_vocabulary_and_merges_of_the_peer(texts, min_pair_count, data):
    theirs = reference_model(texts, 1000, min_pair_count)
    learned = len(theirs["vocab"])
    size = data.draw(st.integers(260, learned))
    theirs = reference_model(texts, size, min_pair_count)
    ours = json.loads(tokenizer_json(train_tokenizer([batch(texts)], size, min_pair_count)))["model"]
    assert (ours["vocab"], ours["merges"]) == (theirs["vocab"], theirs["merges"])


def test_a_small_heap_and_a_pair_table_that_is_rebuilt_often_learn_the_same(documents, monkeypatch):
    texts = [document["text"] for document in documents[:10]]
    whole = train_tokenizer([batch(texts)], 1500, 1)
    monkeypatch.setattr(bpe_training, "_HEAP_PAIRS", 7)
    monkeypatch.setattr(bpe_training, "_FIRST_PAIR_SLOTS", 1 << 13)
    monkeypatch.setattr(bpe_training, "_FIRST_TOKENS", 257)
    assert train_tokenizer([batch(texts)], 1500, 1) == whole


def test_batches_do_not_matter(documents):
    texts = [document["text"] for document in documents]
    whole = train_tokenizer([batch(texts)], 1500, 2)
    assert train_tokenizer([batch(texts[50:]), batch([]), batch(texts[:50])], 1500, 2) == whole


def test_vocabulary_larger_than_the_text_supports_is_an_error_that_names_the_largest_possible_one():
    with pytest.raises(UserError, match=r"vocab_size: 5000 .* supports 262 .* at most 262"):
        train_tokenizer([batch(["abc abc", "abc"])], 5000, 2)
    train_tokenizer([batch(["abc abc", "abc"])], 262, 2)
