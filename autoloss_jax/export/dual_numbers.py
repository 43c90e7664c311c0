"""Arithmetic that carries two derivatives along, in numpy: what exported objectives consist of.

Functions take arrays or `Dual` numbers, which are a value and its first and second derivatives by
the scores. Gradient boosting wants the gradient and the Hessian's diagonal only, so each derivative
is by one score at a time. The functions bear the names of the exact path's; tests hold values and
first derivatives to the operator table's, and both derivatives to automatic differentiation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from autoloss_jax.language.operators import CUBE_ROOT_LARGE, LARGE, LOG_LARGE, TINY


class Dual:
    """A value [queries, i, j] and its first and second derivatives by scores.

    first, second: [scores, queries, i, j], or 0.0 where all are. by: whose scores. "i": document
    i's alone; "j": document j's alone; "ij": these two, either being the whole derivative where i
    is j; "k": each document's of the query. same: bool[list, list], where i is j.
    """

    __array_ufunc__ = None  # leaves `array + dual` to __radd__

    def __init__(
        self,
        value: np.ndarray,
        first: np.ndarray | float,
        second: np.ndarray | float,
        by: str,
        same: np.ndarray,
    ) -> None:
        self.value, self.first, self.second, self.by, self.same = value, first, second, by, same

    def __add__(self, other: np.ndarray | Dual) -> Dual:
        if not isinstance(other, Dual):
            return Dual(self.value + other, self.first, self.second, self.by, self.same)
        (a1, a2), (b1, b2), kind = align(self, other)
        return Dual(self.value + other.value, a1 + b1, a2 + b2, *kind)

    def __neg__(self) -> Dual:
        return Dual(-self.value, -self.first, -self.second, self.by, self.same)

    def __radd__(self, other: np.ndarray) -> Dual:
        return self + other

    def __sub__(self, other: np.ndarray | Dual) -> Dual:
        return self + -other

    def __rsub__(self, other: np.ndarray) -> Dual:
        return -self + other


def gains(labels: np.ndarray) -> np.ndarray:
    """`2**y - 1` of labels [..., list]."""
    return np.minimum(np.exp2(labels) - 1.0, LARGE)


def discounts(ranks: np.ndarray) -> np.ndarray:
    """`1 / log2(1 + rank)` of 1-based ranks [..., list]."""
    return 1.0 / np.log2(1.0 + ranks)


def ranks(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """1-based ranks by descending `values` among the real documents; ties by position."""
    order = np.argsort(np.where(mask, -values, np.inf), axis=-1, kind="stable")
    return np.argsort(order, axis=-1, kind="stable") + 1.0


def max_dcg(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The DCG of the documents in descending order of their labels."""
    ideal = gains(labels) * discounts(ranks(labels, mask))
    return np.where(mask, ideal, 0.0).sum(-1)


def value_of(x: np.ndarray | Dual) -> np.ndarray:
    """The value alone."""
    return x.value if isinstance(x, Dual) else np.asarray(x)


def document_scores(scores: np.ndarray) -> tuple[Dual, Dual]:
    """Scores [queries, list] as those of document i and of document j."""
    same = np.eye(scores.shape[-1], dtype=bool)
    one = np.ones((1, 1, 1, 1))
    return (
        Dual(scores[:, :, None], one, 0.0, "i", same),
        Dual(scores[:, None, :], one, 0.0, "j", same),
    )


def align(a: np.ndarray | Dual, b: np.ndarray | Dual) -> tuple:
    """The derivatives of both by the same scores; whose these are, and where i is j."""
    duals = [x for x in (a, b) if isinstance(x, Dual)]
    given = {x.by for x in duals}
    by = given.pop() if len(given) == 1 else "k" if "k" in given else "ij"
    return _by(a, by), _by(b, by), (by, duals[0].same)


