"""Packing: every token exactly once, textbook best-fit decreasing, cuts only where the padding limit asks for them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.packing.best_fit import pack
from pipeline_lib.packing.packing_plan import check_complete
from pipeline_lib.packing.padding_limit import most_sequences
from pipeline_lib.stage import StageFailure

lengths_and_context = st.tuples(st.lists(st.integers(1, 700), max_size=120), st.integers(1, 300))


def textbook_sequences(lengths: list[int], context: int) -> int:
    """Count the sequences of best-fit decreasing, by trying every open sequence for every piece."""
    full = sum(length // context for length in lengths)
    rooms: list[int] = []
    for piece in sorted((length % context for length in lengths if length % context), reverse=True):
        fitting = [number for number, room in enumerate(rooms) if room >= piece]
        if fitting:
            rooms[min(fitting, key=lambda number: rooms[number])] -= piece
        else:
            rooms.append(context - piece)
    return full + len(rooms)


@settings(max_examples=300, deadline=None)
@given(lengths_and_context)
def test_every_token_exactly_once_and_no_sequence_too_long(given_):
    lengths, context = given_
    packing = pack(np.array(lengths, np.int64), context)
    seen = [np.zeros(length, int) for length in lengths]
    filled = np.zeros(packing.sequences, int)
    for sequence, document, start, length in zip(
        packing.sequence, packing.document, packing.start, packing.length, strict=True
    ):
        seen[document][start : start + length] += 1
        filled[sequence] += length
    assert all((document == 1).all() for document in seen)
    assert (filled <= context).all() and (filled > 0).all()
    assert (np.diff(packing.sequence) >= 0).all()


@settings(max_examples=300, deadline=None)
@given(lengths_and_context)
def test_textbook_best_fit_unless_its_padding_passes_the_limit(given_):
    lengths, context = given_
    packing = pack(np.array(lengths, np.int64), context)
    textbook = textbook_sequences(lengths, context)
    assert packing.sequences == min(textbook, most_sequences(sum(lengths), context))
    pieces = np.bincount(packing.document, minlength=len(lengths))
    cuts = pieces - [-(-length // context) for length in lengths]
    assert cuts.min(initial=0) >= 0 and cuts.sum() == packing.cuts
    if packing.sequences == textbook:
        assert packing.cuts == 0
    else:
        assert packing.cuts <= packing.sequences  # each cut fills a sequence to the brim
    check_complete(packing, np.array(lengths, np.int64), context)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=3000), st.integers(2, 60))
def test_padding_is_at_most_a_thousandth_or_less_than_one_sequence(lengths, context):
    packing = pack(np.array(lengths, np.int64), context)
    padding = packing.sequences * context - sum(lengths)
    assert padding * 1000 <= packing.sequences * context or padding < context


def test_documents_that_never_fit_together_are_cut_and_counted():
    lengths = np.full(10_000, 300)  # two of them do not fit into 512: whole, 41 % of the plan would be padding
    packing = pack(lengths, 512)
    assert 1 - lengths.sum() / (packing.sequences * 512) <= 0.001
    assert packing.cuts == len(packing.document) - len(lengths) > 0
    check_complete(packing, lengths, 512)


def test_the_emptiest_sequence_is_taken_apart_and_fills_the_largest_room_first():
    lengths = np.array([10] * 100 + [9, 8, 7, 6])  # the six go into the rooms 3, 2 and 1 of the others
    packing = pack(lengths, 10)
    assert packing.sequences == 103 and packing.cuts == 2
    cut = packing.document == 103
    assert sorted(zip(packing.start[cut].tolist(), packing.length[cut].tolist(), strict=True)) == [
        (0, 3),
        (3, 2),
        (5, 1),
    ]


def test_long_contexts_use_both_levels_of_the_bit_map():
    lengths = np.random.default_rng(0).integers(1, 30_000, 400)
    for context in (4095, 4096, 4097, 20_000, 131_072):
        packing = pack(lengths, context)
        check_complete(packing, lengths, context)
        textbook = textbook_sequences(lengths.tolist(), context)
        assert packing.sequences == min(textbook, most_sequences(int(lengths.sum()), context))


def test_documents_like_real_ones_leave_little_padding():
    lengths = np.random.default_rng(1).lognormal(6.3, 1.1, 20_000).astype(np.int64) + 1
    for context in (512, 2048):
        positions = pack(lengths, context).sequences * context
        assert 1 - lengths.sum() / positions < 0.001


def test_the_same_documents_give_the_same_plan():
    lengths = np.random.default_rng(2).integers(1, 900, 5000)
    one, two = pack(lengths, 512), pack(lengths.copy(), 512)
    for name in ("sequence", "document", "start", "length"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize("fault", ["lost", "twice", "shifted", "overfull", "cuts not counted"])
def test_a_wrong_plan_is_refused(fault: str):
    lengths = np.array([100, 300, 20, 500])
    packing = pack(lengths, 128)
    check_complete(packing, lengths, 128)
    if fault == "lost":
        packing.length[-1] -= 1
    elif fault == "twice":
        packing.document[packing.document == 2] = 0
    elif fault == "cuts not counted":
        packing.cuts += 1
    elif fault == "shifted":
        packing.start[packing.start > 0] += 1
    else:
        packing.sequence[:] = 0
    with pytest.raises(StageFailure, match="exactly once"):
        check_complete(packing, lengths, 128)
