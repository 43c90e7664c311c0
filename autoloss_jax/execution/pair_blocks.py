"""How the pairs of a tile are cut into blocks, and how the documents of pairs compare.

All pairs of a tile are never laid out at once. They are taken in *blocks*: as many whole queries as
fill one, or of a long list some rows i with every j. So each reduction over j is complete within
its block, and memory is bounded whatever the length of a list. The pairs of a block lie flat.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from autoloss_jax.execution.segments import Rows, joined


@dataclass(frozen=True)
class Share:
    """What a block holds of one list [queries, length]: some queries, some rows of each."""

    queries: int
    length: int
    taken: int  # queries a block
    rows: int  # of each; all of them unless a block takes one query only

    @property
    def parts(self) -> int:
        """Blocks a query is spread over."""
        return -(-self.length // self.rows)

    @property
    def blocks(self) -> int:
        return -(-self.queries // self.taken) * self.parts

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.taken, self.rows, self.length


class Place(NamedTuple):
    """Where a block stands in a list.

    The last block begins early where it would reach beyond the end, and repeats some rows.
    """

    query: Array | int  # the first
    row: Array | int  # the first
    new: Array | None  # bool[taken, rows]: rows that no block before has; None: all


@dataclass(frozen=True)
class Blocks:
    """How the pairs of a tile are cut into blocks."""

    shares: tuple[Share, ...]
    keep_pairs: bool  # whether something may be kept of every pair of the tile

    @staticmethod
    def of(shapes: Sequence[tuple[int, int]], most: int, kept: int) -> "Blocks":
        """Cuts lists of shapes [queries, list] into blocks of about `most` pairs, if rows allow.

        Of every pair of a tile something is kept, if it has at most `kept`.
        """
        least = max(1, -(-sum(q * length**2 for q, length in shapes) // most))
        # A list of few blocks idles in the others, so the count decides how much is computed twice.
        cuts = [_cut(shapes, count) for count in range(-(-least // 2), 2 * least + 1)]
        fitting = [blocks for blocks in cuts if blocks.pairs <= 1.5 * most]
        shares = min(fitting or cuts[-1:], key=_cost).shares
        total = sum(share.blocks * math.prod(share.shape) for share in shares)
        return Blocks(shares, total <= kept)

    @property
    def count(self) -> int:
        return max(share.blocks for share in self.shares)

    @property
    def pairs(self) -> int:
        """Pairs of one block."""
        return sum(share.taken * share.rows * share.length for share in self.shares)

    def places(self, block: Array | int) -> list[Place]:
        if self.count == 1:
            return [Place(0, 0, None) for _ in self.shares]
        return [_place(share, block) for share in self.shares]

    @property
    def rows(self) -> Rows:
        """The pairs of a block, row by row."""
        return Rows(tuple(share.shape for share in self.shares))


def _cut(shapes: Sequence[tuple[int, int]], count: int) -> Blocks:
    """Lists in about `count` blocks."""
    shares = []
    for queries, length in shapes:
        if queries >= count:
            shares.append(Share(queries, length, -(-queries // count), length))
        else:
            shares.append(Share(queries, length, 1, -(-length // (count // queries))))
    return Blocks(tuple(shares), keep_pairs=False)


def _cost(blocks: Blocks) -> int:
    """Pairs that are computed, and as many more as starting a block takes the time of."""
    return blocks.count * (blocks.pairs + 1000)


def _place(share: Share, block: Array | int) -> Place:
    first_query, first_row = block // share.parts * share.taken, block % share.parts * share.rows
    query = jnp.minimum(first_query, share.queries - share.taken)
    row = jnp.minimum(first_row, share.length - share.rows)
    queries, rows = query + jnp.arange(share.taken), row + jnp.arange(share.rows)
    return Place(query, row, (queries >= first_query)[:, None] & (rows >= first_row))


def rows_of(x: Array, share: Share, place: Place) -> Array:
    """[taken, rows] of [queries, list]."""
    if share.taken == share.queries and share.rows == share.length:
        return x
    return lax.dynamic_slice(x, (place.query, place.row), (share.taken, share.rows))


def columns_of(x: Array, share: Share, place: Place) -> Array:
    """[taken, list] of [queries, list]."""
    if share.taken == share.queries:
        return x
    return lax.dynamic_slice_in_dim(x, place.query, share.taken)


def set_rows(
    blocks: Blocks, block: Array | int, lists: Sequence[Array], rows: Array
) -> list[Array]:
    """Writes a block's rows f32[rows] into lists [queries, list]."""
    changed, start = [], 0
    for x, share, place in zip(lists, blocks.shares, blocks.places(block), strict=True):
        size = share.taken * share.rows
        new = rows[start : start + size].reshape(share.taken, share.rows)
        changed.append(lax.dynamic_update_slice(x, new, (place.query, place.row)))
        start += size
    return changed


