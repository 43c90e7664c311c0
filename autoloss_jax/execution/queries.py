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


def ranks(values: Array, mask: Array) -> Array:
    """1-based ranks by descending `values` among the real documents; ties by position.

    Counts by comparison, since sorting is slow on accelerators and slower on CPUs.

    Args:
      values: f32[..., list].
      mask: bool[..., list], True for real documents; the rank of padding means nothing.

    Returns:
      f32[..., list] without gradient.
    """
    values = jax.lax.stop_gradient(values)
    mine, other = values[..., :, None], values[..., None, :]
    position = jnp.arange(values.shape[-1])
    earlier = position[None, :] < position[:, None]
    ahead = goes_ahead(other, mine, earlier)
    return 1.0 + jnp.sum(ahead & mask[..., None, :], axis=-1, dtype=values.dtype)


def max_dcg(labels: Array, mask: Array) -> Array:
    """f32[...]: the DCG of the documents in descending order of their labels."""
    ideal = gains(labels) * discounts(ranks(labels, mask))
    return jnp.sum(jnp.where(mask, ideal, 0.0), axis=-1)
