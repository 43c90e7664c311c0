"""Canaries: every known leak is planted, and is caught or shown to be harmless."""

import jax.numpy as jnp
import numpy as np
import pytest

from autoloss_jax.canaries import (
    CanaryError,
    check_call,
    check_constant_scores,
    check_document_order,
    check_permuted_labels,
)
from autoloss_jax.data import ListBatch
from autoloss_jax.errors import AutolossError
from autoloss_jax.metrics import ndcg_per_query

QUERIES, LENGTH = 40, 8
WEIGHTS = np.array([1.0, -2.0, 0.5], np.float32)


def make_batch(sort: bool, seed: int = 0) -> ListBatch:
    """Lists of 4 to 8 documents; the first feature says something of the label."""
    rng = np.random.default_rng(seed)
    mask = np.arange(LENGTH) < rng.integers(4, LENGTH + 1, (QUERIES, 1))
    labels = rng.integers(0, 3, (QUERIES, LENGTH)).astype(np.float32)
    features = rng.normal(size=(QUERIES, LENGTH, 3)).astype(np.float32)
    features[..., 0] += labels
    if sort:
        order = np.argsort(np.where(mask, -labels, 1.0), axis=1, kind="stable")
        labels = np.take_along_axis(labels, order, 1)
        features = np.take_along_axis(features, order[..., None], 1)
    return ListBatch(np.where(mask[..., None], features, 0.0), np.where(mask, labels, 0.0), mask)


SORTED, SHUFFLED = make_batch(sort=True), make_batch(sort=False)


def honest(scores, labels, *, where):
    return ndcg_per_query(scores, labels, where=where, k=5)


def by_input_order(scores, labels, *, where):
    """NDCG@5 with ties broken by the order of the documents, as many libraries compute it."""
    places = jnp.argsort(jnp.argsort(jnp.where(where, -scores, jnp.inf), axis=-1), axis=-1)
    return honest(-places.astype(jnp.float32), labels, where=where)


def linear(features, mask):
    del mask
    return jnp.asarray(features @ WEIGHTS)


def by_position(features, mask):
    del features
    return jnp.broadcast_to(-jnp.arange(mask.shape[-1], dtype=jnp.float32), mask.shape)


@pytest.mark.parametrize("batch", [SORTED, SHUFFLED], ids=["sorted", "shuffled"])
def test_honest_metric_and_model_pass(batch):
    check_constant_scores(honest, [batch])
    check_document_order(honest, linear, [batch])
    check_permuted_labels(honest, linear, [batch])


def test_ties_broken_by_the_order_of_sorted_documents_are_caught():
    with pytest.raises(CanaryError, match="a constant scorer gets 1.0000, .* random orders.*ties"):
        check_constant_scores(by_input_order, [SORTED])


def test_ties_broken_in_favour_or_against_are_caught():
    for sign in (1, -1):

        def metric(scores, labels, *, where, sign=sign):
            return honest(scores + sign * 1e-3 * labels, labels, where=where)

        with pytest.raises(CanaryError, match="a constant scorer"):
            check_constant_scores(metric, [SHUFFLED])


def test_documents_sorted_by_label_earn_nothing_under_the_honest_metric():
    """The leak that let a loss without labels "reach" 0.95: here the order changes no value."""
    rng = np.random.default_rng(1)
    order = np.where(SORTED.mask, rng.random(SORTED.mask.shape), 2.0).argsort(1)
    labels = np.take_along_axis(SORTED.labels, order, 1)
    for scores in (np.zeros(labels.shape), np.round(linear(SORTED.features, SORTED.mask))):
        moved = np.take_along_axis(np.asarray(scores), order, 1)
        given, _ = honest(jnp.asarray(scores), SORTED.labels, where=SORTED.mask)
        other, _ = honest(jnp.asarray(moved), labels, where=SORTED.mask)
        np.testing.assert_allclose(given, other, atol=1e-6)
    leaky, _ = by_input_order(jnp.zeros(labels.shape), SORTED.labels, where=SORTED.mask)
    assert np.mean(leaky) == pytest.approx(1.0)


