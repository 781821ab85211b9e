"""The order of examples: every one once, a function of seed and epoch, and by length with little padding."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.post_training.batch_order import EpochOrder, epoch_order

sizes = st.lists(st.integers(1, 500), max_size=400)


@given(sizes, st.integers(1, 17), st.booleans(), st.integers(0, 5), st.integers(0, 3))
def test_every_example_comes_once_and_the_order_can_be_repeated(lengths, batch, by_length, seed, epoch):
    order = epoch_order(lengths, batch, by_length, seed, epoch)
    assert sorted(order) == list(range(len(lengths)))
    assert order == epoch_order(lengths, batch, by_length, seed, epoch)


@pytest.mark.parametrize("by_length", [True, False])
def test_epochs_and_seeds_differ(by_length):
    lengths = [random.Random(1).randrange(100) for _ in range(300)]
    orders = {tuple(epoch_order(lengths, 8, by_length, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def padding(lengths, order, batch):
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    slots = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    return 1 - sum(lengths) / slots


def test_batches_by_length_waste_a_tenth_of_the_padding():
    rng = random.Random(0)
    lengths = [int(rng.lognormvariate(4, 0.7)) + 1 for _ in range(3001)]
    by_length = padding(lengths, epoch_order(lengths, 16, True, 0, 0), 16)
    shuffled = padding(lengths, epoch_order(lengths, 16, False, 0, 0), 16)
    assert shuffled > 0.4 and by_length < shuffled / 10


def test_the_sampler_follows_the_epoch_it_is_told():
    sampler = EpochOrder([3, 1, 2, 5, 4], 2, True, seed=9)
    sampler.set_epoch(4)
    assert list(sampler) == epoch_order([3, 1, 2, 5, 4], 2, True, 9, 4) and len(sampler) == 5
