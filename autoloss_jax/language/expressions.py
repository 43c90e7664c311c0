"""Loss expressions: immutable trees whose type is the set of their free indices."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from autoloss_jax.language.operators import INDICES, LEAVES, OPERATORS, REDUCTIONS, RELATIONS

LITERAL = "literal"

# What a formula may be at most, so that its text can be read back, and nothing that walks over it
# by recursion goes deeper than Python does.
MAX_TEXT = 10_000
MAX_DEPTH = 60
MAX_SIZE = 1_000


@dataclass(frozen=True, repr=False)
class Expression:
    """A formula of the loss language, or a condition inside a `where=`.

    Attributes:
      op: a name of OPERATORS, LEAVES, REDUCTIONS, RELATIONS or INDICES, or "literal".
      args: the arguments, as many as the operator takes.
      value: the number of a literal.
      where: for a reduction, the condition its documents must fulfil.
    """

    op: str
    args: tuple["Expression", ...] = ()
    value: float = 0.0
    where: "Expression | None" = None

    @cached_property
    def indices(self) -> frozenset[str]:
        """The free indices: a subset of {"i", "j"}; none for a loss."""
        if self.op in LEAVES:
            return LEAVES[self.op].indices
        if self.op in INDICES:
            return frozenset(self.op)
        free = frozenset().union(*(arg.indices for arg in self.args))
        if self.where is not None:
            free |= self.where.indices
        return free - REDUCTIONS[self.op].indices if self.op in REDUCTIONS else free

    @cached_property
    def size(self) -> int:
        """The number of operators, leaves and literals, conditions not counted."""
        return 1 + sum(arg.size for arg in self.args)

    @cached_property
    def depth(self) -> int:
        """The longest way from the root to a leaf, in nodes."""
        return 1 + max((arg.depth for arg in self.args), default=0)

    @cached_property
    def full_size(self) -> int:
        """The number of all nodes, conditions included."""
        return 1 + sum(part.full_size for part in self._parts)

    @cached_property
    def full_depth(self) -> int:
        """The longest way from the root to a leaf, conditions included."""
        return 1 + max((part.full_depth for part in self._parts), default=0)

    @property
    def _parts(self) -> tuple["Expression", ...]:
        return self.args if self.where is None else (*self.args, self.where)

    @cached_property
    def _hash(self) -> int:
        return hash((self.op, self.args, self.value, self.where))

    def __hash__(self) -> int:
        return self._hash

    def walk(self) -> Iterator["Expression"]:
        """All nodes, parents first, conditions left out."""
        yield self
        for arg in self.args:
            yield from arg.walk()

    def uses(self, *names: str) -> bool:
        """Whether any of the operators or leaves `names` occurs, conditions included."""
        return any(
            node.op in names or (node.where is not None and node.where.uses(*names))
            for node in self.walk()
        )

    def with_arg(self, place: int, arg: "Expression") -> "Expression":
        """The same node with another argument in one place."""
        return replace(self, args=(*self.args[:place], arg, *self.args[place + 1 :]))

    def map_args(self, transform: Callable[["Expression"], "Expression"]) -> "Expression":
        """The same node over transformed arguments and condition."""
        where = None if self.where is None else transform(self.where)
        return replace(self, args=tuple(transform(arg) for arg in self.args), where=where)

    @cached_property
    def _as_text(self) -> str:
        return _text(self)

    def __repr__(self) -> str:
        return f"<Expression {self}>"

    def __str__(self) -> str:
        """The text form; `parse` reads what `apply` and `literal` built back to an equal tree."""
        return self._as_text


def literal(value: float) -> Expression:
    """The expression of one finite number."""
    if not math.isfinite(value):
        raise ValueError(f"a literal must be finite, got {value!r}")
    return Expression(LITERAL, value=float(value) + 0.0)  # + 0.0 turns -0.0 into 0.0


def leaf(name: str) -> Expression:
    """The expression of one leaf of LEAVES."""
    return Expression(name)


def apply(op: str, *args: Expression, where: Expression | None = None) -> Expression:
    """The expression of operator, reduction or relation `op` over `args`.

    A negated number is the negative number, since both have one text.
    """
    if op == "neg" and args[0].op == LITERAL:
        return literal(-args[0].value)
    return Expression(op, args, where=where)


def beyond_limits(expression: Expression) -> str:
    """Which limit of the language a formula exceeds, "" if none: then its text is read back."""
    if expression.full_depth > MAX_DEPTH:
        return f"the formula is nested deeper than {MAX_DEPTH}; expected less nesting"
    for amount, unit, most in (
        (expression.full_size, "nodes, conditions included", MAX_SIZE),
        (len(str(expression)), "characters when written out", MAX_TEXT),
    ):
        if amount > most:
            return f"the formula has {amount} {unit}; expected at most {most}"
    return ""


def swap_indices(expression: Expression) -> Expression:
    """The same formula with `i` and `j` exchanged everywhere, bound ones included."""
    op = expression.op
    swapped = {"i": "j", "j": "i"}
    if op in INDICES:
        op = swapped[op]
    elif op.endswith(("_i", "_j")):
        op = op[:-1] + swapped[op[-1]]
    return replace(expression, op=op).map_args(swap_indices)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def _precedence(expression: Expression) -> int:
    op = expression.op
    if op == LITERAL:
        return 3 if expression.value < 0 else 5
    if op in OPERATORS:
        return OPERATORS[op].precedence
    return {"or": -2, "and": -1, "gt": 0, "ge": 0, "eq": 0, "ne": 0}.get(op, 5)


def _text(expression: Expression) -> str:
    op = expression.op
    if op == LITERAL:
        return _number(expression.value)
    if op in REDUCTIONS:
        condition = "" if expression.where is None else f", where={expression.where}"
        return f"{op}({expression.args[0]}{condition})"
    if not expression.args:
        return op
    template = OPERATORS[op].python if op in OPERATORS else RELATIONS[op][0]
    own = _precedence(expression)
    if own == 5:
        return template.format(*expression.args)
    # The left argument may bind as loosely as its parent, the right one must bind tighter; a sign
    # or a power takes an argument that binds tighter than itself.
    loosest = (own + 1 if len(expression.args) == 1 else own, own + 1)
    return template.format(
        *(
            f"({arg})" if _precedence(arg) < least else str(arg)
            for arg, least in zip(expression.args, loosest, strict=False)
        )
    )
