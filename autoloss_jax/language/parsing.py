"""Text to expression: Python's expression syntax, read as a syntax tree and never executed."""

import ast
import math
import re

from autoloss_jax.errors import AutolossError
from autoloss_jax.language.expressions import (
    LITERAL,
    MAX_DEPTH,
    MAX_TEXT,
    Expression,
    apply,
    beyond_limits,
    leaf,
    literal,
)
from autoloss_jax.language.operators import INDICES, LEAVES, OPERATORS, REDUCTIONS

MAX_EXPONENT = 4
CHARACTERS = "_ . ( ) , + - * / < > = !"
"""What a text may consist of, besides ASCII letters, digits and blanks."""

_UNEXPECTED = re.compile(rf"[^A-Za-z0-9 \t\n\r{re.escape(CHARACTERS)}]")
# Everything that begins as a number does, and what a whole number may be. Python itself takes
# `1or 2` apart, with a warning.
_NUMBER_LIKE = re.compile(r"(?<!\w)(?:0[xX]\w*|\.?\d(?:[eE][+-]?(?=\d)|[\w.])*)", re.ASCII)
_DIGITS = r"\d(?:_?\d)*"
_NUMBER = re.compile(
    rf"0[xX](?:_?[\da-fA-F])+|0[oO](?:_?[0-7])+|0[bB](?:_?[01])+"
    rf"|(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?{_DIGITS})?[jJ]?",
    re.ASCII,
)

_FUNCTIONS = {name: op for name, op in OPERATORS.items() if op.precedence == 5}
_INFIX: dict[type[ast.operator], str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
}
# `a < b` is stored as `b > a`.
_COMPARISONS: dict[type[ast.cmpop], tuple[str, bool]] = {
    ast.Gt: ("gt", False),
    ast.GtE: ("ge", False),
    ast.Lt: ("gt", True),
    ast.LtE: ("ge", True),
    ast.Eq: ("eq", False),
    ast.NotEq: ("ne", False),
}
_TOO_DEEP = f"nested deeper than {MAX_DEPTH}; expected less nesting"
_ONE_LINE = str.maketrans("\n\r\t", "   ")
_CONDITION_LEAVES = tuple(name for name in LEAVES if not name.startswith("s_"))


class FormulaError(AutolossError):
    """A text that is no loss expression. `column` counts characters from 1."""

    def __init__(self, text: str, column: int, message: str) -> None:
        self.column = column
        # Long texts are shown around the fault only.
        start = max(0, column - 41)
        shown = "".join(c if c.isprintable() else " " for c in text[start : start + 80])
        pointer = " " * (column - 1 - start) + "^"
        super().__init__(f"formula, column {column}: {message}\n  {shown}\n  {pointer}")


def parse(text: str) -> Expression:
    """Reads a loss: an expression of the loss language with no free index.

    Args:
      text: the formula: at most 10,000 characters, 1,000 nodes and 60 of them deep.

    Returns:
      The expression as written; `simplify` brings it to canonical form.

    Raises:
      FormulaError: naming the token, its column and what was expected.

    >>> str(parse("sum_ij( softplus(s_j-s_i),where=y_j<y_i )"))
    'sum_ij(softplus(s_j - s_i), where=y_i > y_j)'
    """
    expression = parse_expression(text)
    if expression.indices:
        free = ", ".join(sorted(expression.indices))
        raise FormulaError(
            text, 1,
            f"'{_shorten(text)}' is not a loss: index {free} is free; expected a reduction over it,"
            " such as mean_i(...) or sum_ij(...)",
        )  # fmt: skip
    return expression


def as_loss(loss: Expression | str) -> Expression:
    """The loss itself, or the one a text is the formula of.

    Raises:
      FormulaError: the text is not a loss.
      AutolossError: neither an expression nor a text, or an expression with a free index.
    """
    if isinstance(loss, str):
        return parse(loss)
    if not isinstance(loss, Expression):
        raise AutolossError(
            f"expected a loss, an Expression or its text; got {loss!r}, a {type(loss).__name__}"
        )
    if loss.indices:
        raise AutolossError(
            f"'{loss}' is not a loss: expected no free index, got {', '.join(sorted(loss.indices))}"
        )
    return loss


def parse_stored(formula: object, place: str) -> Expression:
    """The loss of a formula that a file or a flag holds.

    Raises:
      AutolossError: it is no loss; says where it stands.
    """
    try:
        return parse(formula)  # type: ignore[arg-type]  # which it refuses itself
    except AutolossError as error:
        raise AutolossError(f"{place}: {error}") from error


