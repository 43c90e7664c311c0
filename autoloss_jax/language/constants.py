"""The numbers in a formula, and formulas that differ from it in one of them."""

from collections.abc import Sequence

from autoloss_jax.language.expressions import LITERAL, Expression, literal


def with_scaled_constants(expression: Expression, factors: Sequence[float]) -> list[Expression]:
    """The expression with one of its numbers times one of the factors, for each of both.

    Conditions stay as they are.
    """
    if expression.op == LITERAL:
        return [literal(expression.value * factor) for factor in factors]
    return [
        expression.with_arg(place, changed)
        for place, arg in enumerate(expression.args)
        for changed in with_scaled_constants(arg, factors)
    ]
