"""Tests of expression trees: types, text, and the round trip through the parser."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoloss_jax.language.expressions import Expression, apply, leaf, literal, swap_indices
from autoloss_jax.language.grammar import random_expressions
from autoloss_jax.language.operators import LEAVES, OPERATORS
from autoloss_jax.language.parsing import as_loss, parse, parse_expression

NUMBERS = st.floats(allow_nan=False, allow_infinity=False).map(literal)
LEAF = st.sampled_from(sorted(LEAVES)).map(leaf)


def _grow(children):
    unary = [name for name, op in OPERATORS.items() if op.arity == 1]
    binary = [name for name, op in OPERATORS.items() if op.arity == 2]
    return st.one_of(
        st.builds(apply, st.sampled_from(unary), children),
        st.builds(apply, st.sampled_from(binary), children, children),
    )


ELEMENTWISE = st.recursive(NUMBERS | LEAF, _grow, max_leaves=25)
"""Any operators over any leaves and numbers."""


@given(ELEMENTWISE)
def test_text_reads_back_to_an_equal_tree(expression):
    assert parse_expression(str(expression)) == expression


def test_text_of_sampled_losses_reads_back_to_an_equal_tree():
    for expression in random_expressions(jax.random.key(0), 600):
        assert parse(str(expression)) == expression


@pytest.mark.parametrize(
    "text, indices",
    [
        ("n", ""),
        ("s_i", "i"),
        ("s_i - s_j", "ij"),
        ("sum_j(s_i - s_j)", "i"),
        ("sum_j(y_i)", "i"),
        ("sum_i(sum_j(s_j))", ""),
        ("sum_ij(s_j)", ""),
        # A condition has free indices as well.
        ("sum_j(1, where=y_i > y_j)", "i"),
        ("sum_i(1, where=y_i > y_j)", "j"),
    ],
)
def test_indices_that_stand_free(text, indices):
    assert parse_expression(text).indices == frozenset(indices)


def test_size_and_depth_leave_conditions_out():
    expression = parse("sum_ij(softplus(s_j - s_i) * 2, where=y_i > y_j)")
    # sum_ij, *, 2, softplus, -, s_j, s_i
    assert expression.size == 7
    # sum_ij, *, softplus, -, s_j
    assert expression.depth == 5
    assert [node.op for node in expression.walk()] == [
        "sum_ij", "mul", "softplus", "sub", "s_j", "s_i", "literal",
    ]  # fmt: skip


def test_uses_looks_into_conditions():
    expression = parse("sum_ij(s_i - s_j, where=y_i > y_j)")
    assert expression.uses("y_j")
    assert expression.uses("rank_i", "s_j")
    assert not expression.uses("gain_i", "rank_i")


def test_swap_indices_exchanges_bound_ones_and_conditions():
    before = parse("sum_i(sum_j(s_i * y_j, where=i != j), where=y_i > 0)")
    after = parse("sum_j(sum_i(s_j * y_i, where=j != i), where=y_j > 0)")
    assert swap_indices(before) == after
    assert swap_indices(after) == before


def test_a_negated_number_is_the_negative_number():
    assert apply("neg", literal(2)) == literal(-2)
    assert str(apply("neg", literal(-2))) == "2"
    assert apply("sub", leaf("n"), apply("neg", literal(2))) == parse_expression("n - -2")
    assert literal(-0.0) == literal(0.0)
    assert str(literal(-0.0)) == "0"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_literal_must_be_finite(value):
    with pytest.raises(ValueError, match="a literal must be finite, got "):
        literal(value)


def test_equal_trees_are_one_key():
    a, b = (parse("mean_i(square(s_i - y_i))") for _ in range(2))
    assert a is not b
    assert {a: 1}[b] == 1
    assert a != parse("mean_i(square(s_i - y_i), where=y_i > 0)")


def test_what_is_no_loss_is_named():
    assert as_loss("n") == leaf("n")
    assert as_loss(leaf("n")) == leaf("n")
    with pytest.raises(
        ValueError, match="expected a loss, an Expression or its text; got 5, a int"
    ):
        as_loss(5)
    with pytest.raises(ValueError, match="'s_i' is not a loss: expected no free index, got i"):
        as_loss(Expression("s_i"))
