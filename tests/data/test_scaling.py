"""Feature scaling from training statistics."""

import numpy as np
import pytest

from autoloss_jax.data import Fold, Queries, fit_scaling, scale_fold
from autoloss_jax.errors import AutolossError


def one_query(features):
    features = np.array(features, float)
    return Queries(features, np.zeros(len(features)), [0, len(features)], ("q",))


def test_standardize_by_hand():
    train, test = one_query([[1, 7], [3, 7]]), one_query([[4, 9], [1000, 7]])
    scaling = fit_scaling(train)
    # Mean 2, standard deviation 1; the second feature is constant; 998 is clipped to 10.
    np.testing.assert_allclose(scaling.apply(train).features, [[-1, 0], [1, 0]])
    np.testing.assert_allclose(scaling.apply(test).features, [[2, 0], [10, 0]])
    assert scaling.apply(test).features.dtype == np.float32 and not scaling.log1p


def test_log1p_keeps_the_sign():
    train = one_query([[np.e - 1], [1 - np.e]])  # sign(x) log(1 + |x|) is 1 and -1
    scaling = fit_scaling(train, transform="log1p")
    assert scaling.log1p
    np.testing.assert_allclose(scaling.apply(train).features, [[1], [-1]], rtol=1e-6)


def test_none_changes_nothing():
    train = one_query([[1, 7], [3e30, 7]])
    assert fit_scaling(train, transform="none").apply(train) is train


def test_huge_tiny_and_constant_features_stay_finite():
    rng = np.random.default_rng(0)
    train = one_query(rng.normal(size=(50, 4)) * [3e38 / 5, 1e-38, 1, 0] + [0, 0, 0, 0.1])
    scaled = np.asarray(fit_scaling(train).apply(train).features)
    assert np.isfinite(scaled).all()
    np.testing.assert_allclose(scaled.std(axis=0), [1, 1, 1, 0], rtol=1e-5)


def test_a_fold_uses_its_training_statistics():
    fold = Fold("f", one_query([[0.0], [2.0]]), one_query([[3.0]]), one_query([[5.0]]))
    scaled = scale_fold(fold)
    assert scaled.validation.features[0] == 2 and scaled.test.features[0] == 4


def test_refusals():
    train = one_query([[1, 7], [3, 7]])
    with pytest.raises(AutolossError, match="features 'rank', expected one of standardize, log1p"):
        fit_scaling(train, transform="rank")
    with pytest.raises(AutolossError, match="no training documents"):
        fit_scaling(train.select([]))
    with pytest.raises(AutolossError, match="queries with 1 features, expected the 2 features"):
        fit_scaling(train).apply(one_query([[1]]))
