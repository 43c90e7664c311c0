"""Tests of the hand-designed losses against Rax and against NumPy written from the papers."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.exact import compile_loss
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.operators import REDUCTIONS
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import ALIASES, HAND_DESIGNED, LOSSES, resolve_loss

EACH_LOSS = pytest.mark.parametrize("name", HAND_DESIGNED)
RANK_BASED = ("lambdarank", "ndcg_loss2", "ndcg_loss2pp")  # ranks of tied scores follow positions
QUERIES, LIST = 7, 7

Arrays = tuple[np.ndarray, ...]


@functools.cache
def value_and_gradient(name: str) -> Callable[..., Arrays]:
    """Values per query and the gradient of their sum in the scores, compiled once a loss."""
    loss_fn = compile_loss(LOSSES[name])

    @jax.jit
    def run(scores: jax.Array, labels: jax.Array, **kwargs: Any) -> tuple[jax.Array, jax.Array]:
        def total(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
            values = loss_fn(scores, labels, reduce_fn=None, **kwargs)
            return jnp.sum(values), values

        gradient, values = jax.grad(total, has_aux=True)(scores)
        return values, gradient

    every = np.ones((QUERIES, LIST), bool)

    def same_shapes(scores: Any, labels: Any, where: Any = every, weights: Any = every) -> Arrays:
        weights = np.asarray(weights, np.float32)
        values, gradient = run(scores, labels, where=where, weights=weights)
        return np.asarray(values), np.asarray(gradient)

    return same_shapes


def batch(seed: int) -> Arrays:
    """Scores, labels, mask and weights [7, 7]: every special kind of list, and random masks."""
    rng = np.random.default_rng(seed)
    shape = (QUERIES, LIST)
    scores = rng.normal(0, 2, shape).astype(np.float32)
    labels = rng.integers(0, 5, shape).astype(np.float32)
    mask = rng.random(shape) < 0.8
    mask[:, 0] = True
    mask[0] = True
    scores[1] = np.round(scores[1])  # tied scores
    scores[2] = 0.5  # nothing but ties
    labels[3] = 0.0  # nothing relevant
    labels[4] = np.minimum(labels[4], 1)  # binary, hence tied labels
    mask[5] = np.arange(LIST) == 3  # one document
    mask[6] = False  # none
    weights = rng.uniform(0.2, 3.0, shape).astype(np.float32)
    return scores, labels, mask, weights


def assert_equal_rows(values: Arrays, expected: Arrays) -> None:
    """Values to 1e-5 of their size and gradients to 1e-5 of their norm, list by list."""
    np.testing.assert_allclose(values[0], expected[0], rtol=1e-5, atol=2e-6)
    difference = np.linalg.norm(values[1] - expected[1], axis=-1)
    norm = np.linalg.norm(expected[1], axis=-1)
    np.testing.assert_array_less(difference, 1e-5 * norm + 1e-6)


# ------------------------------------------------------------------------------ against Rax


def rax_oracles() -> dict[str, Callable[..., jax.Array]]:
    """Rax's values [queries] of every loss it has.

    Rax's batch mean divides by the documents or pairs of the whole batch, so its unreduced terms
    are summed (pairs) or averaged (documents) here for each query.
    """
    rax = pytest.importorskip("rax")
    utils, metrics = rax._src.utils, rax._src.metrics

    def per_list(loss: Callable[..., jax.Array], **options: Any) -> Callable[..., jax.Array]:
        return lambda *args, **kwargs: loss(*args, **kwargs, **options, reduce_fn=None)

    def mean(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def value(scores: jax.Array, labels: jax.Array, **kwargs: Any) -> jax.Array:
            terms = loss(scores, labels, **kwargs, reduce_fn=None)
            return jnp.sum(terms, -1) / jnp.maximum(jnp.sum(kwargs["where"], -1), 1)

        return value

    def pairs(loss: Callable[..., jax.Array], lambdaweight_fn: Any = None) -> Callable[..., Any]:
        options = {} if lambdaweight_fn is None else {"lambdaweight_fn": lambdaweight_fn}
        return lambda *args, **kwargs: jnp.sum(
            loss(*args, **kwargs, **options, reduce_fn=None), axis=-1
        )

    def lambdaweights(*terms: tuple[float, Callable[..., jax.Array]]) -> Callable[..., jax.Array]:
        # Rax scales the weights by the padded list size.
        return lambda *args, **kwargs: sum(
            factor / LIST * weight(*args, **kwargs, normalize=True) for factor, weight in terms
        )

    def metric(step_fn: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
        # What rax.approx_t12n and rax.bound_t12n do, which need the removed jax.util.
        rank_fn = functools.partial(utils.approx_ranks, step_fn=step_fn)
        cutoff_fn = functools.partial(utils.approx_cutoff, step_fn=step_fn)
        return lambda *args, **kwargs: (
            -metrics.ndcg_metric(
                *args, **kwargs, rank_fn=rank_fn, cutoff_fn=cutoff_fn, reduce_fn=None
            )
        )

    def label_softmax(labels: jax.Array, where: jax.Array) -> jax.Array:
        return jax.nn.softmax(labels, where=where, axis=-1)

    logistic, lambdarank, lambda2 = (
        rax.pairwise_logistic_loss,
        rax.dcg_lambdaweight,
        rax.dcg2_lambdaweight,
    )
    return {
        "mse": mean(rax.pointwise_mse_loss),
        "pointwise_sigmoid": mean(rax.pointwise_sigmoid_loss),
        "ranknet": pairs(logistic),
        "pairwise_hinge": pairs(rax.pairwise_hinge_loss),
        "pairwise_mse": pairs(rax.pairwise_mse_loss),
        "pairwise_soft_zero_one": pairs(rax.pairwise_soft_zero_one_loss),
        "lambdarank": pairs(logistic, lambdaweights((1, lambdarank))),
        "ndcg_loss2": pairs(logistic, lambdaweights((1, lambda2))),
        "ndcg_loss2pp": pairs(logistic, lambdaweights((1, lambdarank), (10, lambda2))),
        "listnet": per_list(rax.softmax_loss, label_fn=label_softmax),
        "softmax": per_list(rax.softmax_loss),
        "unique_softmax": per_list(rax.unique_softmax_loss),
        "poly1_softmax": per_list(rax.poly1_softmax_loss),
        "listmle": per_list(rax.listmle_loss),
        "approx_ndcg": metric(jax.nn.sigmoid),
        "bound_ndcg": metric(lambda x: jax.nn.relu(x + 1.0)),
    }


IN_RAX = (
    "mse", "pointwise_sigmoid", "ranknet", "pairwise_hinge", "pairwise_mse",
    "pairwise_soft_zero_one", "lambdarank", "ndcg_loss2", "ndcg_loss2pp", "listnet", "softmax",
    "unique_softmax", "poly1_softmax", "listmle", "approx_ndcg", "bound_ndcg",
)  # fmt: skip
# Where Rax, too, counts a document of weight w as w documents. Not listnet (its weights change the
# target distribution) nor what Rax normalises by a weighted ideal DCG; its listmle has none.
SAME_WEIGHTS = (
    "mse", "pointwise_sigmoid", "ranknet", "pairwise_hinge", "pairwise_mse",
    "pairwise_soft_zero_one", "softmax", "unique_softmax", "poly1_softmax",
)  # fmt: skip


@functools.cache
def rax_value_and_gradient(name: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
    oracle = rax_oracles()[name]

    @jax.jit
    def run(scores: jax.Array, labels: jax.Array, **kwargs: Any) -> tuple[jax.Array, jax.Array]:
        gradient = jax.grad(lambda s: jnp.sum(oracle(s, labels, **kwargs)))(scores)
        # Rax leaves NaN in lists without a document.
        some = jnp.any(kwargs["where"], axis=-1)
        values = oracle(scores, labels, **kwargs)
        return jnp.where(some, values, 0.0), jnp.where(some[:, None], gradient, 0.0)

    return run


def assert_equals_rax(name: str, scores: np.ndarray, labels: np.ndarray, **kwargs: Any) -> None:
    values, gradients = value_and_gradient(name)(scores, labels, **kwargs)
    expected, expected_gradients = map(
        np.array, rax_value_and_gradient(name)(scores, labels, **kwargs)
    )
    if name == "poly1_softmax":  # the stated difference: a constant without a relevant document
        documents = np.sum(kwargs["where"], axis=-1)
        none_relevant = (np.sum(labels * kwargs["where"], axis=-1) == 0) & (documents > 0)
        expected[none_relevant] += 1.0 / documents[none_relevant]
    assert_equal_rows((values, gradients), (expected, expected_gradients))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", IN_RAX)
def test_equals_rax(name, seed):
    scores, labels, mask, weights = batch(seed)
    # Rax's gradients err there, by its treatment of kinks; the references below hold ours.
    if name == "pointwise_sigmoid":
        scores[scores == 0] = 0.25
    if name == "listmle":
        scores += np.random.default_rng(seed).normal(0, 0.1, scores.shape).astype(np.float32)
    weights = weights if seed % 2 else np.ones_like(weights)
    options = {"weights": weights} if name in SAME_WEIGHTS else {}
    assert_equals_rax(name, scores, labels, where=mask, **options)


def test_rax_pairwise_mean_is_the_sum_over_the_pairs_of_the_batch():
    rax = pytest.importorskip("rax")
    scores, labels, mask, _ = batch(0)
    pairs = np.sum((labels[:, :, None] > labels[:, None]) & mask[:, :, None] & mask[:, None])
    ours = compile_loss(LOSSES["ranknet"])(scores, labels, where=mask, reduce_fn=jnp.sum)
    theirs = rax.pairwise_logistic_loss(scores, labels, where=mask)
    np.testing.assert_allclose(ours / pairs, theirs, rtol=1e-5)


# ------------------------------------------------------------------------------ from the papers


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


def log1p_exp(x: float) -> float:
    return float(np.logaddexp(0.0, x))


def ordinal(s: np.ndarray, y: np.ndarray) -> float:
    """Rennie and Srebro's all-threshold construction with the logistic penalty."""
    total = 0.0
    for score, label in zip(s, y, strict=True):
        for threshold in (0.5, 1.5, 2.5, 3.5):
            margin = score - threshold if label > threshold else threshold - score
            total += log1p_exp(-margin)
    return total / len(s)