def add_at(x: Array, more: Array, query: Array | int, row: Array | int) -> Array:
    """Adds to [queries, list] from a query and a row on."""
    old = lax.dynamic_slice(x, (query, row), more.shape)
    return lax.dynamic_update_slice(x, old + more, (query, row))


def over_blocks(blocks: Blocks, step: Callable[[Any, Any], Any], start: Any) -> Any:
    """The carry after `step(block, carry)` of every block of a tile."""
    return step(0, start) if blocks.count == 1 else lax.fori_loop(0, blocks.count, step, start)


def outer_sums(
    of_i: Sequence[Array], of_j: Sequence[Array], blocks: Blocks, block: Array | int
) -> Array:
    """f32[pairs]: a number of i plus one of j, of lists [queries, list]."""
    parts = []
    placed = zip(of_i, of_j, blocks.shares, blocks.places(block), strict=True)
    for x, y, share, place in placed:
        i, j = rows_of(x, share, place), columns_of(y, share, place)
        # As i * 1 + 1 * j, exactly: a product of matrices is far faster than a broadcast sum, which
        # is computed index by index.
        left = jnp.stack([i, jnp.ones_like(i)], -1)
        right = jnp.stack([jnp.ones_like(j), j], -2)
        parts.append(jnp.matmul(left, right, precision=lax.Precision.HIGHEST).reshape(-1))
    return joined(parts)


def _positions(blocks: Blocks, block: Array | int) -> Array:
    """i32[pairs]: the position of i minus that of j."""
    parts = []
    for share, place in zip(blocks.shares, blocks.places(block), strict=True):
        apart = np.arange(share.rows)[:, None] - np.arange(share.length)
        flat = np.broadcast_to(apart, share.shape).reshape(-1).astype(np.int32)
        parts.append(jnp.asarray(flat) + place.row)
    return joined(parts)


# How the documents of a pair stand to each other, one bit each.
AHEAD, BEHIND, SELF, TIED_BEFORE, TIED_AFTER = (1 << bit for bit in range(5))
TIED = SELF | TIED_BEFORE | TIED_AFTER


def relations(values: Sequence[Array], blocks: Blocks, block: Array | int) -> Array:
    """u8[pairs]: the bit of how i stands to j by values [queries, list]; 0 where one is NaN."""
    difference = outer_sums(values, [-x for x in values], blocks, block)
    position = _positions(blocks, block)
    tied = jnp.where(position == 0, SELF, jnp.where(position < 0, TIED_BEFORE, TIED_AFTER))
    related = jnp.where(
        difference > 0,
        AHEAD,
        jnp.where(difference < 0, BEHIND, jnp.where(difference == 0, tied, 0)),
    )
    return related.astype(jnp.uint8)


def fulfilled(related: Array, bits: Array | int) -> Array:
    """f32[pairs]: 1 for the pairs whose relation is among the bits."""
    return ((related & jnp.uint8(bits)) > 0).astype(jnp.float32)


class Order(NamedTuple):
    """How the documents of each query compare by some values, NaN for padding."""

    ahead: Array  # f32[documents]: how many come before it in descending order; ties by position
    tied: Array  # f32[documents]: how many have its value, itself among them
    related: Array  # u8[blocks, pairs], or u8[0, pairs] of a tile too large to keep that

    @staticmethod
    def none(documents: int, blocks: Blocks) -> "Order":
        nothing = jnp.zeros(documents)
        kept = blocks.count if blocks.keep_pairs else 0
        return Order(nothing, nothing, jnp.zeros((kept, blocks.pairs), jnp.uint8))


def order(values: Sequence[Array], blocks: Blocks) -> Order:
    """Compares the documents of lists [queries, list]."""
    nothing = [jnp.zeros(x.shape) for x in values]

    def step(b: Array | int, carry: tuple) -> tuple:
        ahead, tied, kept = carry
        related = relations(values, blocks, b)
        counts = [
            set_rows(blocks, b, x, blocks.rows.total(fulfilled(related, bits)))
            for x, bits in ((ahead, BEHIND | TIED_AFTER), (tied, TIED))
        ]
        if blocks.keep_pairs:
            kept = lax.dynamic_update_slice(kept, related[None], (b, 0))
        return *counts, kept

    kept = jnp.zeros((blocks.count if blocks.keep_pairs else 0, blocks.pairs), jnp.uint8)
    ahead, tied, kept = over_blocks(blocks, step, (nothing, nothing, kept))
    flat = [joined([x.reshape(-1) for x in lists]) for lists in (ahead, tied)]
    return Order(flat[0], flat[1], kept)
