"""Canonical form: the same formula always written the same way.

Rules apply bottom-up until nothing changes. Each leaves the ordinary value as it was; at most the
rounding and what is protected (0 / 0, overflow) may differ.
"""

import math
from collections.abc import Callable
from functools import lru_cache

from autoloss_jax.language.expressions import LITERAL, Expression, apply, literal, swap_indices
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

_EVEN = ("abs", "square")
_ODD = ("sign", "tanh", "cube")
_NOT_NEGATIVE = ("exp", "square", "abs", "sigmoid", "softplus", "relu", "sqrt")
_MAX_PASSES = 50


@lru_cache(maxsize=200_000)
def simplify(expression: Expression) -> Expression:
    """The canonical form of an expression: simplifying it again changes nothing.

    >>> from autoloss_jax.language.parsing import parse
    >>> str(simplify(parse("sum_ij(1 * softplus(-(s_i - s_j)), where=y_j < y_i) + (n - n)")))
    'sum_ij(softplus(s_j - s_i), where=y_i > y_j)'
    """
    for _ in range(_MAX_PASSES):
        simpler = _rewrite(expression.map_args(simplify))
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
    if node.op not in OPERATORS:
        return node
    if all(arg.op == LITERAL for arg in node.args):
        return _fold(node)
    rule = _RULES.get(node.op)
    return rule(*node.args) if rule else _rewrite_function(node)


def _fold(node: Expression) -> Expression:
    value = _FOLDERS[node.op](*(arg.value for arg in node.args))
    return literal(max(-LARGE, min(LARGE, value)))


def _order(node: Expression) -> tuple[bool, int, str]:
    """Literals first, then small before large, then by text."""
    return (node.op != LITERAL, node.size, str(node))


def _is(node: Expression, value: float) -> bool:
    return node.op == LITERAL and node.value == value


def _without_gradient(node: Expression) -> bool:
    return not node.uses("s_i", "s_j")


def _is_score_difference(node: Expression) -> bool:
    """`s_i - s_j` or `s_j - s_i`: kept in one piece, as what pair formulas see of the scores."""
    return node.op == "sub" and {arg.op for arg in node.args} == {"s_i", "s_j"}


def _splits(node: Expression) -> bool:
    return node.op == "sub" and not _is_score_difference(node)


def _commutative(op: str, *args: Expression) -> Expression:
    """Nested `op`s as one chain in canonical order, its literals folded into one."""
    terms: list[Expression] = []
    pending = list(args)
    while pending:
        term = pending.pop()
        if term.op == op:
            pending.extend(term.args)
        else:
            terms.append(term)
    terms.sort(key=_order)
    while len(terms) > 1 and terms[1].op == LITERAL:
        terms[:2] = [_fold(apply(op, terms[0], terms[1]))]
    chain = terms[0]
    for term in terms[1:]:
        chain = apply(op, chain, term)
    return chain


def _add(a: Expression, b: Expression) -> Expression:
    if _is(a, 0.0):
        return b
    if _is(b, 0.0):
        return a
    if b.op == "neg":
        return apply("sub", a, b.args[0])
    if a.op == "neg":
        return apply("sub", b, a.args[0])
    if _splits(a):  # (x - y) + b: one sum, one difference
        return apply("sub", apply("add", a.args[0], b), a.args[1])
    if _splits(b):
        return apply("sub", apply("add", a, b.args[0]), b.args[1])
    return _commutative("add", a, b)


def _subtract(a: Expression, b: Expression) -> Expression:
    if a == b:
        return literal(0.0)
    if _is(b, 0.0):
        return a
    if _is(a, 0.0):
        return apply("neg", b)
    if b.op == "neg":
        return apply("add", a, b.args[0])
    if b.op == LITERAL:
        return apply("add", literal(-b.value), a)
    if a.op == "neg":
        return apply("neg", apply("add", a.args[0], b))
    if _splits(b):  # a - (x - y)
        return apply("sub", apply("add", a, b.args[1]), b.args[0])
    if _is_score_difference(b):  # a - (s_i - s_j), of which only the sign is free
        return apply("add", a, apply("sub", b.args[1], b.args[0]))
    if _splits(a):  # (x - y) - b
        return apply("sub", a.args[0], apply("add", a.args[1], b))
    return apply("sub", a, b)