def pointwise_sigmoid(s: np.ndarray, y: np.ndarray) -> float:
    """Cross entropy of a relevant document's probability sigmoid(s)."""
    relevant = np.minimum(y, 1)
    return -np.mean(relevant * np.log(sigmoid(s)) + (1 - relevant) * np.log(1 - sigmoid(s)))


def listmle(s: np.ndarray, y: np.ndarray) -> float:
    """Minus the log-likelihood of the ideal order under Plackett and Luce's model."""
    left = sorted(range(len(s)), key=lambda i: -y[i])
    total = 0.0
    while left:
        total += np.log(np.sum(np.exp(s[left]))) - s[left[0]]
        left = left[1:]
    return total


def rank_cosine(s: np.ndarray, y: np.ndarray) -> float:
    if not np.any(s) or not np.any(y):
        return 0.5
    return 0.5 * (1 - np.dot(s, y) / (np.linalg.norm(s) * np.linalg.norm(y)))


def soft_rank(s: np.ndarray, i: int) -> float:
    return 1 + sum(sigmoid(s[j] - s[i]) for j in range(len(s)) if j != i)


def approx_mrr(s: np.ndarray, y: np.ndarray) -> float:
    if not np.any(y):
        return 0.0
    return -sum(y[i] / soft_rank(s, i) for i in range(len(s))) / sum(y)


