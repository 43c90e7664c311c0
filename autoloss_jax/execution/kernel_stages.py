"""What a block of GPU threads computes for one query: its loss and gradient, stage by stage.

The documents of the query lie in registers, f32[rows, width]. Pairs exist as one tile of width x
width at a time: a pair stage walks over the tiles with running reductions, and walks over them
again, now with tangents, for the gradient, since computing a pair twice costs less than keeping it.
Tiles in which a stage selects no pair are passed over: as documents come sorted by label, those are
about half of all for `y_i > y_j`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from autoloss_jax.execution import queries
from autoloss_jax.execution.kernel_blocks import (
    Level,
    Register,
    Running,
    RunningReduction,
    first_of,
    over,
    pick,
    row_of,
    run_segment,
    select,
    with_row,
    work_registers,
)
from autoloss_jax.execution.programs import (
    DOCUMENT_CONDITIONS,
    DOCUMENT_LEAVES,
    FIRST_MEAN_OF_PAIRS,
    PAIR_CONDITIONS,
    PAIR_LEAVES,
    WORK_REGISTERS,
)
from autoloss_jax.execution.segments import finite
from autoloss_jax.language.grammar import MAX_DOCUMENT_STAGES, MAX_PAIR_STAGES
from autoloss_jax.language.operators import LARGE

_TANGENTS = max(1 + MAX_PAIR_STAGES, MAX_DOCUMENT_STAGES)
"""In document stages by the score and the pair stages' results, in the query's by the document
stages' results; no stage reads leaves of both."""


class Query(NamedTuple):
    """One query with one candidate's scores; references to memory f32[rows, width] first."""

    scores: Any
    labels: Any
    mask: Any  # 1 for real documents
    places: Any  # i32: in the list, since here documents lie in another order
    size: Array  # f32[]: documents
    max_dcg: Array  # f32[]
    used: Array  # i32[]: rows with a document
    ranks: Array  # f32[rows, width]
    discounts: Array  # f32[rows, width]

    @property
    def width(self) -> int:
        return self.mask.shape[-1]

    def leaf(self, quantity: str, row: Array) -> Array:
        """f32[width]: a leaf of the documents of one row."""
        if quantity in ("rank", "discount"):
            return row_of(self.ranks if quantity == "rank" else self.discounts, row)
        if quantity == "s":
            return self.scores[row]
        labels = self.labels[row]
        return labels if quantity == "y" else queries.gains(labels)


class _PairStage(NamedTuple):
    """What a pair stage's reduction left for each document, f32[rows, width]."""

    result: Array
    running: Running


def _along_i(row: Array) -> Array:
    return jnp.broadcast_to(row[:, None], row.shape * 2)


def _along_j(row: Array) -> Array:
    return jnp.broadcast_to(row[None, :], row.shape * 2)


def _ranks(query: Query) -> Array:
    """f32[rows, width]: `queries.ranks`, counted tile by tile."""

    def row(i: Array, ranks: Array) -> Array:
        def tile(j: Array, rank: Array) -> Array:
            ahead = queries.goes_ahead(
                _along_j(query.scores[j]),
                _along_i(query.scores[i]),
                _along_j(query.places[j]) < _along_i(query.places[i]),
            )
            return rank + jnp.sum(jnp.where(ahead, _along_j(query.mask[j]), 0.0), 1)

        rank = lax.fori_loop(0, query.used, tile, jnp.ones(query.width))
        return with_row(ranks, i, rank)

    return lax.fori_loop(0, query.used, row, jnp.ones(query.mask.shape))


# ------------------------------------------------------------------------------------ pair stages


def _pair_leaf(query: Query, i: Array, j: Array, name: str) -> Array:
    """f32[width, width]: a leaf over the pairs of one tile."""
    if name in ("n", "max_dcg"):
        return jnp.full((query.width,) * 2, query.size if name == "n" else query.max_dcg)
    quantity, _, side = name.partition("_")
    return _along_i(query.leaf(quantity, i)) if side == "i" else _along_j(query.leaf(quantity, j))


def _selected(pair: Level, stage: Array, query: Query, i: Array, j: Array) -> Array:
    """f32[width, width]: 1 for the pairs of a tile that a stage selects."""
    known = _along_i(query.mask[i]) * _along_j(query.mask[j])
    leaves = {
        "y_i": _along_i(query.labels[i]), "y_j": _along_j(query.labels[j]),
        "i": _along_i(query.places[i]), "j": _along_j(query.places[j]),
    }  # fmt: skip
    return select(pair.header[stage, 3], PAIR_CONDITIONS, leaves, known)


