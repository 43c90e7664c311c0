"""Masked ranking metrics that handle tied scores by expectation.

Shared arguments and conventions:

* ``scores``: ``float[..., list]``, higher ranks first. NaN counts as the lowest finite score
  (ranked last), infinities as the largest finite number of their sign.
* ``labels``: ``float[..., list]``, graded relevance, 0 is irrelevant. Leading axes of scores,
  labels and ``where`` broadcast against each other.
* ``where``: ``bool[..., list]``, True marks a real document. Masked documents never count.
* ``k``: a static cutoff; positions after ``k`` contribute nothing. None means the whole list.
* Tied documents: the value is the mean over all orders of the tied documents (McSherry and Najork,
  "Computing information retrieval performance measures efficiently in the presence of tied scores",
  ECIR 2008), so the order in which documents are stored never matters.
* ``*_per_query`` returns ``(values, defined)``, both ``[...]``. A query is defined when it has a
  document with a positive label; the value of an undefined query is 0.
* ``empty`` says what the mean makes of undefined queries: ``skip`` drops them, ``zero`` and ``one``
  count them as that value. Queries without any real document (padding) are never counted.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from autoloss_jax.errors import AutolossError

EMPTY_CONVENTIONS = ("skip", "zero", "one")

# XLA on CPU turns a comparison summed over 16 documents into vector code and a longer sum into a
# scalar loop, 25 times slower; its sort is slower still at every list length up to a thousand. The
# loop over blocks also keeps the counts from being fused into the table lookup, which would make
# them scalar again.
_BLOCK = 16
_TABLE_LIST = 256  # lists up to this length look the mean discount up in one [list, list] table
_MAX_LIST = 32_767  # two counts are packed into one 32-bit integer

PerQuery = tuple[jax.Array, jax.Array]
MetricPerQuery = Callable[..., PerQuery]
"""`(scores, labels, *, where) -> (values, defined)`, each [...]; jnp functions of their arrays."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _jitted(metric: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a metric; arguments other than arrays are static. Takes lists of numbers as well."""
    arrays = {"scores", "labels", "where"}
    static = [name for name in inspect.signature(metric).parameters if name not in arrays]
    compiled = jax.jit(metric, static_argnames=static)

    @functools.wraps(metric)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        options = {
            name: jnp.asarray(value) if name in arrays and value is not None else value
            for name, value in kwargs.items()
        }
        return cast(_R, compiled(*(jnp.asarray(value) for value in args), **options))

    return call


_UNNAMED = "metric"


def metric_name(metric: MetricPerQuery) -> str:
    """Module and name of a metric, with the arguments of a `functools.partial`.

    "metric" if it has none.
    """
    if isinstance(metric, functools.partial):
        name = metric_name(metric.func)
        given = [*map(repr, metric.args), *(f"{k}={v!r}" for k, v in metric.keywords.items())]
        return name if name == _UNNAMED else f"{name}({', '.join(given)})"
    name = getattr(metric, "__qualname__", "<none>")
    unnamed = "<lambda>" in name or name == "<none>"
    return _UNNAMED if unnamed else f"{metric.__module__}.{name}"


def recorded_name(metric: MetricPerQuery) -> str:
    """The name of a metric that a run folder records. Raises AutolossError if it has none."""
    name = metric_name(metric)
    if name == _UNNAMED:
        raise AutolossError(
            "metric: expected a named function, since the run folder records what was rewarded; "
            f"got {metric!r}"
        )
    return name


def metric_title(name: str) -> str:
    """A metric's name for people: "NDCG@10" for "ndcg@10"; one of their own as they named it."""
    return name if "." in name else name.upper()


@_jitted
def ndcg_per_query(
    scores: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None, k: int | None = None
) -> PerQuery:
    """Normalised discounted cumulative gain of every query.

    ``sum_i (2**y_i - 1) / log2(1 + rank_i)`` over its value in the ideal order (Järvelin and
    Kekäläinen, 2002; gain of Burges et al., 2005). A tied document gets the mean discount of the
    positions its tie group spans. Arguments and results: see the module.
    """
    s, y, mask = _prepare(scores, labels, where, k)
    ideal = _dcg(y, y, mask, k)
    defined = ideal > 0
    values = _dcg(s, y, mask, k) / jnp.where(defined, ideal, 1)
    return jnp.where(defined, values, 0), jnp.broadcast_to(defined, values.shape)


@_jitted
def dcg_per_query(
    scores: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None, k: int | None = None
) -> jax.Array:
    """Discounted cumulative gain ``[...]``; ``dcg_per_query(labels, labels)`` is the ideal one."""
    return _dcg(*_prepare(scores, labels, where, k), k)


