"""LambdaMART as a reference: it learns, the same bits every time, and says what it cannot do."""

import dataclasses
import sys

import numpy as np
import pytest

from autoloss_jax import gbdt
from autoloss_jax.data import bucket_queries, synthetic
from autoloss_jax.errors import AutolossError
from autoloss_jax.evaluation import EvaluationQueries

pytest.importorskip("lightgbm")

METRIC = "ndcg@10"


@pytest.fixture(scope="module", autouse=True)
def small_grid():
    with pytest.MonkeyPatch.context() as patch:
        grid = {"learning_rate": (1e-9, 0.1), "num_leaves": (7,), "min_data_in_leaf": (10,)}
        patch.setattr(gbdt, "GRID", grid)
        patch.setattr(gbdt, "MAX_TREES", 60)
        patch.setattr(gbdt, "PATIENCE", 10)
        yield


@pytest.fixture(scope="module")
def fold():
    return synthetic(num_queries=90, num_features=6, list_length=(5, 12)).folds[0]


def laid_out(queries):
    return EvaluationQueries(bucket_queries(queries), 4.0)


def train(fold, seed=0, seeds=2):
    return gbdt.train_lambdamart(
        fold, laid_out(fold.validation), metric=METRIC, seed=seed, seeds=seeds
    )


@pytest.fixture(scope="module")
def trained(fold):
    return train(fold)


def chance(queries):
    """What a ranker without any preference gets."""
    constant = np.zeros(queries.num_documents, np.float32)
    return np.nanmean(laid_out(queries).measure(constant, (METRIC,))[METRIC])


def test_it_ranks_test_queries_better_than_chance(fold, trained):
    test = laid_out(fold.test)
    for scores in trained.scores:
        assert np.nanmean(test.measure(scores, (METRIC,))[METRIC]) > chance(fold.test) + 0.1


def test_validation_chooses_the_settings_and_the_number_of_trees(fold, trained):
    assert trained.settings == {"learning_rate": 0.1, "num_leaves": 7, "min_data_in_leaf": 10}
    assert all(1 <= trees <= 60 for trees in trained.trees)
    assert chance(fold.validation) < trained.validation <= 1


def test_the_order_of_tied_documents_does_not_stop_the_boosting(fold):
    """Documents sorted by label would give a model of no use a perfect metric, ties by order."""

    def by_label(queries):
        order = np.lexsort((-queries.labels, np.repeat(np.arange(len(queries)), queries.lengths)))
        return dataclasses.replace(
            queries, features=queries.features[order], labels=queries.labels[order]
        )

    sorted_fold = dataclasses.replace(fold, validation=by_label(fold.validation))
    given, expected = train(sorted_fold, seeds=1), train(fold, seeds=1)
    assert given.trees == expected.trees
    assert given.validation == pytest.approx(expected.validation, abs=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_model(fold, trained):
    again = train(fold)
    np.testing.assert_array_equal(again.scores, trained.scores)
    assert again[:3] == trained[:3]
    assert (trained.scores[0] != trained.scores[1]).any()
    np.testing.assert_array_equal(train(fold, seed=1, seeds=1).scores[0], trained.scores[1])


def test_labels_that_are_no_whole_numbers_are_refused(fold):
    labels = fold.train.labels.copy()
    labels[3] = 0.5
    odd = dataclasses.replace(fold, train=dataclasses.replace(fold.train, labels=labels))
    with pytest.raises(AutolossError, match="Fold1: lambdamart needs labels that are whole .* 0.5"):
        train(odd)


def test_what_lightgbm_refuses_is_said(fold, monkeypatch):
    monkeypatch.setitem(gbdt._FIXED, "bagging_fraction", 7.0)
    with pytest.raises(AutolossError, match="Fold1: LightGBM refuses the data: .*bagging_fraction"):
        train(fold)


def test_without_lightgbm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(AutolossError, match=r"lambdamart needs LightGBM.*autoloss_jax\[gbdt\]"):
        gbdt.import_lightgbm()
