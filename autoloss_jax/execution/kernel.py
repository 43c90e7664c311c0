"""The interpreter as one GPU kernel (Pallas, by Triton): losses and gradients in one launch.

A block of threads runs one candidate on one query, so the program is the same for all its threads
and its branches are real. It reads the program and the query and writes the loss and the gradient;
everything between stays in registers, and no array of [list, list] is anywhere.

Operators, conditions, ranks and gains are those of the XLA path (`interpreter.py`), the reference.
Where a NaN arises the two may differ: Triton's minimum and maximum drop it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from autoloss_jax.errors import AutolossError
from autoloss_jax.execution import queries
from autoloss_jax.execution.kernel_blocks import BLOCK_CODES, Level
from autoloss_jax.execution.kernel_stages import Query, loss_and_gradient
from autoloss_jax.execution.programs import Programs, Segments


class _Inputs(NamedTuple):
    """What the blocks of threads read, of which each picks its candidate's and its query's."""

    pair: Level  # candidates
    document: Level  # candidates
    counts: Any  # i32[candidates, 3]: pair stages, document stages, whether ranks are used
    scores: Any  # f32[candidates, queries, rows, width], 0 where there is no document
    labels: Any  # f32[queries, rows, width], 0 where there is no document
    mask: Any  # f32[queries, rows, width]
    places: Any  # i32[queries, rows, width]: of these documents in the list
    numbers: Any  # f32[queries, 2]: documents, ideal DCG
    used: Any  # i32[queries, 1]: rows with a document


def _kernel(inputs: _Inputs, loss_ref: Any, gradient_ref: Any) -> None:
    zeros = jnp.zeros(inputs.mask.shape)
    query = Query(
        inputs.scores, inputs.labels, inputs.mask, inputs.places, inputs.numbers[0],
        inputs.numbers[1], inputs.used[0], ranks=zeros, discounts=zeros,
    )  # fmt: skip
    counts = (inputs.counts[0], inputs.counts[1], inputs.counts[2])
    loss, gradient = loss_and_gradient(inputs.pair, inputs.document, counts, query)
    loss_ref[0] = loss
    gradient_ref[...] = gradient


def _level(segments: Segments) -> Level:
    code = segments.code.at[..., 0].set(jnp.asarray(BLOCK_CODES)[segments.code[..., 0]])
    header = (segments.length, segments.result, segments.reduction, segments.where)
    return Level(code, segments.constant, jnp.stack(header, -1))


def _inputs(
    programs: Programs, scores: Array, labels: Array, mask: Array, order: Array, width: int
) -> _Inputs:
    length = labels.shape[-1]
    rows = pl.next_power_of_2(max(1, pl.cdiv(length, width)))  # Triton has no other sizes

    def in_rows(x: Array) -> Array:
        x = _take(x, order)
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, rows * width - length)])
        return x.reshape(*x.shape[:-1], rows, width)

    labels = jnp.where(mask, labels, 0.0)
    size = jnp.sum(mask, -1)
    pair, document = programs.pair, programs.document
    counts = (
        jnp.sum(pair.reduction > 0, -1), jnp.sum(document.reduction > 0, -1), programs.uses_ranks
    )  # fmt: skip
    return _Inputs(
        pair=_level(pair),
        document=_level(document),
        counts=jnp.stack(counts, -1).astype(jnp.int32),
        scores=in_rows(jnp.where(mask, scores, 0.0)),
        labels=in_rows(labels),
        mask=in_rows(mask.astype(jnp.float32)),
        places=in_rows(jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), labels.shape)),
        numbers=jnp.stack((size.astype(jnp.float32), queries.max_dcg(labels, mask)), -1),
        used=pl.cdiv(size, width)[:, None].astype(jnp.int32),
    )


def _take(x: Array, order: Array) -> Array:
    """x[..., queries, list] with every query's documents in an order i32[queries, list]."""
    order = jnp.broadcast_to(order, x.shape)
    return jnp.take_along_axis(x, order, -1, mode="promise_in_bounds")


def _by(*axes: int) -> Callable[[Any], pl.BlockSpec]:
    """The block of an array whose leading axes the grid (candidate, query) picks from."""

    def spec(x: Any) -> pl.BlockSpec:
        rest = x.shape[len(axes) :]
        return pl.BlockSpec(
            (*[None] * len(axes), *rest),
            lambda *grid: (*(grid[axis] for axis in axes), *[0] * len(rest)),
        )

    return spec


def tile_width(length: int) -> int:
    """Documents along a side of a tile of pairs, for lists of a length; a power of two.

    A thread then holds 8 pairs of every register. Short lists waste less in narrow tiles.
    """
    return 16 if length <= 64 else 32


def warps(length: int) -> int:
    """Groups of 32 threads in a block: as many as keep the registers of a thread on the chip."""
    return 1 if length <= 64 else 4 if length <= 256 else 8


def _triton_params(warps: int) -> Any:
    try:
        from jax.experimental.pallas import triton
    except ImportError as error:
        raise AutolossError(
            f"the kernel needs Pallas with Triton, which jax {jax.__version__} does not have; "
            "expected the interpreter xla"
        ) from error
    # Pipelining of loads has nothing to do here.
    return triton.CompilerParams(num_warps=warps, num_stages=1)


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
    length = scores.shape[-1]
    # By falling label, padding last: then few tiles hold pairs that a condition selects.
    order = jnp.argsort(jnp.where(mask, -labels, jnp.inf), -1)
    inputs = _inputs(programs, scores, labels, mask, order, tile_width(length))
    by_candidate, by_query, by_both = _by(0), _by(1), _by(0, 1)
    specs = _Inputs(
        pair=jax.tree.map(by_candidate, inputs.pair),
        document=jax.tree.map(by_candidate, inputs.document),
        counts=by_candidate(inputs.counts),
        scores=by_both(inputs.scores),
        labels=by_query(inputs.labels),
        mask=by_query(inputs.mask),
        places=by_query(inputs.places),
        numbers=by_query(inputs.numbers),
        used=by_query(inputs.used),
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
        compiler_params=None if interpret else _triton_params(warps(length)),
        name="loss_interpreter",
    )(inputs)
    gradients = _take(
        gradients.reshape(*scores.shape[:2], -1)[..., :length], jnp.argsort(order, -1)
    )
    return jnp.where(jnp.any(mask, -1), losses[..., 0], 0.0), gradients
