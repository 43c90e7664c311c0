"""Statistics of per-query comparisons: intervals, paired tests, corrections."""

from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
_TOGETHER = 100
CONFIDENCE = 0.95


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
    generator = np.random.default_rng([seed, 2])
    size = values.shape[1]
    means = np.empty((RESAMPLES, len(values)))
    for start in range(0, RESAMPLES, _TOGETHER):  # in parts, to bound the memory
        # A resample is how often each query was drawn.
        drawn = generator.integers(0, size, (_TOGETHER, size))
        drawn += size * np.arange(_TOGETHER)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=_TOGETHER * size).reshape(_TOGETHER, size)
        means[start : start + _TOGETHER] = counts @ values.T / size
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return [Interval(*map(float, row)) for row in zip(values.mean(1), low, high, strict=True)]


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


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values corrected for their number by Holm's step-down method (1979)."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def effect_size(differences: np.ndarray) -> float:
    """Cohen's d of paired differences: mean over standard deviation; 0 without any spread."""
    if differences.min() == differences.max():  # then the deviation is 0 up to rounding
        return 0.0
    return float(differences.mean() / differences.std(ddof=1))
