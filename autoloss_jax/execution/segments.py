"""Dual numbers, the register files they lie in, and the execution of a segment on one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from autoloss_jax.execution.programs import Segments
from autoloss_jax.language.operators import LARGE, OPERATORS, TINY


class Dual(NamedTuple):
    """A value and its derivatives by what the stage differentiates by."""

    value: Array  # f32[...]
    tangent: Array  # f32[tangents, ...]


class Registers(NamedTuple):
    """A register file: the leaves of a level, then work space."""

    value: Array  # f32[registers, ...]
    tangent: Array  # f32[registers, tangents, ...]

    def read(self, register: Array) -> Dual:
        return Dual(*(lax.dynamic_index_in_dim(x, register, 0, False) for x in self))

    def write(self, register: Array | int, dual: Dual) -> "Registers":
        return Registers(
            *(lax.dynamic_update_index_in_dim(x, new, register, 0)
              for x, new in zip(self, dual, strict=True))
        )  # fmt: skip


class Instruction(NamedTuple):
    opcode: Array
    a: Array  # the register of the first argument
    b: Array
    constant: Array


Branch = Callable[[Registers, Instruction], Dual]


def _softplus(x: Array) -> tuple[Array, tuple[Array, ...]]:
    """Value and derivative from one exponential, the most costly of operators otherwise.

    log(1 + e) = 2 atanh(e / (2 + e)), whose series for e up to 1 ends below float32's rounding.
    """
    e = jnp.exp(-jnp.abs(x))
    z = e / (2.0 + e)
    w = z * z
    series = jnp.zeros_like(w)
    for k in reversed(range(7)):
        series = series * w + 1.0 / (2 * k + 1)
    return jnp.maximum(x, 0.0) + 2.0 * z * series, (jnp.where(x >= 0.0, 1.0, e) / (1.0 + e),)


def linearize(name: str, values: Sequence[Array]) -> tuple[Array, Callable[..., Array]]:
    """An operator's value, and its derivative as a function of the arguments' tangents."""
    operator = OPERATORS[name]
    if name == "softplus":
        value, partials = _softplus(*values)
    else:
        value, partials = operator.value(*values), operator.partials(*values)

    def tangent(*tangents: Array) -> Array:
        if name == "div":
            # The derivative by a tiny divisor would overflow before the divisor's own undoes it.
            return partials[0] * (tangents[0] - value * tangents[1])
        terms = [p * t for p, t in zip(partials, tangents, strict=True)]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    return value, tangent


def _operator_branch(name: str) -> Branch:
    """Executes an operator, reading only the registers it needs."""
    arity = OPERATORS[name].arity

    def branch(registers: Registers, instruction: Instruction) -> Dual:
        args = [registers.read(register) for register in instruction[1 : 1 + arity]]
        value, tangent = linearize(name, [arg.value for arg in args])
        return Dual(value, tangent(*(arg.tangent for arg in args)))

    return branch


def _constant_branch(registers: Registers, instruction: Instruction) -> Dual:
    value, tangent = registers
    return Dual(jnp.full(value.shape[1:], instruction.constant), jnp.zeros(tangent.shape[1:]))


_BRANCHES: list[Branch] = [*map(_operator_branch, OPERATORS), _constant_branch]


def run_segment(segment: Segments, registers: Registers, load: Branch | None = None) -> Registers:
    """Executes one segment of one candidate, whose length is known at run time only.

    `load` executes all instructions that load leaves.
    """
    branches = _BRANCHES if load is None else [*_BRANCHES, load]

    def step(carry: tuple[Array, Registers]) -> tuple[Array, Registers]:
        k, registers = carry
        opcode, a, b, target = segment.code[k]
        instruction = Instruction(opcode, a, b, segment.constant[k])
        # The branches return the result; writing it in there would copy the whole file. An opcode
        # beyond the last branch takes that one.
        result = lax.switch(opcode, branches, registers, instruction)
        return k + 1, registers.write(target, result)

    return lax.while_loop(lambda carry: carry[0] < segment.length, step, (jnp.int32(0), registers))[
        1
    ]


def finite(x: Array) -> Array:
    """Overflow saturates; what has no value is 0."""
    # In this order: where maximum and minimum drop a NaN (on some GPUs), clip would make it -LARGE.
    return jnp.clip(jnp.nan_to_num(x), -LARGE, LARGE)


# --- reductions: values, and 1 where they count -> results, and their derivatives by each value ---


@dataclass(frozen=True)
class Rows:
    """Rows of several lengths, laid flat one behind the other: what reductions reduce."""

    shapes: tuple[tuple[int, ...], ...]  # each [..., length]

    def split(self, flat: Array) -> list[Array]:
        """The parts [..., length] of something flat."""
        parts, start = [], 0
        for shape in self.shapes:
            size = math.prod(shape)
            parts.append(flat[start : start + size].reshape(shape))
            start += size
        return parts

    def split_rows(self, rows: Array) -> list[Array]:
        """The parts, flat, of something that has one number a row."""
        return Rows(tuple((math.prod(shape[:-1]),) for shape in self.shapes)).split(rows)

    def total(self, flat: Array) -> Array:
        """f32[rows]: the sum of each."""
        # Laid out before it is summed: a sum that is fused with what it sums is not vectorised.
        return joined(
            [jnp.sum(x, -1).reshape(-1) for x in self.split(lax.optimization_barrier(flat))]
        )

    def largest(self, flat: Array) -> Array:
        return joined(
            [jnp.max(x, -1).reshape(-1) for x in self.split(lax.optimization_barrier(flat))]
        )

    def spread(self, results: Array) -> Array:
        """Flat: each row's number at all its places."""
        parts = zip(self.split_rows(results), self.shapes, strict=True)
        return joined(
            [jnp.broadcast_to(x.reshape(*shape[:-1], 1), shape).reshape(-1) for x, shape in parts]
        )


