"""What is left of a loss without one of its parts: expected sets, and what holds of every loss."""

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoloss_jax.errors import AutolossError
from autoloss_jax.language.ablations import ablations
from autoloss_jax.language.expressions import LITERAL
from autoloss_jax.language.grammar import depends_on_data, random_expressions
from autoloss_jax.language.parsing import FormulaError, parse, parse_expression
from autoloss_jax.language.simplification import simplify
from autoloss_jax.losses import HAND_DESIGNED, LOSSES

RANDOM = random_expressions(jax.random.key(5), 2000)

# By removed part, the formula that is left.
EXPECTED = {
    # Not s_i, nor y_i: scores and labels must both occur.
    "mse": {"square around s_i - y_i": "mean_i(s_i - y_i)"},
    # Not the condition: it is all that uses the labels.
    "ranknet": {"softplus around s_j - s_i": "sum_ij(s_j - s_i, where=y_i > y_j)"},
    "softmax": {},
    "lambdarank": {
        "where=y_i > y_j": "sum_ij(abs(discount_i - discount_j) * abs(gain_i - gain_j)"
        " * softplus(s_i - s_j)) / max_dcg",
        "abs(discount_i - discount_j)": "sum_ij(abs(gain_i - gain_j) * softplus(s_j - s_i),"
        " where=y_i > y_j) / max_dcg",
        "abs around discount_i - discount_j": "sum_ij((discount_i - discount_j)"
        " * abs(gain_i - gain_j) * softplus(s_j - s_i), where=y_i > y_j) / max_dcg",
        "discount_i": "sum_ij(abs(discount_j) * abs(gain_i - gain_j) * softplus(s_j - s_i),"
        " where=y_i > y_j) / max_dcg",
        "discount_j": "sum_ij(abs(discount_i) * abs(gain_i - gain_j) * softplus(s_j - s_i),"
        " where=y_i > y_j) / max_dcg",
        "abs(gain_i - gain_j)": "sum_ij(abs(discount_i - discount_j) * softplus(s_j - s_i),"
        " where=y_i > y_j) / max_dcg",
        "abs around gain_i - gain_j": "sum_ij((gain_i - gain_j) * abs(discount_i - discount_j)"
        " * softplus(s_j - s_i), where=y_i > y_j) / max_dcg",
        "gain_i": "sum_ij(abs(gain_j) * abs(discount_i - discount_j) * softplus(s_j - s_i),"
        " where=y_i > y_j) / max_dcg",
        "gain_j": "sum_ij(abs(gain_i) * abs(discount_i - discount_j) * softplus(s_j - s_i),"
        " where=y_i > y_j) / max_dcg",
        "softplus around s_j - s_i": "sum_ij((s_j - s_i) * abs(discount_i - discount_j)"
        " * abs(gain_i - gain_j), where=y_i > y_j) / max_dcg",
        "max_dcg": "sum_ij(abs(discount_i - discount_j) * abs(gain_i - gain_j)"
        " * softplus(s_j - s_i), where=y_i > y_j)",
    },
    "pairwise_hinge": {
        "relu around 1 + (s_j - s_i)": "sum_ij(1 + (s_j - s_i), where=y_i > y_j)",
        "1": "sum_ij(relu(s_j - s_i), where=y_i > y_j)",
    },
    # Conditions have parts of their own.
    "listmle": {
        "y_i > y_j": "sum_i(logsumexp_j(s_j - s_i, where=j >= i and y_i == y_j))",
        "j >= i and y_i == y_j": "sum_i(logsumexp_j(s_j - s_i, where=y_i > y_j))",
        "j >= i": "sum_i(logsumexp_j(s_j - s_i, where=y_i == y_j or y_i > y_j))",
        "y_i == y_j": "sum_i(logsumexp_j(s_j - s_i, where=j >= i or y_i > y_j))",
    },
    # Terms keep their signs, divisors stay below; a sign is no part, nor is a partial sum.
    "mean_i(s_i / y_i)": {},
    "mean_i(y_i / (1 + exp(s_i)))": {
        "exp around s_i": "mean_i(y_i / (1 + s_i))",
        "1": "mean_i(y_i / exp(s_i))",
    },
    "sum_i(s_i * y_i / gain_i)": {
        "y_i": "sum_i(s_i / gain_i)",
        "gain_i": "sum_i(s_i * y_i)",
    },
    "sum_i(y_i / s_i) - sum_i(gain_i * exp(s_i)) - n": {
        "sum_i(y_i / s_i)": "-(n + sum_i(gain_i * exp(s_i)))",
        "y_i": "sum_i(1 / s_i) - (n + sum_i(gain_i * exp(s_i)))",
        "s_i": "sum_i(y_i) - (n + sum_i(gain_i * exp(s_i)))",
        "n": "sum_i(y_i / s_i) - sum_i(gain_i * exp(s_i))",
        "sum_i(gain_i * exp(s_i))": "sum_i(y_i / s_i) - n",
        "gain_i": "sum_i(y_i / s_i) - (n + sum_i(exp(s_i)))",
        "exp(s_i)": "sum_i(y_i / s_i) - (n + sum_i(gain_i))",
        "exp around s_i": "sum_i(y_i / s_i) - (n + sum_i(gain_i * s_i))",
    },
    # A reduction over what has not its index, such as max_i here, is a function like others.
    "mean_i(max_i(n) * s_i * y_i)": {
        "max_i(n)": "mean_i(s_i * y_i)",
        "max_i around n": "mean_i(n * s_i * y_i)",
    },
    "mean_i(max(y_i * s_i, gain_i))": {
        "gain_i": "mean_i(s_i * y_i)",
        "y_i": "mean_i(max(gain_i, s_i))",
    },
}


@pytest.mark.parametrize("loss", EXPECTED)
def test_what_is_left_of(loss):
    found = {a.removed: str(a.expression) for a in ablations(LOSSES.get(loss, loss))}
    assert found == EXPECTED[loss]


def extent(expression):
    """All nodes, and those of them that are not numbers."""
    quantities = sum(node.op != LITERAL for node in expression.walk())
    return expression.full_size, quantities


def check(loss):
    whole = simplify(loss)
    found = ablations(loss)
    assert found == ablations(whole)
    left = [ablation.expression for ablation in found]
    assert whole not in left
    assert len(set(left)) == len(left)
    assert len({ablation.removed for ablation in found}) == len(found)
    for expression in left:
        assert simplify(expression) == expression
        assert parse(str(expression)) == expression  # refused if an index were free
        assert depends_on_data(expression)
        assert extent(expression) < extent(whole)


@pytest.mark.parametrize("name", HAND_DESIGNED)
def test_ablations_of_hand_designed_losses_are_smaller_losses(name):
    check(LOSSES[name])


@settings(max_examples=200)
@given(st.sampled_from(RANDOM))
def test_ablations_of_random_losses_are_smaller_losses(loss):
    check(loss)


def test_parts_that_are_written_alike_are_told_apart():
    removed = [a.removed for a in ablations("sum_i(y_i * exp(s_i) + y_i * tanh(s_i))")]
    assert {"y_i (1 of 2)", "y_i (2 of 2)"} <= set(removed)


def test_what_is_no_loss_is_refused():
    with pytest.raises(AutolossError, match="expected no free index, got i"):
        ablations(parse_expression("s_i * y_i"))
    with pytest.raises(FormulaError, match="expected one of"):
        ablations("sum_i(scores)")
