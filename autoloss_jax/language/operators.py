"""The one table of the loss language: everything that knows operators reads it.

Arithmetic is ordinary wherever the ordinary result is finite and in range, that is, at most `LARGE`
in size, and protected outside it: what has no value is 0, what is too large saturates at `LARGE`,
and both have derivative 0. A term that is undefined for a query thus drops out of its loss.

Every `value` below is a self-contained jnp function of the arrays it is given, whose derivative by
automatic differentiation is the `partials` beside it (tests hold them together): the exact path and
the exported sources use the first, the batched path both.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

LARGE = 1e30
TINY = 1e-30
CUBE_ROOT_LARGE = 1e10
LOG_LARGE = 69.07755
"""`log(LARGE)`: exp of anything larger saturates."""


def add(a: Array, b: Array) -> Array:
    return a + b


def subtract(a: Array, b: Array) -> Array:
    return a - b


def multiply(a: Array, b: Array) -> Array:
    return jnp.clip(a * b, -LARGE, LARGE)


def divide(a: Array, b: Array) -> Array:
    defined = jnp.abs(b) > TINY
    # The derivative by automatic differentiation takes the divisor's square, which must not vanish.
    small = defined & (jnp.abs(b) < 2.0**-60)
    scale = jnp.where(small, 2.0**80, 1.0).astype(b.dtype)
    divisor = jnp.where(defined, b * scale, 1.0)
    return jnp.where(defined, jnp.clip(a / divisor * scale, -LARGE, LARGE), 0.0)


def negative(x: Array) -> Array:
    return -x


def exp(x: Array) -> Array:
    return jnp.exp(jnp.minimum(x, LOG_LARGE))


def log(x: Array) -> Array:
    return jnp.log(jnp.maximum(x, TINY))


def log2(x: Array) -> Array:
    return jnp.log(jnp.maximum(x, TINY)) / jnp.log(2.0)


def sqrt(x: Array) -> Array:
    defined = x > TINY
    return jnp.where(defined, jnp.sqrt(jnp.where(defined, x, 1.0)), 0.0)


def square(x: Array) -> Array:
    return jnp.minimum(x * x, LARGE)


def cube(x: Array) -> Array:
    x = jnp.clip(x, -CUBE_ROOT_LARGE, CUBE_ROOT_LARGE)  # x * x alone would overflow
    return x * x * x


def absolute(x: Array) -> Array:
    return jnp.maximum(x, -x)  # jnp.abs has derivative 1 at 0, which is no mean of both sides


def sign(x: Array) -> Array:
    return jnp.sign(x)


def sigmoid(x: Array) -> Array:
    return jax.nn.sigmoid(x)


def softplus(x: Array) -> Array:
    return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-absolute(x)))


def tanh(x: Array) -> Array:
    return jnp.tanh(x)


def relu(x: Array) -> Array:
    return jnp.where(x > 0.0, x, 0.0)


def minimum(a: Array, b: Array) -> Array:
    return jnp.minimum(a, b)


def maximum(a: Array, b: Array) -> Array:
    return jnp.maximum(a, b)


def stop_gradient(x: Array) -> Array:
    return jax.lax.stop_gradient(x)


def _ones(*args: Array) -> tuple[Array, ...]:
    return tuple(jnp.ones_like(x) for x in args)


def _inside(value: Array) -> Array:
    """1 where a result is in range, 0 where it saturated."""
    return (jnp.abs(value) < LARGE).astype(value.dtype)


def _divide_partials(a: Array, b: Array) -> tuple[Array, Array]:
    value = divide(a, b)
    defined = jnp.abs(b) > TINY
    inverse = jnp.where(defined, _inside(value) / jnp.where(defined, b, 1.0), 0.0)
    # Never infinite, since 0 times infinity is no derivative; but not cut off at LARGE, since a
    # tiny divisor often has as tiny a derivative: 1 / sigmoid(x).
    largest = jnp.finfo(b.dtype).max
    return inverse, jnp.clip(-value * inverse, -largest, largest)


def _multiply_partials(a: Array, b: Array) -> tuple[Array, Array]:
    inside = _inside(a * b)
    return b * inside, a * inside


def _log_partial(x: Array) -> Array:
    return jnp.where(x > TINY, 1.0 / jnp.maximum(x, TINY), 0.0)


def _sqrt_partial(x: Array) -> Array:
    defined = x > TINY
    return jnp.where(defined, 0.5 / jnp.sqrt(jnp.where(defined, x, 1.0)), 0.0)


def _first_is(chosen: Callable[[Array, Array], Array]) -> Callable[..., tuple[Array, Array]]:
    """Partials of a choice between two: 1 for the chosen, a half each at a tie."""

    def partials(a: Array, b: Array) -> tuple[Array, Array]:
        first = jnp.where(chosen(a, b), 1.0, jnp.where(a == b, 0.5, 0.0)).astype(a.dtype)
        return first, 1.0 - first

    return partials


def _sigmoid_partial(x: Array) -> Array:
    value = jax.nn.sigmoid(x)
    return value * (1.0 - value)


@dataclass(frozen=True)
class Operator:
    """One elementwise operator.

    Attributes:
      name: the name in expressions and programs.
      value: jnp function of `arity` arrays of one shape.
      partials: the same arguments to a tuple of the partial derivatives, one per argument.
      python: how the loss language spells it, with `{0}` and `{1}` for the arguments.
      latex: how LaTeX spells it.
      precedence: how tightly an infix spelling binds (1 sum, 2 product, 3 sign, 4 power); 5 is a
        function call or an atom.
      commutative: whether the arguments may be exchanged.
      domain: where the ordinary result is defined, and what stands outside it.
    """

    name: str
    value: Callable[..., Array]
    partials: Callable[..., tuple[Array, ...]]
    python: str
    latex: str
    precedence: int = 5
    commutative: bool = False
    domain: str = "all numbers"

    @property
    def arity(self) -> int:
        return 2 if "{1}" in self.python else 1


_UNDERFLOW = f"at most {TINY:g} counts as {TINY:g}, with derivative 0"
_OVERFLOW = f"results beyond {LARGE:g} in size saturate, with derivative 0"

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        Operator("add", add, _ones, "{0} + {1}", "{0} + {1}", 1, commutative=True),
        Operator(
            "sub",
            subtract,
            lambda a, b: (jnp.ones_like(a), -jnp.ones_like(b)),
            "{0} - {1}",
            "{0} - {1}",
            1,
        ),
        Operator(
            "mul",
            multiply,
            _multiply_partials,
            "{0} * {1}",
            r"{0} \cdot {1}",
            2,
            commutative=True,
            domain=f"all numbers; {_OVERFLOW}",
        ),
        Operator(
            "div",
            divide,
            _divide_partials,
            "{0} / {1}",
            r"\frac{{{0}}}{{{1}}}",
            2,
            domain=f"divisors beyond {TINY:g} in size, otherwise 0; {_OVERFLOW}",
        ),
        Operator("neg", negative, lambda x: (-jnp.ones_like(x),), "-{0}", "-{0}", 3),
        Operator(
            "exp",
            exp,
            lambda x: (jnp.where(x < LOG_LARGE, exp(x), 0.0),),
            "exp({0})",
            r"\exp\left({0}\right)",
            domain=f"all numbers; {_OVERFLOW}",
        ),
        Operator(
            "log",
            log,
            lambda x: (_log_partial(x),),
            "log({0})",
            r"\log\left({0}\right)",
            domain=f"positive numbers; {_UNDERFLOW}",
        ),
        Operator(
            "log2",
            log2,
            lambda x: (_log_partial(x) / jnp.log(2.0),),
            "log2({0})",
            r"\log_2\left({0}\right)",
            domain=f"positive numbers; {_UNDERFLOW}",
        ),
        Operator(
            "sqrt",
            sqrt,
            lambda x: (_sqrt_partial(x),),
            "sqrt({0})",
            r"\sqrt{{{0}}}",
            domain=f"numbers beyond {TINY:g}, otherwise 0",
        ),
        Operator(
            "square",
            square,
            lambda x: (2.0 * x * _inside(x * x),),
            "square({0})",
            r"\left({0}\right)^2",
            domain=f"all numbers; {_OVERFLOW}",
        ),
        Operator(
            "cube",
            cube,
            lambda x: (jnp.where(jnp.abs(x) < CUBE_ROOT_LARGE, 3.0 * x * x, 0.0),),
            "{0} ** 3",
            r"\left({0}\right)^3",
            4,
            domain=f"all numbers; {_OVERFLOW}",
        ),
        Operator("abs", absolute, lambda x: (jnp.sign(x),), "abs({0})", r"\left|{0}\right|"),
        Operator(
            "sign",
            sign,
            lambda x: (jnp.zeros_like(x),),
            "sign({0})",
            r"\operatorname{{sign}}\left({0}\right)",
        ),
        Operator(
            "sigmoid",
            sigmoid,
            lambda x: (_sigmoid_partial(x),),
            "sigmoid({0})",
            r"\sigma\left({0}\right)",
        ),
        Operator(
            "softplus",
            softplus,
            lambda x: (jax.nn.sigmoid(x),),
            "softplus({0})",
            r"\operatorname{{softplus}}\left({0}\right)",
        ),
        Operator(
            "tanh",
            tanh,
            lambda x: (1.0 - jnp.square(jnp.tanh(x)),),
            "tanh({0})",
            r"\tanh\left({0}\right)",
        ),
        Operator(
            "relu",
            relu,
            lambda x: ((x > 0.0).astype(x.dtype),),
            "relu({0})",
            r"\max\left(0, {0}\right)",
        ),
        Operator(
            "min",
            minimum,
            _first_is(jnp.less),
            "min({0}, {1})",
            r"\min\left({0}, {1}\right)",
            commutative=True,
        ),
        Operator(
            "max",
            maximum,
            _first_is(jnp.greater),
            "max({0}, {1})",
            r"\max\left({0}, {1}\right)",
            commutative=True,
        ),
        Operator(
            "stop_gradient",
            stop_gradient,
            lambda x: (jnp.zeros_like(x),),
            "stop_gradient({0})",
            r"\operatorname{{sg}}\left({0}\right)",
        ),
    )
}
"""Every elementwise operator by name."""


@dataclass(frozen=True)
class Leaf:
    """A quantity given with a query: `indices` are the types of section "free indices"."""

    name: str
    indices: frozenset[str]
    latex: str
    meaning: str


def _document_leaves() -> dict[str, Leaf]:
    quantities = {
        "s": ("s_{0}", "score, the model's output"),
        "y": ("y_{0}", "label, the graded relevance"),
        "gain": ("g_{0}", "gain, 2**y - 1"),
        "rank": (r"\rho_{0}", "rank by the current scores, from 1; ties by position; no gradient"),
        "discount": ("d_{0}", "discount, 1 / log2(1 + rank); no gradient"),
    }
    return {
        f"{name}_{index}": Leaf(f"{name}_{index}", frozenset(index), latex.format(index), meaning)
        for name, (latex, meaning) in quantities.items()
        for index in "ij"
    }


LEAVES: dict[str, Leaf] = _document_leaves() | {
    "n": Leaf("n", frozenset(), "n", "documents in the list"),
    "max_dcg": Leaf(
        "max_dcg", frozenset(), r"\mathrm{DCG}^*", "DCG of the ideal order, the whole list"
    ),
}
"""Every leaf by name; `i` and `j` stand for documents of one query."""

INDICES = ("i", "j")
"""The document indices, which conditions may also compare (`i != j`) as positions in the list."""


@dataclass(frozen=True)
class Reduction:
    """A reduction over the real documents that fulfil `where`; over none of them it is 0."""

    name: str
    kind: str
    indices: frozenset[str]
    latex: str


REDUCTIONS: dict[str, Reduction] = {
    f"{kind}_{indices}": Reduction(
        f"{kind}_{indices}", kind, frozenset(indices), latex + "_{{{0}}}"
    )
    for kind, latex, allowed in (
        ("sum", r"\sum", ("i", "j", "ij")),
        ("mean", r"\operatorname*{{mean}}", ("i", "j", "ij")),
        ("max", r"\max", ("i", "j")),
        ("logsumexp", r"\operatorname*{{logsumexp}}", ("i", "j")),
    )
    for indices in allowed
}
"""Every reduction by name."""

RELATIONS: dict[str, tuple[str, str]] = {
    "gt": ("{0} > {1}", "{0} > {1}"),
    "ge": ("{0} >= {1}", r"{0} \ge {1}"),
    "eq": ("{0} == {1}", "{0} = {1}"),
    "ne": ("{0} != {1}", r"{0} \ne {1}"),
    "and": ("{0} and {1}", r"{0} \wedge {1}"),
    "or": ("{0} or {1}", r"{0} \vee {1}"),
}
"""What a condition is made of, in Python's and LaTeX's spelling; `<` and `<=` exchange sides."""
