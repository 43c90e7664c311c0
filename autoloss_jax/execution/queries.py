"""What a query's labels and scores give a formula besides themselves: gains, ranks, ideal DCG.

Both execution paths compute their leaves here, so that they cannot disagree about them.
"""

import jax
import jax.numpy as jnp
from jax import Array

from autoloss_jax.language.operators import LARGE


def gains(labels: Array) -> Array:
    """`2**y - 1` of labels f32[..., list]."""
    return jnp.minimum(jnp.exp2(labels) - 1.0, LARGE)


def discounts(ranks: Array) -> Array:
    """`1 / log2(1 + rank)` of 1-based ranks f32[..., list]."""
    return 1.0 / jnp.log2(1.0 + ranks)


def goes_ahead(other: Array, mine: Array, earlier: Array) -> Array:
    """Whether the other document has the better rank; `earlier`: it comes first in the list."""
    return (other > mine) | ((other == mine) & earlier)


MOST_COUNTED = 512
"""Ranks of longer lists are sorted, of others counted."""


def ranks(values: Array, mask: Array) -> Array:
    """1-based ranks by descending `values` among the real documents; ties by position.

    Counts by comparison, which is faster than sorting unless a list is long.

    Args:
      values: f32[..., list].
      mask: bool[..., list], True for real documents; the rank of padding means nothing.

    Returns:
      f32[..., list] without gradient.
    """
    values = jax.lax.stop_gradient(values)
    if values.shape[-1] > MOST_COUNTED:
        return _sorted_ranks(values, mask)
    mine, other = values[..., :, None], values[..., None, :]
    position = jnp.arange(values.shape[-1])
    earlier = position[None, :] < position[:, None]
    ahead = goes_ahead(other, mine, earlier)
    return 1.0 + jnp.sum(ahead & mask[..., None, :], axis=-1, dtype=values.dtype)


def _sorted_ranks(values: Array, mask: Array) -> Array:
    position = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    padding = (~mask).astype(jnp.int32)
    order = jax.lax.sort((padding, -values, position), num_keys=2, is_stable=True)[-1]
    rank = jax.lax.sort((order, position), num_keys=1)[-1]  # the inverse of the order
    return 1.0 + rank.astype(values.dtype)


def max_dcg(labels: Array, mask: Array) -> Array:
    """f32[...]: the DCG of the documents in descending order of their labels."""
    ideal = gains(labels) * discounts(ranks(labels, mask))
    return jnp.sum(jnp.where(mask, ideal, 0.0), axis=-1)
