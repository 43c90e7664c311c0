"""Cheap judgements of candidate losses before any model is trained.

Everything is measured on a *probe*: a few short lists with the labels of the data and random
scores. A loss whose gradient is zero, ignores the labels, or cannot raise NDCG even when it moves
the scores freely, without a model in between, is rejected. Two losses whose gradients point the
same way on the whole probe train the same models, and count as one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from autoloss_jax.data import Queries
from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.batched import losses_and_gradients
from autoloss_jax.execution.programs import Programs, encode
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.parsing import parse
from autoloss_jax.metrics import MetricPerQuery, ndcg_per_query

SAME_DIRECTION = 1.0 - 1e-5
"""Cosine from which on two gradients point the same way."""
LEAST_GAIN = 0.1
"""The share of what the probe's NDCG lacks that free descent must gain; hand-designed losses gain
far more."""

_QUERIES, _LENGTH = 16, 12
_DESCENT_STEPS, _DESCENT_STEP = 30, 0.2
_SCREENED_TOGETHER = 64


class Probe(NamedTuple):
    """Lists on which losses are judged."""

    scores: Array  # f32[queries, list]
    labels: Array  # f32[queries, list]
    other_labels: Array  # f32[queries, list]: the labels, moved on by one document in each query
    mask: Array  # bool[queries, list]


@dataclass(frozen=True)
class Screening:
    """What the probe says of one loss.

    Attributes:
      reason: why it is rejected, in general before a colon and in figures behind it; "" if it is
        not.
      direction: its gradient on the probe, f32[queries * list], of norm 1.
    """

    reason: str
    direction: np.ndarray


def make_probe(queries: Queries, seed: int) -> Probe:
    """A probe with labels drawn from the queries; deterministic in the seed.

    Raises:
      AutolossError: no query has a relevant document.
    """
    generator = np.random.default_rng([seed, 1])
    relevant = np.flatnonzero(queries.has_relevant())
    if not relevant.size:
        raise AutolossError("no query has a relevant document, expected at least one to probe with")
    chosen = generator.choice(relevant, _QUERIES)
    shape = (_QUERIES, _LENGTH)
    labels, others, mask = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    for row, query in enumerate(chosen):
        own = queries.labels[queries.offsets[query] : queries.offsets[query + 1]]
        # Lists of 6 to 12 documents, in which the best document of the query always is.
        length = int(generator.integers(6, _LENGTH + 1))
        drawn = np.append(generator.choice(own, length - 1), own.max())
        if drawn.min() == drawn.max():
            drawn[0] = 0.0
        labels[row, :length] = generator.permutation(drawn)
        others[row, :length] = np.roll(labels[row, :length], 1)
        mask[row, :length] = True
    scores = generator.normal(size=shape) * mask
    numbers = [jnp.asarray(x, jnp.float32) for x in (scores, labels, others)]
    return Probe(numbers[0], numbers[1], numbers[2], jnp.asarray(mask))


def screen(
    losses: Sequence[Expression], probe: Probe, metric: MetricPerQuery | None = None
) -> list[Screening]:
    """Judges losses that `encode` accepts.

    `metric`: what descent must raise, instead of NDCG; it need only raise it, for how much there
    is to gain is not known.
    """
    verdicts: list[Screening] = []
    for start in range(0, len(losses), _SCREENED_TOGETHER):
        part = list(losses[start : start + _SCREENED_TOGETHER])
        filler = [parse("mean_i(square(s_i - y_i))")] * (_SCREENED_TOGETHER - len(part))
        measured = [np.asarray(x) for x in _measure(encode(part + filler), probe, metric=metric)]
        verdicts += [_judge(*(x[c] for x in measured), metric=metric) for c in range(len(part))]
    return verdicts


def _judge(
    gradient: np.ndarray, other: np.ndarray, before: np.ndarray, after: np.ndarray, *,
    metric: MetricPerQuery | None,
) -> Screening:  # fmt: skip
    size = np.linalg.norm(gradient.astype(np.float64))
    direction = (gradient / size if size > 0 else gradient).astype(np.float32)
    if size == 0:
        reason = "its gradient is zero"
    elif np.allclose(gradient, other, rtol=1e-4, atol=1e-6 * np.abs(gradient).max()):
        reason = "its gradient ignores the labels"
    elif metric is not None and not after > before:
        reason = "descent on free scores does not raise the metric"
    elif metric is None and (gain := (after - before) / max(1.0 - before, 1e-6)) < LEAST_GAIN:
        reason = (
            f"descent on free scores gains too little: {gain:.0%} of the NDCG that random ones "
            f"lack, expected at least {LEAST_GAIN:.0%}"
        )
    else:
        reason = ""
    return Screening(reason, direction)


@partial(jax.jit, static_argnames="metric")
def _measure(
    programs: Programs, probe: Probe, *, metric: MetricPerQuery | None
) -> tuple[Array, Array, Array, Array]:
    """Gradients [candidates, queries * list] under both labels; the mean metric of the scores
    given and of those that free descent ends with."""
    count = programs.count
    scores = jnp.broadcast_to(probe.scores, (count, *probe.scores.shape))

    # One loop for all of it, so that the interpreter is compiled once: the first two gradients are
    # under both labels at the scores given, the others move the scores.
    def step(scores: Array, k: Array) -> tuple[Array, Array]:
        labels = jnp.where(k == 0, probe.other_labels, probe.labels)
        slope = losses_and_gradients(programs, scores, labels, probe.mask)[1]
        peak = jnp.max(jnp.abs(slope), -1, keepdims=True)
        scaled = slope / jnp.where(peak > 0, peak, 1.0)
        length = jnp.sqrt(jnp.mean(jnp.square(scaled), -1, keepdims=True))
        moved = scores - _DESCENT_STEP * scaled / jnp.where(length > 0, length, 1.0)
        return jnp.where(k == 0, scores, moved), slope

    labels, mask = (jnp.broadcast_to(x, scores.shape) for x in (probe.labels, probe.mask))

    def quality(scores: Array) -> Array:
        values, defined = (metric or ndcg_per_query)(scores, labels, where=mask)
        return jnp.sum(values, -1, where=defined) / jnp.maximum(jnp.sum(defined, -1), 1)

    end, slopes = lax.scan(step, scores, jnp.arange(1 + _DESCENT_STEPS))
    other, given = slopes[0].reshape(count, -1), slopes[1].reshape(count, -1)
    return given, other, quality(scores), quality(end)


class Directions:
    """The directions of the losses known so far, each under the canonical text of its loss."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._rows = np.empty((0, 0), np.float32)  # the first len(_names) are in use

    def add(self, name: str, direction: np.ndarray) -> None:
        count = len(self._names)
        if count == len(self._rows):  # twice as many rows, so that a long search copies each twice
            grown = np.empty((max(64, 2 * count), direction.size), np.float32)
            if count:
                grown[:count] = self._rows
            self._rows = grown
        self._rows[count] = direction
        self._names.append(name)

    def find(self, direction: np.ndarray) -> str | None:
        """The name of the known loss that points the same way, None if there is none."""
        if not self._names:
            return None
        cosines = self._rows[: len(self._names)] @ direction
        best = int(np.argmax(cosines))
        return self._names[best] if cosines[best] >= SAME_DIRECTION else None
