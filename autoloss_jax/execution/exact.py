"""The exact path: one loss expression as one plain jnp function, with Rax's calling convention.

A value with free indices {i, j} is an array [..., list, list] whose last two axes are i and j; an
index that is not free has length 1 there, so operators broadcast as in einsum.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from autoloss_jax.errors import AutolossError
from autoloss_jax.execution import queries
from autoloss_jax.language.expressions import LITERAL, Expression
from autoloss_jax.language.operators import INDICES, LARGE, LEAVES, OPERATORS, REDUCTIONS, TINY
from autoloss_jax.language.parsing import as_loss

AXES = {"i": -2, "j": -1}

RELATIONS: dict[str, Callable[[Array, Array], Array]] = {
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "and": jnp.logical_and,
    "or": jnp.logical_or,
}
"""What conditions are made of."""


class LossFn(Protocol):
    """A ranking loss in Rax's calling convention."""

    def __call__(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        *,
        where: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        reduce_fn: Callable[..., Array] | None = jnp.mean,
    ) -> Array: ...


def compile_loss(loss: Expression | str) -> LossFn:
    """Turns a loss expression into a jnp function, for `jit`, `grad` and `vmap`.

    Args:
      loss: an expression without free index, or its text.

    Returns:
      `loss_fn(scores, labels, *, where=None, weights=None, reduce_fn=jnp.mean)` of scores and
      labels [..., list], differentiable in the scores any number of times in reverse mode. `where`
      marks the real documents, all by default. A document of weight w counts in every sum and mean
      over `i` as w documents like it (in means: divided by the number of documents, not by the sum
      of weights, as Rax does). `reduce_fn` reduces the queries that have a document, by
      `reduce_fn(values, where=...)`; None returns one value a query, 0 for those without a
      document.

    Raises:
      FormulaError: the text is not a loss.
      AutolossError: the loss is neither expression nor text or has a free index; scores, labels,
        where or weights differ in shape.

    >>> ranknet = compile_loss("sum_ij(softplus(s_j - s_i), where=y_i > y_j)")
    >>> round(float(ranknet(jnp.array([1.0, 2.0, 0.0]), jnp.array([1.0, 0.0, 0.0]))), 4)
    1.6265
    """
    expression = as_loss(loss)

    def loss_fn(
        scores: ArrayLike,
        labels: ArrayLike,
        *,
        where: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        reduce_fn: Callable[..., Array] | None = jnp.mean,
    ) -> Array:
        scores = jnp.asarray(scores, dtype=jnp.result_type(float, jnp.asarray(scores).dtype))
        mask = jnp.ones(scores.shape, bool) if where is None else jnp.asarray(where, bool)
        inputs = {"labels": jnp.asarray(labels, scores.dtype), "where": mask}
        if weights is not None:
            inputs["weights"] = jnp.asarray(weights, scores.dtype)
        for name, value in inputs.items():
            if value.shape != scores.shape or not scores.ndim:
                raise AutolossError(
                    f"{name} must have the shape of scores, [..., list]: "
                    f"got {value.shape} and {scores.shape}"
                )
        query = _Query.of(_finite_gradient(scores), inputs["labels"], mask, inputs.get("weights"))
        values = jnp.broadcast_to(_finite(query.evaluate(expression))[..., 0, 0], scores.shape[:-1])
        defined = jnp.any(mask, axis=-1)
        values = jnp.where(defined, values, 0.0)
        if reduce_fn is None:
            return values
        # A batch of nothing but padding has loss 0, not the NaN of an empty mean.
        return jnp.where(jnp.any(defined), reduce_fn(values, where=defined), 0.0)

    loss_fn.__doc__ = f"The ranking loss `{expression}`."
    return loss_fn


def _finite(values: Array) -> Array:
    """Overflow saturates; what has no value (a sum of both infinities) is 0."""
    return jnp.nan_to_num(jnp.clip(values, -LARGE, LARGE))


@jax.custom_vjp
def _finite_gradient(scores: Array) -> Array:
    """The scores; a gradient through them that overflowed saturates or, without value, is 0."""
    return scores


def _finite_gradient_forward(scores: Array) -> tuple[Array, None]:
    return scores, None


def _finite_gradient_backward(_: None, gradient: Array) -> tuple[Array]:
    return (_finite(gradient),)


_finite_gradient.defvjp(_finite_gradient_forward, _finite_gradient_backward)


