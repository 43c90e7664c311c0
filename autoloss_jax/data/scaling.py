"""Feature scaling: statistics of the training queries, applied to every part of a fold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoloss_jax.data.queries import CHUNK_DOCUMENTS, FeatureView, Fold, Queries
from autoloss_jax.errors import AutolossError

TRANSFORMS = ("standardize", "log1p", "none")
CLIP = 10.0  # standard deviations; one wild value must not take over a training step


@dataclass(frozen=True, eq=False)
class Scaling:
    """``clip((t(x) - mean) * scale, -10, 10)``.

    ``t(x)`` is ``sign(x) log(1 + |x|)`` for ``log1p`` and ``x`` for ``standardize``; ``none``
    leaves the features as they are. ``scale`` is one over the standard deviation, 0 for a
    feature that is constant in the training queries, which so becomes 0 everywhere.
    """

    transform: str
    mean: np.ndarray  # f64[features]
    scale: np.ndarray  # f64[features]

    @property
    def log1p(self) -> bool:
        return self.transform == "log1p"

    def apply(self, queries: Queries) -> Queries:
        """The same queries, whose features are scaled whenever they are read.

        Computed in float64 and rounded to float32. The raw features stay the only ones in memory.

        Raises:
            AutolossError: queries with another number of features.
        """
        if queries.num_features != len(self.mean):
            raise AutolossError(
                f"queries with {queries.num_features} features, expected the {len(self.mean)} "
                "features the scaling was fitted on"
            )
        if self.transform == "none":
            return queries
        features = FeatureView(queries.features, self._scale)
        return Queries(
            features, queries.labels, queries.offsets, queries.query_ids, features_checked=True
        )

    def _scale(self, features: np.ndarray) -> np.ndarray:
        scaled = _transformed(features, self.transform)
        scaled -= self.mean
        scaled *= self.scale
        return np.clip(scaled, -CLIP, CLIP, out=scaled).astype(np.float32)


def fit_scaling(train: Queries, *, transform: str = "standardize") -> Scaling:
    """Statistics over all training documents.

    Args:
        train: the training queries; nothing else may shape the scaling.
        transform: ``standardize``, ``log1p`` (first ``sign(x) log(1 + |x|)``: for raw counts and
            lengths) or ``none``.

    Raises:
        AutolossError: another transform, or no documents.
    """
    if transform not in TRANSFORMS:
        raise AutolossError(f"features {transform!r}, expected one of {', '.join(TRANSFORMS)}")
    if not train.num_documents:
        raise AutolossError("no training documents, expected at least one to fit the scaling")
    if transform == "none":
        return Scaling(transform, np.zeros(train.num_features), np.ones(train.num_features))
    count, mean, squares = 0, np.zeros(train.num_features), np.zeros(train.num_features)
    lowest, highest = np.full((2, train.num_features), [[np.inf], [-np.inf]])
    for start in range(0, train.num_documents, CHUNK_DOCUMENTS):
        values = _transformed(train.features[start : start + CHUNK_DOCUMENTS], transform)
        lowest = np.minimum(lowest, values.min(axis=0))
        highest = np.maximum(highest, values.max(axis=0))
        own_mean = values.mean(axis=0)
        values -= own_mean
        own_squares = np.square(values, out=values).sum(axis=0)
        # Chan, Golub and LeVeque 1983: the mean and sum of squares of two sets, from those of each.
        step, total = own_mean - mean, count + len(values)
        mean = mean + step * (len(values) / total)
        squares = squares + own_squares + np.square(step) * (count * len(values) / total)
        count = total
    # Equality, not a small deviation: rounding gives a constant column a deviation above zero.
    constant = lowest == highest
    deviation = np.where(constant, 1.0, np.sqrt(squares / count))
    usable = ~constant & (deviation > 0)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=usable)
    return Scaling(transform, mean, scale)


def scale_fold(fold: Fold, transform: str = "standardize") -> Fold:
    """The fold with every part scaled by the statistics of its own training queries."""
    scaling = fit_scaling(fold.train, transform=transform)
    parts = (scaling.apply(part) for part in (fold.train, fold.validation, fold.test))
    return Fold(fold.name, *parts)


def _transformed(features: np.ndarray, transform: str) -> np.ndarray:
    values = features.astype(np.float64)
    return signed_log1p(values) if transform == "log1p" else values


def signed_log1p(values: np.ndarray) -> np.ndarray:
    """``sign(x) log(1 + |x|)``: tames raw counts and lengths, and keeps their order."""
    return np.sign(values) * np.log1p(np.abs(values))
