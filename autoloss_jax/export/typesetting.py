"""Loss expression to mathematical notation: LaTeX, or MathML for a page."""

from html import escape
from typing import Protocol

from autoloss_jax.language.expressions import LITERAL, Expression
from autoloss_jax.language.operators import (
    INDICES,
    LEAVES,
    OPERATORS,
    REDUCTIONS,
    RELATIONS,
)

# How tightly what is set binds, as in the operator table: 1 sum, 2 product, 3 sign, 5 atom.
_SUM, _PRODUCT, _ATOM = 1, 2, 5
_PREFIXED = ("sum",)  # set as a large sign before its argument, not around it
_POWERS = {"square": 2, "cube": 3}
_BRACKETED = ("div", "sqrt", "abs")  # need no parentheses, around or inside


class Notation(Protocol):
    """One way to write formulas down; every method returns marked-up text."""

    def literal(self, value: float) -> str: ...
    def leaf(self, name: str) -> str: ...
    def operator(self, name: str, args: list[str]) -> str: ...
    def relation(self, name: str, args: list[str]) -> str: ...
    def power(self, base: str, exponent: int) -> str: ...
    def parentheses(self, inner: str) -> str: ...
    def reduction(self, name: str, condition: str | None, inner: str) -> str: ...


def typeset(expression: Expression, notation: Notation) -> str:
    """The formula in that notation."""
    return _typeset(expression, notation)[0]


def _typeset(node: Expression, to: Notation) -> tuple[str, int]:
    """A formula and how tightly it binds."""
    if node.op == LITERAL:
        return to.literal(node.value), 3 if node.value < 0 else _ATOM
    if node.op in LEAVES or node.op in INDICES:
        return to.leaf(node.op), _ATOM
    if node.op in REDUCTIONS:
        return _reduction(node, to)
    if node.op in _POWERS:
        base = node.args[0]
        inner = _within(base, to, _ATOM)
        # A fraction needs no brackets, but for an exponent that would seem its numerator's.
        inner = to.parentheses(inner) if base.op == "div" else inner
        return to.power(inner, _POWERS[node.op]), 4
    if node.op in RELATIONS:
        return to.relation(node.op, [_typeset(arg, to)[0] for arg in node.args]), 0
    precedence = _ATOM if node.op in _BRACKETED else OPERATORS[node.op].precedence
    if precedence == _ATOM:  # the spelling has its own brackets
        return to.operator(node.op, [_typeset(arg, to)[0] for arg in node.args]), _ATOM
    # A sign stands before whole products; what is left of another sign may not end in a large sum.
    least = (_PRODUCT,) if node.op == "neg" else (precedence, precedence + 1)
    args = [_within(arg, to, bound) for arg, bound in zip(node.args, least, strict=True)]
    if node.op == "mul" and _ends_in_sum(node.args[0]):
        args[0] = to.parentheses(_typeset(node.args[0], to)[0])
    return to.operator(node.op, args), _PRODUCT if node.op == "neg" else precedence


def _within(node: Expression, to: Notation, least: int) -> str:
    text, precedence = _typeset(node, to)
    return text if precedence >= least else to.parentheses(text)


def _ends_in_sum(node: Expression) -> bool:
    if node.op in REDUCTIONS:
        return REDUCTIONS[node.op].kind in _PREFIXED
    return node.op in ("mul", "neg") and _ends_in_sum(node.args[-1])


def _reduction(node: Expression, to: Notation) -> tuple[str, int]:
    condition = None if node.where is None else _typeset(node.where, to)[0]
    prefixed = REDUCTIONS[node.op].kind in _PREFIXED
    inner, precedence = _typeset(node.args[0], to)
    if not prefixed or precedence < _PRODUCT or node.args[0].op == "neg":
        inner = to.parentheses(inner)
    # A large sign binds like a product, but one that stands right of it: `a * sum(b)`.
    return to.reduction(node.op, condition, inner), 3 if prefixed else _ATOM


def _number(value: float) -> tuple[str, int]:
    """A number's digits and, where they are far from 1, the power of ten."""
    digits, _, exponent = f"{value:.6g}".partition("e")
    return digits, int(exponent or 0)


class Latex:
    """LaTeX, in the operator table's own spelling; needs amsmath for `\\operatorname*`."""

    def literal(self, value: float) -> str:
        digits, exponent = _number(value)
        return rf"{digits} \cdot 10^{{{exponent}}}" if exponent else digits

    def leaf(self, name: str) -> str:
        return name if name in INDICES else LEAVES[name].latex

    def operator(self, name: str, args: list[str]) -> str:
        return OPERATORS[name].latex.format(*args)

    def relation(self, name: str, args: list[str]) -> str:
        return RELATIONS[name][1].format(*args)

    def power(self, base: str, exponent: int) -> str:
        return f"{{{base}}}^{exponent}"

    def parentheses(self, inner: str) -> str:
        return rf"\left({inner}\right)"

    def reduction(self, name: str, condition: str | None, inner: str) -> str:
        indices = ",".join(sorted(REDUCTIONS[name].indices))
        below = indices if condition is None else rf"{indices} :\, {condition}"
        return rf"{REDUCTIONS[name].latex.format(below)} {inner}"