@dataclass(frozen=True)
class _Query:
    """The leaves of a batch of queries, ready to broadcast, and the evaluation over them."""

    leaves: dict[str, Array]  # by name: f32[..., list or 1, list or 1]
    masks: dict[str, Array]  # by index: bool[..., list, 1] or bool[..., 1, list]
    weights: Array | None  # f32[..., list, 1]

    @staticmethod
    def of(scores: Array, labels: Array, mask: Array, weights: Array | None) -> "_Query":
        scores, labels = jnp.where(mask, scores, 0.0), jnp.where(mask, labels, 0.0)
        weights = None if weights is None else jnp.where(mask, weights, 0.0)
        rank = queries.ranks(scores, mask)
        documents = {
            "s": scores,
            "y": labels,
            "gain": queries.gains(labels),
            "rank": rank,
            "discount": queries.discounts(rank),
        }
        views = {"i": lambda x: x[..., :, None], "j": lambda x: x[..., None, :]}
        leaves = {f"{name}_{i}": views[i](x) for name, x in documents.items() for i in INDICES}
        count = jnp.sum(mask, axis=-1, dtype=scores.dtype)
        leaves["n"] = count[..., None, None]
        leaves["max_dcg"] = queries.max_dcg(labels, mask)[..., None, None]
        position = jnp.arange(mask.shape[-1])
        leaves |= {index: views[index](position) for index in INDICES}
        masks = {index: views[index](mask) for index in INDICES}
        return _Query(leaves, masks, None if weights is None else views["i"](weights))

    def evaluate(self, node: Expression) -> Array:
        if node.op == LITERAL:
            in_range = max(-LARGE, min(node.value, LARGE))
            return jnp.asarray(in_range, self.leaves["n"].dtype)[None, None]
        if node.op in LEAVES or node.op in INDICES:
            return self.leaves[node.op]
        if node.op in REDUCTIONS:
            return self._reduce(node)
        function = RELATIONS.get(node.op) or OPERATORS[node.op].value
        return function(*(self.evaluate(arg) for arg in node.args))

    def _reduce(self, node: Expression) -> Array:
        reduction = REDUCTIONS[node.op]
        indices = sorted(reduction.indices)  # so that all processes compile the same program
        axes = tuple(AXES[index] for index in indices)
        selected = jnp.asarray(True)[None, None]
        for index in indices:
            selected = selected & self.masks[index]
        if node.where is not None:
            selected = selected & self.evaluate(node.where)
        values = self.evaluate(node.args[0])
        shape = jnp.broadcast_shapes(values.shape, selected.shape)
        values, selected = jnp.broadcast_to(values, shape), jnp.broadcast_to(selected, shape)
        if self.weights is not None and "i" in reduction.indices and reduction.kind in _ADDITIVE:
            values = values * self.weights
        return _KINDS[reduction.kind](values, selected, axes)


def _sum(values: Array, selected: Array, axes: tuple[int, ...]) -> Array:
    return jnp.sum(jnp.where(selected, values, 0.0), axis=axes, keepdims=True)


def _mean(values: Array, selected: Array, axes: tuple[int, ...]) -> Array:
    count = jnp.sum(selected, axis=axes, keepdims=True, dtype=values.dtype)
    return _sum(values, selected, axes) / jnp.maximum(count, 1.0)


def _max(values: Array, selected: Array, axes: tuple[int, ...]) -> Array:
    top = jnp.max(jnp.where(selected, values, -jnp.inf), axis=axes, keepdims=True)
    return jnp.where(jnp.any(selected, axis=axes, keepdims=True), top, 0.0)


def _logsumexp(values: Array, selected: Array, axes: tuple[int, ...]) -> Array:
    top = jax.lax.stop_gradient(_max(values, selected, axes))
    # Unselected values are replaced before exp, so that they cannot overflow into the gradient.
    terms = jnp.exp(jnp.where(selected, values - top, 0.0))
    total = _sum(terms, selected, axes)
    return jnp.where(total > 0.0, top + jnp.log(jnp.maximum(total, TINY)), 0.0)


_ADDITIVE = ("sum", "mean")
_KINDS: dict[str, Callable[[Array, Array, tuple[int, ...]], Array]] = {
    "sum": _sum,
    "mean": _mean,
    "max": _max,
    "logsumexp": _logsumexp,
}
