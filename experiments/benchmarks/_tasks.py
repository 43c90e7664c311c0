"""Ranking tasks in which labels do not mean what hand-designed losses take them for.

In each, what a user wants is a metric of their own, and the labels that are at hand say it in an
unusual way. So the loss that is right is known to be unusual, and every hand-designed one is
wrong for a reason that the task's docstring gives.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from autoloss_jax.data import Dataset, Fold, Queries, make_dataset
from autoloss_jax.metrics import MetricPerQuery, ndcg_per_query

QUERIES = {"train": 120, "validation": 80, "test": 1000}
FEATURES, LENGTH = 8, 10
CRAWLED_LENGTH = 60
LEARNING_RATES = (0.01, 0.03, 0.1)
"""Of the tests on these tasks: a linear model wants higher ones than the default's."""


class Task(NamedTuple):
    """A task.

    Attributes:
      sample: from a generator and a count, that many queries.
      metric: what the user wants, of scores and labels.
      truth: one loss that is right, to know that there is something to be found.
    """

    sample: Callable[[np.random.Generator, int], Queries]
    metric: MetricPerQuery
    truth: str

    def dataset(self, name: str, seed: int) -> Dataset:
        """One fold of fresh queries."""
        generator = np.random.default_rng([seed, 11])
        parts = [self.sample(generator, count) for count in QUERIES.values()]
        return make_dataset(f"{name}-seed{seed}", [Fold("Fold1", *parts)])


def _queries(features: np.ndarray, labels: np.ndarray, lengths: np.ndarray) -> Queries:
    return Queries(
        features.astype(np.float32), labels.astype(np.float32), np.append(0, np.cumsum(lengths)),
        tuple(str(q + 1) for q in range(len(lengths))),
    )  # fmt: skip


