"""Canaries: checks that a metric and a model cannot be rewarded for anything but ranking.

Each is run in every search on its own data, and stops it when it fails.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import stats

from autoloss_jax.data import ListBatch
from autoloss_jax.errors import AutolossError
from autoloss_jax.feed import Feed
from autoloss_jax.metrics import MetricPerQuery

ScoreFn = Callable[[Array, Array], Array]
"""A trained model: features [queries, list, features] and mask to scores [queries, list]."""

TOLERANCE = 1e-4
"""Differences up to this are rounding."""
FALSE_ALARMS = 1e-6
"""How often chance alone may fail a canary that compares means."""

_REPEATS = 10  # random orders, or permutations of the labels: so many draws of every query


class CanaryError(AutolossError):
    """A reward could be had without ranking: nothing that was measured can be trusted."""


def check_call(metric: MetricPerQuery, batches: Iterable[ListBatch]) -> np.ndarray:
    """The metric can be called, and gives what it should, on the labels at hand.

    Returns:
      bool[queries]: on which queries it is defined.

    Raises:
      AutolossError: it is no jnp function of these arrays, its results have other shapes, it is
        defined on no query, or a value that is defined is not finite.
    """
    expected = "expected a jnp function `metric(scores, labels, *, where) -> (values, defined)`"
    all_defined = []
    called = jax.jit(lambda scores, labels, mask: metric(scores, labels, where=mask))
    for batch in batches:
        scores, shape = jnp.zeros(batch.labels.shape), batch.labels.shape[:-1]
        try:  # under jit, as it will be called
            values, defined = called(scores, batch.labels, batch.mask)
        except (TypeError, ValueError, AttributeError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise AutolossError(f"metric: {expected}; calling it gave: {first_line}") from error
        if values.shape != shape or defined.shape != shape or defined.dtype != bool:
            raise AutolossError(
                f"metric: {expected}, both of shape [queries] = {shape}, `defined` of bool; got "
                f"shapes {values.shape} and {defined.shape}, `defined` of {defined.dtype}"
            )
        if not bool(jnp.all(jnp.isfinite(values) | ~defined)):
            raise AutolossError(
                "metric: a value is not finite where it is defined, for tied scores"
            )
        all_defined.append(np.asarray(defined))
    if not any(defined.any() for defined in all_defined):
        raise AutolossError("metric: it is defined on no query, expected at least one")
    return np.concatenate(all_defined)


def defined_queries(metric: MetricPerQuery, feed: Feed) -> np.ndarray:
    """bool[queries]: on which queries a user's metric is defined, once `check_call` passes it."""
    lists = (ListBatch(*(x[:count] for x in batch)) for batch, count in feed.lists())
    defined = np.zeros(len(feed.buckets.queries), bool)
    defined[np.concatenate(feed.buckets.members)] = check_call(metric, lists)
    return defined


def check_constant_scores(metric: MetricPerQuery, batches: Sequence[ListBatch]) -> None:
    """A constant scorer gets the random ranker's value, estimated over random orders.

    A metric that breaks ties by input order fails where documents are sorted by label.

    Raises:
      CanaryError: it gets more, or less, by more than chance.
    """
    generator = np.random.default_rng(0)

    def at_random(batch: ListBatch) -> Array:
        return jnp.asarray(generator.random(batch.labels.shape), jnp.float32)

    constant = _values(metric, batches, lambda batch: jnp.zeros(batch.labels.shape))
    random = [_values(metric, batches, at_random) for _ in range(_REPEATS)]
    _check_mean(
        "a constant scorer", np.tile(constant, _REPEATS), np.concatenate(random), "random orders",
        "Labels leak into the reward through ties, as when those are broken by document order.",
    )  # fmt: skip