def _by(x: np.ndarray | Dual, by: str) -> tuple:
    """First and second derivative by more scores than they are given by."""
    if not isinstance(x, Dual):
        return 0.0, 0.0
    return tuple(
        d if isinstance(d, float) or x.by == by else _spread(d, x.by, by, x.same)
        for d in (x.first, x.second)
    )


def _spread(d: np.ndarray, given: str, by: str, same: np.ndarray) -> np.ndarray:
    if by == "ij":
        pair = [d[0], same * d[0]] if given == "i" else [same * d[0], d[0]]
        return np.stack(np.broadcast_arrays(*pair))
    is_i, is_j = same[:, None, :, None], same[:, None, None, :]
    if given == "ij":
        return is_i * d[0] + (is_j & ~same) * d[1]
    return (is_i if given == "i" else is_j) * d[0]


def _times(a: np.ndarray | float, b: np.ndarray | float) -> np.ndarray | float:
    """The product; 0.0, which stands for all zeros, stays what it is."""
    return 0.0 if isinstance(a, float) or isinstance(b, float) else a * b


def chain(
    x: np.ndarray | Dual, value: np.ndarray, slope: np.ndarray, bend: np.ndarray | float
) -> np.ndarray | Dual:
    """A function of x by its value and its derivatives there."""
    if not isinstance(x, Dual):
        return value
    first = x.first
    second = _times(slope, x.second) + _times(bend, _times(first, first))
    return Dual(value, _times(slope, first), second, x.by, x.same)


def multiply(a: np.ndarray | Dual, b: np.ndarray | Dual) -> np.ndarray | Dual:
    x, y = value_of(a), value_of(b)
    product = x * y
    if not (isinstance(a, Dual) or isinstance(b, Dual)):
        return np.clip(product, -LARGE, LARGE)
    (a1, a2), (b1, b2), kind = align(a, b)
    first = _times(y, a1) + _times(x, b1)
    second = _times(y, a2) + _times(x, b2) + 2 * _times(a1, b1)
    inside = (np.abs(product) < LARGE).astype(product.dtype)
    value = np.clip(product, -LARGE, LARGE)
    return Dual(value, _times(inside, first), _times(inside, second), *kind)


def divide(a: np.ndarray | Dual, b: np.ndarray | Dual) -> np.ndarray | Dual:
    x, y = value_of(a), value_of(b)
    defined = np.abs(y) > TINY
    y = np.where(defined, y, 1.0)
    quotient = x / y
    value = np.where(defined, np.clip(quotient, -LARGE, LARGE), 0.0)
    if not (isinstance(a, Dual) or isinstance(b, Dual)):
        return value
    (a1, a2), (b1, b2), kind = align(a, b)
    inverse = np.where(defined & (np.abs(quotient) < LARGE), 1.0 / y, 0.0)
    first = _times(inverse, a1 - _times(value, b1))
    second = _times(inverse, a2 - 2 * _times(first, b1) - _times(value, b2))
    return Dual(value, first, second, *kind)


def _choice(
    a: np.ndarray | Dual, b: np.ndarray | Dual, choose: Callable, is_first: Callable
) -> np.ndarray | Dual:
    """One of two, with the mean of their derivatives at a tie."""
    x, y = value_of(a), value_of(b)
    value = choose(x, y)
    if not (isinstance(a, Dual) or isinstance(b, Dual)):
        return value
    (a1, a2), (b1, b2), kind = align(a, b)
    share = np.where(x == y, 0.5, is_first(x, y).astype(value.dtype))
    first = _times(share, a1) + _times(1.0 - share, b1)
    second = _times(share, a2) + _times(1.0 - share, b2)
    return Dual(value, first, second, *kind)


def minimum(a: np.ndarray | Dual, b: np.ndarray | Dual) -> np.ndarray | Dual:
    return _choice(a, b, np.minimum, np.less)


def maximum(a: np.ndarray | Dual, b: np.ndarray | Dual) -> np.ndarray | Dual:
    return _choice(a, b, np.maximum, np.greater)


