"""Proxy runs: the reward of a candidate, and the rungs it has to pass."""

import dataclasses

import jax
import numpy as np
import pytest

from autoloss_jax.data import scale_fold, synthetic
from autoloss_jax.errors import AutolossError
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import LOSSES
from autoloss_jax.models import MLP, Linear
from autoloss_jax.proxy import ProxyConfig, ProxyTraining
from autoloss_jax.training import program_score_gradient

CONFIG = ProxyConfig(
    folds=2, queries_per_step=8, learning_rate=0.05, rung_steps=4, rungs=(1, 1), keep=0.5,
    max_buckets=1,
)  # fmt: skip
CAPACITY = 7
REFERENCE = LOSSES["softmax"]
CANDIDATES = [
    LOSSES["ranknet"],
    parse("sum_ij(softplus(s_i - s_j), where=y_i > y_j)"),  # the wrong way round
    LOSSES["mse"],
    LOSSES["listnet"],
    parse("sum_i(y_i * s_i)"),  # the wrong way round
    REFERENCE,
]


@pytest.fixture(scope="module")
def queries():
    data = synthetic(num_queries=60, num_features=6, list_length=(3, 8))
    return scale_fold(data.folds[0]).train


@pytest.fixture(scope="module")
def proxy(queries):
    return ProxyTraining(queries, Linear(), REFERENCE, CONFIG, CAPACITY, seed=0)


@pytest.fixture(scope="module")
def round_(proxy):
    return proxy.run(CANDIDATES, seed=3)


def same_outcomes(given, expected):
    for a, b in zip(given, expected, strict=True):
        assert a[:-1] == b[:-1]
        np.testing.assert_array_equal(a.differences, b.differences)


def test_the_same_call_gives_the_same_bits(proxy, round_):
    again = proxy.run(CANDIDATES, seed=3)
    same_outcomes(again.outcomes, round_.outcomes)
    jax.tree.map(np.testing.assert_array_equal, again.best, round_.best)
    assert proxy.run(CANDIDATES, seed=4).outcomes[0].reward != round_.outcomes[0].reward


def test_the_reference_earns_nothing_against_itself(proxy, round_):
    assert round_.outcomes[-1].reward == 0.0
    assert round_.outcomes[-1].reward_se == 0.0
    assert not round_.outcomes[-1].differences.any()
    alone = proxy.run([REFERENCE], seed=3)  # the only candidate passes every rung
    assert (alone.outcomes[0].reward, alone.outcomes[0].steps) == (0.0, proxy.full_steps)
    assert alone.outcomes[0].ndcg == alone.reference_ndcg == round_.reference_ndcg


def test_a_reward_is_a_paired_difference_over_the_queries(queries, round_):
    outcome = round_.outcomes[0]
    assert outcome.reward == pytest.approx(outcome.differences.mean())
    assert len(outcome.differences) == queries.has_relevant().sum()  # each rewards once
    deviation = np.sqrt(np.sum((outcome.differences - outcome.reward) ** 2)
                        / (len(outcome.differences) - 1))  # fmt: skip
    expected = deviation / np.sqrt(len(outcome.differences))
    assert outcome.reward_se == pytest.approx(expected)
    if outcome.steps == 8:
        assert outcome.ndcg - round_.reference_ndcg == pytest.approx(outcome.reward)


def test_a_loss_the_wrong_way_round_is_punished(round_):
    wrong = [round_.outcomes[k].reward for k in (1, 4)]
    right = [round_.outcomes[k].reward for k in (0, 2, 3, 5)]
    assert max(wrong) < -0.02 < min(right)


def test_the_better_share_passes_the_rung(proxy, round_):
    steps = [outcome.steps for outcome in round_.outcomes]
    assert sorted(steps) == [4, 4, 4, 8, 8, 8]  # half of six
    assert proxy.full_steps == 8
    everyone = proxy.run(CANDIDATES, seed=3, halving=False)
    assert [outcome.steps for outcome in everyone.outcomes] == [8] * 6
    for one, other in zip(round_.outcomes, everyone.outcomes, strict=True):
        if one.steps == 8:  # neither its slot nor who trained beside it changed a bit
            np.testing.assert_array_equal(one.differences, other.differences)
    assert max(steps[1], steps[4]) == 4


def test_survivors_are_the_best_and_never_nan(proxy):
    means = {0: 0.1, 1: np.nan, 2: 0.5, 3: 0.7, 4: 0.5, 5: np.nan}
    assert proxy._survivors(means) == [0, 3, 2, 4]  # half of five, rounded up
    assert proxy._survivors({0: 0.1, 1: np.nan}) == [0]
    assert proxy._survivors({0: 0.1}) == [0]