_MATHML_SIGNS = {"add": "+", "sub": "\N{MINUS SIGN}", "mul": "\N{DOT OPERATOR}"}
_MATHML_RELATIONS = {
    "gt": ">", "ge": "\N{GREATER-THAN OR EQUAL TO}", "eq": "=", "ne": "\N{NOT EQUAL TO}",
    "and": "\N{LOGICAL AND}", "or": "\N{LOGICAL OR}",
}  # fmt: skip
_MATHML_NAMES = {"sigmoid": "\N{GREEK SMALL LETTER SIGMA}", "stop_gradient": "sg"}
_MATHML_LETTERS = {"gain": "g", "rank": "\N{GREEK SMALL LETTER RHO}", "discount": "d"}


class MathML:
    """MathML Core, which browsers draw themselves."""

    def literal(self, value: float) -> str:
        digits, exponent = _number(value)
        number = f"<mn>{digits.replace('-', chr(0x2212))}</mn>"
        if not exponent:
            return number
        power = f"<msup><mn>10</mn><mn>{exponent}</mn></msup>"
        return f"<mrow>{number}<mo>&#x22C5;</mo>{power}</mrow>"

    def leaf(self, name: str) -> str:
        stem, _, index = name.rpartition("_")
        if index not in INDICES:
            dcg = '<msup><mi mathvariant="normal">DCG</mi><mo>&#x2217;</mo></msup>'
            return f"<mi>{name}</mi>" if name == "n" else dcg
        if not stem:
            return f"<mi>{index}</mi>"
        return f"<msub><mi>{_MATHML_LETTERS.get(stem, stem)}</mi><mi>{index}</mi></msub>"

    def operator(self, name: str, args: list[str]) -> str:
        if name in _MATHML_SIGNS:
            return f"<mrow>{args[0]}<mo>{_MATHML_SIGNS[name]}</mo>{args[1]}</mrow>"
        match name:
            case "neg":
                return f'<mrow><mo form="prefix">&#x2212;</mo>{args[0]}</mrow>'
            case "div":
                return f"<mfrac>{args[0]}{args[1]}</mfrac>"
            case "sqrt":
                return f"<msqrt>{args[0]}</msqrt>"
            case "abs":
                return _fenced("|", args, "|")
            case "relu":
                return self._function("max", ["<mn>0</mn>", *args])
            case "log2":
                base = "<msub><mi>log</mi><mn>2</mn></msub>"
                return f"<mrow>{base}<mo>&#x2061;</mo>{_fenced('(', args, ')')}</mrow>"
        return self._function(_MATHML_NAMES.get(name, name), args)

    def _function(self, name: str, args: list[str]) -> str:
        return f"<mrow><mi>{escape(name)}</mi><mo>&#x2061;</mo>{_fenced('(', args, ')')}</mrow>"

    def relation(self, name: str, args: list[str]) -> str:
        return f"<mrow>{args[0]}<mo>{escape(_MATHML_RELATIONS[name])}</mo>{args[1]}</mrow>"

    def power(self, base: str, exponent: int) -> str:
        return f"<msup>{base}<mn>{exponent}</mn></msup>"

    def parentheses(self, inner: str) -> str:
        return _fenced("(", [inner], ")")

    def reduction(self, name: str, condition: str | None, inner: str) -> str:
        reduction = REDUCTIONS[name]
        below = "<mo>,</mo>".join(f"<mi>{index}</mi>" for index in sorted(reduction.indices))
        if condition is not None:
            below += f"<mo>:</mo>{condition}"
        large = "<mo>&#x2211;</mo>" if reduction.kind == "sum" else f"<mi>{reduction.kind}</mi>"
        # Fractions would otherwise set the indices beside the sign.
        return (
            f'<mrow displaystyle="true"><munder>{large}<mrow>{below}</mrow></munder>{inner}</mrow>'
        )


def _fenced(opening: str, args: list[str], closing: str) -> str:
    inner = "<mo>,</mo>".join(args)
    return (
        f'<mrow><mo form="prefix" stretchy="true">{opening}</mo>{inner}'
        f'<mo form="postfix" stretchy="true">{closing}</mo></mrow>'
    )


def export_latex(expression: Expression) -> str:
    """The formula in LaTeX, for math mode.

    >>> from autoloss_jax.language.parsing import parse
    >>> print(export_latex(parse("sum_ij(softplus(s_j - s_i), where=y_i > y_j)")))
    \\sum_{i,j :\\, y_i > y_j} \\operatorname{softplus}\\left(s_j - s_i\\right)
    """
    return typeset(expression, Latex())


def export_mathml(expression: Expression) -> str:
    """The formula as a MathML element for a page."""
    return f'<math display="block"><mrow>{typeset(expression, MathML())}</mrow></math>'