def _computed(
    pair: Level, stage: Array, query: Query, i: Array, j: Array, tangents: int
) -> Register:
    """What a stage computes on a tile, f32[width, width], with the tangent by s_i - s_j or none."""
    leaf = partial(_pair_leaf, query, i, j)

    def load(name: str) -> Callable[[], Register]:
        left, _, right = name.partition(" - ")
        slope = {"s_i": 1.0, "s_j": -1.0}.get(left, 0.0)

        def loaded() -> Register:
            value = leaf(left) - leaf(right) if right else leaf(left)
            return Register(value, (jnp.full(value.shape, slope),) * tangents)

        return loaded

    work = work_registers((query.width,) * 2, WORK_REGISTERS, tangents)
    # A stage leaves the first registers to the stages before it, whose results are not needed here.
    return run_segment(pair, stage, [load(name) for name in PAIR_LEAVES], (), work, first=stage)


def _over_tiles(
    pair: Level, stage: Array, query: Query, i: Array, see: Callable[[Array, Array, Any], Any],
    start: Any,
) -> Any:  # fmt: skip
    """Lets `see(j, selected, carry)` see the tiles of row `i` in which the stage selects a pair."""

    def tile(j: Array, carry: Any) -> Any:
        selected = _selected(pair, stage, query, i, j)
        is_any = over(jnp.max, selected, (0, 1)) > 0.0
        return lax.cond(is_any, lambda: see(j, selected, carry), lambda: carry)

    return lax.fori_loop(0, query.used, tile, start)


def _pair_stages(pair: Level, stages: Array, query: Query) -> tuple[_PairStage, ...]:
    """Runs the pair stages, values only."""
    zeros = jnp.zeros(query.mask.shape)
    nothing = _PairStage(zeros, Running(zeros, zeros))

    def stage(k: Array, done: tuple[_PairStage, ...]) -> tuple[_PairStage, ...]:
        reduction = RunningReduction(pair.header[k, 2] - 1)

        def row(i: Array, rows: _PairStage) -> _PairStage:
            def see(j: Array, selected: Array, running: Running) -> Running:
                value, _ = _computed(pair, k, query, i, j, tangents=0)
                return reduction.update(running, value, selected, (1,))

            running = reduction.start(jnp.zeros(query.width))
            running = _over_tiles(pair, k, query, i, see, running)
            new = _PairStage(*reduction.finish(running))
            return jax.tree.map(lambda x, row: with_row(x, i, row), rows, new)

        new = lax.fori_loop(0, query.used, row, nothing)
        return tuple(
            jax.tree.map(lambda new, old, s=s: jnp.where(k == s, new, old), new, old)
            for s, old in enumerate(done)
        )

    return lax.fori_loop(0, stages, stage, (nothing,) * MAX_PAIR_STAGES)


