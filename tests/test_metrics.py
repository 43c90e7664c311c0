"""Ranking metrics against a plain definition averaged over every order of the tied documents."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoloss_jax import metrics

PER_QUERY = {
    "ndcg": metrics.ndcg_per_query,
    "mrr": metrics.mrr_per_query,
    "average_precision": metrics.average_precision_per_query,
    "err": metrics.err_per_query,
}
MEANS = {
    "ndcg": metrics.ndcg,
    "mrr": metrics.mrr,
    "average_precision": metrics.average_precision,
    "err": metrics.err,
}


def dcg_of(ranked, k):
    return sum((2.0**y - 1) / math.log2(1 + r) for r, y in enumerate(ranked[:k], start=1))


def ndcg_of(ranked, k):
    return dcg_of(ranked, k) / dcg_of(sorted(ranked, reverse=True), k)


def mrr_of(ranked, k):
    return next((1 / r for r, y in enumerate(ranked[:k], start=1) if y > 0), 0.0)


def average_precision_of(ranked, k):
    hits = [r for r, y in enumerate(ranked, start=1) if y > 0]
    return sum(n / r for n, r in enumerate(hits, start=1) if r <= k) / len(hits)


def err_of(ranked, k):
    value, survival = 0.0, 1.0
    for r, y in enumerate(ranked[:k], start=1):
        stop = (2.0**y - 1) / 2**4
        value += survival * stop / r
        survival *= 1 - stop
    return value


PLAIN = {
    "ndcg": ndcg_of,
    "mrr": mrr_of,
    "average_precision": average_precision_of,
    "err": err_of,
}


def mean_over_tie_orders(plain, scores, labels, k):
    """The definition of a tie-aware metric: every order that the scores allow counts the same."""
    k = len(labels) if k is None else k
    groups = [
        [y for s, y in zip(scores, labels, strict=True) if s == level]
        for level in sorted(set(scores), reverse=True)
    ]
    orders = itertools.product(*(itertools.permutations(group) for group in groups))
    values = [plain([y for group in order for y in group], k) for order in orders]
    return sum(values) / len(values)


@functools.cache
def compiled(name, k):
    return jax.jit(functools.partial(PER_QUERY[name], k=k))


@pytest.mark.parametrize("name", PER_QUERY)
@pytest.mark.parametrize("k", [None, 3])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_equals_the_mean_over_all_orders_of_ties(name, k, data):
    size = 5
    scores = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    labels = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    value, defined = compiled(name, k)(np.array(scores, np.float32), np.array(labels, np.float32))
    assert bool(defined) == any(labels)
    expected = mean_over_tie_orders(PLAIN[name], scores, labels, k) if any(labels) else 0.0
    assert float(value) == pytest.approx(expected, abs=2e-6)


def test_values_one_can_follow():
    # Order by score: labels 0, 2, 1. Gains 0, 3, 1.
    scores, labels = jnp.array([0.5, 3.0, 1.0]), jnp.array([1.0, 0.0, 2.0])
    gained = 0 + 3 / math.log2(3) + 1 / math.log2(4)
    ideal = 3 / math.log2(2) + 1 / math.log2(3)
    assert float(metrics.dcg_per_query(scores, labels)) == pytest.approx(gained)
    assert float(metrics.ndcg(scores, labels)) == pytest.approx(gained / ideal)
    assert float(metrics.mrr(scores, labels)) == pytest.approx(1 / 2)
    assert float(metrics.average_precision(scores, labels)) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert float(metrics.err(scores, labels, max_label=2)) == pytest.approx(
        (3 / 4) / 2 + (1 - 3 / 4) * (1 / 4) / 3
    )


@pytest.mark.parametrize("name", PER_QUERY)
def test_document_order_and_padding_change_nothing(name):
    rng = np.random.default_rng(0)
    size, real = 40, 29
    scores = rng.integers(0, 9, size).astype(np.float32)
    labels = rng.integers(0, 5, size).astype(np.float32)
    where = np.arange(size) < real
    expected, _ = compiled(name, 10)(scores[:real], labels[:real])
    scores[real:], labels[real:] = np.nan, 4
    for _ in range(3):
        order = rng.permutation(size)
        value, defined = compiled(name, 10)(scores[order], labels[order], where=where[order])
        assert bool(defined)
        np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [17, 256, 600])
def test_long_lists_agree_with_a_sort(size):
    rng = np.random.default_rng(size)
    scores = rng.permutation(size).astype(np.float32)
    labels = rng.integers(0, 5, size).astype(np.float32)
    ranked = [float(y) for y in labels[np.argsort(-scores)]]
    for name in PER_QUERY:
        value, _ = compiled(name, 10)(scores, labels)
        assert float(value) == pytest.approx(PLAIN[name](ranked, 10), rel=1e-5), name


@pytest.mark.parametrize(("size", "k"), [(5, None), (40, 10), (600, 1)])
def test_a_constant_scorer_is_the_random_ranker(size, k):
    rng = np.random.default_rng(size)
    labels = rng.integers(0, 3, (4, size)).astype(np.float32)
    labels[3] = 0
    where = np.arange(size) < np.array([size, max(size - 3, 1), 2, size])[:, None]
    for empty in ("skip", "one"):
        value = metrics.ndcg(np.full((4, size), 7.0), labels, where=where, k=k, empty=empty)
        expected = metrics.random_ranker_ndcg(labels, where=where, k=k, empty=empty)
        np.testing.assert_allclose(value, expected, rtol=2e-6)


def test_random_ranker_is_the_mean_over_all_permutations():
    labels = [2.0, 1.0, 0.0, 0.0]
    orders = list(itertools.permutations(labels))
    expected = sum(ndcg_of(order, 2) for order in orders) / len(orders)
    assert float(metrics.random_ranker_ndcg(jnp.array(labels), k=2)) == pytest.approx(expected)


def test_agrees_with_scikit_learn_without_ties():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    scores = rng.permutation(8 * 30).reshape(8, 30).astype(np.float32)
    labels = rng.integers(0, 5, (8, 30)).astype(np.float32)
    expected = sklearn_metrics.ndcg_score(2**labels - 1, scores, k=5)
    np.testing.assert_allclose(metrics.ndcg(scores, labels, k=5), expected, rtol=1e-5)


@pytest.mark.parametrize("name", MEANS)
def test_conventions_for_queries_without_a_relevant_document(name):
    scores = jnp.array([[2.0, 1.0], [2.0, 1.0], [5.0, 4.0]])
    labels = jnp.array([[4.0, 0.0], [0.0, 0.0], [3.0, 3.0]])
    where = jnp.array([[True, True], [True, True], [False, False]])
    best = 15 / 16 if name == "err" else 1.0
    for empty, expected in {"skip": best, "zero": best / 2, "one": (best + 1) / 2}.items():
        value = MEANS[name](scores, labels, where=where, empty=empty)
        assert float(value) == pytest.approx(expected)


def test_mean_over_queries_keeps_other_axes():
    values = jnp.array([[0.5, 0.0, 1.0], [0.25, 0.0, 0.0]])
    defined, exists = jnp.array([True, False, True]), jnp.array([True, True, False])
    mean = metrics.mean_over_queries(values, defined, exists, "zero", axis=-1)
    np.testing.assert_allclose(mean, [0.5 / 2, 0.25 / 2])
    nothing = metrics.mean_over_queries(values[:, 1:2], defined[1:2], exists[1:2], axis=-1)
    assert np.isnan(nothing).all()


@pytest.mark.parametrize("name", PER_QUERY)
def test_extremes(name):
    metric = PER_QUERY[name]
    value, defined = metric(jnp.zeros((2, 3)), jnp.ones((2, 3)), where=jnp.zeros((2, 3), bool))
    assert not defined.any() and not value.any()
    value, defined = metric(jnp.zeros((2, 0)), jnp.ones((2, 0)))
    assert not defined.any() and not value.any()
    best = 15 / 16 if name == "err" else 1.0
    assert float(metric(jnp.array([-1e4]), jnp.array([4.0]))[0]) == pytest.approx(best)
    labels = jnp.array([4.0, 0.0, 0.0])
    assert float(metric(jnp.array([1e4, -1e4, 0.0]), labels)[0]) == pytest.approx(best)
    assert float(metric(jnp.array([jnp.inf, 1e38, -jnp.inf]), labels)[0]) == pytest.approx(best)


@pytest.mark.parametrize("name", PER_QUERY)
def test_nan_ranks_last(name):
    labels = jnp.array([1.0, 0.0, 2.0])
    value, _ = PER_QUERY[name](jnp.array([jnp.nan, -1e4, 1e4]), labels)
    expected, _ = PER_QUERY[name](jnp.array([-2e4, -1e4, 1e4]), labels)
    assert float(value) == float(expected)


@pytest.mark.parametrize("name", PER_QUERY)
def test_leading_axes_broadcast_and_transform(name):
    rng = np.random.default_rng(3)
    scores = jnp.asarray(rng.integers(0, 6, (5, 3, 12)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, (3, 12)), jnp.float32)
    where = jnp.arange(12) < jnp.array([12, 5, 0])[:, None]

    def metric(s):
        return PER_QUERY[name](s, labels, where=where, k=4)

    values, defined = metric(scores)
    assert values.shape == defined.shape == (5, 3)
    batched, _ = jax.jit(jax.vmap(metric))(scores)
    np.testing.assert_allclose(values, batched, rtol=1e-6)


def test_refusals():
    scores, labels = jnp.zeros(3), jnp.zeros(3)
    with pytest.raises(ValueError, match="k is 0, expected a whole number"):
        metrics.ndcg(scores, labels, k=0)
    with pytest.raises(ValueError, match="empty is 'drop', expected one of skip, zero, one"):
        metrics.ndcg(scores, labels, empty="drop")
    with pytest.raises(ValueError, match=r"the last axis \(list\) differs"):
        metrics.mrr(scores, jnp.zeros(1))
    with pytest.raises(ValueError, match=r"expected arrays \[..., list\]"):
        metrics.average_precision(jnp.float32(1), labels)
    with pytest.raises(ValueError, match="a list of 40000 documents, expected at most 32767"):
        metrics.ndcg(np.zeros(40_000), np.zeros(40_000))
    with pytest.raises(ValueError, match="max_label is 0, expected a positive number"):
        metrics.err(scores, labels, max_label=0)
