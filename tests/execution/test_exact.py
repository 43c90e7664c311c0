"""Tests of the exact path: its calling convention, its indices, and what stays finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.exact import LossFn, compile_loss
from autoloss_jax.language.expressions import leaf
from autoloss_jax.language.operators import LARGE
from autoloss_jax.language.parsing import FormulaError, parse
from autoloss_jax.losses import LOSSES


@functools.cache
def compiled(formula: str) -> LossFn:
    """The loss under jit: many times faster to run once than operator by operator."""
    return jax.jit(compile_loss(formula), static_argnames="reduce_fn")


RANKNET = compiled("sum_ij(softplus(s_j - s_i), where=y_i > y_j)")
MSE = compiled("mean_i(square(s_i - y_i))")

SCORES = jnp.array([[1.0, 2.0, 0.0, -1.0], [0.5, 0.0, 1.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
LABELS = jnp.array([[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 4.0], [0.0, 1.0, 2.0, 3.0]])
MASK = jnp.array([[True, True, True, False], [True, True, False, False], [False] * 4])


def per_query(formula: str, scores=SCORES, labels=LABELS, where=None) -> np.ndarray:
    return np.asarray(compiled(formula)(scores, labels, where=where, reduce_fn=None))


# ------------------------------------------------------------------------------ calling convention


def test_text_and_expression_give_the_same_loss():
    text = "sum_ij(softplus(s_j - s_i), where=y_i > y_j)"
    assert jax.jit(compile_loss(parse(text)))(SCORES, LABELS) == RANKNET(SCORES, LABELS)
    assert compile_loss(text).__doc__ == f"The ranking loss `{text}`."


def test_one_list_without_leading_axes():
    # (1 - 1)^2, (2 - 0)^2, (0 - 2)^2, (-1 - 0)^2
    np.testing.assert_allclose(MSE(SCORES[0], LABELS[0]), (0 + 4 + 4 + 1) / 4)


def test_leading_axes_are_batches():
    scores = jnp.stack([SCORES, SCORES + 1.0])
    labels = jnp.stack([LABELS, LABELS])
    values = MSE(scores, labels, reduce_fn=None)
    assert values.shape == (2, 3)
    np.testing.assert_allclose(values[1], per_query("mean_i(square(s_i + 1 - y_i))"), rtol=1e-6)
    np.testing.assert_allclose(MSE(scores, labels), jnp.mean(values), rtol=1e-6)


def test_reductions_over_queries_leave_those_without_a_document_out():
    values = MSE(SCORES, LABELS, where=MASK, reduce_fn=None)
    np.testing.assert_allclose(values, [8 / 3, 1.25 / 2, 0.0], rtol=1e-6)
    np.testing.assert_allclose(MSE(SCORES, LABELS, where=MASK), (8 / 3 + 0.625) / 2, rtol=1e-6)
    total = MSE(SCORES, LABELS, where=MASK, reduce_fn=jnp.sum)
    np.testing.assert_allclose(total, 8 / 3 + 0.625, rtol=1e-6)
    largest = MSE(
        SCORES, LABELS, where=MASK, reduce_fn=functools.partial(jnp.max, initial=-jnp.inf)
    )
    np.testing.assert_allclose(largest, 8 / 3, rtol=1e-6)


@pytest.mark.parametrize("reduce_fn", [jnp.mean, jnp.sum])
def test_a_batch_of_padding_has_loss_and_gradient_zero(reduce_fn):
    def loss(scores):
        return MSE(scores, LABELS, where=jnp.zeros_like(MASK), reduce_fn=reduce_fn)

    value, gradient = jax.value_and_grad(loss)(SCORES)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros_like(SCORES))


def test_inputs_may_be_numpy_lists_and_integers():
    np.testing.assert_allclose(MSE([1, 2], np.array([0, 0])), 2.5)
    np.testing.assert_allclose(MSE([1, 2], [0, 0], where=[1, 0], weights=[2, 9]), 2.0)


def test_bfloat16_scores_stay_bfloat16():
    assert RANKNET(SCORES.astype(jnp.bfloat16), LABELS).dtype == jnp.bfloat16


def test_jit_grad_and_vmap():
    plain = compile_loss("sum_ij(softplus(s_j - s_i), where=y_i > y_j)")
    value, gradient = jax.value_and_grad(plain)(SCORES, LABELS)
    jitted, jitted_gradient = jax.jit(jax.value_and_grad(plain))(SCORES, LABELS)
    np.testing.assert_allclose(jitted, value, rtol=1e-6)
    np.testing.assert_allclose(jitted_gradient, gradient, rtol=1e-5, atol=1e-7)
    mapped = jax.vmap(RANKNET)(SCORES, LABELS)
    np.testing.assert_allclose(mapped, RANKNET(SCORES, LABELS, reduce_fn=None), rtol=1e-6)
    mapped_gradient = jax.vmap(jax.grad(RANKNET))(SCORES, LABELS)
    np.testing.assert_allclose(mapped_gradient / 3, gradient, rtol=1e-5, atol=1e-7)


def test_the_second_call_compiles_nothing():
    traces = []

    @jax.jit
    def loss(scores):
        traces.append(scores.shape)
        return compile_loss("mean_i(abs(s_i - y_i))")(scores, LABELS)

    loss(SCORES)
    loss(SCORES + 1.0)
    assert len(traces) == 1


def test_second_derivatives_in_reverse_mode():
    def gradient(scores):
        return jax.grad(MSE)(scores, LABELS[0])

    hessian = jax.jacrev(gradient)(SCORES[0])
    np.testing.assert_allclose(hessian, 2 / 4 * np.eye(4), atol=1e-7)


def test_the_gradient_of_ranknet_by_hand():
    scores, labels = jnp.array([1.0, 3.0]), jnp.array([1.0, 0.0])
    pull = 1 / (1 + np.exp(-2.0))  # sigmoid(s_j - s_i)
    np.testing.assert_allclose(jax.grad(RANKNET)(scores, labels), [-pull, pull], rtol=1e-6)


def test_equal_scores_have_the_mean_gradient_of_both_sides():
    """A model that scores all alike must learn: softplus has derivative 1/2 at 0."""
    gradient = jax.grad(RANKNET)(jnp.zeros(2), jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(gradient, [-0.5, 0.5])


def test_training_with_optax_lowers_the_loss():
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(8, 6, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, (8, 6)) + 0.0, jnp.float32)
    labels = jnp.where(features @ jnp.array([1.0, -1.0, 0.5]) > 0, labels + 2, labels)
    optimizer = optax.adam(0.1)
    loss = compile_loss("sum_i(y_i * logsumexp_j(s_j - s_i))")

    @jax.jit
    def step(weights, state):
        value, gradient = jax.value_and_grad(lambda w: loss(features @ w, labels))(weights)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(weights, updates), state, value

    weights = jnp.zeros(3)
    state = optimizer.init(weights)
    values = []
    for _ in range(30):
        weights, state, value = step(weights, state)
        values.append(float(value))
    assert values[-1] < 0.95 * values[0]


# ------------------------------------------------------------------------------ errors


def test_a_formula_that_is_no_loss_is_refused():
    with pytest.raises(FormulaError, match="index i is free"):
        compile_loss("s_i")
    with pytest.raises(AutolossError, match="'s_i' is not a loss: expected no free index, got i"):
        compile_loss(leaf("s_i"))


@pytest.mark.parametrize("name", ["labels", "where", "weights"])
def test_another_shape_than_that_of_the_scores_is_refused(name):
    inputs = {"labels": LABELS, "where": MASK, "weights": LABELS, name: np.ones((3, 5))}
    with pytest.raises(AutolossError, match=rf"{name} must have the shape of scores, .*\(3, 5\)"):
        MSE(SCORES, inputs["labels"], where=inputs["where"], weights=inputs["weights"])


def test_scores_have_a_list_axis():
    with pytest.raises(AutolossError, match=r"shape of scores, .*got \(\) and \(\)"):
        MSE(1.0, 1.0)


# ------------------------------------------------------------------------------ weights


def test_a_weight_counts_a_document_that_many_times():
    """Doubling a document by its weight, or by listing it twice."""
    loss = compiled("sum_i(y_i * softplus(s_i))")
    scores, labels = jnp.array([1.0, -0.5, 0.0]), jnp.array([2.0, 1.0, 0.0])
    weighted = loss(scores, labels, weights=jnp.array([2.0, 1.0, 1.0]))
    np.testing.assert_allclose(weighted, 4 * np.logaddexp(0, 1) + np.logaddexp(0, -0.5), rtol=1e-6)
    twice = loss(scores[jnp.array([0, 0, 1])], labels[jnp.array([0, 0, 1])])
    np.testing.assert_allclose(weighted, twice, rtol=1e-6)


def test_weights_leave_inner_reductions_and_maxima_alone_and_means_divide_by_documents():
    weights = jnp.array([2.0, 0.5])
    scores, labels = jnp.array([1.0, 3.0]), jnp.array([0.0, 1.0])

    def weighted(formula):
        return float(compiled(formula)(scores, labels, weights=weights))

    assert weighted("mean_i(s_i)") == (2 * 1 + 0.5 * 3) / 2
    assert weighted("mean_ij(s_i)") == (2 * 1 + 0.5 * 3) * 2 / 4
    assert weighted("sum_i(s_i, where=y_i > 0)") == 0.5 * 3
    assert weighted("max_i(s_i)") == 3
    assert weighted("sum_i(sum_j(s_j))") == (2 + 0.5) * 4
    assert weighted("n") == 2
    np.testing.assert_allclose(weighted("logsumexp_i(s_i)"), np.logaddexp(1, 3), rtol=1e-6)


def test_weights_of_one_change_nothing():
    ones = jnp.ones_like(SCORES)
    for name in ("ranknet", "lambdarank", "poly1_softmax"):
        loss = compiled(str(LOSSES[name]))
        np.testing.assert_allclose(loss(SCORES, LABELS, weights=ones), loss(SCORES, LABELS))


def test_weights_of_masked_documents_are_ignored():
    def gradient(weights):
        return jax.grad(lambda s: RANKNET(s, LABELS, where=MASK, weights=weights))(SCORES)

    garbage = jnp.where(MASK, 1.0, jnp.nan)
    np.testing.assert_array_equal(gradient(garbage), gradient(jnp.ones_like(SCORES)))


# ------------------------------------------------------------------------------ indices


@pytest.mark.parametrize(
    "formula, expected",
    [
        # for labels 1, 0, 2, 0: so many documents of a larger label
        ("sum_i(sum_j(1, where=y_j > y_i))", 1 + 2 + 0 + 2),
        ("max_i(sum_j(1, where=y_j > y_i))", 2),
        ("sum_ij(1, where=y_j > y_i)", 5),
        ("sum_ij(1)", 16),
        ("sum_ij(1, where=i != j)", 12),
        ("sum_ij(1, where=j >= i)", 10),
        ("sum_ij(1, where=i == j)", 4),
        ("sum_ij(1, where=y_i == y_j and i != j)", 2),
        ("sum_ij(1, where=y_i > y_j or i == j)", 9),
        ("mean_ij(y_i - y_j, where=y_i > y_j)", (1 + 1 + 1 + 2 + 2) / 5),
        ("mean_i(y_i, where=y_i > 0)", 1.5),
        ("max_i(y_i * s_i)", 1.0),
        ("sum_i(y_i * sum_j(y_j))", 9),  # (1 + 0 + 2 + 0) squared
        ("sum_i(y_i * sum_i(y_i))", 9),  # the inner i is another
        ("sum_i(sum_j(y_i, where=y_i > 1))", 2 * 4),
        ("sum_i(rank_i * y_i)", 2 * 1 + 3 * 2),  # scores 1, 2, 0, -1
        ("sum_i(gain_i)", 1 + 0 + 3 + 0),
        ("max_dcg", 3 / 1 + 1 / np.log2(3)),
        ("sum_i(discount_i * gain_i)", 1 / np.log2(3) + 3 / np.log2(4)),
        ("n ** 2", 16),
        ("2.5", 2.5),
        ("sum_i(sum_j(s_j, where=i == j) * y_i)", 1 * 1 + 0 * 2),
    ],
)
def test_reductions_bind_their_index(formula, expected):
    np.testing.assert_allclose(per_query(formula)[0], expected, rtol=1e-6)


def test_leaves_and_reductions_see_real_documents_only():
    assert per_query("n", where=MASK).tolist() == [3, 2, 0]
    assert per_query("sum_ij(1)", where=MASK).tolist() == [9, 4, 0]
    np.testing.assert_allclose(per_query("sum_i(rank_i)", where=MASK), [6, 3, 0])
    np.testing.assert_allclose(per_query("max_i(s_i)", where=MASK), [2, 0.5, 0])
    np.testing.assert_allclose(per_query("max_dcg", where=MASK), [3 + 1 / np.log2(3), 1, 0])
    np.testing.assert_allclose(
        per_query("logsumexp_i(s_i)", where=MASK)[1], np.logaddexp(0.5, 0.0), rtol=1e-6
    )


def test_ties_in_scores_rank_by_position():
    tied = jnp.array([1.0, 2.0, 1.0, 2.0])
    labels = jnp.array([1000.0, 100.0, 10.0, 1.0])
    rank = compiled("sum_i(rank_i * y_i)")(tied, labels)  # ranks 3, 1, 4, 2
    assert rank == 3000 + 100 + 40 + 2


def test_ranks_discounts_and_stopped_terms_carry_no_gradient():
    for formula in ("sum_i(rank_i)", "sum_i(discount_i * gain_i)", "sum_i(stop_gradient(s_i))"):
        gradient = jax.grad(compiled(formula))(SCORES, LABELS)
        np.testing.assert_array_equal(gradient, np.zeros_like(SCORES))


def test_the_largest_shares_its_gradient_among_ties():
    gradient = jax.grad(compiled("max_i(s_i)"))(jnp.array([2.0, 1.0, 2.0]), jnp.zeros(3))
    np.testing.assert_allclose(gradient, [0.5, 0.0, 0.5])


# ------------------------------------------------------------------------------ protected cases


@pytest.mark.parametrize(
    "formula, expected",
    [
        ("sum_i(s_i) / sum_i(y_i)", 0.0),  # nothing relevant: 0 / 0
        ("1 / max_dcg", 0.0),
        ("mean_i(s_i, where=y_i > 0)", 0.0),  # over nothing
        ("max_i(s_i, where=y_i > 0)", 0.0),
        ("logsumexp_i(s_i, where=y_i > 0)", 0.0),
        ("sum_ij(s_i, where=y_i > y_j)", 0.0),
        ("log(sum_i(y_i))", np.log(1e-30)),
        ("sqrt(sum_i(y_i))", 0.0),
        ("sqrt(-sum_i(square(s_i)))", 0.0),
        ("exp(sum_i(square(s_i)) * 1e6)", LARGE),
        ("sum_i(exp(square(s_i) * 1e6)) * 4", LARGE),
        ("-exp(n ** 4)", -LARGE),
        ("(n * 1e10) ** 4", LARGE),
        ("(-n * 1e20) ** 3", -LARGE),
        ("1e300 * n", LARGE),
    ],
)
def test_undefined_is_zero_and_too_large_saturates(formula, expected):
    scores, labels = jnp.array([3.0, 2.0, 1.0, -1.0]), jnp.zeros(4)
    value, gradient = jax.value_and_grad(compiled(formula))(scores, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    "formula",
    [
        "sum_ij(1 / (s_i - s_j))",
        "sum_i(log(s_i) / s_i)",
        "sum_i(sqrt(s_i - 1))",
        "sum_i(exp(s_i) ** 3)",
        "sum_i(exp(exp(s_i)))",
        "1 / sum_i(s_i)",
        "sum_i(s_i / sum_j(exp(s_j - s_i)))",
        "max_i(exp(s_i)) / mean_i(exp(s_i))",
        "logsumexp_i(s_i ** 3)",
        "sum_i(tanh(s_i) * log2(abs(s_i)))",
    ],
)
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 50.0, 1e4])
def test_values_and_gradients_are_finite_everywhere(formula, scale):
    scores = scale * jnp.array([1.0, -1.0, 0.0, 1.0])
    value, gradient = jax.value_and_grad(compiled(formula))(scores, LABELS[0])
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


def test_division_by_very_little_leaves_the_other_gradients_alone():
    """The pair (1, 0) divides by exp(50), unselected pairs by exp(-50), whose square underflows."""
    loss = compiled("sum_ij(1 / exp(s_i - s_j), where=y_i > y_j)")
    scores, labels = jnp.array([0.0, 50.0, 1.0]), jnp.array([0.0, 1.0, 1.0])
    gradient = jax.grad(loss)(scores, labels)
    np.testing.assert_allclose(gradient, np.exp(-1) * np.array([1, 0, -1]), rtol=1e-5)


def test_logsumexp_is_exact_at_large_scores():
    softmax = compiled("sum_i(y_i * logsumexp_j(s_j - s_i))")
    scores, labels = jnp.array([1e4, -1e4, 0.0]), jnp.array([0.0, 1.0, 0.0])
    value, gradient = jax.value_and_grad(softmax)(scores, labels)
    np.testing.assert_allclose(value, 2e4, rtol=1e-6)
    np.testing.assert_allclose(gradient, [1.0, -1.0, 0.0], atol=1e-6)