def exp(x: np.ndarray | Dual) -> np.ndarray | Dual:
    given = value_of(x)
    value = np.exp(np.minimum(given, LOG_LARGE))
    slope = np.where(given < LOG_LARGE, value, 0.0)
    return chain(x, value, slope, slope)


def log(x: np.ndarray | Dual) -> np.ndarray | Dual:
    given = value_of(x)
    positive = np.maximum(given, TINY)
    slope = np.where(given > TINY, 1.0 / positive, 0.0)
    return chain(x, np.log(positive), slope, -slope * slope)


def log2(x: np.ndarray | Dual) -> np.ndarray | Dual:
    scale = np.full((1, 1), 1.0 / np.log(2.0))
    return multiply(log(x), scale)


def sqrt(x: np.ndarray | Dual) -> np.ndarray | Dual:
    given = value_of(x)
    defined = given > TINY
    positive = np.where(defined, given, 1.0)
    value = np.where(defined, np.sqrt(positive), 0.0)
    slope = np.where(defined, 0.5 / np.sqrt(positive), 0.0)
    return chain(x, value, slope, -0.5 * slope / positive)


def square(x: np.ndarray | Dual) -> np.ndarray | Dual:
    given = value_of(x)
    inside = np.where(given * given < LARGE, 2.0, 0.0)
    return chain(x, np.minimum(given * given, LARGE), inside * given, inside)


def cube(x: np.ndarray | Dual) -> np.ndarray | Dual:
    given = np.clip(value_of(x), -CUBE_ROOT_LARGE, CUBE_ROOT_LARGE)
    inside = np.where(np.abs(given) < CUBE_ROOT_LARGE, 3.0, 0.0)
    return chain(x, given**3, inside * given**2, 2.0 * inside * given)


def absolute(x: np.ndarray | Dual) -> np.ndarray | Dual:
    return chain(x, np.abs(value_of(x)), np.sign(value_of(x)), 0.0)


def sign(x: np.ndarray | Dual) -> np.ndarray:
    return np.sign(value_of(x))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    tail = np.exp(-np.abs(x))  # at most 1, so nothing overflows
    return np.where(x >= 0.0, 1.0, tail) / (1.0 + tail)


def sigmoid(x: np.ndarray | Dual) -> np.ndarray | Dual:
    value = _sigmoid(value_of(x))
    slope = value * (1.0 - value)
    return chain(x, value, slope, slope * (1.0 - 2.0 * value))


def softplus(x: np.ndarray | Dual) -> np.ndarray | Dual:
    slope = _sigmoid(value_of(x))
    return chain(x, np.logaddexp(0.0, value_of(x)), slope, slope * (1.0 - slope))


def tanh(x: np.ndarray | Dual) -> np.ndarray | Dual:
    value = np.tanh(value_of(x))
    slope = 1.0 - value * value
    return chain(x, value, slope, -2.0 * value * slope)


def relu(x: np.ndarray | Dual) -> np.ndarray | Dual:
    given = value_of(x)
    positive = (given > 0.0).astype(given.dtype)
    return chain(x, given * positive, positive, 0.0)


def stop_gradient(x: np.ndarray | Dual) -> np.ndarray:
    return value_of(x)


