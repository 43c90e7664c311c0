"""Intervals, tests, corrections and effect sizes, against arithmetic and simulation."""

import itertools

import numpy as np
import pytest

from autoloss_jax.statistics import (
    RESAMPLES,
    bootstrap_interval,
    bootstrap_intervals,
    effect_size,
    holm,
    randomisation_p_value,
)


def test_the_interval_is_the_normal_one_for_many_values():
    values = np.random.default_rng(0).normal(1.0, 2.0, 400)
    mean, low, high = bootstrap_interval(values)
    error = values.std() / 20  # sqrt(400)
    assert mean == values.mean()
    assert low == pytest.approx(mean - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.1 * error)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    samples = rng.exponential(1.0, (400, 40))
    intervals = [bootstrap_interval(row, seed) for seed, row in enumerate(samples[:60])]
    covered = sum(low <= 1.0 <= high for _, low, high in intervals)
    # 95 %, for skewed values and 40 of them about 92 %: 55 of 60, give or take 2.
    assert 48 <= covered <= 60


def test_rows_share_their_resamples():
    values = np.random.default_rng(2).normal(size=(3, 50))
    together = bootstrap_intervals(values, seed=4)
    for row, interval in zip(values, together, strict=True):
        np.testing.assert_allclose(bootstrap_interval(row, seed=4), interval, rtol=1e-12)
    shifted = bootstrap_intervals(np.stack([values[0], values[0] + 1.0]))
    np.testing.assert_allclose(np.array(shifted[0]) + 1.0, shifted[1], rtol=1e-12)


def test_values_that_are_equal_have_no_interval():
    assert bootstrap_interval(np.full(7, 0.25)) == (0.25, 0.25, 0.25)
    assert bootstrap_interval(np.array([0.5])) == (0.5, 0.5, 0.5)


def test_the_same_seed_gives_the_same_figures():
    values = np.random.default_rng(3).normal(0.1, 1.0, 60)
    assert bootstrap_interval(values, 5) == bootstrap_interval(values, 5)
    assert bootstrap_interval(values, 5) != bootstrap_interval(values, 6)
    assert randomisation_p_value(values, 5) == randomisation_p_value(values, 5)


def test_randomisation_equals_the_enumeration_of_all_signs():
    differences = np.array([0.3, -0.1, 0.4, 0.2, -0.05, 0.3, 0.1])
    signs = np.array(list(itertools.product([1, -1], repeat=7)))
    share = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12)
    error = np.sqrt(share * (1 - share) / RESAMPLES)
    assert randomisation_p_value(differences) == pytest.approx(share, abs=5 * error)


def test_p_values_are_uniform_where_nothing_differs():
    rng = np.random.default_rng(4)
    p_values = np.array([randomisation_p_value(row, s) for s, row in enumerate(
        rng.normal(size=(300, 20)))])  # fmt: skip
    for level in (0.05, 0.25, 0.5, 0.75):  # each share within 4 standard errors of its level
        error = np.sqrt(level * (1 - level) / len(p_values))
        assert np.mean(p_values <= level) == pytest.approx(level, abs=4 * error)


def test_p_values_are_small_where_something_differs_and_never_zero():
    differences = np.random.default_rng(5).normal(1.0, 1.0, 60)
    assert randomisation_p_value(differences) == 1 / (RESAMPLES + 1)
    assert randomisation_p_value(-differences) == randomisation_p_value(differences)
    assert randomisation_p_value(np.zeros(10)) == 1.0


def test_holm_by_hand():
    # Sorted: 0.01 * 4 = 0.04, 0.02 * 3 = 0.06, 0.03 * 2 = 0.06, 0.9 * 1 = 0.9.
    np.testing.assert_allclose(holm(np.array([0.03, 0.01, 0.9, 0.02])), [0.06, 0.04, 0.9, 0.06])
    # 0.04 * 3 = 0.12; then 0.05 * 2 = 0.1, kept from falling below 0.12; then 0.12 again.
    np.testing.assert_allclose(holm(np.array([0.04, 0.05, 0.06])), [0.12, 0.12, 0.12])
    np.testing.assert_allclose(holm(np.array([0.8, 0.7])), [1.0, 1.0])
    assert holm(np.array([])).size == 0


def test_effect_size_by_hand():
    # Mean 2, deviations -1, 0, 1: standard deviation sqrt(2 / 2) = 1.
    assert effect_size(np.array([1.0, 2.0, 3.0])) == 2.0
    assert effect_size(np.zeros(5)) == 0.0
    assert effect_size(np.full(10, 0.1)) == 0.0  # whose deviation is only rounding
    assert effect_size(np.array([0.7])) == 0.0