@_jitted
def mrr_per_query(
    scores: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None, k: int | None = None
) -> PerQuery:
    """Reciprocal rank of the first document with a positive label (0 if it ranks after ``k``).

    Its tie group has ``t`` documents, ``r`` of them relevant, after ``b`` others:
    ``sum_p P(first at p) / (b + p)``, ``P`` being negative hypergeometric (McSherry and
    Najork, 2008).
    """
    s, y, mask = _prepare(scores, labels, where, k)
    relevant = mask & (y > 0)
    lowest = jnp.finfo(s.dtype).min
    first = jnp.max(jnp.where(relevant, s, lowest), axis=-1, keepdims=True, initial=lowest)
    before = jnp.sum(mask & (s > first), axis=-1, keepdims=True)
    tied = jnp.sum(mask & (s == first), axis=-1, keepdims=True)
    found = jnp.sum(relevant & (s == first), axis=-1, keepdims=True)
    place = jnp.arange(s.shape[-1])  # 0-based inside the tie group
    remaining = jnp.maximum(tied - place, 1)
    passed = jnp.cumprod(jnp.maximum(remaining - found, 0) / remaining, axis=-1)
    not_yet = jnp.concatenate([jnp.ones_like(passed[..., :1]), passed[..., :-1]], axis=-1)
    reached = (place < tied) & (before + place < _cutoff(s, k))
    terms = not_yet * (found / remaining) / (before + place + 1)
    values = jnp.sum(jnp.where(reached, terms, 0), axis=-1).astype(s.dtype)
    return _with_defined(values, relevant)


@_jitted
def average_precision_per_query(
    scores: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None, k: int | None = None
) -> PerQuery:
    """Average precision, a document being relevant when its label is positive.

    The precision at the rank of every relevant document, over the number of all relevant documents
    (also under a cutoff, as trec_eval's ``map_cut``). For a relevant document in a tie group of
    ``t``, ``r`` of them relevant, after ``b`` documents with ``a`` relevant, the expectation is
    ``mean_{p=1..t} (a + 1 + (p - 1) (r - 1) / (t - 1)) / (b + p)`` (McSherry and Najork, 2008).
    """
    s, y, mask = _prepare(scores, labels, where, k)
    relevant = mask & (y > 0)
    before, tied = _count_ahead(s, mask)
    ahead, found = _count_ahead(s, relevant)
    gained = ((found - 1) / jnp.maximum(tied - 1, 1)).astype(s.dtype)[..., None]
    rank = jnp.arange(1, s.shape[-1] + 1)
    place = rank - before[..., None]  # [..., list, rank], 1-based inside the tie group
    inside = (place >= 1) & (place <= tied[..., None]) & (rank <= _cutoff(s, k))
    hits = ahead[..., None] + 1 + (place - 1) * gained
    precision = jnp.sum(jnp.where(inside, hits / rank, 0), axis=-1) / jnp.maximum(tied, 1)
    total = jnp.maximum(jnp.sum(relevant, axis=-1), 1)
    values = jnp.sum(jnp.where(relevant, precision, 0), axis=-1) / total
    return _with_defined(values.astype(s.dtype), relevant)


@_jitted
def err_per_query(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    k: int | None = None,
    max_label: float = 4.0,
) -> PerQuery:
    """Expected reciprocal rank: ``sum_p R_p / p * prod_{q < p} (1 - R_q)``.

    ``R = (2**y - 1) / 2**max_label``; labels above ``max_label`` count as ``max_label``
    (Chapelle et al., "Expected reciprocal rank for graded relevance", CIKM 2009). Ties by exact
    expectation: the sum is ``sum_p (Q_{p-1} - Q_p) / p``, ``Q_p`` being the expected product of
    ``1 - R`` over the first ``p`` documents; inside a tie group that is an elementary
    symmetric mean of ``1 - R``. Memory grows with list, time with list squared.
    """
    if not (np.isfinite(max_label) and max_label > 0):
        raise ValueError(f"max_label is {max_label!r}, expected a positive number")
    s, y, mask = _prepare(scores, labels, where, k)
    s, y, mask = jnp.broadcast_arrays(s, y, mask)
    stop = jnp.where(mask, _gain(jnp.minimum(y, max_label)) / 2.0**max_label, 0).astype(s.dtype)
    before, tied = _count_ahead(s, mask)
    # Masked documents sort last; nothing they could change is ever read.
    order = jnp.argsort(jnp.where(mask, -s, jnp.inf), axis=-1)
    before, stop, mask = (jnp.take_along_axis(a, order, axis=-1) for a in (before, stop, mask))
    positions = jnp.arange(s.shape[-1] + 1)

    def add_document(survival: jax.Array, document: Any) -> tuple[jax.Array, None]:
        index, start, stop_here, real = document
        size = (index - start + 1)[..., None]  # members of the tie group seen so far
        chosen = positions - start[..., None]
        shifted = jnp.concatenate([survival[..., :1], survival[..., :-1]], axis=-1)
        passed = (1 - stop_here[..., None]) * shifted
        mixed = ((size - chosen) * survival + chosen * passed) / size
        inside = (chosen >= 1) & (chosen <= size) & real[..., None]
        return jnp.where(inside, mixed, survival), None

    documents = (
        jnp.arange(s.shape[-1]),
        *(jnp.moveaxis(a, -1, 0) for a in (before, stop, mask)),
    )
    survival = jnp.ones((*s.shape[:-1], s.shape[-1] + 1), s.dtype)
    survival, _ = lax.scan(add_document, survival, documents)
    rank = positions[1:]
    reached = (rank <= _cutoff(s, k)) & (rank <= jnp.sum(mask, axis=-1, keepdims=True))
    drops = jnp.where(reached, (survival[..., :-1] - survival[..., 1:]) / rank, 0)
    return _with_defined(jnp.sum(drops, axis=-1), mask & (stop > 0))


