"""Statistics of per-query comparisons: intervals, paired tests, corrections."""

from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean and its bootstrap confidence interval."""

    mean: float
    ci_low: float
    ci_high: float


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """The mean of per-query values with its 95 % percentile bootstrap interval.

    Args:
      values: f64[queries], at least one.
      seed: of the resampling.
    """
    generator = np.random.default_rng([seed, 2])
    size = len(values)
    # A resample is how often each query was drawn; in parts, to bound the memory.
    means = np.concatenate(
        [generator.multinomial(size, np.full(size, 1 / size), RESAMPLES // 10) @ values / size
         for _ in range(10)]
    )  # fmt: skip
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def randomisation_p_value(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided paired randomisation test (Smucker et al. 2007): signs flipped at random.

    Args:
      differences: f64[queries], of two rankers.
      seed: of the flips.

    Returns:
      The share of sign assignments whose mean is at least as large, the given one counted, so it is
      never 0.
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
    deviation = differences.std(ddof=1) if len(differences) > 1 else 0.0
    return float(differences.mean() / deviation) if deviation > 0 else 0.0
