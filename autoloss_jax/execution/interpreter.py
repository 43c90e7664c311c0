"""The batched path: one compiled program that runs any encoded losses, value and gradient at once.

A loss reaches the model through the score of a document, or of two, only. So the derivative is
carried along with the value as dual numbers (forward mode) inside each segment, nothing is kept per
instruction, and the loop ends where the program ends. Across stages, where only vectors of list
length are kept, the chain rule runs backwards.

Programs differ, so their branches must be real: candidates run one after the other, never under
`vmap`, which would run every operator for each instruction. To keep a register file in the cache,
queries are taken in tiles, and all candidates pass over one tile before the next is read.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from autoloss_jax.execution import queries
from autoloss_jax.execution.programs import (
    DOCUMENT_LEAVES,
    DOCUMENT_REDUCTIONS,
    PAIR_LEAVES,
    PAIR_REDUCTIONS,
    PAIR_WORK_REGISTERS,
    WORK_REGISTERS,
    Programs,
    Segments,
)
from autoloss_jax.execution.segments import (
    REDUCTIONS,
    Branch,
    Dual,
    Reduction,
    Registers,
    finite,
    run_segment,
)
from autoloss_jax.execution.tiles import Tile, tile_of
from autoloss_jax.language.grammar import MAX_DOCUMENT_STAGES, MAX_PAIR_STAGES
from autoloss_jax.language.operators import LARGE

TILE_PAIRS = 12_800
"""How many pairs a tile of queries may have, unless one query has more."""


_FIRST_PAIR_RESULT = DOCUMENT_LEAVES.index("pair stage 0")
_FIRST_DOCUMENT_RESULT = DOCUMENT_LEAVES.index("document stage 0")
_TANGENTS = max(1 + MAX_PAIR_STAGES, MAX_DOCUMENT_STAGES)


class _Workspace(NamedTuple):
    """Register files, flat, which the compiler vectorises best.

    They are handed on from candidate to candidate and from tile to tile: what is read was written
    before, by the tile or by the candidate, but for the tangents of document leaves, which last.
    """

    pair: Registers  # [registers, queries * list * list], one tangent, by s_i - s_j
    # [registers, queries * list]; the query's numbers stand at each of its documents. Tangents are
    # by s_i and by the pair stages' results in the document stages, and by the document stages'
    # results in the query's, which reads no other leaf with a tangent.
    document: Registers


def _workspace(tile_size: int, length: int) -> _Workspace:
    pair = jnp.zeros((PAIR_WORK_REGISTERS, tile_size * length**2))
    document = jnp.zeros((len(DOCUMENT_LEAVES) + WORK_REGISTERS, tile_size * length))
    by = np.zeros((document.shape[0], _TANGENTS, 1), np.float32)
    by[DOCUMENT_LEAVES.index("s_i"), 0] = 1.0
    for k in range(MAX_PAIR_STAGES):
        by[_FIRST_PAIR_RESULT + k, 1 + k] = 1.0
    for k in range(MAX_DOCUMENT_STAGES):
        by[_FIRST_DOCUMENT_RESULT + k, k] = 1.0
    tangent = jnp.broadcast_to(by, (*by.shape[:2], document.shape[1]))
    return _Workspace(Registers(pair, pair[:, None]), Registers(document, tangent))


def _load_labels(workspace: _Workspace, tile: Tile) -> _Workspace:
    """Writes the document leaves that all candidates share."""
    size, max_dcg = (
        jnp.broadcast_to(x[:, None], tile.labels.shape) for x in (tile.size, tile.max_dcg)
    )
    leaves = {"y_i": tile.labels, "gain_i": queries.gains(tile.labels), "n": size,
              "max_dcg": max_dcg}  # fmt: skip
    value = workspace.document.value
    for name, leaf in leaves.items():
        value = value.at[DOCUMENT_LEAVES.index(name)].set(leaf.reshape(-1))
    return workspace._replace(document=workspace.document._replace(value=value))


def _load_scores(program: Programs, tile: Tile, document: Registers, scores: Array) -> Registers:
    """Writes the document leaves of this candidate's scores."""

    def ranked(scores: Array) -> tuple[Array, Array]:
        rank = queries.ranks(scores, tile.mask)
        return rank, queries.discounts(rank)

    rank, discount = lax.cond(program.uses_ranks, ranked, lambda scores: (scores, scores), scores)
    value = document.value
    for name, leaf in (("s_i", scores), ("rank_i", rank), ("discount_i", discount)):
        value = value.at[DOCUMENT_LEAVES.index(name)].set(leaf.reshape(-1))
    return document._replace(value=value)