def _multiply(a: Expression, b: Expression) -> Expression:
    if _is(a, 0.0) or _is(b, 0.0):
        return literal(0.0)
    if _is(a, 1.0):
        return b
    if _is(b, 1.0):
        return a
    for x, y in ((a, b), (b, a)):
        if _is(x, -1.0):
            return apply("neg", y)
        if x.op == "neg":
            return apply("neg", apply("mul", x.args[0], y))
        if x.op == "div" and _is(x.args[0], 1.0):  # (1 / z) * y
            return apply("div", y, x.args[1])
    if a == b:
        return apply("square", a)
    return _commutative("mul", a, b)


def _divide(a: Expression, b: Expression) -> Expression:
    if _is(a, 0.0) or _is(b, 0.0):
        return literal(0.0)
    if _is(b, 1.0):
        return a
    if a.op == "neg":
        return apply("neg", apply("div", a.args[0], b))
    if b.op == "neg":
        return apply("neg", apply("div", a, b.args[0]))
    if b.op == LITERAL and abs(b.value) > 1.0 / LARGE:
        return apply("mul", literal(1.0 / b.value), a)
    return apply("div", a, b)


def _negate(x: Expression) -> Expression:
    if x.op == "neg":
        return x.args[0]
    if x.op == "sub":
        return apply("sub", x.args[1], x.args[0])
    if x.op in ("mul", "div") and x.args[0].op == LITERAL:
        return apply(x.op, literal(-x.args[0].value), x.args[1])
    if x.op in _ODD and x.args[0].op == "sub":
        return apply(x.op, apply("neg", x.args[0]))
    return apply("neg", x)


def _choose(op: str) -> Callable[[Expression, Expression], Expression]:
    def rule(a: Expression, b: Expression) -> Expression:
        if a == b:
            return a
        return _commutative(op, a, b)

    return rule


_RULES: dict[str, Callable[..., Expression]] = {
    "add": _add,
    "sub": _subtract,
    "mul": _multiply,
    "div": _divide,
    "neg": _negate,
    "min": _choose("min"),
    "max": _choose("max"),
}


def _rewrite_function(node: Expression) -> Expression:
    """The rules of functions of one argument."""
    op, (x,) = node.op, node.args
    if op in _EVEN:
        if x.op in ("neg", "abs"):
            return apply(op, x.args[0])
        if x.op == "sub":  # one sign for |a - b| and |b - a|
            return apply(op, apply("sub", *sorted(x.args, key=_order)))
    if op in ("abs", "relu") and x.op in _NOT_NEGATIVE:
        return x
    if op in _ODD and x.op == "neg":
        return apply("neg", apply(op, x.args[0]))
    if op == "sign" and x.op == "sign":
        return x
    if op == "sqrt" and x.op == "square":
        return apply("abs", x.args[0])
    if op == "stop_gradient" and (_without_gradient(x) or x.op == "stop_gradient"):
        return x
    if op == "log" and x.op == "exp":
        return x.args[0]
    if op == "log" and x.op in REDUCTIONS and x.op.startswith("sum_") and x.op != "sum_ij":
        if x.args[0].op == "exp":
            name = x.op.replace("sum", "logsumexp")
            return apply(name, x.args[0].args[0], where=x.where)
    return node


def _rewrite_reduction(node: Expression) -> Expression:
    if node.op.endswith("_ij"):  # both indices are bound: either may be called i
        return min(node, _canonical(swap_indices(node)), key=_reading_order)
    if node.op.startswith("sum") and _is(node.args[0], 0.0):
        return literal(0.0)
    return node


def _canonical(node: Expression) -> Expression:
    """Arguments simplified, the node itself left alone."""
    return node.map_args(simplify)


def _reading_order(node: Expression) -> tuple[str, str]:
    """`y_i > y_j` before `y_j > y_i`, then by text."""
    return (str(node.where), str(node))
