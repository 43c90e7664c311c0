"""What `explain` measures, on losses whose properties are known."""

import jax
import numpy as np
import pytest

from autoloss_jax.errors import AutolossError
from autoloss_jax.explain import Explanation, explain
from autoloss_jax.export import export_latex
from autoloss_jax.language.grammar import random_expressions
from autoloss_jax.language.parsing import FormulaError, parse
from autoloss_jax.language.simplification import simplify
from autoloss_jax.losses import HAND_DESIGNED, LOSSES

EXP = "sum_ij(exp(s_j - s_i), where=y_i > y_j)"
LINEAR = "-sum_i(y_i * s_i)"


@pytest.fixture(scope="module")
def explained():
    """Every explanation is made once."""
    made: dict[str, Explanation] = {}

    def of(loss):
        if loss not in made:
            made[loss] = explain(loss)
        return made[loss]

    return of


def test_the_formula_is_canonical(explained):
    loss = "sum_i(s_i * 1 - 0 * y_i) * 2"
    found = explained(loss)
    canonical = simplify(parse(loss))
    assert found.formula == str(canonical)
    assert (found.size, found.depth) == (canonical.size, canonical.depth)
    assert found.latex == export_latex(canonical)


@pytest.mark.parametrize(
    ("loss", "types"),
    [
        ("mse", "{i} -> {}"),
        ("ranknet", "{i, j} -> {}"),
        ("softmax", "{i, j} -> {i} -> {}"),
        ("n", "{}"),
    ],
)
def test_types_step_by_step(explained, loss, types):
    assert explained(loss).types == types


@pytest.mark.parametrize(
    ("loss", "invariant"),
    [("ranknet", True), ("softmax", True), (LINEAR, True), ("mse", False), ("rank_cosine", False)],
)
def test_shift_invariance(explained, loss, invariant):
    assert explained(loss).shift_invariant is invariant


@pytest.mark.parametrize(
    ("loss", "degree"),
    [
        (LINEAR, 1.0),
        ("sum_ij(square(s_i - s_j), where=y_i > y_j)", 2.0),
        ("mean_i(y_i * s_i ** 3)", 3.0),
        ("sum_ij(abs(s_i - s_j), where=y_i > y_j)", 1.0),
        ("rank_cosine", 0.0),
        ("sum_i(y_i / s_i)", -1.0),
        ("ranknet", None),
        ("pairwise_hinge", None),
        ("mse", None),
    ],
)
def test_degree_of_homogeneity(explained, loss, degree):
    assert explained(loss).degree == degree
    assert (explained(loss).doubling_cosine == pytest.approx(1.0)) == (degree is not None)


@pytest.mark.parametrize(
    ("loss", "monotone"),
    [
        ("ranknet", True),
        ("pairwise_hinge", True),
        ("lambdarank", True),
        (EXP, True),
        ("mse", False),  # beyond its label a score is pushed down
        ("softmax", False),  # 2 y's share of the sum: labels 2 and 1 want 2/3 of it, no more
        ("sum_ij(softplus(s_i - s_j), where=y_i > y_j)", False),
    ],
)
def test_monotone_in_the_better_document(explained, loss, monotone):
    assert explained(loss).monotone is monotone


@pytest.mark.parametrize(
    ("loss", "bounded"),
    [
        ("pairwise_hinge", True),
        ("ranknet", True),
        ("approx_ndcg", True),
        (LINEAR, True),
        ("mse", False),
        (EXP, False),
        ("sum_i(y_i * abs(s_i) ** 3)", False),
        ("sum_i(-y_i * s_i * log(1 + abs(s_i)))", False),  # slowly
    ],
)
def test_bounded_gradient(explained, loss, bounded):
    assert explained(loss).bounded is bounded


def test_the_largest_gradient_of_a_linear_loss_is_the_largest_label(explained):
    assert explained(LINEAR).largest_gradient == (4.0, 4.0, 4.0)


@pytest.mark.parametrize(
    ("loss", "convex"),
    [
        ("mse", True),
        ("ranknet", True),
        ("softmax", True),
        ("listmle", True),
        (LINEAR, True),
        ("approx_ndcg", False),
        ("pairwise_soft_zero_one", False),
        ("mean_i(-square(s_i - y_i))", False),
    ],
)
def test_convexity(explained, loss, convex):
    assert explained(loss).convex is convex


def test_a_concave_loss_lies_above_every_chord(explained):
    assert explained("mean_i(-square(s_i - y_i))").concave_share == 1.0


@pytest.mark.parametrize(
    ("loss", "use"),
    [
        ("ranknet", "order"),
        ("listmle", "order"),
        ("sum_i(softplus(-s_i), where=y_i > 0)", "order and zero"),
        ("softmax", "values"),
        ("lambdarank", "values"),
        ("mse", "values"),
        ("mean_i(square(s_i))", "none"),
        ("sum_i(s_i * discount_i)", "none"),
    ],
)
def test_what_is_used_of_the_labels(explained, loss, use):
    assert explained(loss).label_use == use


def test_lists_without_a_relevant_document(explained):
    assert explained("mse").all_irrelevant
    assert explained("listnet").all_irrelevant
    assert not explained("ranknet").all_irrelevant
    assert not explained("softmax").all_irrelevant