def test_runs_spread_over_the_devices(proxy):
    devices, slots = proxy.trainer.mesh.size, proxy.trainer.slots
    assert devices == 2
    at = [proxy.trainer.slot(place) for place in range(slots)]
    assert sorted(at) == list(range(slots))
    on_device = [slot // (slots // devices) for slot in at]
    assert on_device == [0, 1] * (slots // 2)  # so any first few are on both


def test_the_order_of_candidates_changes_no_outcome(proxy, round_):
    order = [3, 0, 5, 2, 4, 1]
    other = proxy.run([CANDIDATES[k] for k in order], seed=3)
    same_outcomes(other.outcomes, [round_.outcomes[k] for k in order])
    jax.tree.map(np.testing.assert_array_equal, other.best, round_.best)


def test_a_candidate_alone_earns_what_it_earns_in_company(proxy):
    together = proxy.run(CANDIDATES, seed=5, halving=False)
    alone = proxy.run(CANDIDATES[2:3], seed=5, halving=False)
    same_outcomes(alone.outcomes, together.outcomes[2:3])
    assert proxy.run([], seed=5).outcomes == []


def test_models_go_on_from_where_they_are(proxy, round_):
    start = round_.best
    programs = proxy.trainer._train._cache_size()  # those of equal trainings elsewhere included
    assert jax.tree.leaves(start.params)[0].shape[:2] == (CONFIG.folds, 1)
    on = proxy.run(CANDIDATES, seed=6, start=start)
    again = proxy.run(CANDIDATES, seed=6, start=start)  # the start is not used up
    same_outcomes(again.outcomes, on.outcomes)
    fresh = proxy.run(CANDIDATES, seed=6)
    assert on.reference_ndcg != fresh.reference_ndcg
    assert int(on.reference.optimizer.count[0, 0]) == 2 * proxy.full_steps
    # Not one of all these calls compiled again; jax may have dropped a cached program.
    assert proxy.trainer._train._cache_size() <= max(programs, 1)


def test_the_best_model_is_that_of_the_best_reward(proxy, round_):
    best = max(o.reward for o in round_.outcomes if o.steps == 8)
    assert best > 0  # else the reference is the best
    k = [o.reward for o in round_.outcomes].index(best)
    alone = proxy.run([CANDIDATES[k]], seed=3)
    jax.tree.map(np.testing.assert_array_equal, alone.best, round_.best)
    worse = proxy.run([CANDIDATES[1]], seed=3)
    jax.tree.map(np.testing.assert_array_equal, worse.best, worse.reference)


def test_a_failed_candidate_is_worst_and_disturbs_nobody(proxy, round_, monkeypatch):
    rates = proxy._rates()
    rates[proxy.trainer.slot(1)] = 1e38  # that of the first candidate
    monkeypatch.setattr(proxy, "_rates", lambda: rates)
    outcomes = proxy.run(CANDIDATES, seed=3).outcomes
    assert (outcomes[0].reward, outcomes[0].reward_se) == (-np.inf, np.inf)
    assert np.isnan(outcomes[0].ndcg)
    assert outcomes[0].steps == 4  # it does not pass the rung


def test_a_reference_that_fails_is_said(proxy, monkeypatch):
    monkeypatch.setattr(proxy, "learning_rate", 1e38)
    with pytest.raises(AutolossError, match="under the reference .* non-finite .* got 1e\\+38"):
        proxy.run(CANDIDATES, seed=3)


def test_a_linear_model_learns_faster_by_default(queries):
    config = dataclasses.replace(CONFIG, learning_rate=0.0)
    for model, rate in ((Linear(), 0.1), (MLP(), 0.01)):
        assert ProxyTraining(queries, model, REFERENCE, config, 1, seed=0).learning_rate == rate


def test_proxy_runs_train_with_pairs_truncated_as_configured(queries, proxy):
    config = dataclasses.replace(CONFIG, truncation_level=3)
    truncated = ProxyTraining(queries, Linear(), REFERENCE, config, CAPACITY, seed=0)
    assert truncated.training.score_gradient is program_score_gradient(3)
    assert proxy.training.score_gradient is program_score_gradient(0)


def test_more_candidates_than_the_capacity_are_refused(proxy):
    with pytest.raises(AutolossError, match="8 candidates, expected at most the capacity of 7"):
        proxy.run([LOSSES["mse"]] * 8, seed=0)


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"folds": 1}, "folds is 1, expected at least 2"),
        ({"rung_steps": 0}, "rung_steps is 0, expected at least 1"),
        ({"queries_per_step": 0}, "queries_per_step is 0"),
        ({"metric_cutoff": 0}, "metric_cutoff is 0"),
        ({"max_buckets": -1}, "max_buckets is -1, expected at least 0"),
        ({"truncation_level": -1}, "truncation_level is -1, expected at least 0"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1, expected a positive number, or 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"keep": 0.0}, "keep is 0.0, expected above 0"),
        ({"keep": 1.5}, "keep is 1.5"),
        ({"rungs": ()}, r"rungs is \(\), expected one or more"),
        ({"rungs": (1, 0)}, r"rungs is \(1, 0\)"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(AutolossError, match=message):
        dataclasses.replace(CONFIG, **setting).check()