def _pair_loads(document: Registers, shape: tuple[int, ...]) -> list[Branch]:
    """The instructions that lay out leaves of documents over pairs [queries, list, list]."""

    def load(name: str) -> Branch:
        def leaf(source: str) -> Array:
            row = DOCUMENT_LEAVES.index(source.replace("_j", "_i"))
            documents = document.value[row].reshape(shape[:2])
            return documents[:, None, :] if source.endswith("_j") else documents[:, :, None]

        def branch(registers: Registers, a: Array, b: Array, constant: Array) -> Dual:
            del a, b, constant
            left, _, right = name.partition(" - ")
            value = leaf(left) - leaf(right) if right else leaf(left)
            slope = {"s_i": 1.0, "s_j": -1.0}.get(left, 0.0)
            tangent = jnp.full(registers.tangent.shape[1:], slope)
            return Dual(_flat(jnp.broadcast_to(value, shape)), tangent)

        return branch

    return [load(name) for name in PAIR_LEAVES]


def _flat(x: Array) -> Array:
    """One axis; kept apart from what computes `x`, which would index it far more slowly flat."""
    return lax.optimization_barrier(x).reshape(-1)


def _pair_result(tile: Tile, segment: Segments, pair: Registers) -> tuple[Dual, Array]:
    """What a pair stage left in the file, f32[queries, list, list], and the pairs it selects."""
    value, tangent = pair.read(segment.result)
    selected = tile.pairs(segment.where)
    return Dual(value.reshape(selected.shape), tangent.reshape(selected.shape)), selected


def _stage(segments: Segments, k: Array) -> Segments:
    return jax.tree.map(lambda x: x[k], segments)


def _stages(segments: Segments) -> Array:
    """How many stages are in use; they come first."""
    return jnp.sum(segments.reduction > 0)


def _pair_stages(program: Programs, tile: Tile, workspace: _Workspace) -> tuple[_Workspace, Array]:
    """Runs the pair stages; their results become leaves of the documents.

    Also returns f32[stages, queries]: how many pairs each stage selects.
    """
    shape = tile.labels.shape
    loads = _pair_loads(workspace.document, (*shape, shape[-1]))

    def stage(k: Array, carry: tuple[Registers, Array, Array]) -> tuple[Registers, Array, Array]:
        pair, results, counts = carry
        segment = _stage(program.pair, k)
        pair = run_segment(segment, pair, loads)

        def reduced(reduce: Reduction) -> Callable[[Registers], tuple[Array, Array]]:
            def apply(pair: Registers) -> tuple[Array, Array]:
                dual, selected = _pair_result(tile, segment, pair)
                return reduce(dual.value, selected)[0], jnp.sum(selected, (1, 2))

            return apply

        branches = [reduced(REDUCTIONS[name]) for name in PAIR_REDUCTIONS[1:]]
        result, count = lax.switch(segment.reduction - 1, branches, pair)
        return pair, results.at[k].set(result.reshape(-1)), counts.at[k].set(count)

    nothing = jnp.zeros((MAX_PAIR_STAGES, tile.labels.size))
    start = (workspace.pair, nothing, jnp.zeros((MAX_PAIR_STAGES, shape[0])))
    pair, results, counts = lax.fori_loop(0, _stages(program.pair), stage, start)
    value = workspace.document.value.at[_FIRST_PAIR_RESULT:_FIRST_DOCUMENT_RESULT].set(results)
    return _Workspace(pair, workspace.document._replace(value=value)), counts


def _document_stages(
    program: Programs, tile: Tile, document: Registers, counts: Array
) -> tuple[Registers, Dual, Array]:
    """Runs the document stages and the query's.

    Returns the registers, the loss f32[queries] with its slopes by the document stages' results,
    and their slopes f32[stages, tangents, queries, list] by the score of each document and by its
    pair stages' results.
    """
    shape = tile.labels.shape

    def mean_of_pairs(k: int) -> Reduction:
        def reduce(values: Array, selected: Array) -> tuple[Array, Array]:
            count = jnp.maximum(counts[k], 1.0)
            return jnp.sum(values * selected, -1) / count, selected / count[:, None]

        return reduce

    reductions = [REDUCTIONS[name] for name in DOCUMENT_REDUCTIONS[1:-MAX_PAIR_STAGES]]
    reductions += [mean_of_pairs(k) for k in range(MAX_PAIR_STAGES)]

    def result(segment: Segments, document: Registers) -> Dual:
        value, tangent = document.read(segment.result)
        return Dual(value.reshape(shape), jnp.nan_to_num(tangent).reshape(-1, *shape))

    def stage(k: Array, carry: tuple[Registers, Array]) -> tuple[Registers, Array]:
        document, slopes = carry
        segment = _stage(program.document, k)
        document = run_segment(segment, document)

        def reduced(reduce: Reduction) -> Callable[[Registers], tuple[Array, Array]]:
            def apply(document: Registers) -> tuple[Array, Array]:
                dual = result(segment, document)
                value, weights = reduce(dual.value, tile.documents(segment.where))
                row = jnp.broadcast_to(value[:, None], shape).reshape(-1)
                return row, weights * dual.tangent

            return apply

        def loss(document: Registers) -> tuple[Array, Array]:
            # Not reduced. With every stage in use its row is a work register, the one in which its
            # result stands if it stands in any.
            return result(segment, document).value.reshape(-1), jnp.zeros(slopes.shape[1:])

        row, slope = lax.switch(segment.reduction, [loss, *map(reduced, reductions)], document)
        value = document.value.at[_FIRST_DOCUMENT_RESULT + k].set(row)
        return document._replace(value=value), slopes.at[k].set(slope)

    count = _stages(program.document)
    slopes = jnp.zeros((MAX_DOCUMENT_STAGES + 1, _TANGENTS, *shape))
    document, slopes = lax.fori_loop(0, count + 1, stage, (document, slopes))
    dual = result(_stage(program.document, count), document)
    value, by_stages = dual.value[:, 0], finite(dual.tangent[:MAX_DOCUMENT_STAGES, :, 0])
    # A saturated loss has no slope.
    by_stages = jnp.where(jnp.abs(value) < LARGE, by_stages, 0.0)
    return document, Dual(finite(value), by_stages), slopes[:MAX_DOCUMENT_STAGES]


