"""Canonical form: the same formula always written the same way.

Rules apply bottom-up until nothing changes. Each leaves the ordinary value as it was; at most the
rounding and what is protected (0 / 0, overflow, the logarithm of an empty sum) may differ. Sums are
collected as coefficients of terms, products as powers of factors, and signs move to where they cost
nothing: `-(x - y)` is `y - x`. What pairs see of the scores, `s_i - s_j`, stays in one piece.

A reduction over both indices may exchange them, so of a weighted query the canonical form may weigh
the other document of each pair.
"""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

from autoloss_jax.language.expressions import (
    LITERAL,
    MAX_DEPTH,
    Expression,
    apply,
    beyond_limits,
    leaf,
    literal,
    swap_indices,
)
from autoloss_jax.language.operators import LARGE, OPERATORS, REDUCTIONS, TINY

_FOLDERS: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b if abs(b) > TINY else 0.0,
    "neg": lambda x: -x,
    "exp": lambda x: math.exp(min(x, 100.0)),
    "log": lambda x: math.log(max(x, TINY)),
    "log2": lambda x: math.log2(max(x, TINY)),
    "sqrt": lambda x: math.sqrt(max(x, 0.0)),
    "square": lambda x: x * x,
    "cube": lambda x: x * x * x,
    "abs": abs,
    "sign": lambda x: float((x > 0) - (x < 0)),
    "sigmoid": lambda x: 1.0 / (1.0 + math.exp(-max(x, -100.0))),
    "softplus": lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))),
    "tanh": math.tanh,
    "relu": lambda x: max(x, 0.0),
    "min": min,
    "max": max,
    "stop_gradient": lambda x: x,
}
assert _FOLDERS.keys() == OPERATORS.keys()

_ODD = ("sign", "tanh")
_NOT_NEGATIVE = ("exp", "square", "abs", "sigmoid", "softplus", "relu", "sqrt")
_DIFFERENCE = apply("sub", leaf("s_i"), leaf("s_j"))
_ONE = literal(1.0)
_MAX_PASSES = 50
_KEPT = 10_000
"""Results that each cache keeps: those of the formulas of some rounds, about 15 MB."""


class _BeyondLimits(Exception):
    """A canonical form would be deeper or longer than a formula may be."""


def simplify(expression: Expression) -> Expression:
    """The canonical form of an expression: simplifying it again changes nothing.

    A formula whose canonical form would exceed the limits of the language, as a balanced sum of a
    hundred terms would when it is written as a chain, stays as it is.

    >>> from autoloss_jax.language.parsing import parse
    >>> str(simplify(parse("sum_ij(1 * softplus(-(s_i - s_j)), where=y_j < y_i) + (n - n)")))
    'sum_ij(softplus(s_j - s_i), where=y_i > y_j)'
    """
    try:
        simpler = _canonical(expression)
    except _BeyondLimits:
        return expression
    return expression if beyond_limits(simpler) else simpler


@lru_cache(maxsize=_KEPT)
def _canonical(expression: Expression) -> Expression:
    for _ in range(_MAX_PASSES):
        simpler = _rewrite(expression.map_args(_canonical))
        if simpler.full_depth > MAX_DEPTH:
            raise _BeyondLimits
        if simpler == expression:
            return expression
        expression = simpler
    return expression


def _rewrite(node: Expression) -> Expression:
    """One application of the rules to a node whose arguments are canonical."""
    if node.op in REDUCTIONS:
        return _rewrite_reduction(node)
    if node.op in ("eq", "ne", "and", "or"):
        return apply(node.op, *sorted(node.args, key=_order))
    if node.op == LITERAL:
        return literal(max(-LARGE, min(LARGE, node.value)))  # as it is when a loss runs
    if node.op not in OPERATORS:
        return node
    if all(arg.op == LITERAL for arg in node.args):
        return literal(_in_range(_FOLDERS[node.op](*(arg.value for arg in node.args))))
    if node.op in ("add", "sub", "neg"):
        return _sum(_terms(node))
    if node.op in ("mul", "div", "square", "cube"):
        return _product(_factors(node))
    if node.op in ("min", "max"):
        return _choice(node)
    return _rewrite_function(node)


def _in_range(value: float) -> float:
    """The number as a literal may hold it: 0.1 * 0.1 is 0.01, without binary's last digits."""
    return 0.0 if math.isnan(value) else float(f"{max(-LARGE, min(LARGE, value)):.15g}")


def _order(node: Expression) -> tuple[bool, int, str]:
    """Literals first, then small before large, then by text."""
    return (node.op != LITERAL, node.size, str(node))


def _chain(op: str, parts: Iterable[Expression]) -> Expression:
    """`((a + b) + c) + d` of at least one part, in canonical order."""
    first, *others = sorted(parts, key=_order)
    if len(others) > MAX_DEPTH:
        raise _BeyondLimits
    for part in others:
        first = apply(op, first, part)
    return first


# --- products: a coefficient times powers of factors over powers of factors ---


class _Factors(NamedTuple):
    coefficient: float
    over: dict[Expression, int]  # the power of each factor, which carry no sign of their own
    under: dict[Expression, int]


