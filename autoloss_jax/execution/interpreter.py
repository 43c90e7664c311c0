"""The batched path: one compiled program that runs any encoded losses, value and gradient at once.

A loss reaches the model through the score of a document, or of two, only. So the derivative is
carried along with the value as dual numbers (forward mode) inside each segment, nothing is kept per
instruction, and the loop ends where the program ends. Across stages, where only vectors of list
length are kept, the chain rule runs backwards.

Programs differ, so their branches must be real: candidates run one after the other, never under
`vmap`, which would run every operator for each instruction. Queries are taken in tiles, and all
candidates pass over one tile before the next is read; pairs are taken in blocks that stay in the
cache.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from autoloss_jax.execution import queries
from autoloss_jax.execution.pair_blocks import Blocks
from autoloss_jax.execution.pairs import PairPass, back_through_pairs, pair_stages
from autoloss_jax.execution.programs import (
    DOCUMENT_LEAVES,
    DOCUMENT_REDUCTIONS,
    FIRST_MEAN_OF_PAIRS,
    OPCODES,
    PAIR_WORK_REGISTERS,
    WORK_REGISTERS,
    Programs,
    Segments,
)
from autoloss_jax.execution.segments import (
    REDUCTIONS,
    Dual,
    Registers,
    finite,
    joined,
    run_segment,
)
from autoloss_jax.execution.tiles import Tile, join, tile_of
from autoloss_jax.language.grammar import MAX_DOCUMENT_STAGES, MAX_PAIR_STAGES
from autoloss_jax.language.operators import LARGE

BLOCK_PAIRS = 12_800
"""How many pairs a block has, about: its registers stay in the cache."""
TILE_PAIRS = 262_144
"""How many pairs a tile of queries may have, unless one query has more."""
TILE_DOCUMENTS = 8_192
"""How many documents a tile of queries may have, unless one query has more."""
MOST_FILLED = 1.25
"""Tiles are larger than that where they had more than so many times the pairs of their queries."""

_FIRST_PAIR_RESULT = DOCUMENT_LEAVES.index("pair stage 0")
_FIRST_DOCUMENT_RESULT = DOCUMENT_LEAVES.index("document stage 0")
_TANGENTS = max(1 + MAX_PAIR_STAGES, MAX_DOCUMENT_STAGES)


class _Workspace(NamedTuple):
    """Register files and results, flat, which the compiler vectorises best.

    They are handed on from candidate to candidate and from tile to tile: what is read was written
    before, by the tile or by the candidate, but for the tangents of document leaves, which last.
    """

    pair: Registers  # [registers, pairs of a block], one tangent, by s_i - s_j
    # [registers, documents]; the query's numbers stand at each of its documents. Tangents are
    # by s_i and by the pair stages' results in the document stages, and by the document stages'
    # results in the query's, which reads no other leaf with a tangent.
    document: Registers
    passed: PairPass
    slopes: Array  # f32[stages, tangents, documents]: of the document stages' results


def _workspace(documents: int, blocks: Blocks) -> _Workspace:
    pair = jnp.zeros((PAIR_WORK_REGISTERS, blocks.pairs))
    document = jnp.zeros((len(DOCUMENT_LEAVES) + WORK_REGISTERS, documents))
    by = np.zeros((document.shape[0], _TANGENTS, 1), np.float32)
    by[DOCUMENT_LEAVES.index("s_i"), 0] = 1.0
    for k in range(MAX_PAIR_STAGES):
        by[_FIRST_PAIR_RESULT + k, 1 + k] = 1.0
    for k in range(MAX_DOCUMENT_STAGES):
        by[_FIRST_DOCUMENT_RESULT + k, k] = 1.0
    tangent = jnp.broadcast_to(by, (*by.shape[:2], documents))
    return _Workspace(
        Registers(pair, pair[:, None]),
        Registers(document, tangent),
        PairPass.empty(documents, blocks),
        jnp.zeros((MAX_DOCUMENT_STAGES + 1, _TANGENTS, documents)),
    )


def _load_labels(workspace: _Workspace, tile: Tile) -> _Workspace:
    """Writes the document leaves that all candidates share."""
    leaves = {"y_i": tile.documents, "gain_i": queries.gains(tile.documents), "n": tile.size,
              "max_dcg": tile.max_dcg}  # fmt: skip
    value = workspace.document.value
    for name, leaf in leaves.items():
        value = value.at[DOCUMENT_LEAVES.index(name)].set(leaf)
    return workspace._replace(document=workspace.document._replace(value=value))


def _load_scores(tile: Tile, document: Registers, scores: Array, ranked: Array) -> Registers:
    """Writes the document leaves of this candidate's scores f32[documents].

    `ranked`: whether anything needs their ranks, which are wrong otherwise.
    """

    def by_rank() -> tuple[Array, Array]:
        lists = zip(tile.queries.split(scores), tile.queries.split(tile.mask), strict=True)
        rank = joined([queries.ranks(*of_length).reshape(-1) for of_length in lists])
        return rank, queries.discounts(rank)

    rank, discount = lax.cond(ranked, by_rank, lambda: (scores, scores))
    value = document.value
    for name, leaf in (("s_i", scores), ("rank_i", rank), ("discount_i", discount)):
        value = value.at[DOCUMENT_LEAVES.index(name)].set(leaf)
    return document._replace(value=value)


def _reads_max_dcg(programs: Programs) -> Array:
    """bool[]: whether a program reads the ideal DCG, by document or by pair."""
    register, load = DOCUMENT_LEAVES.index("max_dcg"), OPCODES.index("max_dcg")
    return (
        jnp.any(programs.document.code[..., 1:3] == register)
        | jnp.any(programs.document.result == register)
        | jnp.any(programs.pair.code[..., 0] == load)
    )


def stage_of(segments: Segments, k: Array) -> Segments:
    return jax.tree.map(lambda x: x[k], segments)


def _stages(segments: Segments) -> Array:
    """How many stages are in use; they come first."""
    return jnp.sum(segments.reduction > 0)


def _document_stages(
    program: Programs, tile: Tile, blocks: Blocks, workspace: _Workspace
) -> tuple[_Workspace, Dual]:
    """Runs the document stages and the query's.

    Returns the loss f32[documents], a query's at each of its documents, with its slopes by the
    document stages' results; their slopes are in the workspace, by the score of each document and
    by its pair stages' results.
    """

    def result(segment: Segments, document: Registers) -> Dual:
        value, tangent = document.read(segment.result)
        return Dual(value, jnp.nan_to_num(tangent))

    def reduced(name: str, segment: Segments) -> Callable[[Registers], tuple[Array, Array]]:
        kind, _, stage = name.partition(" of pair stage ")
        reduce = REDUCTIONS["sum_i" if stage else kind]

        def apply(document: Registers) -> tuple[Array, Array]:
            dual = result(segment, document)
            values, weights = reduce(tile.queries, dual.value, tile.selected(segment.where))
            row = tile.queries.spread(values)
            if stage:
                count = jnp.maximum(tile.pairs(program.pair.where[int(stage)], blocks), 1.0)
                row, weights = row / count, weights / count
            return row, weights * dual.tangent

        return apply

    def stage(k: Array, carry: tuple[Registers, Array]) -> tuple[Registers, Array]:
        document, slopes = carry
        segment = stage_of(program.document, k)
        document = run_segment(segment, document)

        def loss(document: Registers) -> tuple[Array, Array]:
            # Not reduced. With every stage in use its row is a work register, the one in which its
            # result stands if it stands in any.
            return result(segment, document).value, jnp.zeros(slopes.shape[1:])

        branches = [reduced(name, segment) for name in DOCUMENT_REDUCTIONS[1:]]
        row, slope = lax.switch(segment.reduction, [loss, *branches], document)
        value = document.value.at[_FIRST_DOCUMENT_RESULT + k].set(row)
        return document._replace(value=value), slopes.at[k].set(slope)

    count = _stages(program.document)
    start = (workspace.document, workspace.slopes)
    document, slopes = lax.fori_loop(0, count + 1, stage, start)
    value, tangent = result(stage_of(program.document, count), document)
    # A saturated loss has no slope.
    by_stages = jnp.where(jnp.abs(value) < LARGE, finite(tangent[:MAX_DOCUMENT_STAGES]), 0.0)
    return workspace._replace(document=document, slopes=slopes), Dual(finite(value), by_stages)


def _loss_and_gradient(
    program: Programs, tile: Tile, blocks: Blocks, workspace: _Workspace,
    scores: Array, truncation_level: int,
) -> tuple[_Workspace, tuple[Array, Array]]:  # fmt: skip
    """One candidate's loss over a tile, a query's at each of its documents, and its gradient."""
    stages = _stages(program.pair)
    ranked = program.uses_ranks
    if truncation_level:
        ranked |= stages > 0
    document = _load_scores(tile, workspace.document, jnp.where(tile.mask, scores, 0.0), ranked)
    if truncation_level:
        rank = document.value[DOCUMENT_LEAVES.index("rank_i")]
        tile = tile._replace(top=(rank <= truncation_level).astype(jnp.float32))
    pair, passed, values = pair_stages(
        program.pair, stages, tile, blocks, document.value, workspace.pair,
        workspace.passed, _FIRST_PAIR_RESULT,
    )  # fmt: skip
    workspace = _Workspace(pair, document._replace(value=values), passed, workspace.slopes)
    workspace, loss = _document_stages(program, tile, blocks, workspace)

    # Chain rule, backwards: query -> document stages -> scores and pair stages -> scores.
    def by_stage(k: Array, sums: Array) -> Array:
        return sums + loss.tangent[k] * workspace.slopes[k]

    nothing = jnp.zeros((_TANGENTS, scores.shape[0]))
    by_document = lax.fori_loop(0, _stages(program.document), by_stage, nothing)
    pair, gradient = back_through_pairs(
        program.pair, stages, tile, blocks, values, workspace.pair, passed,
        by_document[1 : 1 + MAX_PAIR_STAGES], by_document[0],
    )  # fmt: skip
    gradient = jnp.where(tile.mask, finite(gradient), 0.0)
    return workspace._replace(pair=pair), (loss.value, gradient)


def _tile_count(shapes: Sequence[tuple[int, ...]]) -> int:
    """Into how many tiles queries of shapes [queries, list] are cut.

    Every tile has the same number of queries of a length, and is filled up with empty ones, which
    cost as much: where a length has few queries, fewer tiles are better.
    """
    pairs = sum(q * length**2 for q, length in shapes)
    documents = sum(q * length for q, length in shapes)
    most = max(-(-pairs // TILE_PAIRS), -(-documents // TILE_DOCUMENTS))

    def filled(tiles: int) -> int:
        return sum(tiles * -(-q // tiles) * length**2 for q, length in shapes)

    few = range(min(most, max(q for q, _ in shapes)), 0, -1)
    return next(tiles for tiles in few if filled(tiles) <= MOST_FILLED * pairs)


def ragged_losses_and_gradients(
    programs: Programs, scores: Sequence[Array], labels: Sequence[Array], masks: Sequence[Array],
    truncation_level: int = 0,
) -> tuple[list[Array], list[Array]]:  # fmt: skip
    """`losses_and_gradients` of queries padded to several lengths, one array for each length."""
    shapes = [x.shape for x in labels]
    tiles = _tile_count(shapes)
    sizes = [-(-q // tiles) for q, _ in shapes]
    shares = [(size, length) for size, (_, length) in zip(sizes, shapes, strict=True)]
    blocks = Blocks.of(shares, BLOCK_PAIRS, 2 * TILE_PAIRS)

    def tiled(parts: Sequence[Array], axis: int) -> list[Array]:
        """Each list [..., queries, list] as [tiles, ..., queries of a tile, list]."""
        cut = []
        for x, size in zip(parts, sizes, strict=True):
            widths = [(0, 0)] * x.ndim
            widths[axis] = (0, tiles * size - x.shape[axis])
            shape = (*x.shape[:axis], tiles, size, *x.shape[axis + 1 :])
            cut.append(jnp.moveaxis(jnp.pad(x, widths).reshape(shape), axis, 0))
        return cut

    max_dcg = _reads_max_dcg(programs)
    counts = jnp.any(programs.document.reduction >= FIRST_MEAN_OF_PAIRS)

    def over_tile(workspace: _Workspace, inputs: tuple) -> tuple[_Workspace, tuple[Array, Array]]:
        labels, masks, scores = inputs
        tile = tile_of(labels, masks, blocks, max_dcg=max_dcg, counts=counts)

        def candidate(
            workspace: _Workspace, inputs: tuple[Programs, Array]
        ) -> tuple[_Workspace, tuple[Array, Array]]:
            program, scores = inputs
            return _loss_and_gradient(program, tile, blocks, workspace, scores, truncation_level)

        return lax.scan(candidate, _load_labels(workspace, tile), (programs, join(scores)))

    workspace = _workspace(sum(size * length for size, length in shares), blocks)
    inputs = (tiled(labels, 0), tiled(masks, 0), tiled(scores, 1))
    if tiles == 1:
        first = over_tile(workspace, jax.tree.map(lambda x: x[0], inputs))[1]
        flat = jax.tree.map(lambda x: x[None], first)
    else:
        flat = lax.scan(over_tile, workspace, inputs)[1]
    losses, gradients, start = [], [], 0
    for (size, length), (count, _), mask in zip(shares, shapes, masks, strict=True):
        # [tiles, candidates, queries of a tile * list] -> [candidates, queries, list]
        loss, gradient = (
            jnp.moveaxis(x[..., start : start + size * length], 0, 1)
            .reshape(programs.count, tiles * size, length)[:, :count]
            for x in flat
        )  # fmt: skip
        start += size * length
        losses.append(jnp.where(jnp.any(mask, -1), loss[..., 0], 0.0))
        gradients.append(gradient)
    return losses, gradients


def losses_and_gradients(
    programs: Programs, scores: Array, labels: Array, mask: Array, truncation_level: int = 0
) -> tuple[Array, Array]:
    """Every candidate's loss of every query, and its gradient by the scores.

    Args:
      programs: the candidates' losses.
      scores: f32[candidates, queries, list].
      labels: f32[queries, list], shared by the candidates.
      mask: bool[queries, list], True for real documents.
      truncation_level: if above 0, every reduction over pairs takes those only of which at least
        one document is among this many first by the candidate's scores (ties by position), as
        `lambdarank_truncation_level` of LightGBM; another loss than the formula says.

    Returns:
      f32[candidates, queries], 0 for a query without a document; f32[candidates, queries, list].
    """
    (losses,), (gradients,) = ragged_losses_and_gradients(
        programs, [scores], [labels], [mask], truncation_level
    )
    return losses, gradients
