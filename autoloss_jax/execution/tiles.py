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
    ALL,
    BEHIND,
    BETTER,
    SELF,
    TIED_AFTER,
    TIED_BEFORE,
    WORSE,
    Block,
    Blocks,
    RowSets,
    selected_pairs,
)
from autoloss_jax.execution.programs import PAIR_CONDITIONS
from autoloss_jax.execution.segments import Rows, joined


class Tile(NamedTuple):
    """A tile of queries; a query's numbers stand at each of its documents."""

    labels: tuple[Array, ...]  # per list f32[queries, list], NaN for padding
    documents: Array  # f32[documents]: the labels, flat, 0 for padding
    mask: Array  # bool[documents]
    size: Array  # f32[documents]: real documents in the query
    max_dcg: Array  # f32[documents]; 0 if no program asks for it
    apart: Array  # f32[documents]: pairs of the query with y_i > y_j; 0 if no program asks for it
    rows: RowSets
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
            return self.counted_pairs(condition, blocks)
        tied_apart = (self.size**2 - self.size) / 2.0 - self.apart
        kinds = ((AHEAD, self.apart), (BEHIND, self.apart), (SELF, self.size),
                 (TIED_BEFORE, tied_apart), (TIED_AFTER, tied_apart))  # fmt: skip
        counts = jnp.asarray(_COUNTS)[condition]
        return sum((counts[kind] * count for kind, count in kinds), jnp.float32(0))

    def counted_pairs(self, condition: Array | int, blocks: Blocks) -> Array:
        """As `pairs`, one by one."""

        def step(number: Array, counts: list[Array]) -> list[Array]:
            block = self.block(condition, blocks, number)
            return block.set_rows(counts, blocks.rows.total(self.selected_pairs(condition, block)))

        nothing = [jnp.zeros(x.shape) for x in self.labels]
        return self.of_query(join(lax.fori_loop(0, self.blocks(condition), step, nothing)))

    def blocks(self, condition: Array | int) -> Array:
        """i32[]: how many blocks hold all pairs that can count, given a condition by its code."""
        return self.rows.blocks[jnp.asarray(_ROWS)[condition]]

    def block(self, condition: Array | int, blocks: Blocks, number: Array | int) -> Block:
        """One of these blocks."""
        return self.rows.block(blocks, jnp.asarray(_ROWS)[condition], number)

    def selected_pairs(self, condition: Array | int, block: Block) -> Array:
        """f32[pairs]: 1 for the pairs of a block that count, given a condition by its code."""
        selected = selected_pairs(self.labels, block, jnp.asarray(_COUNTS)[condition])
        if self.top is None:
            return selected
        top = self.queries.split(self.top)
        return jnp.where(block.outer_sums(top, top) > 0, selected, 0.0)

    def of_query(self, numbers: Array) -> Array:
        """f32[documents]: their sum over the real documents of the query."""
        return self.queries.spread(self.queries.total(jnp.where(self.mask, numbers, 0.0)))


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


def _counts_of(ahead: int, tied: int, behind: int, positions: int) -> list[float]:
    """Which relations of i to j fulfil a condition, given its row of _PAIR_CONDITIONS."""
    counts = [0.0] * 5
    counts[AHEAD], counts[BEHIND] = ahead, behind
    counts[SELF] = tied * (positions != _DISTINCT)
    counts[TIED_BEFORE] = tied
    counts[TIED_AFTER] = tied * (positions != _NOT_BEFORE)
    return counts


_COUNTS = np.array([_counts_of(*map(int, row)) for row in _PAIR_CONDITIONS], np.float32)
_ONLY = {(True, False, False): BETTER, (False, False, True): WORSE}  # ahead, tied, behind
_ROWS = np.array(
    [_ONLY.get(tuple(row[:3].astype(bool)), ALL) for row in _PAIR_CONDITIONS], np.int32
)
"""Of each condition, the rows that can have a pair that fulfils it."""
_Y_I_GREATER = PAIR_CONDITIONS.index("y_i > y_j")


def document_condition(code: Array, labels: Array) -> Array:
    """Whether documents fulfil a condition, by its place in DOCUMENT_CONDITIONS."""
    return (code == 0) | ((code == 1) & (labels > 0)) | ((code == 2) & (labels == 0))


def join(parts: Sequence[Array]) -> Array:
    """Flat [..., documents], from each list's part [..., queries, list]."""
    return joined([part.reshape(*part.shape[:-2], -1) for part in parts])


def tile_of(
    labels: Sequence[Array],
    masks: Sequence[Array],
    blocks: Blocks,
    *,
    max_dcg: Array,
    counts: Array,
) -> Tile:
    """The tile of lists f32[queries, list] and bool[queries, list].

    max_dcg, counts: bool[], whether a program asks for the ideal DCG, and for numbers of pairs.
    """
    marked = tuple(jnp.where(m, x, jnp.nan) for x, m in zip(labels, masks, strict=True))
    mask = join(masks)
    nothing = jnp.zeros(mask.shape)
    tile = Tile(
        marked, jnp.where(mask, join(labels), 0.0), mask, nothing, nothing, nothing,
        RowSets.of(marked, blocks),
    )  # fmt: skip

    def ideal() -> Array:
        lists = zip(labels, masks, strict=True)
        return tile.queries.spread(joined([queries.max_dcg(x, m) for x, m in lists]))

    return tile._replace(
        size=tile.of_query(jnp.ones(mask.shape)),
        max_dcg=lax.cond(max_dcg, ideal, lambda: nothing),
        apart=lax.cond(counts, lambda: tile.counted_pairs(_Y_I_GREATER, blocks), lambda: nothing),
    )