@pytest.mark.parametrize("batch", [SORTED, SHUFFLED], ids=["sorted", "shuffled"])
def test_a_model_that_looks_at_positions_is_caught(batch):
    with pytest.raises(CanaryError, match="a score of the model .* The model looks at the order"):
        check_document_order(honest, by_position, [batch])


def test_a_small_share_of_position_in_a_score_is_caught():
    def score(features, mask):
        return linear(features, mask) + 0.01 * by_position(features, mask)

    with pytest.raises(CanaryError, match="The model looks at the order"):
        check_document_order(honest, score, [SHUFFLED])


def test_a_metric_that_looks_at_positions_is_caught():
    def constant(features, mask):
        del features
        return jnp.ones(mask.shape)

    with pytest.raises(CanaryError, match="a value of the metric .* The metric looks at the order"):
        check_document_order(by_input_order, constant, [SHUFFLED])


def test_rounding_of_a_model_is_no_failure():
    """Twin documents, whose scores rounding may order either way, change a value by far more."""
    features = np.repeat(SHUFFLED.features[:, :1], LENGTH, 1)
    twins = ListBatch(np.where(SHUFFLED.mask[..., None], features, 0.0), *SHUFFLED[1:])

    def score(features, mask):
        return 1.0 + linear(features, mask) + 1e-6 * by_position(features, mask)

    check_document_order(honest, score, [twins])


def test_labels_that_reach_the_ranking_are_caught():
    def metric(scores, labels, *, where):
        return honest(scores + labels, labels, where=where)

    with pytest.raises(CanaryError, match="a trained model against permuted labels .* chance"):
        check_permuted_labels(metric, linear, [SHUFFLED])


def test_a_metric_that_pays_for_large_scores_is_caught():
    def metric(scores, labels, *, where):
        values, defined = honest(scores, labels, where=where)
        return values + 0.2 * jnp.any(jnp.abs(scores) > 1.0, -1), defined

    with pytest.raises(CanaryError, match="pays for more than the order"):
        check_permuted_labels(metric, linear, [SHUFFLED])


def test_labels_in_the_features_are_not_for_this_canary():
    """They stay with their documents when labels are permuted, so the model is a random ranker."""
    leaky = ListBatch(np.repeat(SHUFFLED.labels[..., None], 3, -1), *SHUFFLED[1:])
    check_permuted_labels(honest, linear, [leaky])


def pairless(scores, labels, *, where):
    return jnp.mean(scores, -1)


def in_numpy(scores, labels, *, where):
    return np.asarray(scores).mean(-1), np.asarray(where).any(-1)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda scores, labels: 1.0, "calling it gave: .*unexpected keyword argument 'where'"),
        (in_numpy, "expected a jnp function .* calling it gave: .*[Tt]rac"),
        (pairless, "calling it gave"),
        (lambda s, y, *, where: (s, where), r"shape \[queries\] = \(40,\), .*shapes \(40, 8\)"),
        (lambda s, y, *, where: (s[:, 0], y[:, 0]), "`defined` of float32"),
        (lambda s, y, *, where: (1 / s[:, 0], where[:, 0]), "a value is not finite"),
        (lambda s, y, *, where: (s[:, 0], y[:, 0] > 99), "it is defined on no query"),
    ],
)
def test_what_is_no_metric_is_refused(metric, message):
    with pytest.raises(AutolossError, match=f"^metric: .*{message}"):
        check_call(metric, [SHUFFLED])


def test_a_metric_undefined_on_some_queries_is_called():
    check_call(honest, [SHUFFLED, SHUFFLED._replace(labels=np.zeros_like(SHUFFLED.labels))])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_queries_raise_no_false_alarm(count):
    for seed in range(20):
        batch = ListBatch(*(x[:count] for x in make_batch(False, seed)))
        check_constant_scores(honest, [batch])
        check_permuted_labels(honest, linear, [batch])


def test_queries_without_relevance_leave_nothing_to_judge():
    empty = SHUFFLED._replace(labels=np.zeros_like(SHUFFLED.labels))
    check_constant_scores(honest, [empty])
    check_permuted_labels(honest, linear, [empty])
