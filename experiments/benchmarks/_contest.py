"""A found loss against hand-designed ones on test queries, as the benchmarks judge it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autoloss_jax.files import read_arrays
from autoloss_jax.losses import HAND_DESIGNED
from autoloss_jax.runs import PER_QUERY_FILE
from autoloss_jax.statistics import bootstrap_interval, holm, randomisation_p_value

SIGNIFICANT = 0.01


def per_query_values(folder: Path) -> dict[str, np.ndarray]:
    """What a test's run folder has of each loss, by name: f64[queries], NaN where undefined."""
    arrays = read_arrays(folder / PER_QUERY_FILE)
    return dict(zip(arrays["names"].tolist(), arrays["values"], strict=True))


def confirmed_values(folder: Path) -> np.ndarray:
    """f64[2, queries]: of the found and of the hand-designed loss that validation chose.

    On fresh seeds; NaN where undefined. Raises KeyError if the test did not train on such.
    """
    return read_arrays(folder / PER_QUERY_FILE)["confirmed_values"]


def against_hand_designed(values: Mapping[str, np.ndarray], name: str, seed: int) -> dict[str, Any]:
    """A loss against every hand-designed one, on the queries on which the metric is defined.

    `better` and `worse`: than each of them and than the best of them, with p < SIGNIFICANT by a
    paired randomisation test after Holm's correction for their number.
    """
    rivals = [n for n in values if n in HAND_DESIGNED]
    differences = np.stack([values[name] - values[n] for n in rivals])
    differences = differences[:, np.isfinite(differences).all(0)]
    corrected = holm(np.array([randomisation_p_value(d, seed) for d in differences]))
    best = int(np.argmin(differences.mean(1)))
    interval = bootstrap_interval(differences[best], seed)
    told = corrected < SIGNIFICANT
    return {
        "mean": float(np.nanmean(values[name])),
        "best_hand_designed": rivals[best],
        "difference": interval.mean,
        "ci_low": interval.ci_low,
        "ci_high": interval.ci_high,
        "p_value": float(corrected.max()),
        "better": bool(told.all() and (differences.mean(1) > 0).all()),
        "worse": bool(told[best] and differences[best].mean() < 0),
    }