def mean_over_queries(
    values: ArrayLike,
    defined: ArrayLike,
    exists: ArrayLike,
    empty: str = "skip",
    axis: int | tuple[int, ...] | None = None,
) -> jax.Array:
    """Mean of per-query ``values`` under the convention ``empty``; NaN when nothing counts.

    Args:
        values: ``float[...]``, the metric of each query.
        defined: ``bool[...]``, whether the metric is defined for the query.
        exists: ``bool[...]``, whether the query has a real document; padding never counts.
        empty: ``skip`` (mean over defined queries), ``zero`` or ``one`` (undefined count as that).
        axis: the query axes; None means all.

    Raises:
        ValueError: ``empty`` is none of the three.
    """
    if empty not in EMPTY_CONVENTIONS:
        raise ValueError(f"empty is {empty!r}, expected one of {', '.join(EMPTY_CONVENTIONS)}")
    known = jnp.asarray(defined, bool)
    counted = jnp.asarray(exists, bool) & (known if empty == "skip" else True)
    filled = jnp.where(known, jnp.asarray(values), 1 if empty == "one" else 0)
    filled, counted = jnp.broadcast_arrays(filled, counted)
    total = jnp.sum(jnp.where(counted, filled, 0), axis=axis)
    count = jnp.sum(counted, axis=axis)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


@_jitted
def ndcg(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    k: int | None = None,
    empty: str = "skip",
) -> jax.Array:
    """Mean of `ndcg_per_query` over all queries.

    >>> float(ndcg([[0.0, 0.0]], [[1.0, 0.0]], k=1))
    0.5
    """
    return _mean(ndcg_per_query, scores, labels, where, k, empty)


@_jitted
def mrr(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    k: int | None = None,
    empty: str = "skip",
) -> jax.Array:
    """Mean of `mrr_per_query` over all queries."""
    return _mean(mrr_per_query, scores, labels, where, k, empty)


@_jitted
def average_precision(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    k: int | None = None,
    empty: str = "skip",
) -> jax.Array:
    """Mean of `average_precision_per_query` over all queries (MAP)."""
    return _mean(average_precision_per_query, scores, labels, where, k, empty)


@_jitted
def err(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    k: int | None = None,
    empty: str = "skip",
    max_label: float = 4.0,
) -> jax.Array:
    """Mean of `err_per_query` over all queries."""
    metric = functools.partial(err_per_query, max_label=max_label)
    return _mean(metric, scores, labels, where, k, empty)


@_jitted
def random_ranker_ndcg(
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    k: int | None = None,
    empty: str = "skip",
) -> jax.Array:
    """The expected NDCG of a random order, which is that of a constant scorer.

    ``mean_i(gain_i) * sum_{r <= min(n, k)} 1 / log2(1 + r) / max_dcg``, from its own formula and
    not through `ndcg`, so that one can be checked against the other.
    """
    _, y, mask = _prepare(labels, labels, where, k)
    count = jnp.sum(mask, axis=-1)
    table = jnp.asarray(np.cumsum(np.append(0.0, _discounts(mask.shape[-1], k))), y.dtype)
    ideal = _dcg(y, y, mask, k)
    mean_gain = jnp.sum(_gain(y), axis=-1) / jnp.maximum(count, 1)
    values = mean_gain * table[count] / jnp.where(ideal > 0, ideal, 1)
    return mean_over_queries(values, ideal > 0, count > 0, empty)


def _mean(
    metric: Callable[..., PerQuery],
    scores: ArrayLike,
    labels: ArrayLike,
    where: ArrayLike | None,
    k: int | None,
    empty: str,
) -> jax.Array:
    values, defined = metric(scores, labels, where=where, k=k)
    exists = jnp.any(_prepare(scores, labels, where, k)[2], axis=-1)
    return mean_over_queries(values, defined, exists, empty)