def _grades(utility: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """Grades from 0 on of standard normal utilities, of these shares."""
    cuts = np.quantile(np.random.default_rng(0).normal(size=100_000), np.cumsum(shares)[:-1])
    return np.searchsorted(cuts, utility, side="right")


def _views(rng: np.random.Generator, *signals: np.ndarray, noise: float) -> np.ndarray:
    """Features: a noisy view of each signal, and pure noise."""
    noisy = [signal + noise * rng.normal(size=signal.size) for signal in signals]
    rest = rng.normal(size=(FEATURES - len(signals), signals[0].size))
    return np.stack([*noisy, *rest], axis=1)


# --- upside down ---


def _upside_down(rng: np.random.Generator, count: int) -> Queries:
    utility = rng.normal(size=count * LENGTH)
    labels = 4 - _grades(utility, (0.4, 0.3, 0.15, 0.1, 0.05))
    return _queries(_views(rng, utility, noise=1.0), labels, np.full(count, LENGTH))


def upside_down(scores: Array, labels: Array, *, where: Array) -> tuple[Array, Array]:
    """Labels are places, 0 the best: NDCG@10 of 4 - label. Losses that raise labels are wrong."""
    return ndcg_per_query(scores, 4 - labels, where=where, k=10)


# --- the middle is best ---


def _middle_best(rng: np.random.Generator, count: int) -> Queries:
    labels = rng.integers(0, 5, count * LENGTH)
    useful = 2.0 - np.abs(labels - 2)
    features = _views(rng, useful, labels.astype(float), noise=1.5)
    return _queries(features, labels, np.full(count, LENGTH))


def middle_best(scores: Array, labels: Array, *, where: Array) -> tuple[Array, Array]:
    """Both ends of the scale are useless: NDCG@10 of 2 - abs(label - 2). What raises labels ranks
    the useless 4 first."""
    return ndcg_per_query(scores, 2 - jnp.abs(labels - 2), where=where, k=10)


# --- spam ---


def _spam(rng: np.random.Generator, count: int) -> Queries:
    size = count * LENGTH
    spam, utility = rng.random(size) < 0.2, rng.normal(size=size)
    labels = np.where(spam, 4, _grades(utility, (0.4, 0.3, 0.2, 0.1)))
    features = _views(rng, utility, 2.0 * spam, noise=1.0)
    return _queries(features, labels, np.full(count, LENGTH))


def spam(scores: Array, labels: Array, *, where: Array) -> tuple[Array, Array]:
    """Label 4 was given to spam: NDCG@10 with 4 counted as 0. What raises labels ranks it first."""
    return ndcg_per_query(scores, jnp.where(labels == 4, 0, labels), where=where, k=10)


# --- saturated ---


def _saturated(rng: np.random.Generator, count: int) -> Queries:
    size = count * LENGTH
    # Some queries have many relevant documents and some few, which a loss of single documents
    # takes for a matter of the documents.
    shift = np.repeat(3.0 * rng.normal(size=count), LENGTH)
    utility, popular = rng.normal(size=size), rng.normal(size=size)
    relevant = utility + shift > 0.8
    labels = np.where(relevant, 1 + _grades(popular, (0.25, 0.25, 0.25, 0.25)), 0)
    features = _views(rng, utility, popular, noise=0.7)
    return _queries(features, labels, np.full(count, LENGTH))


def saturated(scores: Array, labels: Array, *, where: Array) -> tuple[Array, Array]:
    """Labels above 1 are popularity: NDCG@10 of min(label, 1). Graded losses learn popularity, and
    losses of single documents the queries' shares of relevant documents."""
    return ndcg_per_query(scores, jnp.minimum(labels, 1), where=where, k=10)


# --- crawled queries ---


def _crawled(rng: np.random.Generator, count: int) -> Queries:
    crawled = np.arange(count) % 3 > 0
    lengths = np.where(crawled, CRAWLED_LENGTH, LENGTH)
    utility = rng.normal(size=lengths.sum())
    sign = np.repeat(np.where(crawled, -1.0, 1.0), lengths)
    noisy = (utility + 0.5 * rng.normal(size=utility.size)) / np.sqrt(1.25)
    labels = _grades(sign * noisy, (0.6, 0.2, 0.1, 0.1))
    return _queries(_views(rng, utility, noise=0.7), labels, lengths)


def crawled(scores: Array, labels: Array, *, where: Array) -> tuple[Array, Array]:
    """Two queries of three, those with long lists, come from a crawler and prefer the opposite:
    NDCG@10 of the others. What gives every query the same weight, or long lists more, learns
    nothing or the opposite."""
    values, defined = ndcg_per_query(scores, labels, where=where, k=10)
    return values, defined & (jnp.sum(where, -1) < CRAWLED_LENGTH)


# --- clicks ---


def _skipped(rng: np.random.Generator, count: int) -> Queries:
    size = count * LENGTH
    utility = rng.normal(size=size)
    seen = rng.random(size) < 0.6
    clicked = seen & (utility + 0.5 * rng.normal(size=size) > 0.7)
    labels = np.where(clicked, 2, np.where(seen, 1, 0))
    # What was shown is what an old ranker liked, a feature of its own.
    features = _views(rng, utility, 1.5 * seen, noise=1.0)
    return _queries(features, labels, np.full(count, LENGTH))


def skipped(scores: Array, labels: Array, *, where: Array) -> tuple[Array, Array]:
    """Labels are 0 for not shown, 1 for shown and skipped, 2 for clicked: NDCG@10 of clicked over
    not shown over skipped. What raises labels prefers the skipped to those never shown."""
    useful = jnp.where(labels == 2, 2, jnp.where(labels == 0, 1, 0))
    return ndcg_per_query(scores, useful, where=where, k=10)


TASKS: dict[str, Task] = {
    "upside_down": Task(_upside_down, upside_down, "sum_ij(softplus(s_j - s_i), where=y_j > y_i)"),
    "middle_best": Task(_middle_best, middle_best, "mean_i(square(s_i + square(y_i - 2)))"),
    "spam": Task(_spam, spam, "mean_i(square(s_i + square(y_i - 2)))"),
    "saturated": Task(_saturated, saturated, "sum_i(min(y_i, 1) * logsumexp_j(s_j - s_i))"),
    "crawled": Task(
        _crawled, crawled, "sum_ij(softplus(s_j - s_i), where=y_i > y_j) / square(square(n))"
    ),
    "skipped": Task(_skipped, skipped, "sum_ij(softplus(s_j - s_i) * square(y_i - 1))"),
}
