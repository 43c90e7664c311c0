"""What a block of GPU threads runs, in operations that Triton has: from branches to reductions.

Triton cannot index an array in registers by a number known at run time only. So work registers are
separate arrays, which a branch per register reads and writes; and row `i` of f32[rows, width] is
read and written by comparing all rows' numbers with `i`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from autoloss_jax.execution.exact import RELATIONS
from autoloss_jax.execution.programs import CONSTANT, OPCODES, PAIR_LEAVES
from autoloss_jax.execution.segments import linearize
from autoloss_jax.language.expressions import LITERAL, Expression
from autoloss_jax.language.grammar import parse_condition
from autoloss_jax.language.operators import OPERATORS, TINY


def choose(index: Array, options: Sequence[Callable[[], Any]]) -> Any:
    """`options[index]()` by a tree of branches; Triton makes a chain of a `lax.switch`."""
    if len(options) == 1:
        return options[0]()
    half = len(options) // 2
    return lax.cond(
        index < half,
        lambda: choose(index, options[:half]),
        lambda: choose(index - half, options[half:]),
    )


def pick(index: Array, values: Sequence[Any]) -> Any:
    """`values[index]`, arrays or pytrees of them."""
    return choose(index, [partial(_same, value) for value in values])


def _same(value: Any) -> Any:
    return value


# ------------------------------------------------------------------------ rows of f32[rows, width]


def _is_row(x: Array, i: Array) -> Array:
    return lax.broadcasted_iota(jnp.int32, x.shape, 0) == i


def row_of(x: Array, i: Array) -> Array:
    return jnp.sum(jnp.where(_is_row(x, i), x, 0.0), 0)


def with_row(x: Array, i: Array, row: Array) -> Array:
    return jnp.where(_is_row(x, i), row[None, :], x)


def first_of(x: Array) -> Array:
    """f32[]: the entry [0, 0]."""
    row = row_of(x, jnp.int32(0))
    return jnp.sum(jnp.where(lax.broadcasted_iota(jnp.int32, row.shape, 0) == 0, row, 0.0))


def over(reduce: Callable[..., Array], x: Array, axes: tuple[int, ...]) -> Array:
    """Reduces axis after axis, for Triton's lowering of two at once fails under a mesh."""
    for axis in sorted(axes, reverse=True):
        x = reduce(x, axis)
    return x


# ------------------------------------------------------------------------------ a segment's program

_UNARY, _BINARY = (
    [name for name, op in OPERATORS.items() if op.arity == arity] for arity in (1, 2)
)
_ORDER = (*PAIR_LEAVES, CONSTANT, *_UNARY, *_BINARY)
_FIRST_UNARY = len(PAIR_LEAVES) + 1
_FIRST_BINARY = _FIRST_UNARY + len(_UNARY)
BLOCK_CODES = np.array([_ORDER.index(name) for name in OPCODES], np.int32)
"""By opcode, the codes of `run_segment`: ordered by how many registers an instruction reads."""


class Register(NamedTuple):
    """A value and its derivatives; none where only values are wanted."""

    value: Array  # f32[...]
    tangents: tuple[Array, ...]  # f32[...] each


class Level(NamedTuple):
    """The segments of one level of one candidate, references to memory."""

    code: Any  # i32[stages, instructions, 4]: as in Segments, but for BLOCK_CODES
    constant: Any  # f32[stages, instructions]
    header: Any  # i32[stages, 4]: length, result, reduction, condition


def work_registers(shape: tuple[int, ...], count: int, tangents: int) -> tuple[Register, ...]:
    zeros = jnp.zeros(shape)
    return (Register(zeros, (zeros,) * tangents),) * count


def run_segment(
    level: Level,
    stage: Array,
    loads: Sequence[Callable[[], Register]],
    leaves: Sequence[Register],
    work: tuple[Register, ...],
    first: Array | int = 0,
) -> Register:
    """Executes one segment.

    Args:
      level: the segments, of which `stage` is executed.
      loads: the instructions of PAIR_LEAVES; none at the level of documents.
      leaves: the registers that lie ready, before the work registers.
      work: what the work registers hold at first, which says shape and number of tangents.
      first: the number of the first register; those before it are other stages'.

    Returns:
      The register that the segment names as its result.
    """
    unused = len(PAIR_LEAVES) - len(loads)
    shape, zeros = work[0].value.shape, work[0].tangents

    def read(work: tuple[Register, ...], register: Array) -> Register:
        return pick(register - first, (*leaves, *work))

    def apply(name: str, *args: Register) -> Register:
        value, tangent = linearize(name, [x.value for x in args])
        each = zip(*(x.tangents for x in args), strict=True)
        return Register(value, tuple(tangent(*tangents) for tangents in each))

    def step(k: Array, work: tuple[Register, ...]) -> tuple[Register, ...]:
        code, a, b, target = (level.code[stage, k, column] for column in range(4))
        constant = level.constant[stage, k]

        def load() -> Register:
            number = Register(jnp.full(shape, constant), zeros)
            return choose(code - unused, [*loads, partial(_same, number)])

        def unary() -> Register:
            x = read(work, a)
            return choose(code - _FIRST_UNARY, [partial(apply, name, x) for name in _UNARY])

        def binary() -> Register:
            x, y = read(work, a), read(work, b)
            return choose(code - _FIRST_BINARY, [partial(apply, name, x, y) for name in _BINARY])

        result = lax.cond(
            code < _FIRST_UNARY, load, lambda: lax.cond(code < _FIRST_BINARY, unary, binary)
        )
        written = [(*work[:r], result, *work[r + 1 :]) for r in range(len(work))]
        return pick(target - first - len(leaves), written)

    length, result = level.header[stage, 0], level.header[stage, 1]
    return read(lax.fori_loop(0, length, step, work), result)


