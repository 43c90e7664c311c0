"""The synthetic data set: shape, grades, reproducibility, and that it can be learned."""

import numpy as np
import pytest

from autoloss_jax import metrics
from autoloss_jax.data import bucket_queries, concatenate, synthetic
from autoloss_jax.data.synthetic import GRADE_SHARES
from autoloss_jax.errors import AutolossError


def test_sizes_grades_and_split():
    dataset = synthetic(num_queries=200, num_features=13, list_length=(5, 20))
    (fold,) = dataset.folds
    assert [len(part) for part in (fold.train, fold.validation, fold.test)] == [120, 40, 40]
    every = concatenate([fold.train, fold.validation, fold.test])
    assert len(set(every.query_ids)) == 200 and every.num_features == 13
    assert every.lengths.min() == 5 and every.lengths.max() <= 20
    shares = np.bincount(every.labels.astype(int)) / every.num_documents
    np.testing.assert_allclose(shares, GRADE_SHARES, atol=0.002)


def test_the_seed_decides_everything():
    first, again, other = (synthetic(num_queries=20, seed=seed).sha256 for seed in (1, 1, 2))
    assert first == again != other


def test_folds_rotate_so_that_every_query_is_tested_once():
    folds = synthetic(num_queries=50, folds=5).folds
    tested = [name for fold in folds for name in fold.test.query_ids]
    assert len(tested) == len(set(tested)) == 50
    for fold in folds:
        roles = [set(part.query_ids) for part in (fold.train, fold.validation, fold.test)]
        assert len(set.union(*roles)) == sum(map(len, roles)) == 50


def test_relevance_is_there_to_be_learned_and_is_not_linear():
    test = synthetic(num_queries=200).folds[0].test
    features, labels, mask = bucket_queries(test, max_buckets=1).batches[0]
    chance = metrics.random_ranker_ndcg(labels, where=mask, k=10)
    a, b, c, counts = (features[..., column] for column in range(4))
    d = np.sign(counts) * np.log1p(np.abs(counts))  # the inverse of the heavy tail
    linear = metrics.ndcg(a, labels, where=mask, k=10)  # the one useful direction
    nonlinear = metrics.ndcg(a / 2 + b * c + (1 + a) * np.exp(-(d**2)), labels, where=mask, k=10)
    assert 0.35 < chance < 0.5
    assert chance + 0.15 < linear < nonlinear - 0.04


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_queries": 9}, "num_queries is 9, expected at least 10"),
        ({"num_features": 5}, "num_features is 5, expected at least 6"),
        ({"list_length": (5, 4)}, r"list_length is \(5, 4\), expected"),
        ({"mean_length": 41}, r"mean_length is 41, expected within \(6, 40\)"),
        ({"label_noise": -1}, "label_noise is -1, expected 0 up to 100"),
        ({"query_shift": float("nan")}, "query_shift is nan"),
        ({"folds": 0}, "folds is 0, expected 1 to 600"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(AutolossError, match=message):
        synthetic(**arguments)
