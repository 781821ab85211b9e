"""How sure are we? Intervals and paired tests for the two kinds of numbers an evaluation makes.

A lesson first. A model that answers 180 of 600 questions has an accuracy of 0.30, but another 600 questions of the same
kind would have given another number. Three ideas cover all that is needed here:

* A *proportion* (right or wrong per item) gets the Wilson score interval (Wilson 1927). Unlike "value +- 1.96 standard
  errors" it stays inside [0, 1] and keeps its coverage at 0 or 100 % correct, where the naive interval has width zero.
* *Bits per byte* is a ratio of two sums (bits over bytes), not a mean of ratios: long documents weigh more. Its
  standard error comes from linearising the ratio (Cochran 1977, Sampling Techniques, 6.3), its interval from Student's
  t. With equal byte counts both reduce to the t interval of a mean.
* Two models that answered the *same* items are compared item by item. Most of the noise (hard items, easy items) is
  common to both and cancels in the differences, so a paired comparison proves much smaller improvements than two
  separate intervals: McNemar's exact test for proportions, a paired t test for bits.

Traps: the items are treated as independent draws, so questions cut from one page make intervals too narrow; and of
twenty comparisons at 95 % one is "significant" by luck. A number for which no uncertainty exists (one item) gets NaN
bounds.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, ndtri, stdtr, stdtrit


@dataclass(frozen=True)
class Interval:
    """A point estimate with the bounds of its confidence interval, from `n` items."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """A paired difference (first model minus second), its confidence interval and two-sided p-value, from `n` items."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int


def _normal_quantile(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return float(ndtri(0.5 + confidence / 2))


def proportion(outcomes: np.ndarray, confidence: float) -> Interval:
    """Share of ones in `outcomes` (zeros and ones, shape [items]) with the Wilson score interval."""
    hits = _zeros_and_ones(outcomes)
    n = len(hits)
    if n == 0:
        raise ValueError("a proportion of no items does not exist")
    z = _normal_quantile(confidence)
    share = float(hits.mean())
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 or n hits the exact bound is 0 or 1; rounding must not move it.
    low = 0.0 if share == 0.0 else max(0.0, centre - half)
    high = 1.0 if share == 1.0 else min(1.0, centre + half)
    return Interval(share, low, high, n)


def ratio(numerators: np.ndarray, denominators: np.ndarray, confidence: float) -> Interval:
    """sum(numerators) / sum(denominators) over items, with the linearised t interval (shapes [items])."""
    top, bottom = _paired_floats(numerators, denominators)
    total = bottom.sum()
    if len(top) == 0 or total <= 0:
        raise ValueError("a ratio needs at least one item and a positive denominator")
    value = float(top.sum() / total)
    half = _t_half_width(top - value * bottom, total, confidence)
    return Interval(value, value - half, value + half, len(top))


def paired_proportions(first: np.ndarray, second: np.ndarray, confidence: float) -> Difference:
    """Difference of two accuracies on the same items, McNemar's exact p-value and the Bonett-Price interval.

    The interval (Bonett and Price 2012, adjusted Wald) adds half a pair of each discordant kind, which repairs the
    coverage of the plain Wald interval for few or no disagreements.
    """
    a, b = _zeros_and_ones(first), _zeros_and_ones(second)
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"paired outcomes need the same items, got {len(a)} and {len(b)}")
    n = len(a)
    only_first = int(((a == 1) & (b == 0)).sum())
    only_second = int(((a == 0) & (b == 1)).sum())
    z = _normal_quantile(confidence)
    p1, p2 = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    half = z * math.sqrt((p1 + p2 - (p1 - p2) ** 2) / (n + 2))
    return Difference(
        difference=(only_first - only_second) / n,
        low=max(-1.0, p1 - p2 - half),
        high=min(1.0, p1 - p2 + half),
        p_value=mcnemar_exact(only_first, only_second),
        n=n,
    )


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of McNemar's test: are the disagreements a fair coin?"""
    disagreements = only_first + only_second
    if disagreements == 0:
        return 1.0
    return min(1.0, 2.0 * float(bdtr(min(only_first, only_second), disagreements, 0.5)))


def paired_ratios(first: np.ndarray, second: np.ndarray, denominators: np.ndarray, confidence: float) -> Difference:
    """Difference of two ratios with common denominators (bits of two models over the bytes of the same texts)."""
    a, bottom = _paired_floats(first, denominators)
    b, _ = _paired_floats(second, denominators)
    differences = a - b
    estimate = ratio(differences, bottom, confidence)
    error = _standard_error(differences - estimate.value * bottom, bottom.sum())
    if math.isnan(error):
        p_value = math.nan
    elif error == 0.0:
        p_value = 1.0 if estimate.value == 0.0 else 0.0
    else:
        p_value = 2.0 * float(stdtr(estimate.n - 1, -abs(estimate.value) / error))
    return Difference(estimate.value, estimate.low, estimate.high, p_value, estimate.n)


def _standard_error(residuals: np.ndarray, total: float) -> float:
    n = len(residuals)
    if n < 2:
        return math.nan
    return math.sqrt(n / (n - 1) * float((residuals**2).sum())) / float(total)


def _t_half_width(residuals: np.ndarray, total: float, confidence: float) -> float:
    _normal_quantile(confidence)
    error = _standard_error(residuals, total)
    return math.nan if math.isnan(error) else float(stdtrit(len(residuals) - 1, 0.5 + confidence / 2)) * error


def _zeros_and_ones(outcomes: np.ndarray) -> np.ndarray:
    values = np.asarray(outcomes, dtype=np.float64)
    if not np.isin(values, (0.0, 1.0)).all():
        raise ValueError("outcomes of a proportion must be 0 or 1")
    return values


def _paired_floats(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(a) != len(b):
        raise ValueError(f"paired values need the same items, got {len(a)} and {len(b)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("values must be finite")
    return a, b
