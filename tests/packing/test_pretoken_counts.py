"""The compiled split rule is the rule that Hugging Face tokenizers applies under the same pattern."""

from collections import Counter
from functools import cache

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from pipeline_lib.packing.pretoken_counts import (
    CL100K_PATTERN,
    PretokenCounter,
    code_point_classes,
    split_document,
)

TRICKY = [*"aZé日ſßǅ1٣½_-'(\"\u00a0\u2028\u3000 \t\n\r\x0b\x85👩\u200d\u0301\x00\x1c", "'ll", "'S", "  ", "\r\n", "123"]
text = st.lists(st.sampled_from(TRICKY)).map("".join)


@cache
def reference() -> pre_tokenizers.Split:
    return pre_tokenizers.Split(Regex(CL100K_PATTERN), "isolated")


def pieces(document: str) -> list[str]:
    data = np.frombuffer(document.encode(), np.uint8)
    ends = [0, *split_document(data, code_point_classes()).tolist()]
    return [data[start:stop].tobytes().decode() for start, stop in zip(ends, ends[1:], strict=False)]


def count(documents: list[str]) -> dict[str, int]:
    encoded = [document.encode() for document in documents]
    counter = PretokenCounter()
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in encoded])]).astype(np.int64)
    counter.add(np.frombuffer(b"".join(encoded), np.uint8), offsets)
    counted = counter.counts()
    spelled = [
        counted.arena[start:stop].tobytes().decode()
        for start, stop in zip(counted.starts, counted.starts[1:], strict=False)
    ]
    return dict(zip(spelled, counted.counts.tolist(), strict=True))


@settings(max_examples=400, deadline=None)
@example("'ſa 'ſ 'S")
@given(text)
def test_splits_like_the_pattern(document: str):
    assert pieces(document) == [piece for piece, _ in reference().pre_tokenize_str(document)]


def test_splits_real_text_like_the_pattern(documents):
    for document in documents:
        assert pieces(document["text"]) == [piece for piece, _ in reference().pre_tokenize_str(document["text"])]


@settings(max_examples=50, deadline=None)
@given(st.lists(text, max_size=8))
def test_counts_every_piece_of_every_document(texts: list[str]):
    assert count(texts) == Counter(piece for document in texts for piece in pieces(document))


def test_tables_grow_without_losing_a_count():
    words = [f"w{'abcdefghij'[number % 10]}{'xyz' * (number % 7)}{chr(0x4E00 + number)}" for number in range(20_000)]
    many = [" ".join(words[start : start + 500]) for start in range(0, 40_000, 500)]
    long_piece = "q" * 3_000_000
    assert count([*many, long_piece, *many]) == Counter(
        piece for document in [*many, long_piece, *many] for piece in pieces(document)
    )