def joined(parts: Sequence[Array]) -> Array:
    """The parts one behind the other, along the last axis."""
    if len(parts) == 1:
        return parts[0]
    # Written one by one: a concatenation of broadcasts that XLA fuses into a write comes out wrong
    # on CPUs (jaxlib 0.10.2).
    size = sum(part.shape[-1] for part in parts)
    whole = jnp.zeros((*parts[0].shape[:-1], size), parts[0].dtype)
    start = 0
    for part in parts:
        whole = lax.dynamic_update_slice_in_dim(whole, part, start, -1)
        start += part.shape[-1]
    return whole


def _sum(rows: Rows, values: Array, selected: Array) -> tuple[Array, Array]:
    return rows.total(values * selected), selected


def _mean(rows: Rows, values: Array, selected: Array) -> tuple[Array, Array]:
    count = jnp.maximum(rows.total(selected), 1.0)
    return rows.total(values * selected) / count, selected / rows.spread(count)


def _top(rows: Rows, values: Array, selected: Array) -> Array:
    top = rows.largest(jnp.where(selected > 0, values, -jnp.inf))
    return jnp.where(jnp.isfinite(top), top, 0.0)


def _max(rows: Rows, values: Array, selected: Array) -> tuple[Array, Array]:
    top = _top(rows, values, selected)
    ties = selected * (values == rows.spread(top))
    return top, ties / rows.spread(jnp.maximum(rows.total(ties), 1.0))


def _logsumexp(rows: Rows, values: Array, selected: Array) -> tuple[Array, Array]:
    top = _top(rows, values, selected)
    terms = selected * jnp.exp(jnp.minimum(values - rows.spread(top), 0.0))
    total = rows.total(terms)
    result = jnp.where(total > 0.0, top + jnp.log(jnp.maximum(total, TINY)), 0.0)
    return result, terms * rows.spread(1.0 / jnp.maximum(total, TINY))


Reduction = Callable[[Rows, Array, Array], tuple[Array, Array]]
_KINDS: dict[str, Reduction] = {
    "sum": _sum,
    "mean": _mean,
    "max": _max,
    "logsumexp": _logsumexp,
}
REDUCTIONS: dict[str, Reduction] = {
    f"{kind}_{index}": reduce for kind, reduce in _KINDS.items() for index in "ij"
}
