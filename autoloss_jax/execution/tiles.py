"""Tiles of queries, and which of their documents and pairs fulfil a condition."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from autoloss_jax.execution import queries


class Tile(NamedTuple):
    """A tile of queries."""

    labels: Array  # f32[queries, list]
    mask: Array  # bool[queries, list]
    size: Array  # f32[queries]: documents in each list
    max_dcg: Array  # f32[queries]

    def documents(self, condition: Array) -> Array:
        """f32[queries, list]: 1 for the documents that fulfil a condition, by its code."""
        fulfilled = [self.mask, self.mask & (self.labels > 0), self.mask & (self.labels == 0)]
        return lax.select_n(condition, *fulfilled).astype(self.labels.dtype)

    def pairs(self, condition: Array) -> Array:
        """f32[queries, list, list]: 1 for the pairs that fulfil a condition, by its code.

        Computed where it is used, from what each condition says of y_i against y_j.
        """
        ahead, tied, behind, positions = (
            jnp.asarray(column)[condition] for column in zip(*_PAIR_CONDITIONS, strict=True)
        )
        i, j = self.labels[:, :, None], self.labels[:, None, :]
        position = jnp.arange(self.labels.shape[-1])
        before, after = position[:, None], position[None, :]
        apart = jnp.where(positions == _DISTINCT, before != after, after >= before)
        tied = tied & ((positions == _ANY) | apart)
        fulfilled = jnp.where(i > j, ahead, jnp.where(i < j, behind, tied))
        return (fulfilled & self.mask[:, :, None] & self.mask[:, None, :]).astype(i.dtype)


# What the conditions of PAIR_CONDITIONS say: whether they hold where y_i > y_j, where y_i == y_j
# and where y_i < y_j; and what a tie asks of the positions.
_ANY, _DISTINCT, _NOT_BEFORE = range(3)
_PAIR_CONDITIONS = (
    (True, True, True, _ANY),
    (True, True, True, _DISTINCT),
    (True, False, False, _ANY),
    (False, False, True, _ANY),
    (True, True, False, _ANY),
    (False, True, True, _ANY),
    (True, False, True, _ANY),
    (False, True, False, _ANY),
    (True, True, False, _NOT_BEFORE),
)


def tile_of(labels: Array, mask: Array) -> Tile:
    labels = jnp.where(mask, labels, 0.0)
    size = jnp.sum(mask, -1, dtype=labels.dtype)
    return Tile(labels, mask, size, queries.max_dcg(labels, mask))
