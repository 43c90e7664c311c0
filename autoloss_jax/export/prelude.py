"""What an exported module needs besides the exact path's own functions; copied by its source.

As in the exact path, values are arrays [..., i, j] in which an index that is not free has length 1.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from autoloss_jax.execution.exact import _finite, _finite_gradient


def prepare(
    scores: ArrayLike, labels: ArrayLike, where: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Scores and labels, 0 at padding, and the mask; all of one shape."""
    scores = jnp.asarray(scores, dtype=jnp.result_type(float, jnp.asarray(scores).dtype))
    labels = jnp.asarray(labels, scores.dtype)
    mask = jnp.ones(scores.shape, bool) if where is None else jnp.asarray(where, bool)
    if not scores.ndim or not scores.shape == labels.shape == mask.shape:
        raise ValueError(
            "scores, labels and where must have one shape, [..., list]: "
            f"got {scores.shape}, {labels.shape} and {mask.shape}"
        )
    scores = _finite_gradient(scores)
    return jnp.where(mask, scores, 0.0), jnp.where(mask, labels, 0.0), mask


def number(value: float, like: Array) -> Array:
    """A constant that broadcasts with everything."""
    return jnp.full((1, 1), value, like.dtype)


def positions(mask: Array) -> Array:
    """The documents' positions in the list."""
    return jnp.arange(mask.shape[-1])


def count_documents(mask: Array, like: Array) -> Array:
    """The number of real documents of each query."""
    return jnp.sum(mask, axis=-1, dtype=like.dtype)


def mean_over_queries(values: Array, mask: Array) -> Array:
    """The mean over the queries that have a document; 0 without any."""
    values = jnp.broadcast_to(_finite(values)[..., 0, 0], mask.shape[:-1])
    defined = jnp.any(mask, axis=-1)
    count = jnp.maximum(jnp.sum(defined, dtype=values.dtype), 1.0)
    return jnp.sum(jnp.where(defined, values, 0.0)) / count