def _prepare(
    scores: ArrayLike, labels: ArrayLike, where: ArrayLike | None, k: int | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Finite scores, labels that are 0 at padding, and the mask; refuses shapes that do not fit."""
    if k is not None and (isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1):
        raise ValueError(f"k is {k!r}, expected a whole number of at least 1, or None")
    s, y = jnp.asarray(scores), jnp.asarray(labels)
    shapes = {"scores": s.shape, "labels": y.shape}
    if where is not None:
        shapes["where"] = np.shape(where)
    if any(not shape for shape in shapes.values()):
        raise ValueError(f"expected arrays [..., list], got shapes {shapes}")
    if len({shape[-1] for shape in shapes.values()}) > 1:
        raise ValueError(f"the last axis (list) differs: {shapes}")
    if s.shape[-1] > _MAX_LIST:
        raise ValueError(f"a list of {s.shape[-1]} documents, expected at most {_MAX_LIST}")
    dtype = jnp.promote_types(s.dtype, jnp.float32)
    limit = jnp.finfo(dtype).max
    s = jnp.clip(jnp.nan_to_num(s.astype(dtype), nan=-limit), -limit, limit)
    mask = jnp.ones(y.shape, bool) if where is None else jnp.asarray(where, bool)
    return s, jnp.where(mask, y, 0).astype(dtype), mask


def _with_defined(values: jax.Array, relevant: jax.Array) -> PerQuery:
    defined = jnp.broadcast_to(jnp.any(relevant, axis=-1), values.shape)
    return jnp.where(defined, values, 0), defined


def _gain(labels: jax.Array) -> jax.Array:
    return jnp.exp2(labels) - 1


def _cutoff(scores: jax.Array, k: int | None) -> int:
    return scores.shape[-1] if k is None else min(k, scores.shape[-1])


def _discounts(size: int, k: int | None) -> np.ndarray:
    """f64[size]: the discount of each position, 0 after the cutoff."""
    rank = np.arange(1, size + 1)
    return np.where(rank <= (size if k is None else k), 1 / np.log2(1.0 + rank), 0.0)


def _dcg(scores: jax.Array, labels: jax.Array, mask: jax.Array, k: int | None) -> jax.Array:
    before, tied = _count_ahead(scores, mask)
    return jnp.sum(_gain(labels) * _mean_discount(before, tied, k, labels.dtype), axis=-1)


def _count_ahead(scores: jax.Array, flags: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For every document, how many flagged documents score higher, and how many the same.

    Both counts are i32[..., list]. Scores must be finite: an unflagged one is compared as -inf.
    """
    rivals = jnp.where(flags, scores, -jnp.inf)
    padding = max(-rivals.shape[-1] % _BLOCK, _BLOCK - rivals.shape[-1])  # at least one block
    rivals = jnp.pad(
        rivals, [(0, 0)] * (rivals.ndim - 1) + [(0, padding)], constant_values=-jnp.inf
    )

    def count(start: jax.Array) -> jax.Array:
        block = lax.dynamic_slice_in_dim(rivals, start, _BLOCK, axis=-1)
        mine, other = scores[..., :, None], block[..., None, :]
        packed = jnp.where(other > mine, 1 << 16, jnp.where(other == mine, 1, 0))
        return jnp.sum(packed.astype(jnp.int32), axis=-1, dtype=jnp.int32)

    total = jnp.zeros(jnp.broadcast_shapes(scores.shape, flags.shape), jnp.int32)
    blocks = rivals.shape[-1] // _BLOCK
    total = lax.fori_loop(0, blocks, lambda block, total: total + count(block * _BLOCK), total)
    return total >> 16, total & 0xFFFF


def _mean_discount(
    before: jax.Array, tied: jax.Array, k: int | None, dtype: jnp.dtype
) -> jax.Array:
    """Mean discount of positions ``before + 1 .. before + tied``; anything at padding."""
    size = before.shape[-1]
    sums = np.cumsum(np.append(0.0, _discounts(size, k)))
    last = jnp.minimum(before + tied, size)  # padding may count past the end
    if size <= _TABLE_LIST:
        start, end = np.mgrid[: size + 1, : size + 1]
        means = (sums[end] - sums[start]) / np.maximum(end - start, 1)
        return jnp.asarray(means.ravel(), dtype)[before * (size + 1) + last]
    high = sums.astype(np.float32).astype(np.float64)  # two floats keep the difference exact
    parts = (jnp.asarray(high, dtype), jnp.asarray(sums - high, dtype))
    difference = sum((part[last] - part[before] for part in parts), jnp.zeros((), dtype))
    return difference / jnp.maximum(tied, 1)
