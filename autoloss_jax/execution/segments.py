"""Dual numbers, the register files they lie in, and the execution of a segment on one."""

from collections.abc import Callable, Sequence
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


Branch = Callable[[Registers, Array, Array, Array], Dual]


def linearize(name: str, values: Sequence[Array]) -> tuple[Array, Callable[..., Array]]:
    """An operator's value, and its derivative as a function of the arguments' tangents."""
    operator = OPERATORS[name]
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

    def branch(registers: Registers, a: Array, b: Array, constant: Array) -> Dual:
        del constant
        args = [registers.read(register) for register in (a, b)[:arity]]
        value, tangent = linearize(name, [arg.value for arg in args])
        return Dual(value, tangent(*(arg.tangent for arg in args)))

    return branch


def _constant_branch(registers: Registers, a: Array, b: Array, constant: Array) -> Dual:
    del a, b
    value, tangent = registers
    return Dual(jnp.full(value.shape[1:], constant), jnp.zeros(tangent.shape[1:]))


_BRANCHES: list[Branch] = [*map(_operator_branch, OPERATORS), _constant_branch]


def run_segment(segment: Segments, registers: Registers, loads: Sequence[Branch] = ()) -> Registers:
    """Executes one segment of one candidate, whose length is known at run time only."""

    def step(carry: tuple[Array, Registers]) -> tuple[Array, Registers]:
        k, registers = carry
        opcode, a, b, target = segment.code[k]
        # The branches return the result; writing it in there would copy the whole file.
        result = lax.switch(opcode, [*_BRANCHES, *loads], registers, a, b, segment.constant[k])
        return k + 1, registers.write(target, result)

    return lax.while_loop(lambda carry: carry[0] < segment.length, step, (jnp.int32(0), registers))[
        1
    ]


def finite(x: Array) -> Array:
    """Overflow saturates; what has no value is 0."""
    # In this order: where maximum and minimum drop a NaN (on some GPUs), clip would make it -LARGE.
    return jnp.clip(jnp.nan_to_num(x), -LARGE, LARGE)


# --- reductions: values f32[..., list] and which count -> result, and its derivative by each ---


def _sum(values: Array, selected: Array) -> tuple[Array, Array]:
    return jnp.sum(values * selected, -1), selected


def _mean(values: Array, selected: Array) -> tuple[Array, Array]:
    count = jnp.maximum(jnp.sum(selected, -1, keepdims=True), 1.0)
    return jnp.sum(values * selected, -1) / count[..., 0], selected / count


def _top(values: Array, selected: Array) -> Array:
    top = jnp.max(jnp.where(selected > 0, values, -jnp.inf), -1, keepdims=True)
    return jnp.where(jnp.isfinite(top), top, 0.0)


def _max(values: Array, selected: Array) -> tuple[Array, Array]:
    top = _top(values, selected)
    ties = selected * (values == top)
    return top[..., 0], ties / jnp.maximum(jnp.sum(ties, -1, keepdims=True), 1.0)


def _logsumexp(values: Array, selected: Array) -> tuple[Array, Array]:
    top = _top(values, selected)
    terms = selected * jnp.exp(jnp.minimum(values - top, 0.0))
    total = jnp.sum(terms, -1, keepdims=True)
    result = jnp.where(total > 0.0, top + jnp.log(jnp.maximum(total, TINY)), 0.0)
    return result[..., 0], terms / jnp.maximum(total, TINY)


Reduction = Callable[[Array, Array], tuple[Array, Array]]
_KINDS: dict[str, Reduction] = {
    "sum": _sum,
    "mean": _mean,
    "max": _max,
    "logsumexp": _logsumexp,
}
REDUCTIONS: dict[str, Reduction] = {
    f"{kind}_{index}": reduce for kind, reduce in _KINDS.items() for index in "ij"
}
