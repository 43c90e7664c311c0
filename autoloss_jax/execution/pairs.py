"""Pair stages: segments over the ordered pairs of a tile's documents, block by block."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from autoloss_jax.execution.pair_blocks import Block, Blocks
from autoloss_jax.execution.programs import (
    DOCUMENT_LEAVES,
    OPCODES,
    PAIR_LEAVES,
    PAIR_REDUCTIONS,
    Segments,
)
from autoloss_jax.execution.segments import (
    REDUCTIONS,
    Branch,
    Dual,
    Instruction,
    Reduction,
    Registers,
    finite,
    joined,
    run_segment,
)
from autoloss_jax.execution.tiles import Tile, join
from autoloss_jax.language.grammar import MAX_PAIR_STAGES


def _load_table() -> tuple[np.ndarray, np.ndarray]:
    """By leaf of pairs: the leaf of documents it is made of, and its factors for i and for j."""
    sources, factors = [], []
    for name in PAIR_LEAVES:
        left, _, right = name.partition(" - ")
        sources.append(DOCUMENT_LEAVES.index(left.replace("_j", "_i")))
        of = {"i": 0.0, "j": 0.0}
        of["j" if left.endswith("_j") else "i"] = 1.0
        if right:
            of[right[-1]] = -1.0
        factors.append((of["i"], of["j"]))
    return np.array(sources, np.int32), np.array(factors, np.float32)


_SOURCES, _FACTORS = _load_table()
_FIRST_LOAD = OPCODES.index(PAIR_LEAVES[0])
_IS_SCORE = np.array(["s_i" in name for name in PAIR_LEAVES], np.float32)


def _load(tile: Tile, document: Array, block: Block) -> Branch:
    """The instructions that lay out leaves f32[leaves, documents] over the pairs of a block."""

    def branch(registers: Registers, instruction: Instruction) -> Dual:
        leaf = instruction.opcode - _FIRST_LOAD
        source = lax.dynamic_index_in_dim(document, jnp.asarray(_SOURCES)[leaf], 0, False)
        of_i, of_j = jnp.asarray(_FACTORS)[leaf]
        lists = tile.queries.split(source)
        value = block.outer_sums([of_i * x for x in lists], [of_j * x for x in lists])
        slope = of_i * jnp.asarray(_IS_SCORE)[leaf]
        return Dual(value, jnp.full(registers.tangent.shape[1:], slope))

    return branch


class BlockResult(NamedTuple):
    """What a block of a pair stage gives."""

    values: Array  # f32[rows]
    pulls: Array  # f32[pairs]: the slope of the row's value by s_i - s_j


def run_block(
    segment: Segments, tile: Tile, document: Array, blocks: Blocks, number: Array,
    pair: Registers,
) -> tuple[Registers, Block, BlockResult]:  # fmt: skip
    """Runs a pair stage on one block, on leaves f32[leaves, documents]."""
    block = tile.block(segment.where, blocks, number)
    selected = tile.selected_pairs(segment.where, block)
    pair = run_segment(segment, pair, _load(tile, document, block))

    def reduced(reduce: Reduction) -> Callable[[Registers], BlockResult]:
        def apply(pair: Registers) -> BlockResult:
            value, tangent = pair.read(segment.result)
            values, weights = reduce(blocks.rows, value, selected)
            return BlockResult(values, weights * jnp.nan_to_num(tangent[0]))

        return apply

    branches = [reduced(REDUCTIONS[name]) for name in PAIR_REDUCTIONS[1:]]
    return pair, block, lax.switch(segment.reduction - 1, branches, pair)


class PairPass(NamedTuple):
    """What a pass over the pairs leaves for the way back: one of the two."""

    pulls: Array  # f32[stages, blocks, pairs]: every pair's; of a tile too large for it, none
    # f32[stages, documents]: for such a tile, what the pairs pass on to the scores if the slope by
    # each of the stage's results is 1
    passed_on: Array

    @staticmethod
    def empty(documents: int, blocks: Blocks) -> "PairPass":
        return PairPass(
            jnp.zeros((MAX_PAIR_STAGES, blocks.count if blocks.keep_pairs else 0, blocks.pairs)),
            jnp.zeros((MAX_PAIR_STAGES, 0 if blocks.keep_pairs else documents)),
        )


def _pass_on(
    block: Block, sums: Sequence[Array], pulls: Array, cotangents: Sequence[Array]
) -> list[Array]:
    """Adds to [queries, list] what rows i with cotangents [queries, list] pass on to the scores."""
    of_rows = block.blocks.rows.spread(joined(block.rows_of(cotangents)))
    return block.add_pairs(sums, lax.optimization_barrier(finite(of_rows * pulls)))


def pair_stages(
    segments: Segments, stages: Array, tile: Tile, blocks: Blocks, document: Array,
    pair: Registers, passed: PairPass, first_result: int,
) -> tuple[Registers, PairPass, Array]:  # fmt: skip
    """Runs the pair stages; their results become leaves f32[leaves, documents]."""
    nothing = [jnp.zeros(x.shape) for x in tile.labels]
    ones = [jnp.ones(x.shape) for x in tile.labels]

    def stage(k: Array, carry: tuple) -> tuple:
        pair, passed, document = carry
        segment = jax.tree.map(lambda x: x[k], segments)

        def step(number: Array, carry: tuple) -> tuple:
            pair, pulls, values, sums = carry
            pair, block, result = run_block(segment, tile, document, blocks, number, pair)
            values = block.set_rows(values, result.values)
            if blocks.keep_pairs:
                pulls = lax.dynamic_update_slice(pulls, result.pulls[None, None], (k, number, 0))
            else:
                sums = _pass_on(block, sums, result.pulls, ones)
            return pair, pulls, values, sums

        start = (pair, passed.pulls, nothing, [] if blocks.keep_pairs else nothing)
        count = tile.blocks(segment.where)
        pair, pulls, values, sums = lax.fori_loop(0, count, step, start)
        if not blocks.keep_pairs:
            passed = passed._replace(passed_on=passed.passed_on.at[k].set(join(sums)))
        document = document.at[first_result + k].set(join(values))
        return pair, passed._replace(pulls=pulls), document

    return lax.fori_loop(0, stages, stage, (pair, passed, document))


def back_through_pairs(
    segments: Segments, stages: Array, tile: Tile, blocks: Blocks, document: Array,
    pair: Registers, passed: PairPass, cotangents: Array, gradient: Array,
) -> tuple[Registers, Array]:  # fmt: skip
    """Adds to a gradient f32[documents] what pair stages' results with cotangents pass on.

    Where the pulls of all pairs are too many to be kept, they are computed again, unless the
    cotangents of a query's documents are all the same, as behind every `sum_ij` and `mean_ij`.
    """
    nothing = [jnp.zeros(x.shape) for x in tile.labels]

    def stage(k: Array, carry: tuple[Registers, Array]) -> tuple[Registers, Array]:
        pair, gradient = carry
        segment = jax.tree.map(lambda x: x[k], segments)
        cotangent = tile.queries.split(cotangents[k])

        def through(pair: Registers) -> tuple[Registers, Array]:
            def step(number: Array, carry: tuple) -> tuple:
                pair, sums = carry
                if blocks.keep_pairs:
                    block = tile.block(segment.where, blocks, number)
                    pulls = lax.dynamic_slice(passed.pulls, (k, number, 0), (1, 1, blocks.pairs))
                else:
                    pair, block, result = run_block(segment, tile, document, blocks, number, pair)
                    pulls = result.pulls
                return pair, _pass_on(block, sums, pulls.reshape(-1), cotangent)

            count = tile.blocks(segment.where)
            pair, sums = lax.fori_loop(0, count, step, (pair, nothing))
            return pair, join(sums)

        if blocks.keep_pairs:
            pair, sums = through(pair)
        else:
            shared, same = _of_queries(tile, cotangents[k])
            pair, sums = lax.cond(
                same, lambda pair: (pair, shared * passed.passed_on[k]), through, pair
            )
        return pair, gradient + sums

    return lax.fori_loop(0, stages, stage, (pair, gradient))


def _of_queries(tile: Tile, numbers: Array) -> tuple[Array, Array]:
    """Each query's largest of f32[documents], and whether all of them are the largest."""
    real = jnp.where(tile.mask, numbers, -jnp.inf)
    largest = tile.queries.spread(tile.queries.largest(real))
    same = jnp.all((numbers == largest) | ~tile.mask)
    return jnp.where(jnp.isfinite(largest), largest, 0.0), same
