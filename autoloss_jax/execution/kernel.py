"""The interpreter as one GPU kernel (Pallas, lowered by Triton): values and gradients in one launch.

A block of threads runs one candidate on one query, so the program is the same for all its threads
and its branches are real. Pairs exist as one tile of BLOCK x BLOCK at a time: a pair stage walks
over the tiles with running reductions, and walks over them again, now with tangents, for the
gradient, since computing a pair twice costs less than keeping it. Memory is read for the program
and the query, and written for the loss and the gradient; no array of [list, list] is anywhere.
Tiles behind a query's last document are not visited.

Operators, conditions, ranks and gains are those of the XLA path (`interpreter.py`), the reference.
Where a NaN arises the two may differ: Triton's minimum and maximum drop it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from autoloss_jax.execution import queries
from autoloss_jax.execution.blocks import (
    BLOCK_CODES,
    Level,
    Register,
    Running,
    RunningReduction,
    first_of,
    row_of,
    run_segment,
    with_row,
    work_registers,
)
from autoloss_jax.execution.programs import (
    DOCUMENT_LEAVES,
    DOCUMENT_REDUCTIONS,
    PAIR_LEAVES,
    PAIR_WORK_REGISTERS,
    WORK_REGISTERS,
    Programs,
    Segments,
)
from autoloss_jax.execution.segments import finite
from autoloss_jax.execution.tiles import (
    PAIR_CONDITION_RULES,
    document_condition,
    pair_condition,
)
from autoloss_jax.language.grammar import MAX_DOCUMENT_STAGES, MAX_PAIR_STAGES
from autoloss_jax.language.operators import LARGE

BLOCK = 32
"""Documents along a side of a tile: with 4 warps a thread holds 8 pairs of every register."""

_FIRST_MEAN_OF_PAIRS = len(DOCUMENT_REDUCTIONS) - MAX_PAIR_STAGES
_TANGENTS = max(1 + MAX_PAIR_STAGES, MAX_DOCUMENT_STAGES)
"""In document stages by the score and the pair stages' results, in the query's by the document
stages' results; no stage reads leaves of both."""


class _Query(NamedTuple):
    """One query with one candidate's scores; references to memory f32[blocks, BLOCK] first."""

    scores: Any
    labels: Any
    mask: Any  # 1 for real documents
    size: Array  # f32[]: documents
    max_dcg: Array  # f32[]
    blocks: Array  # i32[]: those up to the last document
    ranks: Array  # f32[blocks, BLOCK], if the program uses them
    discounts: Array  # f32[blocks, BLOCK], if the program uses them

    def documents(self, quantity: str, block: Array) -> Array:
        """f32[BLOCK]: a leaf of the documents of one block."""
        if quantity in ("rank", "discount"):
            return row_of(self.ranks if quantity == "rank" else self.discounts, block)
        if quantity == "s":
            return self.scores[block]
        labels = self.labels[block]
        return labels if quantity == "y" else queries.gains(labels)


class _PairStage(NamedTuple):
    """What a pair stage's reduction left for each document, f32[blocks, BLOCK]."""

    result: Array
    running: Running


def _along_i(row: Array) -> Array:
    return jnp.broadcast_to(row[:, None], (BLOCK, BLOCK))


def _along_j(row: Array) -> Array:
    return jnp.broadcast_to(row[None, :], (BLOCK, BLOCK))


def _positions(block: Array) -> Array:
    return block * BLOCK + lax.broadcasted_iota(jnp.int32, (BLOCK,), 0)


def _ranks(query: _Query) -> Array:
    """f32[blocks, BLOCK]: `queries.ranks`, counted tile by tile."""

    def row(i: Array, ranks: Array) -> Array:
        def tile(j: Array, rank: Array) -> Array:
            ahead = queries.goes_ahead(
                _along_j(query.scores[j]),
                _along_i(query.scores[i]),
                _along_j(_positions(j)) < _along_i(_positions(i)),
            )
            return rank + jnp.sum(jnp.where(ahead, _along_j(query.mask[j]), 0.0), 1)

        rank = lax.fori_loop(0, query.blocks, tile, jnp.ones((BLOCK,)))
        return with_row(ranks, i, rank)

    return lax.fori_loop(0, query.blocks, row, jnp.ones(query.mask.shape))


# ------------------------------------------------------------------------------------ pair stages