def _factors(node: Expression) -> _Factors:
    if node.op == LITERAL:
        return _Factors(_in_range(node.value), {}, {})
    if node.op == "neg":
        inner = _factors(node.args[0])
        return inner._replace(coefficient=-inner.coefficient)
    if node.op == "mul":
        return _times(*map(_factors, node.args))
    if node.op == "div":
        above, below = map(_factors, node.args)
        if abs(below.coefficient) > TINY:
            return _times(above, _Factors(1.0 / below.coefficient, below.under, below.over))
        if node.args[1].op == LITERAL:
            return _Factors(0.0, {}, {})
        return _times(above, _Factors(1.0, {}, {node.args[1]: 1}))
    if node.op in ("square", "cube"):
        return _power_factors(_factors(node.args[0]), 2 if node.op == "square" else 3)
    flipped = _flip(node)
    if flipped is not None and _order(flipped) < _order(node):
        return _Factors(-1.0, {flipped: 1}, {})
    return _Factors(1.0, {node: 1}, {})


def _times(a: _Factors, b: _Factors) -> _Factors:
    over, under = dict(a.over), dict(a.under)
    for mine, others in ((over, b.over), (under, b.under)):
        for factor, power in others.items():
            mine[factor] = mine.get(factor, 0) + power
    return _Factors(_in_range(a.coefficient * b.coefficient), over, under)


def _power_factors(inner: _Factors, exponent: int) -> _Factors:
    coefficient = _in_range(inner.coefficient**exponent)
    if len(inner.over) + len(inner.under) == 1:
        over, under = (
            {factor: power * exponent for factor, power in side.items()}
            for side in (inner.over, inner.under)
        )
        return _Factors(coefficient, over, under)
    return _Factors(coefficient, {_product(inner._replace(coefficient=1.0)): exponent}, {})


