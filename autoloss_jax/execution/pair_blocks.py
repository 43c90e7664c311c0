"""How the pairs of a tile are cut into blocks, and how the documents of pairs compare.

A *row* is a document i with every j of its query. All pairs of a tile are never laid out at once:
they are taken in *blocks* of some rows of every list, so that each reduction over j is complete
within its block, and memory is bounded whatever the length of a list. Only those rows are taken
that can have a pair which counts: few, where i must be more relevant than j. The pairs of a block
lie flat.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from autoloss_jax.execution.segments import Rows, joined
from autoloss_jax.language.operators import LARGE


@dataclass(frozen=True)
class Share:
    """What a block holds of one list [queries, length]: some rows."""

    queries: int
    length: int
    rows: int

    @property
    def documents(self) -> int:
        return self.queries * self.length

    @property
    def pairs(self) -> int:
        """Of one block."""
        return self.rows * self.length

    @property
    def blocks(self) -> int:
        """How many blocks all rows fill."""
        return -(-self.documents // self.rows)


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
        count = max(1, -(-sum(queries * length**2 for queries, length in shapes) // most))
        shares = tuple(
            Share(queries, length, -(-queries * length // count)) for queries, length in shapes
        )
        blocks = Blocks(shares, keep_pairs=False)
        return Blocks(shares, blocks.count * blocks.pairs <= kept)

    @property
    def count(self) -> int:
        """How many blocks all rows fill."""
        return max(share.blocks for share in self.shares)

    @property
    def pairs(self) -> int:
        """Pairs of one block."""
        return sum(share.pairs for share in self.shares)

    @property
    def rows(self) -> Rows:
        """The pairs of a block, row by row."""
        return Rows(tuple((share.rows, share.length) for share in self.shares))


# Which documents i can have a pair that counts.
ALL, BETTER, WORSE = range(3)


class RowSets(NamedTuple):
    """The rows that blocks take: all real documents, those better than some, those worse."""

    # per list i32[sets, blocks * rows]: documents, counted through the list; behind them its size
    documents: tuple[Array, ...]
    blocks: Array  # i32[sets]: how many they fill

    @staticmethod
    def of(labels: Sequence[Array], blocks: Blocks) -> "RowSets":
        """Of lists f32[queries, list], NaN for padding."""
        documents, counts = [], []
        for x, share in zip(labels, blocks.shares, strict=True):
            real = ~jnp.isnan(x)
            least = jnp.min(jnp.where(real, x, jnp.inf), -1, keepdims=True)
            greatest = jnp.max(jnp.where(real, x, -jnp.inf), -1, keepdims=True)
            chosen = jnp.stack([real, x > least, x < greatest]).reshape(3, -1)
            capacity = blocks.count * share.rows
            place = jnp.where(chosen, jnp.cumsum(chosen, -1) - 1, capacity)
            none = jnp.full((3, capacity), share.documents)
            every = jnp.broadcast_to(jnp.arange(share.documents), chosen.shape)
            documents.append(none.at[np.arange(3)[:, None], place].set(every, mode="drop"))
            counts.append(-(-jnp.sum(chosen, -1) // share.rows))
        return RowSets(tuple(documents), jnp.max(jnp.stack(counts), 0))

    def block(self, blocks: Blocks, which: Array | int, number: Array | int) -> "Block":
        """One block of a set."""
        rows = [
            lax.dynamic_slice(every, (which, number * share.rows), (1, share.rows))[0]
            for every, share in zip(self.documents, blocks.shares, strict=True)
        ]
        return Block(blocks, rows)


@dataclass(frozen=True)
class Block:
    """The rows of one block."""

    blocks: Blocks
    documents: list[Array]  # per list i32[rows], counted through the list; its size for no row

    @property
    def queries(self) -> list[Array]:
        """Per list i32[rows]: the query of each row; for no row how many queries there are."""
        shared = zip(self.documents, self.blocks.shares, strict=True)
        return [rows // share.length for rows, share in shared]

    def rows_of(self, lists: Sequence[Array], absent: float = 0.0) -> list[Array]:
        """Per list f32[rows], of lists [queries, list]; `absent` for no row."""
        return [
            x.reshape(-1).at[rows].get(mode="fill", fill_value=absent)
            for x, rows in zip(lists, self.documents, strict=True)
        ]

    def set_rows(self, lists: Sequence[Array], rows: Array) -> list[Array]:
        """Writes the block's rows, f32[rows] of all lists, into lists [queries, list]."""
        placed = zip(lists, self.documents, self.blocks.rows.split_rows(rows), strict=True)
        return [
            x.reshape(-1).at[documents].set(part, mode="drop").reshape(x.shape)
            for x, documents, part in placed
        ]

    def outer_sums(
        self, of_i: Sequence[Array], of_j: Sequence[Array], absent: float = 0.0
    ) -> Array:
        """f32[pairs]: a number of i plus one of j, of lists [queries, list].

        absent: the number of i for no row.
        """
        rows = zip(self.rows_of(of_i, absent), self.queries, of_j, strict=True)
        if not row_by_row():
            return joined(
                [(i[:, None] + j.at[query].get(mode="clip")).reshape(-1) for i, query, j in rows]
            )
        sums, first = jnp.zeros(self.blocks.pairs), 0
        for share, (i, query, j) in zip(self.blocks.shares, rows, strict=True):
            sums = _write_sums(sums, first, i, query, j)
            first += share.pairs
        return sums

    def add_pairs(self, lists: Sequence[Array], pairs: Array) -> list[Array]:
        """Adds finite f32[pairs] to their i, and takes them from their j, in [queries, list]."""
        rows = self.blocks.rows
        to_i = rows.split_rows(rows.total(pairs))
        placed = zip(lists, self.documents, to_i, self.queries, rows.split(pairs), strict=True)
        return [
            x.reshape(-1).at[documents].add(of_rows, mode="drop").reshape(x.shape)
            - _sums_by_query(of_pairs, query, x.shape[0])
            for x, documents, of_rows, query, of_pairs in placed
        ]


