"""Tiles of queries, and which of their documents and pairs fulfil a condition.

A tile holds queries padded to one length or to several, its *lists*. What is computed for every
document lies flat, the lists one behind the other, so that one instruction serves all of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from autoloss_jax.execution import queries
from autoloss_jax.execution.pair_blocks import (
    AHEAD,
    BEHIND,
    SELF,
    TIED_AFTER,
    TIED_BEFORE,
    Blocks,
    Order,
    fulfilled,
    order,
    outer_sums,
    over_blocks,
    relations,
    set_rows,
)
from autoloss_jax.execution.segments import Rows, joined


class Tile(NamedTuple):
    """A tile of queries; a query's numbers stand at each of its documents."""

    labels: tuple[Array, ...]  # per list f32[queries, list], NaN for padding
    documents: Array  # f32[documents]: the labels, flat, 0 for padding
    mask: Array  # bool[documents]
    size: Array  # f32[documents]: real documents in the query
    order: Order  # by the labels
    # f32[documents]: 1 for those one of which a pair must have; None: all pairs count
    top: Array | None = None

    @property
    def queries(self) -> Rows:
        """The documents, query by query."""
        return Rows(tuple(labels.shape for labels in self.labels))

    def selected(self, condition: Array) -> Array:
        """f32[documents]: 1 for the documents that fulfil a condition, by its code."""
        fulfilled = document_condition(condition, self.documents) & self.mask
        return fulfilled.astype(self.documents.dtype)

    def pairs(self, condition: Array, blocks: Blocks) -> Array:
        """f32[documents]: how many pairs of the query count, given a condition by its code."""
        if self.top is not None:
            return self._counted_pairs(condition, blocks)
        tied = self.of_query(self.order.tied)
        apart, tied_apart = (self.size**2 - tied) / 2.0, (tied - self.size) / 2.0
        kinds = ((AHEAD, apart), (BEHIND, apart), (SELF, self.size), (TIED_BEFORE, tied_apart),
                 (TIED_AFTER, tied_apart))  # fmt: skip
        bits = jnp.asarray(_FULFIL)[condition]
        return sum((jnp.where(bits & bit > 0, count, 0.0) for bit, count in kinds), jnp.float32(0))

    def _counted_pairs(self, condition: Array, blocks: Blocks) -> Array:
        """As `pairs`, one by one."""

        def step(b: Array | int, counts: list[Array]) -> list[Array]:
            selected = self.selected_pairs(condition, blocks, b)
            return set_rows(blocks, b, counts, blocks.rows.total(selected))

        return self.of_query(
            join(over_blocks(blocks, step, [jnp.zeros(x.shape) for x in self.labels]))
        )

    def selected_pairs(self, condition: Array, blocks: Blocks, block: Array | int) -> Array:
        """f32[pairs]: 1 for the pairs of a block that count, given a condition by its code."""
        if blocks.keep_pairs:
            related = lax.dynamic_index_in_dim(self.order.related, block, 0, False)
        else:
            related = relations(self.labels, blocks, block)
        selected = fulfilled(related, jnp.asarray(_FULFIL)[condition])
        if self.top is None:
            return selected
        top = self.queries.split(self.top)
        return jnp.where(outer_sums(top, top, blocks, block) > 0, selected, 0.0)

    def of_query(self, numbers: Array) -> Array:
        """f32[documents]: their sum over the real documents of the query."""
        return self.queries.spread(self.queries.total(jnp.where(self.mask, numbers, 0.0)))

    def max_dcg(self) -> Array:
        """f32[documents]."""
        gains = queries.gains(self.documents)
        return self.of_query(gains * queries.discounts(1.0 + self.order.ahead))


# What the conditions of PAIR_CONDITIONS say: whether they hold where y_i > y_j, where y_i == y_j
# and where y_i < y_j; and what a tie asks of the positions.
_ANY, _DISTINCT, _NOT_BEFORE = range(3)
_PAIR_CONDITIONS = np.array(
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


def _relations_of(ahead: int, tied: int, behind: int, positions: int) -> int:
    """The bits of the relations that fulfil a condition, given its row of _PAIR_CONDITIONS."""
    ties = {_ANY: SELF | TIED_BEFORE | TIED_AFTER, _DISTINCT: TIED_BEFORE | TIED_AFTER,
            _NOT_BEFORE: SELF | TIED_BEFORE}[positions]  # fmt: skip
    return AHEAD * ahead | BEHIND * behind | ties * tied


_FULFIL = np.array([_relations_of(*map(int, row)) for row in _PAIR_CONDITIONS], np.uint8)


def document_condition(code: Array, labels: Array) -> Array:
    """Whether documents fulfil a condition, by its place in DOCUMENT_CONDITIONS."""
    return (code == 0) | ((code == 1) & (labels > 0)) | ((code == 2) & (labels == 0))


def join(parts: Sequence[Array]) -> Array:
    """Flat [..., documents], from each list's part [..., queries, list]."""
    return joined([part.reshape(*part.shape[:-2], -1) for part in parts])


def tile_of(
    labels: Sequence[Array], masks: Sequence[Array], blocks: Blocks, compared: Array
) -> Tile:
    """The tile of lists f32[queries, list] and bool[queries, list].

    `compared`: whether anything needs the order of the labels; the tile has none otherwise.
    """
    marked = tuple(jnp.where(m, x, jnp.nan) for x, m in zip(labels, masks, strict=True))
    mask = join(masks)
    tile = Tile(
        marked,
        jnp.where(mask, join(labels), 0.0),
        mask,
        jnp.zeros(mask.shape),
        lax.cond(
            compared, lambda: order(marked, blocks), lambda: Order.none(mask.shape[0], blocks)
        ),
    )
    return tile._replace(size=tile.of_query(jnp.ones(mask.shape)))