def _power(base: Expression, exponent: int) -> Expression:
    if exponent == 1:
        return base
    if exponent % 2 == 0:
        return apply("square", _power(base, exponent // 2))
    if exponent % 3 == 0:
        return apply("cube", _power(base, exponent // 3))
    return apply("mul", base, _power(base, exponent - 1))


def _powers(factors: dict[Expression, int]) -> list[Expression]:
    """The factors' powers, each a factor of its own."""
    parts: list[Expression] = []
    for factor, exponent in factors.items():
        power = _power(factor, exponent)
        parts += power.args if power.op == "mul" and exponent > 1 else (power,)
    return parts


def _product(factors: _Factors) -> Expression:
    coefficient, over, under = factors
    coefficient = _in_range(coefficient)
    if coefficient == 0.0 or not (over or under):
        return literal(coefficient)
    if coefficient < 0.0:  # Exchanging the sides of a difference costs nothing.
        for side in (over, under):
            for factor in sorted(side, key=_order):
                flipped = _flip(factor)
                if flipped is not None and side[factor] % 2 == 1:
                    turned = {flipped if f == factor else f: p for f, p in side.items()}
                    over, under = (turned, under) if side is over else (over, turned)
                    return _assemble(-coefficient, over, under)
    return _assemble(coefficient, over, under)


def _assemble(
    coefficient: float, over: dict[Expression, int], under: dict[Expression, int]
) -> Expression:
    parts = _powers(over)
    if not parts or abs(coefficient) != 1.0:
        parts.append(literal(coefficient))
    product = _chain("mul", parts)
    if under:
        product = apply("div", product, _chain("mul", _powers(under)))
    return apply("neg", product) if over and coefficient == -1.0 else product


def _scaled(coefficient: float, node: Expression) -> Expression:
    factors = _factors(node)
    return _product(factors._replace(coefficient=coefficient * factors.coefficient))


# --- sums: the coefficient of each term ---

_Terms = dict[Expression, float]


def is_score_difference(node: Expression) -> bool:
    """`s_i - s_j` or `s_j - s_i`: kept in one piece, as what pair formulas see of the scores."""
    return node.op == "sub" and {arg.op for arg in node.args} == {"s_i", "s_j"}


def _terms(node: Expression, coefficient: float = 1.0) -> _Terms:
    if node.op in ("add", "sub") and not is_score_difference(node):
        sign = 1.0 if node.op == "add" else -1.0
        terms = _terms(node.args[0], coefficient)
        for term, value in _terms(node.args[1], sign * coefficient).items():
            terms[term] = _in_range(terms.get(term, 0.0) + value)
        return terms
    if node.op == "neg":
        return _terms(node.args[0], -coefficient)
    factors = _factors(node)
    value = _in_range(coefficient * factors.coefficient)
    return {_product(factors._replace(coefficient=1.0)): value}


def _sum(terms: _Terms) -> Expression:
    terms = _with_difference(terms)
    above, below = [], []
    for term, coefficient in terms.items():
        if coefficient == 0.0:
            continue
        part = _scaled(coefficient, term)
        if _has_sign(part):
            below.append(_scaled(-coefficient, term))
        else:
            above.append(part)
    if not below:
        return _chain("add", above) if above else literal(0.0)
    if not above:
        return _scaled(-1.0, below[0]) if len(below) == 1 else apply("neg", _chain("add", below))
    return apply("sub", _chain("add", above), _chain("add", below))


def _has_sign(node: Expression) -> bool:
    while node.op in ("mul", "div"):
        node = node.args[0]
    return node.op == "neg" or (node.op == LITERAL and node.value < 0.0)


def _with_difference(terms: _Terms) -> _Terms:
    """The scores' coefficients as one of their difference, if they sum to 0."""
    s_i, s_j = _DIFFERENCE.args
    both = terms.get(_DIFFERENCE, 0.0)
    mine, other = terms.get(s_i, 0.0) + both, terms.get(s_j, 0.0) - both
    rest = {term: c for term, c in terms.items() if term not in (s_i, s_j, _DIFFERENCE)}
    if mine == -other:
        return rest | {_DIFFERENCE: mine}
    return rest | {s_i: mine, s_j: other}


@lru_cache(maxsize=_KEPT)
def _flip(node: Expression) -> Expression | None:
    """The negative of `node` if it is written with no more symbols: `y - x` for `x - y`."""
    if is_score_difference(node):
        return apply("sub", *reversed(node.args))
    if node.op in ("add", "sub"):
        flipped = _sum({term: -value for term, value in _terms(node).items()})
        return flipped if flipped.size <= node.size else None
    if node.op in _ODD:
        inner = _flip(node.args[0])
        return None if inner is None else apply(node.op, inner)
    if node.op in ("mul", "div", "cube"):
        factors = _factors(node)
        flipped = _product(factors._replace(coefficient=-factors.coefficient))
        return None if _has_sign(flipped) else flipped
    return None


# --- functions and reductions ---


def _choice(node: Expression) -> Expression:
    """The smallest or largest of all arguments of nested `min`s or `max`s."""
    parts: set[Expression] = set()
    pending = list(node.args)
    while pending:
        part = pending.pop()
        if part.op == node.op:
            pending.extend(part.args)
        else:
            parts.add(part)
    numbers = [part for part in parts if part.op == LITERAL]
    if len(numbers) > 1:
        parts = parts.difference(numbers)
        parts.add(literal(_FOLDERS[node.op](*(number.value for number in numbers))))
    return _chain(node.op, parts)


def _rewrite_function(node: Expression) -> Expression:
    """The rules of functions of one argument."""
    op, (x,) = node.op, node.args
    if op in ("abs", "sign", "relu", "tanh"):
        return _rewrite_signed(op, x)
    if op == "sqrt" and x.op == "square":
        return apply("abs", x.args[0])
    if op == "stop_gradient" and (x.op == op or not x.uses("s_i", "s_j")):
        return x
    if op == "log" and x.op == "exp":
        return x.args[0]
    sums_exp = x.op in ("sum_i", "sum_j") and x.args[0].op == "exp"
    if op == "log" and sums_exp:
        return apply(x.op.replace("sum", "logsumexp"), x.args[0].args[0], where=x.where)
    return node


def _rewrite_signed(op: str, x: Expression) -> Expression:
    """The rules of functions that look at the sign of their argument, or at nothing else."""
    if op in ("abs", "relu") and x.op in _NOT_NEGATIVE:
        return x
    if op == "sign" and x.op == "sign":
        return x
    factors = _factors(x)
    size = abs(factors.coefficient)
    sign = math.copysign(1.0, factors.coefficient)
    if op == "tanh":
        scale, argument = sign, factors._replace(coefficient=size)
    elif op == "relu":
        scale, argument = size, factors._replace(coefficient=sign)
    else:
        scale, argument = size if op == "abs" else sign, factors._replace(coefficient=1.0)
    return _scaled(scale, apply(op, _product(argument)))


def _rewrite_reduction(node: Expression) -> Expression:
    body = node.args[0]
    kind = REDUCTIONS[node.op].kind
    if kind in ("sum", "mean"):
        if body.op == LITERAL and body.value == 0.0:
            return body
        hoisted = _hoist(node)
        if hoisted is not None:
            return hoisted
    if node.op == "sum_i" and body.op == "sum_j" and node.where is None:
        return apply("sum_ij", *body.args, where=body.where)
    if node.op.endswith("_ij"):  # both indices are bound: either may be called i
        return min(node, swap_indices(node).map_args(_canonical), key=_reading_order)
    return node


def _hoist(node: Expression) -> Expression | None:
    """`2 * sum_i(x)` for `sum_i(2 * x)`: once a query, not once a document."""
    factors = _factors(node.args[0])
    if not factors.over or not (_has_sign(node.args[0]) or abs(factors.coefficient) != 1.0):
        return None
    rest = _product(factors._replace(coefficient=math.copysign(1.0, factors.coefficient)))
    scale = abs(factors.coefficient)
    if _has_sign(rest):
        rest, scale = _scaled(-1.0, rest), -scale
    return _scaled(scale, apply(node.op, rest, where=node.where))


def _reading_order(node: Expression) -> tuple[str, bool, str]:
    """`y_i > y_j` before `y_j > y_i`, then without a sign, then by text."""
    return (str(node.where), _has_sign(node.args[0]), str(node))
