"""Answers behind one prompt: the same numbers as alone, and rows that never outgrow the model."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.evaluation.shared_prefix import as_tensors, separate_rows, shared_rows

tokens = st.integers(0, 9)
windows = st.lists(
    st.tuples(st.sampled_from([(1,), (1, 2), (1, 2, 3, 4), (5, 6, 7)]), st.lists(tokens, min_size=1, max_size=9)),
    min_size=1,
    max_size=30,
).map(lambda pairs: [(number, list(context), answer) for number, (context, answer) in enumerate(pairs)])


@given(windows, st.integers(12, 40))
def test_every_answer_is_read_once_after_exactly_its_own_context(asked, longest):
    for rows in (shared_rows(asked, longest), separate_rows(asked)):
        check(asked, rows, longest)


def check(asked, rows, longest):
    read = {}
    for row in rows:
        assert len(row.tokens) == len(row.segments) == len(row.positions) <= longest
        mask = as_tensors([row]).get("attention_mask")
        for request, column, token in row.reads:
            visible = [
                earlier
                for earlier in range(len(row.tokens))
                if (earlier <= column if mask is None else mask[0, 0, column, earlier])
            ]
            seen = [row.tokens[earlier] for earlier in visible]
            assert [row.positions[earlier] for earlier in visible] == list(range(len(visible)))
            read.setdefault(request, []).append((seen, token))
    for request, context, answer in asked:
        assert read[request] == [(context + answer[:place], token) for place, token in enumerate(answer)]


def test_four_choices_make_one_row_and_documents_after_a_lone_start_token_do_not():
    choices = [(number, [1] * 20, [2] * 9) for number in range(4)]
    (row,) = shared_rows(choices, 100)
    assert row.is_shared and len(row.tokens) == 20 + 4 * 8
    documents = [(number, [1], [2] * 50) for number in range(4)]
    assert [row.is_shared for row in shared_rows(documents, 500)] == [False] * 4
    first_tokens = [(number, [1], [number]) for number in range(4)]
    (row,) = shared_rows(first_tokens, 500)
    assert not row.is_shared and row.tokens == [1] and len(row.reads) == 4


def test_no_token_of_a_padded_batch_attends_to_nothing():
    rows = shared_rows([(0, [1, 2], [3, 4]), (1, [1, 2], [5, 6, 7]), (2, [1], [2, 3])], 20)
    mask = as_tensors(rows)["attention_mask"]
    assert mask.any(dim=-1).all()


def test_shared_and_separate_scoring_give_the_same_numbers(evaluated):
    rng = random.Random(0)
    size = len(evaluated.tokenizer)
    pairs = []
    for _ in range(15):
        context = [rng.randrange(size) for _ in range(rng.randint(1, 60))]
        pairs += [(context, [rng.randrange(size) for _ in range(rng.randint(1, 25))]) for _ in range(rng.randint(1, 5))]
    pairs.append(pairs[0])
    together = evaluated.scorer.score(pairs)
    for likelihood, pair in zip(together, pairs, strict=True):
        (alone,) = evaluated.scorer.score([pair])
        assert likelihood.log_likelihood == pytest.approx(alone.log_likelihood, abs=1e-3)
        assert likelihood.is_greedy == alone.is_greedy
