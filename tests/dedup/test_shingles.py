"""Tokens and shingles: the kernels against plain Python on any text, script by script."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup.normalise import batch_of, normalise
from dedup.shingles import shingle_hashes, shingle_sets

letters = st.one_of(
    st.sampled_from("abzAZ09_éß½²Ωжя한각中文かがガｶﾞไทยពមွာ"),
    st.sampled_from(" \n\t.,;:-'\"()[]{}—…。、·\u0301\u3099\u200d😀"),
)
texts = st.text(letters, max_size=80)


def by_document(hashes: np.ndarray, starts: np.ndarray) -> list[list[int]]:
    return [hashes[a:b].tolist() for a, b in zip(starts, starts[1:], strict=False)]


@settings(max_examples=300, deadline=None)
@given(st.lists(texts, max_size=4), st.integers(1, 7))
def test_word_shingles_equal_the_plain_python_definition(oracle, documents, ngram):
    found = by_document(*shingle_hashes(normalise(batch_of(documents)), "word", ngram))
    tokens = [oracle.word_tokens(oracle.normal_form(document)) for document in documents]
    assert found == [oracle.shingle_hashes(words, ngram) for words in tokens]


@settings(max_examples=100, deadline=None)
@given(st.lists(texts, max_size=4), st.integers(1, 7))
def test_character_shingles_equal_the_plain_python_definition(oracle, documents, ngram):
    normal = [oracle.normal_form(document) for document in documents]
    found = by_document(*shingle_hashes(normalise(batch_of(documents)), "character", ngram))
    assert found == [oracle.shingle_hashes(list(text), ngram) for text in normal]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab "), max_size=60), max_size=4))
def test_shingle_sets_are_ascending_and_distinct(documents):
    batch = normalise(batch_of(documents))
    listed = by_document(*shingle_hashes(batch, "word", 2))
    assert by_document(*shingle_sets(batch, "word", 2)) == [sorted(set(hashes)) for hashes in listed]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("don't snake_case x86-64", ["don", "t", "snake_case", "x86", "64"]),
        ("今天是星期日", list("今天是星期日")),
        ("第3回", ["第", "3", "回"]),
        ("Python入門", ["python", "入", "門"]),
        ("naïve café", ["nai\u0308ve", "cafe\u0301"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("がぎ", ["か\u3099", "き\u3099"]),
        ("한국 사람", ["한국", "사람"]),
        ("...!?", []),
    ],
)
def test_tokens_of_a_script(oracle, text, tokens):
    expected = oracle.shingle_hashes([oracle.normal_form(token) for token in tokens], 1)
    assert by_document(*shingle_hashes(normalise(batch_of([text])), "word", 1)) == [expected]


def test_word_order_matters():
    batch = normalise(batch_of(["a b c d e", "e d c b a", "b a c d e"]))
    hashes, _ = shingle_hashes(batch, "word", 5)
    assert len(set(hashes.tolist())) == 3


def test_single_character_words_do_not_collide(oracle):
    digits = np.random.default_rng(5).integers(0, 10, 20_000)
    words = [str(digit) for digit in digits]
    hashes, _ = shingle_hashes(normalise(batch_of([" ".join(words)])), "word", 5)
    assert len(set(hashes.tolist())) == len(oracle.shingle_set(" ".join(words)))


@pytest.mark.parametrize("alphabet", ["ab _9 ", "ab, \n\t  Z", "abcdefgh é", "a中 が\u0301b", "a" * 30 + " "])
def test_long_documents_equal_the_plain_python_definition_across_blocks(oracle, alphabet):
    rng = np.random.default_rng(len(alphabet))
    documents = ["".join(rng.choice(list(alphabet), size)) for size in (63, 64, 65, 127, 128, 129, 1000, 0, 333)]
    batch = normalise(batch_of(documents))
    normal = [oracle.normal_form(document) for document in documents]
    assert [batch.data[a:b].tobytes().decode() for a, b in zip(batch.starts, batch.starts[1:], strict=False)] == normal
    expected = [oracle.shingle_hashes(oracle.word_tokens(text), 5) for text in normal]
    assert by_document(*shingle_hashes(batch, "word", 5)) == expected