# -------------------------------------------------------------------------------------- conditions


def select(
    code: Array, conditions: Sequence[str | None], leaves: Mapping[str, Array], known: Array
) -> Array:
    """`known` where the condition `conditions[code]` holds, 0 elsewhere; None always holds.

    leaves: what conditions compare, by name.
    """

    def holds(node: Expression) -> Any:
        if node.op == LITERAL:
            return node.value
        if node.op in leaves:
            return leaves[node.op]
        return RELATIONS[node.op](*map(holds, node.args))

    def chosen(text: str | None) -> Array:
        return known if text is None else jnp.where(holds(parse_condition(text)), known, 0.0)

    return choose(code, [partial(chosen, text) for text in conditions])


# ------------------------------------------------------------- reductions that see one tile a time


class Running(NamedTuple):
    """What a reduction has seen: sum and count (0, 1), or largest value and how often it
    occurred (2), or largest value and the sum of exp(value - largest) (3)."""

    a: Array
    b: Array


class RunningReduction:
    """The reductions of `segments.REDUCTIONS`, over values that come tile by tile.

    kind: the place in ("sum", "mean", "max", "logsumexp").
    """

    SUM, MEAN, MAX, LOGSUMEXP = range(4)

    def __init__(self, kind: Array) -> None:
        self._kind = kind

    def start(self, zeros: Array) -> Running:
        return Running(jnp.where(self._kind < self.MAX, zeros, -jnp.inf), zeros)

    def update(
        self, running: Running, values: Array, selected: Array, axes: tuple[int, ...]
    ) -> Running:
        """Sees values f32[...], of which 1 in `selected` says that they count."""

        def spread(x: Array) -> Array:
            return jnp.expand_dims(x, axes) if x.ndim else x

        def total() -> Running:
            return Running(
                running.a + over(jnp.sum, values * selected, axes),
                running.b + over(jnp.sum, selected, axes),
            )

        def top() -> Array:
            return jnp.maximum(
                running.a, over(jnp.max, jnp.where(selected > 0, values, -jnp.inf), axes)
            )

        def largest() -> Running:
            new = top()
            ties = jnp.where(values == spread(new), selected, 0.0)
            before = jnp.where(running.a == new, running.b, 0.0)
            return Running(new, before + over(jnp.sum, ties, axes))

        def logsumexp() -> Running:
            new = top()
            shift = _finite_or_zero(new)
            terms = selected * jnp.exp(jnp.minimum(values - spread(shift), 0.0))
            # exp(-inf) is 0: nothing was seen before.
            before = running.b * jnp.exp(jnp.minimum(running.a - shift, 0.0))
            return Running(new, before + over(jnp.sum, terms, axes))

        return choose(self._kind, [total, total, largest, logsumexp])

    def finish(self, running: Running) -> tuple[Array, Running]:
        """The result, and what `weights` needs."""
        a, b = running
        top = _finite_or_zero(a)
        log = jnp.where(b > 0.0, top + jnp.log(jnp.maximum(b, TINY)), 0.0)
        results = [a, a / jnp.maximum(b, 1.0), top, log]
        result = pick(self._kind, results)
        return result, Running(jnp.where(self._kind < self.MAX, a, top), b)

    def weights(self, running: Running, values: Array, selected: Array) -> Array:
        """The derivative of the result by each value."""
        a, b = running
        return choose(
            self._kind,
            [
                lambda: selected,
                lambda: selected / jnp.maximum(b, 1.0),
                lambda: jnp.where(values == a, selected, 0.0) / jnp.maximum(b, 1.0),
                lambda: selected * jnp.exp(jnp.minimum(values - a, 0.0)) / jnp.maximum(b, TINY),
            ],
        )


def _finite_or_zero(x: Array) -> Array:
    return jnp.where(jnp.abs(x) < jnp.inf, x, 0.0)
