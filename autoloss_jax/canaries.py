"""Canaries: checks that a metric and a model cannot be rewarded for anything but ranking.

Each is run in every search on its own data, and stops it when it fails.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from autoloss_jax.data import ListBatch
from autoloss_jax.errors import AutolossError

MetricPerQuery = Callable[..., tuple[Array, Array]]
"""`(scores, labels, *, where) -> (values, defined)`, each [queries]."""
ScoreFn = Callable[[Array, Array], Array]
"""A trained model: features [queries, list, features] and mask to scores [queries, list]."""

TOLERANCE = 1e-4
STANDARD_ERRORS = 5.0


class CanaryError(AutolossError):
    """A reward could be had without ranking: nothing that was measured can be trusted."""


def check_constant_scores(metric: MetricPerQuery, batches: Sequence[ListBatch]) -> None:
    """A constant scorer gets the random ranker's value, estimated over random orders.

    A metric that breaks ties by input order fails where documents are sorted by label.

    Raises:
      CanaryError: it gets more, or less, beyond `STANDARD_ERRORS` standard errors.
    """
    constant = _values(metric, batches, lambda batch: jnp.zeros(batch.labels.shape))
    generator = np.random.default_rng(0)
    orders = [
        _values(
            metric, batches, lambda b: jnp.asarray(generator.random(b.labels.shape), jnp.float32)
        )
        for _ in range(20)
    ]
    excess = constant - np.mean(orders, axis=0)
    _check_mean("a constant scorer", constant.mean(), excess, "a random order")


def check_document_order(
    metric: MetricPerQuery, score: ScoreFn, batches: Sequence[ListBatch]
) -> None:
    """Permuting the documents of each query changes no value.

    Raises:
      CanaryError: a value changed by more than `TOLERANCE`.
    """
    given = _values(metric, batches, lambda b: score(b.features, b.mask))
    permuted = [_reversed(batch) for batch in batches]
    other = _values(metric, permuted, lambda b: score(b.features, b.mask))
    worst = float(np.max(np.abs(given - other), initial=0.0))
    if not worst <= TOLERANCE:
        raise CanaryError(
            f"canary failed: reversing the documents of each query changed a query's metric by "
            f"{worst:.4g}; expected no change (at most {TOLERANCE:g} from rounding). The metric or "
            "the model looks at the order of the documents."
        )


def check_permuted_labels(
    metric: MetricPerQuery, score: ScoreFn, batches: Sequence[ListBatch]
) -> None:
    """Against labels permuted within each query, a trained model is a random ranker.

    Raises:
      CanaryError: it is better or worse, beyond `STANDARD_ERRORS` standard errors.
    """
    generator = np.random.default_rng(0)
    shuffled = [_with_shuffled_labels(batch, generator) for batch in batches]
    model = _values(metric, shuffled, lambda b: score(b.features, b.mask))
    random = _values(metric, shuffled, lambda b: jnp.zeros(b.labels.shape))
    _check_mean("a trained model against permuted labels", model.mean(), model - random, "chance")


def _values(
    metric: MetricPerQuery, batches: Sequence[ListBatch], score: Callable[[ListBatch], Array]
) -> np.ndarray:
    """The metric of all queries on which it is defined."""
    values = []
    for batch in batches:
        value, defined = metric(score(batch), batch.labels, where=batch.mask)
        values.append(np.asarray(value, np.float64)[np.asarray(defined)])
    return np.concatenate(values)


def _check_mean(who: str, mean: float, excess: np.ndarray, expected: str) -> None:
    error = excess.std(ddof=1) / np.sqrt(len(excess)) if len(excess) > 1 else np.inf
    if not abs(excess.mean()) <= STANDARD_ERRORS * error + TOLERANCE:
        raise CanaryError(
            f"canary failed: {who} gets {mean:.4f}, {excess.mean():+.4f} against {expected} "
            f"(standard error {error:.4f}, {len(excess)} queries). Labels leak into the reward: "
            "through ties broken by document order, or through the features."
        )


def _reversed(batch: ListBatch) -> ListBatch:
    """The documents of each query in reverse order, padding last."""
    length = np.asarray(batch.mask).sum(-1, keepdims=True)
    position = np.arange(batch.mask.shape[-1])
    order = np.where(position < length, length - 1 - position, position)
    return ListBatch(
        np.take_along_axis(np.asarray(batch.features), order[..., None], 1),
        np.take_along_axis(np.asarray(batch.labels), order, 1),
        np.asarray(batch.mask),
    )


def _with_shuffled_labels(batch: ListBatch, generator: np.random.Generator) -> ListBatch:
    mask = np.asarray(batch.mask)
    order = np.argsort(np.where(mask, generator.random(mask.shape), 2.0), axis=-1)
    labels = np.take_along_axis(np.asarray(batch.labels), order, 1)
    return ListBatch(batch.features, np.where(mask, labels, 0.0).astype(np.float32), mask)
