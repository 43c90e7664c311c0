"""Tiles of queries, and which of their documents and pairs fulfil a condition."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from autoloss_jax.execution import queries


class Tile(NamedTuple):
    """A tile of queries."""

    labels: Array  # f32[queries, list]
    mask: Array  # bool[queries, list]
    size: Array  # f32[queries]: documents in each list
    max_dcg: Array  # f32[queries]

    def documents(self, condition: Array) -> Array:
        """f32[queries, list]: 1 for the documents that fulfil a condition, by its code."""
        fulfilled = document_condition(condition, self.labels) & self.mask
        return fulfilled.astype(self.labels.dtype)

    def pairs(self, condition: Array) -> Array:
        """f32[queries, list, list]: 1 for the pairs that fulfil a condition, by its code.

        Computed where it is used, from what each condition says of y_i against y_j.
        """
        rule = [jnp.asarray(column)[condition] for column in PAIR_CONDITION_RULES.T]
        i, j = self.labels[:, :, None], self.labels[:, None, :]
        position = jnp.arange(self.labels.shape[-1])
        fulfilled = pair_condition(rule, i, j, position[:, None], position[None, :])
        return (fulfilled & self.mask[:, :, None] & self.mask[:, None, :]).astype(i.dtype)


# What the conditions of PAIR_CONDITIONS say: whether they hold where y_i > y_j, where y_i == y_j
# and where y_i < y_j; and what a tie asks of the positions.
_ANY, _DISTINCT, _NOT_BEFORE = range(3)
PAIR_CONDITION_RULES = np.array(
    (
        (True, True, True, _ANY),
        (True, True, True, _DISTINCT),
        (True, False, False, _ANY),
        (False, False, True, _ANY),
        (True, True, False, _ANY),
        (False, True, True, _ANY),
        (True, False, True, _ANY),
        (False, True, False, _ANY),
        (True, True, False, _NOT_BEFORE),
    ),
    np.int32,
)


def pair_condition(
    rule: Sequence[Array], label_i: Array, label_j: Array, position_i: Array, position_j: Array
) -> Array:
    """Whether pairs fulfil a condition, given its row of PAIR_CONDITION_RULES."""
    ahead, tied, behind, positions = rule
    apart = jnp.where(positions == _DISTINCT, position_i != position_j, position_j >= position_i)
    is_tied = (tied > 0) & ((positions == _ANY) | apart)
    return jnp.where(
        label_i > label_j, ahead > 0, jnp.where(label_i < label_j, behind > 0, is_tied)
    )


def document_condition(code: Array, labels: Array) -> Array:
    """Whether documents fulfil a condition, by its place in DOCUMENT_CONDITIONS."""
    return (code == 0) | ((code == 1) & (labels > 0)) | ((code == 2) & (labels == 0))


def tile_of(labels: Array, mask: Array) -> Tile:
    labels = jnp.where(mask, labels, 0.0)
    size = jnp.sum(mask, -1, dtype=labels.dtype)
    return Tile(labels, mask, size, queries.max_dcg(labels, mask))