def _collect(
    x: Dual, derivative: np.ndarray | float, weights: np.ndarray, axes: tuple[int, ...]
) -> np.ndarray | float:
    """The weighted sum of derivatives over documents, by the scores that `_collected_by` names."""
    if isinstance(derivative, float):
        return 0.0
    terms = np.where(weights != 0, derivative, 0.0) * weights
    if x.by == "k" or (x.by == "i" and axes == (-1,)) or (x.by == "j" and axes == (-2,)):
        return terms.sum(axis=axes, keepdims=True)
    if x.by == "i":  # a term's own score becomes one of the query's
        own = terms[0].sum(-1, keepdims=True) if -1 in axes else terms[0]
        return np.moveaxis(own, 1, 0)[:, :, None, :]
    if x.by == "j":
        own = terms[0].sum(-2, keepdims=True) if -2 in axes else terms[0]
        return np.moveaxis(own, 2, 0)[:, :, :, None]
    if len(axes) == 2:
        total = terms[0].sum(-1) + np.where(x.same, 0.0, terms[1]).sum(-2)
        return total.T[:, :, None, None]
    diagonal = np.arange(terms.shape[-1])
    if axes == (-1,):  # by document j's score one term has a derivative, by document i's all have
        collected = np.moveaxis(terms[1], 2, 0)[:, :, :, None].copy()
        collected[diagonal, :, diagonal, 0] = terms[0].sum(-1).T
    else:
        collected = np.moveaxis(terms[0], 1, 0)[:, :, None, :].copy()
        collected[diagonal, :, 0, diagonal] = terms[1].sum(-2).T
    return collected


def _collected_by(x: Dual, axes: tuple[int, ...]) -> str:
    return x.by if (x.by, axes) in (("i", (-1,)), ("j", (-2,))) else "k"


def _weighted(
    x: np.ndarray | Dual, value: np.ndarray, weights: np.ndarray, axes: tuple[int, ...]
) -> np.ndarray | Dual:
    """A reduction whose derivative by each term is its weight."""
    if not isinstance(x, Dual):
        return value
    first, second = (_collect(x, d, weights, axes) for d in (x.first, x.second))
    return Dual(value, first, second, _collected_by(x, axes), x.same)


def _selection(x: np.ndarray | Dual, selected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values, and which of them count, in their common shape."""
    values, chosen = np.broadcast_arrays(value_of(x), selected)
    return values, chosen


def _sum(x: np.ndarray | Dual, selected: np.ndarray, axes: tuple[int, ...]) -> np.ndarray | Dual:
    values, chosen = _selection(x, selected)
    total = np.where(chosen, values, 0.0).sum(axis=axes, keepdims=True)
    return _weighted(x, total, chosen, axes)


def _mean(x: np.ndarray | Dual, selected: np.ndarray, axes: tuple[int, ...]) -> np.ndarray | Dual:
    _, chosen = _selection(x, selected)
    count = np.maximum(chosen.sum(axis=axes, keepdims=True), 1.0)
    return multiply(_sum(x, selected, axes), 1.0 / count)


def _top(values: np.ndarray, chosen: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    top = np.where(chosen, values, -np.inf).max(axis=axes, keepdims=True)
    return np.where(chosen.any(axis=axes, keepdims=True), top, 0.0)


def _max(x: np.ndarray | Dual, selected: np.ndarray, axes: tuple[int, ...]) -> np.ndarray | Dual:
    values, chosen = _selection(x, selected)
    top = _top(values, chosen, axes)
    ties = chosen & (values == top)
    weights = ties / np.maximum(ties.sum(axis=axes, keepdims=True), 1.0)
    return _weighted(x, top, weights, axes)


def _logsumexp(
    x: np.ndarray | Dual, selected: np.ndarray, axes: tuple[int, ...]
) -> np.ndarray | Dual:
    values, chosen = _selection(x, selected)
    top = _top(values, chosen, axes)
    terms = np.where(chosen, np.exp(np.where(chosen, values - top, 0.0)), 0.0)
    total = terms.sum(axis=axes, keepdims=True)
    value = np.where(total > 0.0, top + np.log(np.maximum(total, TINY)), 0.0)
    if not isinstance(x, Dual):
        return value
    weights = terms / np.maximum(total, TINY)
    first = _collect(x, x.first, weights, axes)
    spread = _collect(x, x.second + _times(x.first, x.first), weights, axes)
    return Dual(value, first, spread - _times(first, first), _collected_by(x, axes), x.same)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.clip(values, -LARGE, LARGE))