def ideal_dcg(y: np.ndarray) -> float:
    ordered = sorted(y, reverse=True)
    return sum((2**label - 1) / np.log2(1 + rank) for rank, label in enumerate(ordered, 1))


def approx_ndcg(s: np.ndarray, y: np.ndarray) -> float:
    if not np.any(y):
        return 0.0
    dcg = sum((2 ** y[i] - 1) / np.log2(1 + soft_rank(s, i)) for i in range(len(s)))
    return -dcg / ideal_dcg(y)


def lambda_loss(s: np.ndarray, y: np.ndarray, weight: Callable[[int, int], float]) -> float:
    """Wang et al.'s sum over pairs; `weight` of the two ranks."""
    if not np.any(y):
        return 0.0
    rank = {i: position for position, i in enumerate(sorted(range(len(s)), key=lambda i: -s[i]), 1)}
    total = 0.0
    for i in range(len(s)):
        for j in range(len(s)):
            if y[i] > y[j]:
                gain_difference = abs(2 ** y[i] - 2 ** y[j]) / ideal_dcg(y)
                total += weight(rank[i], rank[j]) * gain_difference * log1p_exp(s[j] - s[i])
    return total


def rho(rank_i: int, rank_j: int) -> float:
    return abs(1 / np.log2(1 + rank_i) - 1 / np.log2(1 + rank_j))