def _through_pairs(
    program: Programs, tile: Tile, pair: Registers, cotangents: Array, gradient: Array
) -> Array:
    """Adds what the pair stages pass on to the scores, of f32[stages, queries, list]."""

    def stage(k: Array, gradient: Array) -> Array:
        segment = _stage(program.pair, k)

        def reduced(reduce: Reduction) -> Callable[[Registers], Array]:
            def apply(pair: Registers) -> Array:
                dual, selected = _pair_result(tile, segment, pair)
                weights = reduce(dual.value, selected)[1]
                cotangent = cotangents[k][:, :, None]
                pull = finite(cotangent * (weights * jnp.nan_to_num(dual.tangent)))
                return jnp.sum(pull, 2) - jnp.sum(pull, 1)

            return apply

        branches = [reduced(REDUCTIONS[name]) for name in PAIR_REDUCTIONS[1:]]
        return gradient + lax.switch(segment.reduction - 1, branches, pair)

    return lax.fori_loop(0, _stages(program.pair), stage, gradient)


def _loss_and_gradient(
    program: Programs, tile: Tile, workspace: _Workspace, scores: Array
) -> tuple[_Workspace, tuple[Array, Array]]:
    """One candidate's loss f32[queries] over a tile, and its gradient f32[queries, list]."""
    scores = jnp.where(tile.mask, scores, 0.0)
    document = _load_scores(program, tile, workspace.document, scores)
    workspace, counts = _pair_stages(program, tile, workspace._replace(document=document))
    document, loss, slopes = _document_stages(program, tile, workspace.document, counts)
    # Chain rule, backwards: query -> document stages -> scores and pair stages -> scores.
    by_document = jnp.sum(loss.tangent[:, None, :, None] * slopes, 0)
    cotangents = by_document[1 : 1 + MAX_PAIR_STAGES]
    gradient = _through_pairs(program, tile, workspace.pair, cotangents, by_document[0])
    gradient = jnp.where(tile.mask, finite(gradient), 0.0)
    return workspace._replace(document=document), (loss.value, gradient)


def losses_and_gradients(
    programs: Programs, scores: Array, labels: Array, mask: Array
) -> tuple[Array, Array]:
    """Every candidate's loss of every query, and its gradient by the scores.

    Args:
      programs: the candidates' losses.
      scores: f32[candidates, queries, list].
      labels: f32[queries, list], shared by the candidates.
      mask: bool[queries, list], True for real documents.

    Returns:
      f32[candidates, queries], 0 for a query without a document; f32[candidates, queries, list].
    """
    count, length = labels.shape
    tile_size = min(count, max(1, TILE_PAIRS // length**2))
    tiles = -(-count // tile_size)
    padding = tiles * tile_size - count

    def tiled(x: Array, axis: int) -> Array:
        widths = [(0, padding if a == axis else 0) for a in range(x.ndim)]
        shape = (*x.shape[:axis], tiles, tile_size, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, widths).reshape(shape), axis, 0)

    def over_tile(
        workspace: _Workspace, inputs: tuple[Array, Array, Array]
    ) -> tuple[_Workspace, tuple[Array, Array]]:
        labels, mask, scores = inputs
        tile = tile_of(labels, mask)

        def candidate(
            workspace: _Workspace, inputs: tuple[Programs, Array]
        ) -> tuple[_Workspace, tuple[Array, Array]]:
            return _loss_and_gradient(inputs[0], tile, workspace, inputs[1])

        return lax.scan(candidate, _load_labels(workspace, tile), (programs, scores))

    inputs = (tiled(labels, 0), tiled(mask, 0), tiled(scores, 1))
    losses, gradients = lax.scan(over_tile, _workspace(tile_size, length), inputs)[1]
    # [tiles, candidates, tile_size, ...] -> [candidates, queries, ...]
    losses = jnp.moveaxis(losses, 0, 1).reshape(scores.shape[0], -1)[:, :count]
    gradients = jnp.moveaxis(gradients, 0, 1).reshape(scores.shape[0], -1, length)[:, :count]
    return jnp.where(jnp.any(mask, -1), losses, 0.0), gradients