def test_ties(explained):
    assert explained("ranknet").ties_alike is True
    assert explained("lambdarank").ties_alike is False  # ranks break ties by position
    assert explained("rank_cosine").ties_alike is None  # 0.5 where all scores are 0


def test_push_by_labels(explained):
    # Two tied documents: ranknet's slope is sigmoid(0), whatever the labels.
    assert explained("ranknet").push_by_labels == {
        (1, 0): 0.5, (2, 1): 0.5, (2, 0): 0.5, (4, 0): 0.5
    }  # fmt: skip
    # unique_softmax weighs by the better document's gain: 1, 3, 3 and 15.
    pushes = np.array([*explained("unique_softmax").push_by_labels.values()])
    np.testing.assert_allclose(pushes / pushes[0], [1, 3, 3, 15])


def test_push_by_order(explained):
    # Margins 3, 1 and -1 of the hinge: its slope is 1, 1 and 0.
    assert explained("pairwise_hinge").push_by_difference == (1.0, 1.0, 0.0)
    found = explained("ranknet").push_by_difference
    np.testing.assert_allclose(found, 1 / (1 + np.exp([-2.0, 0.0, 2.0])))
    # An upside-down loss pulls the better document down.
    assert max(explained("sum_ij(softplus(s_i - s_j), where=y_i > y_j)").push_by_difference) < 0


def test_weight_by_rank(explained):
    for loss in ("ranknet", "mse", "approx_ndcg"):
        assert sum(share for *_, share in explained(loss).weight_by_rank) == pytest.approx(1.0)
    first, last, share = explained("sum_i(-s_i, where=1 >= rank_i)").weight_by_rank[0]
    assert (first, last, share) == (1, 1, 1.0)
    top = {loss: explained(loss).weight_by_rank[0][2] for loss in ("ranknet", "lambdarank")}
    assert top["lambdarank"] > top["ranknet"]


def test_a_known_loss_is_recognised_however_it_is_written(explained):
    found = explained("3 * sum_ij(log(1 + exp(s_i - s_j)), where=y_j > y_i) - 7")
    assert found.name == "ranknet"
    assert "ranknet" not in [n.name for n in found.nearest]


def test_nearest_losses(explained):
    nearest = explained("sum_ij(square(relu(1 - (s_i - s_j))), where=y_i > y_j)").nearest
    assert {n.name for n in nearest[:2]} == {"ranknet", "pairwise_hinge"}
    cosines = [n.cosine for n in nearest]
    assert cosines == sorted(cosines, reverse=True)
    assert 0.9 < cosines[0] < 1.0


def test_every_hand_designed_loss_is_explained_under_its_name(explained):
    for name in HAND_DESIGNED:
        found = explained(name)
        assert found.name == name
        assert found.trains
        assert f"{name}: {HAND_DESIGNED[name].source}" in str(found)


@pytest.mark.parametrize(
    "loss",
    [
        "mean_i(y_i)",
        "sum_ij(square(s_i - s_j) * (y_i - y_j))",  # cancels, but for rounding
    ],
)
def test_a_loss_without_gradient(explained, loss):
    found = explained(loss)
    assert not found.trains
    assert found.nearest == ()
    assert str(found).splitlines()[-1].split(maxsplit=1) == [
        "gradient", "none: it trains nothing"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "lines"),
    [
        ("ranknet", ["no effect", "never raises the loss", "bounded", "convex", "their order alone",
                     "no gradient", "documents of equal labels move alike",
                     "wrong 1.76, tied 1, right 0.238"]),
        ("mse", ["another gradient", "can raise the loss", "grows about as |s|^1.0",
                 "their values", "a gradient all the same"]),
        (EXP, ["grows faster than any power"]),
        (LINEAR, ["the same gradient direction (homogeneous of degree 1)"]),
        ("rank_cosine", ["no gradient: training cannot start there", "not convex ("]),
    ],
)  # fmt: skip
def test_the_text_says_it(explained, loss, lines):
    text = str(explained(loss))
    for line in lines:
        assert line in text
    assert text.startswith(explained(loss).formula + "\n  type  ")


def test_random_losses_and_odd_ones_are_explained():
    odd = [
        "sum_i(relu(1 - abs(s_i)) + relu(s_i - 25))",  # nothing at 8 times the scores
        "sum_i(y_i / (s_i - s_i))",
        "sum_ij(exp(exp(s_i - s_j)) * y_i)",
        "sum_i(sum_j(s_j * s_i * y_j) * rank_i)",
        "max_i(s_i ** -4 * y_i)",
    ]
    for loss in [*map(parse, odd), *random_expressions(jax.random.key(3), 16)]:
        found = explain(loss)
        assert str(found).startswith(found.formula)
        numbers = (*found.largest_gradient, found.doubling_cosine, *found.push_by_difference)
        assert np.isfinite(numbers).all()


def test_an_expression_is_taken_as_its_text_is(explained):
    assert explain(LOSSES["ranknet"]) == explained("ranknet")


def test_what_is_no_loss_is_refused():
    with pytest.raises(AutolossError, match="unknown loss 'ranknt'. Did you mean 'ranknet'"):
        explain("ranknt")
    with pytest.raises(FormulaError):
        explain("s_i +")
    with pytest.raises(AutolossError, match="expected a loss, an Expression or its text"):
        explain(3.0)