def _write_sums(sums: Array, first: int, i: Array, query: Array, j: Array) -> Array:
    """Writes f32[rows] plus what f32[queries, list] has for the query of each, from `first` on."""

    def row(k: Array, sums: Array) -> Array:
        new = i[k] + lax.dynamic_index_in_dim(j, query[k], 0, False)
        return lax.dynamic_update_slice_in_dim(sums, new, first + k * len(new), 0)

    return lax.fori_loop(0, len(i), row, sums)


def _sums_by_query(rows: Array, query: Array, queries: int) -> Array:
    """f32[queries, list]: the sum of each query's rows f32[rows, list], in the same order ever."""
    if not row_by_row():
        is_of = (query[:, None] == np.arange(queries)).astype(rows.dtype)
        return jnp.matmul(is_of.T, rows, precision=lax.Precision.HIGHEST)

    def row(k: Array, sums: Array) -> Array:
        new = lax.dynamic_index_in_dim(sums, query[k], 0, False) + rows[k]
        return lax.dynamic_update_index_in_dim(sums, new, query[k], 0)

    return lax.fori_loop(0, len(rows), row, jnp.zeros((queries, rows.shape[1])))


def row_by_row() -> bool:
    """Whether loops go over the rows of a block, which is the fastest on a CPU and slow elsewhere.

    A CPU computes a broadcast sum index by index, and the loop as vectors.
    """
    return jax.default_backend() == "cpu"


# How i stands to j by their labels: what conditions tell apart.
AHEAD, BEHIND, SELF, TIED_BEFORE, TIED_AFTER = range(5)


def selected_pairs(labels: Sequence[Array], block: Block, counts: Array) -> Array:
    """f32[pairs]: 1 for those that count, of lists f32[queries, list], NaN for padding.

    counts: f32[5], 1 for the relations of i to j that count.
    """
    negative = [jnp.where(jnp.isnan(x), -LARGE, -x) for x in labels]
    difference = block.outer_sums(labels, negative, absent=-LARGE)
    ties = counts[SELF], counts[TIED_BEFORE], counts[TIED_AFTER]

    def by_position() -> Array:
        places = [jnp.broadcast_to(jnp.arange(x.shape[1], dtype=x.dtype), x.shape) for x in labels]
        position = block.outer_sums(places, [-x for x in places])
        return jnp.where(position == 0, ties[0], jnp.where(position < 0, ties[1], ties[2]))

    alike = (ties[0] == ties[1]) & (ties[0] == ties[2])
    tied = lax.cond(alike, lambda: jnp.full(difference.shape, ties[0]), by_position)
    behind = jnp.where(difference > -0.5 * LARGE, counts[BEHIND], 0.0)
    return jnp.where(difference > 0, counts[AHEAD], jnp.where(difference == 0, tied, behind))
