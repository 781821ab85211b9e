"""Every interval and test against an independent formula: scipy.stats, enumeration, or simulated coverage."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline_lib.evaluation.statistics import (
    mcnemar_exact,
    paired_proportions,
    paired_ratios,
    proportion,
    ratio,
)

outcome_lists = st.lists(st.integers(0, 1), min_size=1, max_size=80)


@given(outcome_lists, st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_interval_equals_scipy(outcomes, confidence):
    ours = proportion(np.array(outcomes), confidence)
    theirs = stats.binomtest(sum(outcomes), len(outcomes)).proportion_ci(confidence, method="wilson")
    assert ours.value == sum(outcomes) / len(outcomes)
    assert ours.low == pytest.approx(theirs.low, abs=1e-12)
    assert ours.high == pytest.approx(theirs.high, abs=1e-12)
    assert 0.0 <= ours.low <= ours.value <= ours.high <= 1.0


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_scipys_binomial_test(only_first, only_second):
    n = only_first + only_second
    expected = stats.binomtest(only_first, n, 0.5).pvalue if n else 1.0
    assert mcnemar_exact(only_first, only_second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_p_value_is_the_share_of_fair_coin_sequences_at_least_as_uneven():
    flips = list(product((0, 1), repeat=9))
    for heads in range(10):
        uneven = abs(heads - 4.5)
        expected = sum(abs(sum(flip) - 4.5) >= uneven for flip in flips) / len(flips)
        assert mcnemar_exact(heads, 9 - heads) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60))
def test_swapping_the_models_mirrors_the_comparison(pairs):
    a, b = np.array(pairs).T
    forward, backward = paired_proportions(a, b, 0.95), paired_proportions(b, a, 0.95)
    assert forward.difference == pytest.approx(a.mean() - b.mean())
    assert forward.difference == pytest.approx(-backward.difference)
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))
    assert forward.p_value == backward.p_value
    assert -1.0 <= forward.low <= forward.high <= 1.0


def test_identical_models_are_never_called_different():
    outcomes = np.array([1, 0, 1, 1, 0] * 20)
    same = paired_proportions(outcomes, outcomes, 0.95)
    assert same.low < 0 < same.high and same.p_value == 1.0
    bits = paired_ratios(outcomes + 1.0, outcomes + 1.0, np.full(100, 7.0), 0.95)
    assert (bits.difference, bits.low, bits.high, bits.p_value) == (0.0, 0.0, 0.0, 1.0)


@given(st.lists(st.floats(0.1, 1000), min_size=2, max_size=50), st.floats(1, 100))
def test_with_equal_bytes_the_ratio_interval_is_the_t_interval_of_the_mean(bits, bytes_each):
    ours = ratio(np.array(bits), np.full(len(bits), bytes_each), 0.9)
    rates = np.array(bits) / bytes_each
    assert ours.value == pytest.approx(rates.mean())
    if (error := stats.sem(rates)) > 1e-9:
        low, high = stats.t.interval(0.9, len(bits) - 1, loc=rates.mean(), scale=error)
        assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-6)


def test_paired_ratios_with_equal_bytes_are_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    for n in (2, 5, 40, 300):
        a = rng.normal(10, 2, n)
        b = a + rng.normal(0.3, 1, n)
        ours = paired_ratios(a, b, np.full(n, 4.0), 0.95)
        theirs = stats.ttest_rel(a / 4, b / 4)
        assert ours.difference == pytest.approx((a - b).mean() / 4)
        assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-9)
        low, high = theirs.confidence_interval(0.95)
        assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-9)


def test_bits_per_byte_weighs_every_byte_equally_not_every_document():
    assert ratio(np.array([10.0, 900.0]), np.array([10.0, 300.0]), 0.95).value == pytest.approx(910 / 310)


def test_ratio_interval_agrees_with_a_bootstrap_over_documents():
    rng = np.random.default_rng(1)
    size = rng.integers(50, 2000, 200).astype(float)
    bits = size * rng.normal(2.0, 0.4, 200)
    ours = ratio(bits, size, 0.95)
    picks = rng.integers(0, 200, (4000, 200))
    resampled = bits[picks].sum(1) / size[picks].sum(1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    width = high - low
    assert ours.low == pytest.approx(low, abs=0.1 * width) and ours.high == pytest.approx(high, abs=0.1 * width)


@pytest.mark.parametrize(("share", "shift"), [(0.25, 0.0), (0.3, 0.1), (0.9, 0.05)])
def test_the_paired_interval_covers_the_true_difference_95_times_in_100(share, shift):
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(1500):
        common = rng.random(120)
        second = common < share
        first = np.where(rng.random(120) < 0.7, common, rng.random(120)) < share + shift
        result = paired_proportions(first, second, 0.95)
        covered += result.low <= shift <= result.high
    assert 0.93 <= covered / 1500 <= 0.985


def test_the_ratio_interval_covers_the_true_ratio_95_times_in_100():
    rng = np.random.default_rng(8)
    covered = 0
    for _ in range(1500):
        size = rng.integers(100, 1000, 80).astype(float)
        bits = size * rng.normal(1.5, 0.5, 80)
        interval = ratio(bits, size, 0.95)
        covered += interval.low <= 1.5 <= interval.high
    assert 0.93 <= covered / 1500 <= 0.97


def test_one_item_has_a_value_but_no_interval():
    single = ratio(np.array([8.0]), np.array([4.0]), 0.95)
    assert single.value == 2.0 and math.isnan(single.low) and math.isnan(single.high)
    assert math.isnan(paired_ratios(np.array([8.0]), np.array([6.0]), np.array([4.0]), 0.95).p_value)


def test_a_constant_improvement_is_certain():
    result = paired_ratios(np.full(10, 4.0), np.full(10, 8.0), np.full(10, 2.0), 0.95)
    assert (result.difference, result.p_value) == (-2.0, 0.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: proportion(np.array([]), 0.95),
        lambda: proportion(np.array([0.5]), 0.95),
        lambda: proportion(np.array([1]), 1.0),
        lambda: ratio(np.array([1.0]), np.array([0.0]), 0.95),
        lambda: ratio(np.array([np.nan, 1]), np.array([1.0, 1]), 0.95),
        lambda: paired_proportions(np.array([1]), np.array([1, 0]), 0.95),
        lambda: paired_ratios(np.array([1.0]), np.array([1.0, 2]), np.array([1.0]), 0.95),
    ],
)
def test_impossible_input_is_refused(call):
    with pytest.raises(ValueError):
        call()