def check_document_order(
    metric: MetricPerQuery, score: ScoreFn, batches: Sequence[ListBatch]
) -> None:
    """Reversing the documents of each query changes neither their scores nor the metric's value.

    Scores may differ by rounding, which could swap documents that are as good as tied; so the
    metric is asked about the very same scores in another order.

    Raises:
      CanaryError: a score changed by more than `TOLERANCE` of the largest one, or a value of the
        metric by more than `TOLERANCE`.
    """
    worst_score = worst_value = 0.0
    for batch in batches:
        order, other = _reversed(batch)
        given = np.where(batch.mask, np.asarray(score(batch.features, batch.mask)), 0.0)
        expected = np.take_along_axis(given, order, 1)
        scored = np.where(other.mask, np.asarray(score(other.features, other.mask)), 0.0)
        difference = np.max(np.abs(scored - expected), initial=0.0)
        largest = np.max(np.abs(given), initial=0.0)
        worst_score = max(worst_score, float(difference / largest) if largest > 0 else difference)
        value, _ = metric(jnp.asarray(given), batch.labels, where=batch.mask)
        moved, _ = metric(jnp.asarray(expected), other.labels, where=other.mask)
        change = np.abs(np.asarray(value) - np.asarray(moved))
        worst_value = max(worst_value, float(np.max(change, initial=0.0)))
    for who, what, worst in (("model", "score", worst_score), ("metric", "value", worst_value)):
        if not worst <= TOLERANCE:
            raise CanaryError(
                f"canary failed: reversing the documents of each query changed a {what} of the "
                f"{who} by {worst:.4g}; expected no change (at most {TOLERANCE:g} from rounding). "
                f"The {who} looks at the order of the documents."
            )


def check_permuted_labels(
    metric: MetricPerQuery, score: ScoreFn, batches: Sequence[ListBatch]
) -> None:
    """Against labels permuted within each query, a trained model is a random ranker.

    Finds a path by which the labels of the evaluation reach the ranking, and a metric that pays for
    something else than the order, such as how far apart the scores are. It cannot find labels that
    hide in the features: those stay with their documents, and permuted labels do not match them.

    Raises:
      CanaryError: it is better or worse, by more than chance.
    """
    scores = [score(batch.features, batch.mask) for batch in batches]
    generator = np.random.default_rng(0)
    model, random = [], []
    for _ in range(_REPEATS):
        shuffled = [_with_shuffled_labels(batch, generator) for batch in batches]
        model.append(_values(metric, shuffled, partial(_next, iter(scores))))
        random.append(_values(metric, shuffled, lambda batch: jnp.zeros(batch.labels.shape)))
    _check_mean(
        "a trained model against permuted labels", np.concatenate(model), np.concatenate(random),
        "chance", "The labels reach the ranking, or the metric pays for more than the order.",
    )  # fmt: skip


def _next(scores: Iterator[Array], _: ListBatch) -> Array:
    return next(scores)


def _values(
    metric: MetricPerQuery, batches: Sequence[ListBatch], score: Callable[[ListBatch], Array]
) -> np.ndarray:
    """The metric of all queries on which it is defined."""
    values = []
    for batch in batches:
        value, defined = metric(score(batch), batch.labels, where=batch.mask)
        values.append(np.asarray(value, np.float64)[np.asarray(defined)])
    return np.concatenate(values)


def _check_mean(
    who: str, values: np.ndarray, expected: np.ndarray, name: str, explanation: str
) -> None:
    """Compares the means of two samples, f64[repeats * queries], by a paired t-test."""
    excess = values - expected
    if len(excess) < 2:  # no query on which the metric is defined
        return
    error = excess.std(ddof=1) / np.sqrt(len(excess))
    most = stats.t.isf(FALSE_ALARMS / 2, len(excess) - 1) * error
    if not abs(excess.mean()) <= most + TOLERANCE:
        raise CanaryError(
            f"canary failed: {who} gets {values.mean():.4f}, {excess.mean():+.4f} against {name} "
            f"(standard error {error:.4f}, {len(excess)} values). {explanation}"
        )


def _reversed(batch: ListBatch) -> tuple[np.ndarray, ListBatch]:
    """The documents of each query in reverse order, padding last, and that order."""
    length = np.asarray(batch.mask).sum(-1, keepdims=True)
    position = np.arange(batch.mask.shape[-1])
    order = np.where(position < length, length - 1 - position, position)
    return order, ListBatch(
        np.take_along_axis(np.asarray(batch.features), order[..., None], 1),
        np.take_along_axis(np.asarray(batch.labels), order, 1),
        np.asarray(batch.mask),
    )


def _with_shuffled_labels(batch: ListBatch, generator: np.random.Generator) -> ListBatch:
    mask = np.asarray(batch.mask)
    order = np.argsort(np.where(mask, generator.random(mask.shape), 2.0), axis=-1)
    labels = np.take_along_axis(np.asarray(batch.labels), order, 1)
    return ListBatch(batch.features, np.where(mask, labels, 0.0).astype(np.float32), mask)