def delta(rank_i: int, rank_j: int) -> float:
    distance = abs(rank_i - rank_j)
    return abs(1 / np.log2(1 + distance) - 1 / np.log2(2 + distance))


REFERENCES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pointwise_sigmoid": pointwise_sigmoid,
    "ordinal": ordinal,
    "listmle": listmle,
    "rank_cosine": rank_cosine,
    "approx_mrr": approx_mrr,
    "approx_ndcg": approx_ndcg,
    "lambdarank": lambda s, y: lambda_loss(s, y, rho),
    "ndcg_loss2": lambda s, y: lambda_loss(s, y, delta),
    "ndcg_loss2pp": lambda s, y: lambda_loss(s, y, lambda a, b: rho(a, b) + 10 * delta(a, b)),
}


def central_differences(
    function: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5
) -> np.ndarray:
    steps = step * np.eye(len(x))
    return np.array([(function(x + e) - function(x - e)) / (2 * step) for e in steps])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", REFERENCES)
def test_equals_a_float64_reference_written_from_the_paper(name, seed):
    scores, labels, mask, _ = batch(seed)
    if name in RANK_BASED:  # differences step over ties
        scores += np.random.default_rng(seed).normal(0, 0.1, scores.shape).astype(np.float32)
    expected, gradients = np.zeros(len(scores)), np.zeros(scores.shape)
    reference = REFERENCES[name]
    for q, real in enumerate(mask):
        if real.any():
            s, y = scores[q, real].astype(np.float64), labels[q, real].astype(np.float64)
            expected[q] = reference(s, y)
            gradients[q, real] = central_differences(lambda s, y=y: reference(s, y), s)
    assert_equal_rows(value_and_gradient(name)(scores, labels, where=mask), (expected, gradients))


def test_every_loss_has_an_independent_reference():
    assert set(HAND_DESIGNED) == set(IN_RAX) | set(REFERENCES)


def test_the_step_of_a_rank_carries_no_gradient():
    """Only softplus is differentiated: each pair pulls by its weight, fixed at the ranks."""
    scores, labels = jnp.array([1.0, 3.0]), jnp.array([1.0, 0.0])
    weight = 1 - 1 / np.log2(3)  # gain 1, ideal DCG 1, ranks 2 and 1
    gradient = jax.jit(jax.grad(compile_loss(LOSSES["lambdarank"])))(scores, labels)
    np.testing.assert_allclose(gradient, weight * sigmoid(2.0) * np.array([-1, 1]), rtol=1e-5)


# ------------------------------------------------------------------------------ properties


@EACH_LOSS
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_documents_changes_nothing(name, seed):
    rng = np.random.default_rng(seed)
    scores, labels, mask, weights = batch(seed)
    if name == "listmle":  # breaks ties in labels by position
        labels = np.broadcast_to(rng.permutation(LIST).astype(np.float32), labels.shape)
    if name in RANK_BASED:  # break ties in scores by position
        scores = np.linspace(-3, 3, scores.size)[rng.permutation(scores.size)].reshape(scores.shape)
    order = rng.permutation(LIST)
    values, gradients = value_and_gradient(name)(scores, labels, mask, weights)
    moved = value_and_gradient(name)(*(x[:, order] for x in (scores, labels, mask, weights)))
    assert_equal_rows(moved, (values, gradients[:, order]))


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 3e38, -3e38])
@EACH_LOSS
def test_masked_documents_influence_nothing(name, garbage):
    scores, labels, mask, weights = batch(5)
    zeros = tuple(np.where(mask, x, 0) for x in (scores, labels, weights))
    dirty = tuple(np.where(mask, x, np.float32(garbage)) for x in (scores, labels, weights))
    run = value_and_gradient(name)
    expected = run(zeros[0], zeros[1], where=mask, weights=zeros[2])
    given_garbage = run(dirty[0], dirty[1], where=mask, weights=dirty[2])
    np.testing.assert_array_equal(given_garbage[0], expected[0])
    np.testing.assert_array_equal(given_garbage[1], expected[1])
    assert np.all(given_garbage[1][~mask] == 0.0)


