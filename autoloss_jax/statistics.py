"""Statistics of per-query comparisons: intervals, paired tests, corrections."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 10_000
_TOGETHER = 100
CONFIDENCE = 0.95
TIE_TOLERANCE = 1e-6
"""Two rankers tie on a query when their figures differ by no more, which 32-bit rounding does."""


class WinTieLoss(NamedTuple):
    """On how many queries a ranker is better than, as good as, and worse than another."""

    wins: int
    ties: int
    losses: int


class Interval(NamedTuple):
    """A mean and its bootstrap confidence interval."""

    mean: float
    ci_low: float
    ci_high: float


def bootstrap_intervals(values: np.ndarray, seed: int = 0) -> list[Interval]:
    """Means of per-query values with their 95 % percentile bootstrap intervals (Efron, 1979).

    Args:
      values: f64[rows, queries], at least one query. All rows share their resamples.
      seed: of the resampling.
    """
    means = np.concatenate([counts @ values.T for counts in _resamples(values.shape[1], seed)])
    return _intervals(values.mean(1), means / values.shape[1])


def _resamples(size: int, seed: int) -> Iterator[np.ndarray]:
    """RESAMPLES draws of `size` queries, as how often each one was drawn: i64[some, size]."""
    generator = np.random.default_rng([seed, 2])
    for _ in range(0, RESAMPLES, _TOGETHER):  # in parts, to bound the memory
        drawn = generator.integers(0, size, (_TOGETHER, size))
        drawn += size * np.arange(_TOGETHER)[:, None]
        yield np.bincount(drawn.ravel(), minlength=_TOGETHER * size).reshape(_TOGETHER, size)


def _intervals(observed: np.ndarray, resampled: np.ndarray) -> list[Interval]:
    """Of statistics f64[rows] and of their resamples f64[RESAMPLES, rows]."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail], axis=0)
    return [Interval(*map(float, row)) for row in zip(observed, low, high, strict=True)]


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """The interval of one row, f64[queries]."""
    return bootstrap_intervals(values[None], seed)[0]


def randomisation_p_value(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided paired randomisation test (Smucker et al. 2007): signs flipped at random.

    Args:
      differences: f64[queries], of two rankers.
      seed: of the flips.

    Returns:
      The share of sign assignments whose mean is at least as large, the given one counted, so that
      it is never 0.
    """
    generator = np.random.default_rng([seed, 3])
    observed = abs(differences.mean())
    if observed == 0:
        return 1.0
    # A tolerance, so that an assignment equal to the given one is not missed through rounding.
    least = observed * (1 - 1e-12)
    reached = 0
    for _ in range(10):
        signs = generator.integers(0, 2, (RESAMPLES // 10, len(differences))) * 2 - 1
        reached += int(np.sum(np.abs(signs @ differences) / len(differences) >= least))
    return (reached + 1) / (RESAMPLES + 1)


def t_test_p_value(differences: np.ndarray) -> float:
    """Two-sided paired t-test (Student, 1908) of differences f64[queries] of two rankers.

    1 where it is undefined: for a single query, and for differences without any spread.
    """
    if len(differences) < 2 or differences.min() == differences.max():
        return 1.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def win_tie_loss(differences: np.ndarray) -> WinTieLoss:
    """Counts differences f64[queries] above, within and below TIE_TOLERANCE."""
    wins, losses = (int(np.sum(d > TIE_TOLERANCE)) for d in (differences, -differences))
    return WinTieLoss(wins, len(differences) - wins - losses, losses)


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values corrected for their number by Holm's step-down method (1979)."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def effect_sizes(differences: np.ndarray, seed: int = 0) -> list[Interval]:
    """Cohen's d of paired differences f64[rows, queries], with 95 % percentile bootstrap intervals.

    The mean over the standard deviation; 0 where nothing spreads, and for a single query.
    """
    size = differences.shape[1]
    constant = differences.min(1) == differences.max(1)
    resampled = []
    for counts in _resamples(size, seed):
        mean, square = (counts @ power.T / size for power in (differences, differences**2))
        resampled.append(_standardised(mean, square, size, constant))
    observed = _standardised(differences.mean(1), (differences**2).mean(1), size, constant)
    return _intervals(observed, np.concatenate(resampled))


def _standardised(
    mean: np.ndarray, square: np.ndarray, size: int, constant: np.ndarray
) -> np.ndarray:
    """Mean over standard deviation, from the means of values and of their squares."""
    variance = square - mean**2
    spreads = ~constant & (variance > 1e-12 * square)
    deviation = np.sqrt(np.where(spreads, variance, 1.0) * size / max(size - 1, 1))
    return np.where(spreads, mean / deviation, 0.0)