def _through_pairs(
    pair: Level,
    stages: Array,
    query: Query,
    done: tuple[_PairStage, ...],
    cotangents: tuple[Array, ...],
    gradient: Array,
) -> Array:
    """Adds what the pair stages pass on to the scores, computing every pair again."""

    def stage(k: Array, gradient: Array) -> Array:
        reduction = RunningReduction(pair.header[k, 2] - 1)
        cotangent = pick(k, cotangents)
        kept = pick(k, [stage.running for stage in done])

        def row(i: Array, gradient: Array) -> Array:
            pulled = _along_i(row_of(cotangent, i))
            running = jax.tree.map(lambda x: _along_i(row_of(x, i)), kept)

            def see(j: Array, selected: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
                gradient, own = carry
                value, (slope,) = _computed(pair, k, query, i, j, tangents=1)
                weights = reduction.weights(running, value, selected)
                pull = finite(pulled * (weights * jnp.nan_to_num(slope)))
                others = row_of(gradient, j) - jnp.sum(pull, 0)
                return with_row(gradient, j, others), own + jnp.sum(pull, 1)

            start = (gradient, jnp.zeros(query.width))
            gradient, own = _over_tiles(pair, k, query, i, see, start)
            return with_row(gradient, i, row_of(gradient, i) + own)

        return lax.fori_loop(0, query.used, row, gradient)

    return lax.fori_loop(0, stages, stage, gradient)


# --------------------------------------------------------------------------------- document stages


def _document_leaves(
    query: Query, done: tuple[_PairStage, ...], results: tuple[Array, ...]
) -> list[Register]:
    """The registers that lie ready, in the order of DOCUMENT_LEAVES."""
    labels = query.labels[...]
    leaves: dict[str, tuple[Array, int | None]] = {
        "s_i": (query.scores[...], 0), "y_i": (labels, None),
        "gain_i": (queries.gains(labels), None), "rank_i": (query.ranks, None),
        "discount_i": (query.discounts, None), "n": (query.size, None),
        "max_dcg": (query.max_dcg, None),
    }  # fmt: skip
    leaves |= {f"pair stage {k}": (stage.result, 1 + k) for k, stage in enumerate(done)}
    leaves |= {f"document stage {k}": (result, k) for k, result in enumerate(results)}

    def register(value: Array, tangent: int | None) -> Register:
        slopes = (jnp.full(labels.shape, float(t == tangent)) for t in range(_TANGENTS))
        return Register(jnp.broadcast_to(value, labels.shape), tuple(slopes))

    return [register(*leaves[name]) for name in DOCUMENT_LEAVES]


def _document_stages(
    document: Level, stages: Array, query: Query, done: tuple[_PairStage, ...]
) -> tuple[Array, tuple[Array, ...]]:
    """Runs the document stages and the query's.

    Returns the loss f32[], and its slopes f32[rows, width] by the documents' scores and by the
    pair stages' results.
    """
    zeros, zero = jnp.zeros(query.mask.shape), jnp.float32(0.0)
    # Of the pairs that each stage selects; a mean over pairs always is of a stage that is a sum.
    counts = [over(jnp.sum, stage.running.b, (0, 1)) for stage in done]
    results = (zero,) * MAX_DOCUMENT_STAGES
    slopes = ((zeros,) * _TANGENTS,) * MAX_DOCUMENT_STAGES

    def stage(k: Array, carry: Any) -> Any:
        results, slopes, _ = carry
        leaves = _document_leaves(query, done, results)
        work = work_registers(zeros.shape, WORK_REGISTERS, _TANGENTS)
        value, tangents = run_segment(document, k, (), leaves, work)
        tangents = tuple(map(jnp.nan_to_num, tangents))
        code = document.header[k, 2]
        selected = select(
            document.header[k, 3], DOCUMENT_CONDITIONS, {"y_i": query.labels[...]}, query.mask[...]
        )
        # The query's stage, the last, has no reduction: what one gives is not used.
        is_mean_of_pairs = code >= FIRST_MEAN_OF_PAIRS
        reduction = RunningReduction(
            jnp.where(is_mean_of_pairs, RunningReduction.MEAN, jnp.maximum(code - 1, 0))
        )
        running = reduction.update(reduction.start(zero), value, selected, (0, 1))
        for s, count in enumerate(counts):
            chosen = code == FIRST_MEAN_OF_PAIRS + s
            running = running._replace(b=jnp.where(chosen, count, running.b))
        result, running = reduction.finish(running)
        weights = reduction.weights(running, value, selected)
        slope = tuple(weights * tangent for tangent in tangents)
        results, slopes = (
            tuple(
                jax.tree.map(lambda new, old, s=s: jnp.where(k == s, new, old), new, old)
                for s, old in enumerate(each)
            )
            for new, each in ((result, results), (slope, slopes))
        )
        return results, slopes, Register(value, tangents)

    start = (results, slopes, Register(zeros, (zeros,) * _TANGENTS))
    _, slopes, last = lax.fori_loop(0, stages + 1, stage, start)
    loss = first_of(last.value)  # the query's numbers stand at each of its documents
    # A saturated loss has no slope.
    by_stage = [
        jnp.where(jnp.abs(loss) < LARGE, finite(first_of(tangent)), 0.0)
        for tangent in last.tangents[:MAX_DOCUMENT_STAGES]
    ]
    by_document = [
        sum((by * slope[t] for by, slope in zip(by_stage, slopes, strict=True)), zeros)
        for t in range(1 + MAX_PAIR_STAGES)
    ]
    return finite(loss), tuple(by_document)


def loss_and_gradient(
    pair: Level, document: Level, counts: tuple[Array, Array, Array], query: Query
) -> tuple[Array, Array]:
    """The loss f32[] of a query, and its gradient by the documents' scores, f32[rows, width].

    counts: pair stages, document stages, and whether ranks are used.
    """
    pair_stages, document_stages, uses_ranks = counts

    def ranked() -> tuple[Array, Array]:
        ranks = _ranks(query)
        return ranks, queries.discounts(ranks)

    ranks, discounts = lax.cond(uses_ranks > 0, ranked, lambda: (query.ranks, query.discounts))
    query = query._replace(ranks=ranks, discounts=discounts)
    done = _pair_stages(pair, pair_stages, query)
    loss, slopes = _document_stages(document, document_stages, query, done)
    gradient = _through_pairs(pair, pair_stages, query, done, slopes[1:], slopes[0])
    return loss, jnp.where(query.mask[...] > 0, finite(gradient), 0.0)