def _tile(
    pair: Level, stage: Array, query: _Query, i: Array, j: Array, tangents: int
) -> tuple[Register, Array]:
    """What a stage computes on one tile, f32[BLOCK, BLOCK], and 1 for the pairs it selects."""

    def leaf(name: str) -> Array:
        if name in ("n", "max_dcg"):
            return jnp.full((BLOCK, BLOCK), query.size if name == "n" else query.max_dcg)
        quantity, _, side = name.partition("_")
        documents = query.documents(quantity, i if side == "i" else j)
        return _along_i(documents) if side == "i" else _along_j(documents)

    def load(name: str) -> Callable[[], Register]:
        left, _, right = name.partition(" - ")
        slope = {"s_i": 1.0, "s_j": -1.0}.get(left, 0.0)  # by s_i - s_j

        def loaded() -> Register:
            value = leaf(left) - leaf(right) if right else leaf(left)
            return Register(value, (jnp.full(value.shape, slope),) * tangents)

        return loaded

    work = work_registers((BLOCK, BLOCK), PAIR_WORK_REGISTERS, tangents)
    result = run_segment(pair, stage, [load(name) for name in PAIR_LEAVES], (), work)
    rule = [pair.header[stage, 3 + column] for column in range(4)]
    fulfilled = pair_condition(
        rule, leaf("y_i"), leaf("y_j"), _along_i(_positions(i)), _along_j(_positions(j))
    )
    known = _along_i(query.mask[i]) * _along_j(query.mask[j])
    return result, jnp.where(fulfilled, known, 0.0)


def _pair_stages(pair: Level, stages: Array, query: _Query) -> tuple[_PairStage, ...]:
    """Runs the pair stages, values only."""
    zeros = jnp.zeros(query.mask.shape)
    nothing = _PairStage(zeros, Running(zeros, zeros))

    def stage(k: Array, done: tuple[_PairStage, ...]) -> tuple[_PairStage, ...]:
        reduction = RunningReduction(pair.header[k, 2] - 1)

        def row(i: Array, rows: _PairStage) -> _PairStage:
            def tile(j: Array, running: Running) -> Running:
                result, selected = _tile(pair, k, query, i, j, tangents=0)
                return reduction.update(running, result.value, selected, (1,))

            running = reduction.start(jnp.zeros((BLOCK,)))
            running = lax.fori_loop(0, query.blocks, tile, running)
            new = _PairStage(*reduction.finish(running))
            return jax.tree.map(lambda x, row: with_row(x, i, row), rows, new)

        new = lax.fori_loop(0, query.blocks, row, nothing)
        return tuple(
            jax.tree.map(lambda new, old, s=s: jnp.where(k == s, new, old), new, old)
            for s, old in enumerate(done)
        )

    return lax.fori_loop(0, stages, stage, (nothing,) * MAX_PAIR_STAGES)