@EACH_LOSS
def test_extreme_scores_have_finite_values_and_gradients(name):
    labels = np.array([[4, 2, 0, 0, 1, 4, 0]] * QUERIES, np.float32)
    labels[-1] = 0
    scores = np.array(
        [
            [1e4, -1e4, 1e4, -1e4, 0, 1, -1],
            [-1e4, -1e4, -1e4, -1e4, -1e4, -1e4, 1e4],
            [30, 50, 69, 70, 90, 150, 300],
            [0] * LIST,
            [1e4] * LIST,
            [-1e4] * LIST,
            [1e4, -1e4, 1e4, -1e4, 0, 1, -1],
        ],
        np.float32,
    )
    values, gradients = value_and_gradient(name)(scores, labels)
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(gradients))
    assert np.max(np.abs(gradients)) < 1e10


@EACH_LOSS
def test_a_gradient_step_lowers_the_loss(name):
    """Also from tied scores, as a model's are before training; rank_cosine is undefined at 0."""
    labels = np.array([[2, 1, 0, 0, 3, 0, 1]] * QUERIES, np.float32)
    scores = np.full((QUERIES, LIST), 0.25, np.float32)
    run = value_and_gradient(name)
    values, gradients = run(scores, labels)
    assert np.linalg.norm(gradients) > 1e-4
    assert gradients[0, 4] < gradients[0, 2]  # the most relevant document is to rise above
    step = 1e-2 * gradients / np.linalg.norm(gradients)
    if name not in RANK_BASED:  # whose weights change with the ranks
        assert run(scores - step, labels)[0][0] < values[0]


# ------------------------------------------------------------------------------ the batched form


def outermost_reductions(expression: Expression) -> Iterator[Expression]:
    if expression.op in REDUCTIONS:
        yield expression
    else:
        for arg in expression.args:
            yield from outermost_reductions(arg)


def sees_scores_as_differences(body: Expression) -> bool:
    if body.op == "sub" and {arg.op for arg in body.args} == {"s_i", "s_j"}:
        return True
    return body.op not in ("s_i", "s_j") and all(map(sees_scores_as_differences, body.args))


@EACH_LOSS
def test_the_formula_fits_the_batched_path(name):
    outer = list(outermost_reductions(LOSSES[name]))
    assert 1 <= len(outer) <= 3
    for reduction in outer:
        inner = list(outermost_reductions(reduction.args[0]))
        pair_bodies = [node.args[0] for node in inner]
        if reduction.op.endswith("_ij"):
            assert not inner
            pair_bodies = [reduction.args[0]]
        else:
            assert reduction.op.endswith("_i")
            assert len(inner) <= 2
            assert all(node.op.endswith("_j") for node in inner)
        for body in pair_bodies:
            assert not list(outermost_reductions(body))
            assert sees_scores_as_differences(body)


# ------------------------------------------------------------------------------ the table


@EACH_LOSS
def test_the_table_gives_formula_and_source(name):
    loss = HAND_DESIGNED[name]
    assert LOSSES[name] == parse(loss.formula)
    assert str(LOSSES[name]) == loss.formula
    assert any(character.isdigit() for character in loss.source)  # a year


def test_names_are_the_table_and_its_aliases_and_no_loss_stands_twice():
    assert set(LOSSES) == set(HAND_DESIGNED) | set(ALIASES)
    assert LOSSES["pairwise_logistic"] is LOSSES["ranknet"]
    assert len({LOSSES[name] for name in HAND_DESIGNED}) == len(HAND_DESIGNED)


@pytest.mark.parametrize("name", ["ranknet", " softmax\n", "pairwise_logistic"])
def test_a_name_resolves_to_its_loss(name):
    assert resolve_loss(name) is LOSSES[name.strip()]


@pytest.mark.parametrize("text", ["mean_i(abs(s_i - y_i))", "n", "-sum_i(s_i)"])
def test_anything_else_is_a_formula(text):
    assert resolve_loss(text) == parse(text)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AutolossError, match=r"unknown loss 'foo'\. Expected a formula or.*listmle"):
        resolve_loss("foo")


@pytest.mark.parametrize(
    "given, meant", [("ranknett", "ranknet"), ("LambdaRank", "lambdarank"), ("list_mle", "listmle")]
)
def test_an_unknown_name_suggests_the_nearest(given, meant):
    with pytest.raises(AutolossError, match=rf"Did you mean '{meant}'\?"):
        resolve_loss(given)


@pytest.mark.parametrize(
    "text, message",
    [
        ("s_i", "index i is free"),
        ("mean_i(foo)", "unexpected 'foo'"),
        (5, "a formula must be a string, got int"),
    ],
)
def test_what_is_neither_name_nor_formula_is_refused(text, message):
    with pytest.raises(AutolossError, match=message):
        resolve_loss(text)