def parse_expression(text: str) -> Expression:
    """Reads an expression that may have free indices; otherwise as `parse`."""
    if not isinstance(text, str):
        raise AutolossError(f"a formula must be a string, got {type(text).__name__}")
    return _Parser(text).parse()


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 40 else text[:37] + "..."


class _Parser:
    """Turns one text's syntax tree into an expression; knows the text for its messages."""

    def __init__(self, text: str) -> None:
        self.text = text

    def parse(self) -> Expression:
        if len(self.text) > MAX_TEXT:
            raise FormulaError(
                self.text, MAX_TEXT + 1,
                f"the formula has {len(self.text)} characters; expected at most {MAX_TEXT}",
            )  # fmt: skip
        if not self.text.strip():
            raise FormulaError(self.text, 1, "the formula is empty; expected a loss expression")
        self._check_characters()
        self.offset = len(self.text) - len(self.text.lstrip())
        expression = self._formula(self._read(), 1)
        excess = beyond_limits(expression)
        if excess:
            raise FormulaError(self.text, 1, excess)
        return expression

    def _read(self) -> ast.expr:
        """Python's syntax tree of the text, which recursion may follow no deeper than MAX_DEPTH."""
        source = self.text.strip()
        try:
            return ast.parse(source.translate(_ONE_LINE), mode="eval").body
        except SyntaxError as error:
            # Python reports what is missing at the end as offset 0.
            offset = error.offset or len(source) + 1
            column = min(offset + self.offset, len(self.text) + 1)
            token = self.text[column - 1 : column].strip()
            shown = repr(token) if token else "end of text"
            raise FormulaError(
                self.text, column,
                f"unexpected {shown}: {error.msg}; expected a loss expression",
            ) from None  # fmt: skip
        except (RecursionError, MemoryError, ValueError) as error:
            raise FormulaError(
                self.text, 1, f"the formula cannot be read ({error}); expected simpler text"
            ) from None

    def _check_characters(self) -> None:
        """What can be seen without a syntax tree: so Python is given nothing but plain formulas.

        No quotes, brackets, comments or other characters; no numbers that run into a word, which
        Python would warn of; no deep nesting.
        """
        wrong = _UNEXPECTED.search(self.text)
        if wrong:
            raise FormulaError(
                self.text, wrong.start() + 1,
                f"unexpected character {wrong[0]!r}; expected ASCII letters, digits, blanks and "
                f"{CHARACTERS}",
            )  # fmt: skip
        for found in _NUMBER_LIKE.finditer(self.text):
            if not _NUMBER.fullmatch(found[0]):
                raise FormulaError(
                    self.text, found.start() + 1,
                    f"unexpected '{_shorten(found[0])}'; expected a number",
                )  # fmt: skip
        nesting = 0
        for column, character in enumerate(self.text, 1):
            nesting += (character == "(") - (character == ")")
            if nesting > MAX_DEPTH:
                raise FormulaError(self.text, column, f"unexpected '('; {_TOO_DEEP}")

    def _error(self, node: ast.AST, expected: str) -> FormulaError:
        column = getattr(node, "col_offset", 0) + self.offset + 1
        end = (getattr(node, "end_col_offset", None) or column) + self.offset
        return FormulaError(
            self.text, column, f"unexpected '{_shorten(self.text[column - 1 : end])}'; {expected}"
        )

    def _shallow(self, node: ast.expr, expression: Expression) -> Expression:
        """The expression, if it is not deeper than its text: a power becomes squares."""
        if expression.full_depth > MAX_DEPTH:
            raise self._error(node, _TOO_DEEP)
        return expression

    def _formula(self, node: ast.expr, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise self._error(node, _TOO_DEEP)
        return self._shallow(node, self._any_formula(node, depth))

    def _any_formula(self, node: ast.expr, depth: int) -> Expression:
        match node:
            case ast.Constant():
                return self._literal(node)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as number):
                return literal(-self._literal(number).value)
            case ast.Name():
                return self._leaf(node)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                inner = self._formula(operand, depth + 1)
                return apply("neg", inner)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._formula(operand, depth + 1)
            case ast.BinOp(op=ast.Pow()):
                return self._power(node, depth)
            case ast.BinOp(op=op) if type(op) in _INFIX:
                left = self._formula(node.left, depth + 1)
                right = self._formula(node.right, depth + 1)
                return apply(_INFIX[type(op)], left, right)
            case ast.Call():
                return self._call(node, depth)
            case ast.Compare() | ast.BoolOp():
                raise self._error(node, "a comparison may stand only in where=")
        raise self._error(
            node, "expected numbers, names, + - * / ** and calls of the language's functions"
        )

    def _literal(self, node: ast.Constant) -> Expression:
        value = node.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._error(node, "expected a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._error(node, "expected a finite number")
        return literal(number)

    def _leaf(self, node: ast.Name) -> Expression:
        if node.id in LEAVES:
            return leaf(node.id)
        if node.id in INDICES:
            raise self._error(node, "an index may stand only in where=, as in i != j")
        if node.id in _FUNCTIONS or node.id in REDUCTIONS:
            raise self._error(node, f"expected a call, {node.id}(...)")
        raise self._error(node, f"expected one of {', '.join(LEAVES)}")

    def _power(self, node: ast.BinOp, depth: int) -> Expression:
        base = self._formula(node.left, depth + 1)
        try:
            exponent = self._formula(node.right, depth + 1)
        except FormulaError:
            exponent = leaf("n")
        k = exponent.value
        if exponent.op != LITERAL or k != int(k) or abs(k) > MAX_EXPONENT:
            raise self._error(
                node.right,
                f"expected a literal whole exponent from -{MAX_EXPONENT} to {MAX_EXPONENT}",
            )
        square = apply("square", base)
        powers = (literal(1), base, square, apply("cube", base), apply("square", square))
        power = powers[abs(int(k))]
        return apply("div", literal(1), power) if k < 0 else power

    def _call(self, node: ast.Call, depth: int) -> Expression:
        if not isinstance(node.func, ast.Name):
            raise self._error(node.func, "expected the name of a function")
        name = node.func.id
        if name not in _FUNCTIONS and name not in REDUCTIONS:
            known = ", ".join((*_FUNCTIONS, *REDUCTIONS))
            raise self._error(node.func, f"expected one of the functions {known}")
        arity = 1 if name in REDUCTIONS else OPERATORS[name].arity
        starred = any(isinstance(arg, ast.Starred) for arg in node.args)
        if len(node.args) != arity or starred:
            raise self._error(
                node, f"{name} takes {arity} argument{'s' * (arity > 1)}, got {len(node.args)}"
            )
        for keyword in node.keywords:
            if keyword.arg != "where" or name not in REDUCTIONS or len(node.keywords) > 1:
                given = f"got {_shorten(keyword.arg)}=" if keyword.arg else "got **"
                raise self._error(
                    node, f"only reductions take a keyword, and only one, where=; {given}"
                )
        where = self._condition(node.keywords[0].value, depth + 1) if node.keywords else None
        args = tuple(self._formula(arg, depth + 1) for arg in node.args)
        return apply(name, *args, where=where)

    def _condition(self, node: ast.expr, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise self._error(node, _TOO_DEEP)
        if isinstance(node, ast.BoolOp):
            # A chain of n parts becomes a tree n deep.
            if depth + len(node.values) > MAX_DEPTH:
                raise self._error(node, f"expected at most {MAX_DEPTH} comparisons in a row")
            op = "and" if isinstance(node.op, ast.And) else "or"
            parts = [self._condition(value, depth + 1) for value in node.values]
            condition = parts[0]
            for part in parts[1:]:
                condition = self._shallow(node, apply(op, condition, part))
            return condition
        if not isinstance(node, ast.Compare):
            raise self._error(node, "expected a comparison, such as y_i > y_j")
        if len(node.ops) != 1 or type(node.ops[0]) not in _COMPARISONS:
            raise self._error(node, "expected one comparison by <, <=, >, >=, == or !=")
        relation, exchanged = _COMPARISONS[type(node.ops[0])]
        left, right = self._compared(node.left), self._compared(node.comparators[0])
        if {left.op, right.op} & set(INDICES) and {left.op, right.op} != set(INDICES):
            raise self._error(node, "an index compares only with the other index")
        return apply(relation, right, left) if exchanged else apply(relation, left, right)

    def _compared(self, node: ast.expr) -> Expression:
        """One side of a comparison: a quantity without gradient, an index or a number."""
        if isinstance(node, ast.Constant):
            return self._literal(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            if isinstance(node.operand, ast.Constant):
                return literal(-self._literal(node.operand).value)
        elif isinstance(node, ast.Name) and node.id in (*_CONDITION_LEAVES, *INDICES):
            return leaf(node.id)
        raise self._error(
            node, f"expected a number or one of {', '.join((*_CONDITION_LEAVES, *INDICES))}"
        )
