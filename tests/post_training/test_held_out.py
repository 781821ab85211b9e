"""The validation split: whole groups, within the limit, the same whatever the order."""

import random

from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.post_training.held_out import expected_held_out, held_out_bonds

bond = st.integers(0, 60).map(lambda n: f"bond{n:02d}")
record_lists = st.lists(st.lists(bond, min_size=1, max_size=3), max_size=80)


def split(records, held):
    return [r for r in records if r[0] in held], [r for r in records if r[0] not in held]


@given(record_lists, st.floats(0, 0.9), st.integers(0, 40), st.integers(0, 3))
def test_no_bond_is_on_both_sides_and_the_limit_is_kept(records, fraction, limit, seed):
    held = held_out_bonds(records, fraction, limit, seed)
    val, train = split(records, held)
    assert len(val) <= min(limit, len(records) // 2)
    assert not {b for r in val for b in r} & {b for r in train for b in r}


@given(record_lists, st.floats(0.01, 0.9), st.randoms(use_true_random=False))
def test_the_order_of_records_and_of_bonds_does_not_matter(records, fraction, shuffle):
    other = [r[:1] + shuffle.sample(r[1:], len(r) - 1) for r in records]
    shuffle.shuffle(other)
    assert held_out_bonds(records, fraction, 40, 1) == held_out_bonds(other, fraction, 40, 1)


def test_the_share_is_the_fraction_and_a_record_without_bonds_to_others_never_moves():
    records = [[f"{random.Random(n).random():.9f}"] for n in range(20_000)]
    held = held_out_bonds(records, 0.05, 10**6, 0)
    assert 0.045 < len(held) / len(records) < 0.055
    assert held_out_bonds(records[:10_000], 0.05, 10**6, 0) == {r[0] for r in records[:10_000]} & held


def test_a_small_set_still_holds_something_out_but_never_most_of_it():
    assert len(held_out_bonds([["a"], ["b"], ["c"]], 1e-9, 10, 0)) == 1
    assert held_out_bonds([["a"], ["a"], ["a"]], 0.5, 10, 0) == set()
    assert held_out_bonds([["a"], ["b"]], 0.0, 10, 0) == set()


@given(st.integers(0, 60), st.floats(0, 0.9), st.integers(0, 40))
def test_records_without_bonds_to_others_are_expected_to_be_held_out_exactly_where_some_are(count, fraction, limit):
    held = held_out_bonds([[str(number)] for number in range(count)], fraction, limit, 0)
    expected = expected_held_out(count, fraction, limit)
    assert bool(expected) == bool(held) and expected <= min(limit, count // 2)


def test_the_expected_number_is_about_the_fraction_of_many_records():
    assert expected_held_out(20_000, 0.05, 10**6) == 1000 and expected_held_out(20_000, 0.05, 256) == 256
