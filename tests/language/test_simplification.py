"""Tests of the canonical form: idempotent, of equal value, and what it looks like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoloss_jax.execution.exact import compile_loss
from autoloss_jax.execution.programs import encode
from autoloss_jax.language.expressions import Expression, apply, leaf, literal
from autoloss_jax.language.grammar import random_expressions
from autoloss_jax.language.operators import OPERATORS
from autoloss_jax.language.parsing import parse, parse_expression
from autoloss_jax.language.simplification import simplify
from autoloss_jax.losses import HAND_DESIGNED, LOSSES

BEFORE_AND_AFTER = [
    # numbers
    ("1 + 2 * 3", "7"),
    ("0.1 * 0.1", "0.01"),
    ("1 / 0", "0"),
    ("1e20 * 1e20", "1e+30"),
    ("log(1e40)", "69.0775527898214"),
    ("-(-(2))", "2"),
    ("exp(0) * s_i", "s_i"),
    ("0 * s_i", "0"),
    ("s_i / 0", "0"),
    # sums
    ("s_i + 0", "s_i"),
    ("y_i + s_i", "s_i + y_i"),
    ("s_i - s_i", "0"),
    ("s_i + s_i", "2 * s_i"),
    ("s_i + y_i - s_i", "y_i"),
    ("2 * s_i + y_i - 5 * s_i", "y_i - 3 * s_i"),
    ("s_i - 0.5 + y_i - 1", "s_i + y_i - 1.5"),
    ("s_i - (y_i - gain_i)", "gain_i + s_i - y_i"),
    ("-s_i - y_i", "-(s_i + y_i)"),
    # signs
    ("-(-s_i)", "s_i"),
    ("-(s_i - y_i)", "y_i - s_i"),
    ("-2 * (s_i - y_i)", "2 * (y_i - s_i)"),
    ("-s_i * -y_i", "s_i * y_i"),
    ("(y_i - s_i) * (gain_i - y_i)", "(s_i - y_i) * (y_i - gain_i)"),
    ("(gain_i - y_i) * (y_i - s_i)", "(s_i - y_i) * (y_i - gain_i)"),
    ("s_i / -2", "-0.5 * s_i"),
    # products
    ("y_i * s_i * 1", "s_i * y_i"),
    ("2 * (s_i * 3)", "6 * s_i"),
    ("s_i * s_i", "square(s_i)"),
    ("s_i * y_i * s_i", "y_i * square(s_i)"),
    ("s_i * s_i * s_i", "s_i ** 3"),
    ("square(square(s_i))", "square(square(s_i))"),
    ("square(-2 * s_i)", "4 * square(s_i)"),
    ("square(abs(s_i - y_i))", "square(abs(s_i - y_i))"),
    ("(1 / y_i) * s_i", "s_i / y_i"),
    ("s_i / y_i / gain_i", "s_i / (gain_i * y_i)"),
    ("s_i / (y_i / gain_i)", "gain_i * s_i / y_i"),
    ("s_i / 4", "0.25 * s_i"),
    ("y_i / y_i", "y_i / y_i"),  # 0 where y_i is 0
    # functions
    ("abs(y_i - s_i)", "abs(s_i - y_i)"),
    ("abs(-3 * s_i)", "3 * abs(s_i)"),
    ("abs(abs(s_i))", "abs(s_i)"),
    ("relu(exp(s_i))", "exp(s_i)"),
    ("relu(-2 * s_i)", "2 * relu(-s_i)"),
    ("sign(-s_i)", "-sign(s_i)"),
    ("tanh(-s_i)", "-tanh(s_i)"),
    ("-tanh(s_i - y_i)", "tanh(y_i - s_i)"),
    ("(y_i - s_i) ** 3", "(y_i - s_i) ** 3"),
    ("sqrt(square(s_i))", "abs(s_i)"),
    ("log(exp(s_i))", "s_i"),
    ("min(s_i, min(y_i, s_i))", "min(s_i, y_i)"),
    ("max(2, max(s_i, 3))", "max(3, s_i)"),
    ("stop_gradient(rank_i)", "rank_i"),
    ("stop_gradient(stop_gradient(s_i))", "stop_gradient(s_i)"),
    # reductions
    ("sum_i(0 * s_i)", "0"),
    ("sum_i(-2 * s_i)", "-2 * sum_i(s_i)"),
    ("mean_i(s_i / 4, where=y_i > 0)", "0.25 * mean_i(s_i, where=y_i > 0)"),
    ("max_i(-s_i)", "max_i(-s_i)"),
    ("sum_i(sum_j(s_i - s_j, where=y_i > y_j))", "sum_ij(s_i - s_j, where=y_i > y_j)"),
    ("sum_i(2 * sum_j(y_j))", "2 * sum_ij(y_i)"),
    (
        "sum_i(sum_j(y_i, where=i != j), where=y_i > 0)",
        "sum_i(sum_j(y_i, where=i != j), where=y_i > 0)",
    ),
    ("log(sum_j(exp(s_j - s_i)))", "logsumexp_j(s_j - s_i)"),
    ("sum_ij(relu(s_i - s_j), where=y_j > y_i)", "sum_ij(relu(s_j - s_i), where=y_i > y_j)"),
    ("sum_ij(1, where=y_j != y_i)", "sum_ij(1, where=y_i != y_j)"),
    # what pairs see of the scores
    ("y_i - (s_i - s_j)", "y_i + (s_j - s_i)"),
    ("s_i + y_i - s_j", "y_i + (s_i - s_j)"),
    ("s_i - s_j - (y_i - y_j)", "y_j + (s_i - s_j) - y_i"),
    ("2 * (s_i - s_j) + 3 * (s_j - s_i)", "s_j - s_i"),
    ("s_i - 2 * s_j", "s_i - 2 * s_j"),
]


@pytest.mark.parametrize("before, after", BEFORE_AND_AFTER)
def test_before_and_after(before, after):
    assert str(simplify(parse_expression(before))) == after
    assert str(simplify(parse_expression(after))) == after


def test_one_form_for_the_ways_to_write_ranknet():
    ways = [
        "sum_ij(softplus(s_j - s_i), where=y_i > y_j)",
        "sum_ij(softplus(-(s_i - s_j)), where=y_j < y_i)",
        "sum_ij(softplus(s_i - s_j), where=y_j > y_i)",
        "sum_i(sum_j(softplus(-s_i + s_j) * 1, where=y_i > y_j))",
        "--sum_ij(0.5 * 2 * softplus(s_j - s_i), where=y_i > y_j)",
    ]
    assert len({simplify(parse(way)) for way in ways}) == 1


def test_hand_designed_losses_stay_within_what_a_program_holds():
    for name in HAND_DESIGNED:
        assert encode([simplify(LOSSES[name])]).count == 1


# --------------------------------------------------------------------------------------- properties

LEAF_NAMES = ("s_i", "y_i", "gain_i", "s_j", "y_j", "n", "rank_i")
ATOMS = st.one_of(
    st.sampled_from(LEAF_NAMES).map(leaf),
    st.sampled_from((0.0, 1.0, -1.0, 2.0, 0.5, -3.0, 1e-35, 1e40)).map(literal),
    st.just(apply("sub", leaf("s_i"), leaf("s_j"))),
)
# Those with rules of their own come more often.
BINARY = ("add", "sub", "mul", "div", "add", "sub", "mul", "min", "max")
UNARY = ("neg", *OPERATORS.keys() - {*BINARY})


def _grow(children):
    return st.one_of(
        st.builds(apply, st.sampled_from(BINARY), children, children),
        st.builds(apply, st.sampled_from(sorted(UNARY)), children),
    )


PAIR_FORMULAS = st.recursive(ATOMS, _grow, max_leaves=12)


@settings(max_examples=500)
@given(PAIR_FORMULAS)
def test_simplifying_again_changes_nothing(formula):
    for loss in (formula, apply("sum_ij", formula)):
        simple = simplify(loss)
        assert simplify(simple) == simple
        assert parse_expression(str(simple)) == simple
        assert simple.indices <= loss.indices


@settings(max_examples=60)
@given(PAIR_FORMULAS)
def test_any_formula_keeps_its_value(formula):
    loss = apply("sum_ij", formula)
    with jax.enable_x64(True):
        assert_equal_where_well_conditioned(loss, simplify(loss))


def test_sampled_losses_keep_their_value_and_gradient():
    losses = random_expressions(jax.random.key(3), 40)
    changed = [loss for loss in losses if simplify(loss) != loss]
    assert len(changed) > 10
    with jax.enable_x64(True):
        compared = [assert_equal_where_well_conditioned(loss, simplify(loss)) for loss in changed]
    assert np.mean(compared) > 0.7


def assert_equal_where_well_conditioned(loss: Expression, simple: Expression) -> bool:
    """Compares values and gradients; returns False where they say nothing.

    They say nothing where a protected operation decides (0 / 0, log of 0, saturation: the value is
    huge) or cancellation (a change of the scores by 1e-12 shows), both outside simplify's promise.
    """
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(2, 5)), rng.integers(0, 4, (2, 5)) + 0.5

    def both(expression, scores):
        loss_fn = compile_loss(expression)
        return jax.value_and_grad(lambda s: jnp.sum(loss_fn(s, labels, reduce_fn=None)))(scores)

    value, gradient = both(loss, scores)
    moved, moved_gradient = both(loss, scores * (1.0 + 1e-12))
    size = max(abs(value), np.max(np.abs(gradient)))
    if size > 1e12 or not (
        np.allclose(moved, value, rtol=1e-8) and np.allclose(moved_gradient, gradient, rtol=1e-6)
    ):
        return False
    got, got_gradient = both(simple, scores)
    tolerance = 1e-7 * size + 1e-9
    np.testing.assert_allclose(got, value, rtol=1e-7, atol=tolerance)
    np.testing.assert_allclose(got_gradient, gradient, rtol=1e-6, atol=tolerance)
    return True


def test_what_a_program_holds_it_holds_in_canonical_form():
    losses = random_expressions(jax.random.key(8), 2000)
    encode(losses)
    simple = [simplify(loss) for loss in losses]
    assert encode(simple).count == len(losses)
    assert [simplify(loss) for loss in simple] == simple
    # Shorter or as long, but for the odd sign or number that has to stand outside a function.
    assert np.mean([s.size > e.size for s, e in zip(simple, losses, strict=True)]) < 0.01
    assert max(s.size - e.size for s, e in zip(simple, losses, strict=True)) <= 2