def _through_pairs(
    pair: Level,
    stages: Array,
    query: _Query,
    done: tuple[_PairStage, ...],
    cotangents: tuple[Array, ...],
    gradient: Array,
) -> Array:
    """Adds what the pair stages pass on to the scores, computing every pair again."""

    def of_stage(k: Array, each: tuple[Any, ...]) -> Any:
        return functools.reduce(
            lambda x, y: jax.tree.map(lambda a, b: jnp.where(k == y[0], b, a), x, y[1]),
            list(enumerate(each))[1:],
            each[0],
        )

    def stage(k: Array, gradient: Array) -> Array:
        reduction = RunningReduction(pair.header[k, 2] - 1)
        cotangent, kept = of_stage(
            k, tuple((c, s.running) for c, s in zip(cotangents, done, strict=True))
        )

        def row(i: Array, gradient: Array) -> Array:
            pulled = _along_i(row_of(cotangent, i))
            running = jax.tree.map(lambda x: _along_i(row_of(x, i)), kept)

            def tile(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
                gradient, own = carry
                result, selected = _tile(pair, k, query, i, j, tangents=1)
                weights = reduction.weights(running, result.value, selected)
                pull = finite(pulled * (weights * jnp.nan_to_num(result.tangents[0])))
                others = row_of(gradient, j) - jnp.sum(pull, 0)
                return with_row(gradient, j, others), own + jnp.sum(pull, 1)

            start = (gradient, jnp.zeros((BLOCK,)))
            gradient, own = lax.fori_loop(0, query.blocks, tile, start)
            return with_row(gradient, i, row_of(gradient, i) + own)

        return lax.fori_loop(0, query.blocks, row, gradient)

    return lax.fori_loop(0, stages, stage, gradient)


# --------------------------------------------------------------------------------- document stages


def _document_leaves(
    query: _Query, done: tuple[_PairStage, ...], results: tuple[Array, ...]
) -> list[Register]:
    """The registers that lie ready, in the order of DOCUMENT_LEAVES."""
    labels = query.labels[...]
    leaves: dict[str, tuple[Array, int | None]] = {
        "s_i": (query.scores[...], 0), "y_i": (labels, None), "gain_i": (queries.gains(labels), None),
        "rank_i": (query.ranks, None), "discount_i": (query.discounts, None),
        "n": (query.size, None), "max_dcg": (query.max_dcg, None),
    }  # fmt: skip
    leaves |= {f"pair stage {k}": (stage.result, 1 + k) for k, stage in enumerate(done)}
    leaves |= {f"document stage {k}": (result, k) for k, result in enumerate(results)}

    def register(value: Array, tangent: int | None) -> Register:
        slopes = (jnp.full(labels.shape, float(t == tangent)) for t in range(_TANGENTS))
        return Register(jnp.broadcast_to(value, labels.shape), tuple(slopes))

    return [register(*leaves[name]) for name in DOCUMENT_LEAVES]


def _document_stages(
    document: Level, stages: Array, query: _Query, done: tuple[_PairStage, ...]
) -> tuple[Array, tuple[Array, ...]]:
    """Runs the document stages and the query's.

    Returns the loss f32[], and its slopes f32[blocks, BLOCK] by the documents' scores and by the
    pair stages' results.
    """
    zeros, zero = jnp.zeros(query.mask.shape), jnp.float32(0.0)
    # Of the pairs that each stage selects; a mean over pairs always is of a stage that is a sum.
    counts = [jnp.sum(stage.running.b) for stage in done]
    results = (zero,) * MAX_DOCUMENT_STAGES
    slopes = ((zeros,) * _TANGENTS,) * MAX_DOCUMENT_STAGES

    def stage(k: Array, carry: Any) -> Any:
        results, slopes, _ = carry
        leaves = _document_leaves(query, done, results)
        work = work_registers(zeros.shape, WORK_REGISTERS, _TANGENTS)
        value, tangents = run_segment(document, k, (), leaves, work)
        tangents = tuple(map(jnp.nan_to_num, tangents))
        code = document.header[k, 2]
        selected = jnp.where(
            document_condition(document.header[k, 3], query.labels[...]), query.mask[...], 0.0
        )
        # The query's stage, the last, has no reduction: what one gives is not used.
        is_mean_of_pairs = code >= _FIRST_MEAN_OF_PAIRS
        reduction = RunningReduction(
            jnp.where(is_mean_of_pairs, RunningReduction.MEAN, jnp.maximum(code - 1, 0))
        )
        running = reduction.update(reduction.start(zero), value, selected, (0, 1))
        for s, count in enumerate(counts):
            chosen = code == _FIRST_MEAN_OF_PAIRS + s
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


# -------------------------------------------------------------------------------------- the kernel


class _Inputs(NamedTuple):
    """What a block reads; by each field's side, which of its leading axes the grid picks from."""

    pair: Level  # candidates
    document: Level  # candidates
    counts: Any  # i32[candidates, 3]: pair stages, document stages, whether ranks are used
    scores: Any  # f32[candidates, queries, blocks, BLOCK], 0 where there is no document
    labels: Any  # f32[queries, blocks, BLOCK], 0 where there is no document
    mask: Any  # f32[queries, blocks, BLOCK]
    numbers: Any  # f32[queries, 2]: documents, ideal DCG
    blocks: Any  # i32[queries, 1]: those up to the last document


def _kernel(inputs: _Inputs, loss_ref: Any, gradient_ref: Any) -> None:
    pair_stages, document_stages, uses_ranks = (inputs.counts[k] for k in range(3))
    zeros = jnp.zeros(inputs.mask.shape)
    query = _Query(
        inputs.scores, inputs.labels, inputs.mask, inputs.numbers[0], inputs.numbers[1],
        inputs.blocks[0], zeros, zeros,
    )  # fmt: skip

    def ranked() -> tuple[Array, Array]:
        ranks = _ranks(query)
        return ranks, queries.discounts(ranks)

    ranks, discounts = lax.cond(uses_ranks > 0, ranked, lambda: (zeros, zeros))
    query = query._replace(ranks=ranks, discounts=discounts)
    done = _pair_stages(inputs.pair, pair_stages, query)
    loss, by_document = _document_stages(inputs.document, document_stages, query, done)
    gradient = _through_pairs(
        inputs.pair, pair_stages, query, done, by_document[1:], by_document[0]
    )
    loss_ref[0] = loss
    gradient_ref[...] = jnp.where(query.mask[...] > 0, finite(gradient), 0.0)


def _level(segments: Segments, conditions: Array) -> Level:
    """conditions i32[candidates, stages, ...]: what the kernel must know of each stage's."""
    code = segments.code.at[..., 0].set(jnp.asarray(BLOCK_CODES)[segments.code[..., 0]])
    header = jnp.stack([segments.length, segments.result, segments.reduction], -1)
    return Level(code, segments.constant, jnp.concatenate([header, conditions], -1))


def _inputs(programs: Programs, scores: Array, labels: Array, mask: Array) -> _Inputs:
    length = labels.shape[-1]
    blocks = pl.next_power_of_2(max(1, -(-length // BLOCK)))

    def blocked(x: Array) -> Array:
        x = jnp.where(mask, x, 0.0)
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, blocks * BLOCK - length)])
        return x.reshape(*x.shape[:-1], blocks, BLOCK)

    labels = jnp.where(mask, labels, 0.0)
    numbers = (jnp.sum(mask, -1, dtype=jnp.float32), queries.max_dcg(labels, mask))
    last = jnp.max(jnp.where(mask, 1 + jnp.arange(length), 0), -1, keepdims=True, initial=0)
    pair, document = programs.pair, programs.document
    counts = (
        jnp.sum(pair.reduction > 0, -1), jnp.sum(document.reduction > 0, -1), programs.uses_ranks
    )  # fmt: skip
    return _Inputs(
        pair=_level(pair, jnp.asarray(PAIR_CONDITION_RULES)[pair.where]),
        document=_level(document, document.where[..., None]),
        counts=jnp.stack(counts, -1).astype(jnp.int32),
        scores=blocked(scores),
        labels=blocked(labels),
        mask=blocked(mask.astype(jnp.float32)),
        numbers=jnp.stack(numbers, -1),
        blocks=((last + BLOCK - 1) // BLOCK).astype(jnp.int32),
    )


def _by(*axes: int) -> Callable[[Array], pl.BlockSpec]:
    """The block of an array whose leading axes the grid (candidate, query) picks from."""

    def spec(x: Any) -> pl.BlockSpec:
        rest = x.shape[len(axes) :]
        return pl.BlockSpec(
            (*[None] * len(axes), *rest),
            lambda *grid: (*(grid[axis] for axis in axes), *[0] * len(rest)),
        )

    return spec


def _compiler_params(documents: int) -> dict[str, Any]:
    """Threads for a list; none to say where this jax has no Triton, only interpreting is left."""
    try:
        from jax.experimental.pallas import triton
    except ImportError:
        return {}
    warps = 4 if documents <= 256 else 8
    return {"compiler_params": triton.CompilerParams(num_warps=warps, num_stages=1)}


def losses_and_gradients(
    programs: Programs, scores: Array, labels: Array, mask: Array, *, interpret: bool | None = None
) -> tuple[Array, Array]:
    """Every candidate's loss of every query, and its gradient by the scores.

    As `interpreter.losses_and_gradients`, by the kernel.

    Args:
      programs, scores, labels, mask: as there.
      interpret: whether Pallas runs the kernel by ordinary JAX operations, for tests: slowly. By
        default where no GPU is the default backend.

    Returns:
      f32[candidates, queries], 0 for a query without a document; f32[candidates, queries, list].
    """
    interpret = jax.default_backend() != "gpu" if interpret is None else interpret
    inputs = _inputs(programs, scores, labels, mask)
    by_candidate, by_query, by_both = _by(0), _by(1), _by(0, 1)
    specs = _Inputs(
        *(jax.tree.map(by_candidate, x) for x in inputs[:3]),
        by_both(inputs.scores),
        *(by_query(x) for x in inputs[4:]),
    )
    outputs = [
        jax.ShapeDtypeStruct((*scores.shape[:2], 1), jnp.float32),
        jax.ShapeDtypeStruct(inputs.scores.shape, jnp.float32),
    ]
    losses, gradients = pl.pallas_call(
        _kernel,
        out_shape=outputs,
        grid=scores.shape[:2],
        in_specs=[specs],
        out_specs=[by_both(x) for x in outputs],
        interpret=interpret,
        name="loss_interpreter",
        **_compiler_params(inputs.mask.size // len(labels)),
    )(inputs)
    gradients = gradients.reshape(*scores.shape[:2], -1)[..., : scores.shape[-1]]
    return jnp.where(jnp.any(mask, -1), losses[..., 0], 0.0), gradients
