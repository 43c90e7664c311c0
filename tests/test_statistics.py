"""Intervals, tests, corrections and effect sizes, against arithmetic and simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from autoloss_jax.statistics import (
    RESAMPLES,
    TIE_TOLERANCE,
    bootstrap_interval,
    bootstrap_intervals,
    effect_sizes,
    holm,
    randomisation_p_value,
    t_test_p_value,
    win_tie_loss,
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


def effect_size(differences):
    return effect_sizes(np.array([differences]))[0]


def test_effect_size_by_hand():
    # Mean 2, deviations -1, 0, 1: standard deviation sqrt(2 / 2) = 1.
    assert effect_size([1.0, 2.0, 3.0]).mean == pytest.approx(2.0)
    assert effect_size(np.zeros(5)) == (0.0, 0.0, 0.0)
    assert effect_size(np.full(10, 0.1)) == (0.0, 0.0, 0.0)  # whose deviation is only rounding
    assert effect_size([0.7]) == (0.0, 0.0, 0.0)


def test_the_interval_of_an_effect_size_is_the_normal_one_for_many_values():
    values = np.random.default_rng(7).normal(0.5, 1.0, 400)
    mean, low, high = effect_size(values)
    assert mean == pytest.approx(values.mean() / values.std(ddof=1))
    error = np.sqrt((1 + mean**2 / 2) / 400)  # of Cohen's d of one sample
    assert low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)


def test_effect_sizes_do_not_depend_on_scale_or_neighbours():
    rows = np.random.default_rng(8).normal(0.2, 1.0, (3, 60))
    together = effect_sizes(np.stack([rows[0], 7 * rows[0], rows[1]]), seed=3)
    np.testing.assert_allclose(together[0], together[1], rtol=1e-9)
    np.testing.assert_allclose(effect_sizes(rows[1:2], seed=3)[0], together[2], rtol=1e-9)


def test_the_t_test_by_hand_and_as_scipy_pairs_two_rankers():
    # Mean 2, standard deviation 1, three queries: t = 2 * sqrt(3); of 2 degrees of freedom, whose
    # distribution function is 1 / 2 + t / (2 * sqrt(2 + t**2)).
    t = 2 * np.sqrt(3)
    expected = 2 * (1 / 2 - t / (2 * np.sqrt(2 + t**2)))
    assert t_test_p_value(np.array([1.0, 2.0, 3.0])) == pytest.approx(expected)
    a, b = np.random.default_rng(6).uniform(size=(2, 50))
    assert t_test_p_value(a - b) == pytest.approx(stats.ttest_rel(a, b).pvalue)


@pytest.mark.parametrize("differences", [[0.0, 0.0, 0.0], [0.1, 0.1, 0.1], [0.3]])
def test_the_t_test_is_1_where_it_is_undefined(differences):
    assert t_test_p_value(np.array(differences)) == 1.0


def test_wins_ties_and_losses():
    differences = np.array([0.2, 0.0, -0.1, TIE_TOLERANCE, -TIE_TOLERANCE, 3 * TIE_TOLERANCE])
    assert win_tie_loss(differences) == (2, 3, 1)
    assert win_tie_loss(-differences) == (1, 3, 2)
