"""The controller: likelihoods, estimators, the queue and what an update does."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autoloss_jax import controller
from autoloss_jax.controller import ESTIMATORS, ControllerConfig
from autoloss_jax.errors import AutolossError
from autoloss_jax.language.grammar import START, TABLES, VOCABULARY, Level, to_tokens
from autoloss_jax.language.parsing import parse

MAX_TOKENS = 12
CONFIG = ControllerConfig(hidden=8, embedding=4, queue_size=3, learning_rate=0.01, updates=2)
GOOD = "mean_i(s_i * y_i)"
BAD = "sum_ij(s_j - s_i, where=y_i > y_j)"


def tokens_of(*formulas: str, max_tokens: int = MAX_TOKENS) -> np.ndarray:
    rows = np.full((len(formulas), max_tokens), START, np.int32)
    for row, formula in zip(rows, formulas, strict=True):
        tokens = to_tokens(parse(formula))
        row[: len(tokens)] = tokens
    return rows


def config(**settings) -> ControllerConfig:
    return dataclasses.replace(CONFIG, **settings)


def trained(settings: ControllerConfig = CONFIG, rounds: int = 3) -> controller.ControllerState:
    """A state whose network is not the prior any more."""
    state = controller.init(0, max_tokens=MAX_TOKENS, config=settings)
    for _ in range(rounds):
        state, tokens = controller.propose(state, 16, config=settings)
        rewards = np.sum(tokens != START, axis=1).astype(float)
        state, _ = controller.observe(state, tokens, rewards, config=settings)
    return state


def log_probabilities(state: controller.ControllerState, tokens: np.ndarray) -> np.ndarray:
    seen = controller.likelihood(state.params, tokens, config=CONFIG)
    return np.asarray(seen.log_probability.sum(-1), np.float64)


def test_untrained_controller_is_the_prior():
    state = controller.init(3, max_tokens=MAX_TOKENS, config=CONFIG)
    seen = controller.likelihood(state.params, tokens_of(GOOD), config=CONFIG)
    # A loss begins with whatever is legal for a query, but for a lone leaf, which is useless.
    legal = TABLES.legal[Level.QUERY] & (TABLES.arity > 0)
    prior = np.where(legal, np.exp(TABLES.log_prior[Level.QUERY].astype(np.float64)), 0.0)
    prior /= prior.sum()
    first = tokens_of(GOOD)[0, 0]
    assert seen.log_probability[0, 0] == pytest.approx(math.log(prior[first]), rel=1e-5)
    entropy = -sum(p * math.log(p) for p in prior[legal])
    assert seen.entropy[0, 0] == pytest.approx(entropy, rel=1e-5)
    # mean_i, mul, s_i, y_i: four choices, and nothing after the end.
    assert np.all(seen.log_probability[0, :4] < 0.0)
    assert np.all(seen.log_probability[0, 4:] == 0.0)
    assert np.all(seen.entropy[0, 4:] == 0.0)


def test_teacher_forcing_gives_the_probabilities_of_sampling():
    state = trained()
    drawn = controller.sample(
        state.params, jax.random.key(1), count=64, max_tokens=MAX_TOKENS, config=CONFIG
    )
    np.testing.assert_allclose(
        log_probabilities(state, drawn.tokens), drawn.log_probability, rtol=1e-4, atol=1e-5
    )


def test_probabilities_of_the_shortest_losses_are_those_of_their_frequencies():
    state = trained()
    drawn = controller.sample(
        state.params, jax.random.key(2), count=4096, max_tokens=4, config=CONFIG
    )
    losses, counts = np.unique(drawn.tokens, axis=0, return_counts=True)
    probabilities = np.exp(log_probabilities(state, losses))
    assert probabilities.sum() <= 1.0 + 1e-4
    often = counts >= 40
    # Five standard errors of a share p among 4096 draws.
    error = 5.0 * np.sqrt(probabilities[often] * (1.0 - probabilities[often]) / 4096)
    assert often.sum() >= 5
    assert np.all(np.abs(counts[often] / 4096 - probabilities[often]) < error)


def test_gradient_is_finite_at_the_limits_of_length_and_stages():
    full = "sum_ij(s_i - s_j) + (sum_ij(s_j - s_i) + max_i(s_i))"  # every stage, then no more
    tokens = tokens_of(full, full, max_tokens=8)
    state = controller.init(0, max_tokens=8, config=CONFIG)

    def total(params):
        seen = controller.likelihood(params, tokens, config=CONFIG)
        return jnp.sum(seen.log_probability) + jnp.sum(seen.entropy)

    value, gradient = jax.value_and_grad(total)(state.params)
    assert math.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    assert any(np.any(leaf != 0.0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_rewarded_of_two_losses_becomes_more_likely(estimator):
    settings = config(estimator=estimator, elite=0.5, entropy_weight=0.0)
    state = controller.init(0, max_tokens=MAX_TOKENS, config=settings)
    tokens = tokens_of(GOOD, BAD)
    before = log_probabilities(state, tokens)
    after_state, metrics = controller.observe(state, tokens, np.array([1.0, 0.0]), config=settings)
    change = log_probabilities(after_state, tokens) - before
    assert change[0] > 0.0
    assert change[0] > change[1]
    assert metrics["gradient_norm"] > 0.0
    if estimator == "reinforce":
        assert change[1] < 0.0


def test_reinforce_learns_which_of_two_losses_pays():
    settings = config(estimator="reinforce", entropy_weight=0.0)
    state = controller.init(0, max_tokens=MAX_TOKENS, config=settings)
    tokens = tokens_of(GOOD, BAD)
    for _ in range(20):
        state, _ = controller.observe(state, tokens, np.array([0.2, 0.7]), config=settings)
    good, bad = log_probabilities(state, tokens)
    start_good, start_bad = log_probabilities(
        controller.init(0, max_tokens=MAX_TOKENS, config=settings), tokens
    )
    assert bad > start_bad
    assert good < start_good


def test_entropy_bonus_keeps_choices_open():
    tokens = tokens_of(GOOD, GOOD)
    equal = np.array([0.5, 0.5])
    state = controller.init(0, max_tokens=MAX_TOKENS, config=CONFIG)
    entropies = []
    for weight in (0.0, 1.0):
        settings = config(estimator="reinforce", entropy_weight=weight)
        new, _ = controller.observe(state, tokens, equal, config=settings)
        seen = controller.likelihood(new.params, tokens, config=CONFIG)
        entropies.append(float(seen.entropy[0].sum()))
    assert entropies[1] > entropies[0]


def test_entropy_is_discounted_along_the_loss():
    settings = config(entropy_decay=0.5, entropy_weight=1.0, estimator="reinforce")
    state = controller.init(0, max_tokens=MAX_TOKENS, config=settings)
    tokens = tokens_of(GOOD, BAD)
    seen = controller.likelihood(state.params, tokens, config=settings)
    _, metrics = controller.observe(state, tokens, np.array([1.0, 1.0]), config=settings)
    of_each = [sum(0.5**t * float(h) for t, h in enumerate(row)) for row in seen.entropy]
    assert metrics["entropy"] == pytest.approx((of_each[0] + of_each[1]) / 2.0, rel=1e-5)
    assert metrics["loss"] == pytest.approx(-metrics["entropy"], rel=1e-5)  # no advantage


def test_failures_rank_below_the_worst_by_a_margin():
    standard, mean, deviation = controller.standardise(np.array([1.0, -np.inf, 3.0, np.nan]))
    # The finite ones have deviation 1, so failures count as 1 - 1 = 0.
    filled = np.array([1.0, 0.0, 3.0, 0.0])
    assert mean == pytest.approx(1.0)
    assert deviation == pytest.approx(math.sqrt((0.0 + 1.0 + 4.0 + 1.0) / 4.0))
    np.testing.assert_allclose(standard, (filled - mean) / deviation)


def test_failures_rank_below_equal_rewards():
    standard, _, _ = controller.standardise(np.array([0.3, -np.inf, 0.3]))
    assert standard[0] == standard[2] > 0.0 > standard[1]


@pytest.mark.parametrize("value", [0.0, 0.1, -7.0, 1e30])
def test_equal_rewards_teach_nothing(value):
    standard, mean, deviation = controller.standardise(np.full(7, value))
    assert np.all(standard == 0.0)
    assert mean == pytest.approx(value)
    assert deviation == 1.0


def test_weights_of_reinforce():
    weights = ESTIMATORS["reinforce"].advantages(np.array([1.0, -1.0]), 0.5, CONFIG)
    np.testing.assert_allclose(weights, [(1.0 - 0.5) / 2, (-1.0 - 0.5) / 2])
    extreme = ESTIMATORS["reinforce"].advantages(np.array([1.0, -1.0]), 1e9, CONFIG)
    np.testing.assert_allclose(extreme, [-5.0 / 2, -5.0 / 2])


def test_weights_of_risk_seeking():
    rewards = np.array([0.0, 4.0, 1.0, 3.0, 2.0])
    weights = ESTIMATORS["risk_seeking"].advantages(rewards, 9.9, config(elite=0.5))
    # The median is 2; half of five losses are 2.5.
    np.testing.assert_allclose(weights, [0.0, 2.0 / 2.5, 0.0, 1.0 / 2.5, 0.0])


def test_baseline_follows_the_mean_reward():
    settings = config(baseline_decay=0.75)
    state = controller.init(0, max_tokens=MAX_TOKENS, config=settings)
    tokens = tokens_of(GOOD, BAD)
    state, _ = controller.observe(state, tokens, np.array([1.0, 3.0]), config=settings)
    assert state.baseline == pytest.approx(2.0)
    state, _ = controller.observe(state, tokens, np.array([5.0, 7.0]), config=settings)
    assert state.baseline == pytest.approx(0.75 * 2.0 + 0.25 * 6.0)


def test_the_queue_holds_the_best_distinct_losses_with_their_latest_rewards():
    state = controller.init(0, max_tokens=MAX_TOKENS, config=CONFIG)
    a, b, c, d = "sum_i(s_i)", GOOD, BAD, "sum_i(y_i - s_i)"
    queue, rewards = controller.merge_queue(
        state, tokens_of(a, b, a, c), np.array([1.0, 2.0, 1.0, -np.inf])
    )
    np.testing.assert_array_equal(rewards, [2.0, 1.0, -np.inf])
    np.testing.assert_array_equal(queue[:2], tokens_of(b, a))
    assert np.all(queue[2] == START)
    state = state._replace(queue_tokens=queue, queue_rewards=rewards)
    queue, rewards = controller.merge_queue(
        state, tokens_of(b, c, d, "max_i(s_i)"), np.array([0.5, 3.0, 0.7, np.nan])
    )
    np.testing.assert_array_equal(rewards, [3.0, 1.0, 0.7])
    np.testing.assert_array_equal(queue, tokens_of(c, a, d))


def test_of_losses_with_one_reward_the_queue_holds_the_shortest():
    state = controller.init(0, max_tokens=MAX_TOKENS, config=CONFIG)
    queue, rewards = controller.merge_queue(
        state, tokens_of("sum_i(s_i * 1)", "sum_i(s_i)", GOOD), np.array([0.5, 0.5, 0.4])
    )
    np.testing.assert_array_equal(rewards, [0.5, 0.4, -np.inf])
    np.testing.assert_array_equal(queue[:2], tokens_of("sum_i(s_i)", GOOD))


def test_nothing_is_learned_when_all_failed():
    state = trained()
    new, metrics = controller.observe(
        state, tokens_of(GOOD, BAD), np.array([-np.inf, np.nan]), config=CONFIG
    )
    assert new is state
    assert metrics == {}


@pytest.mark.parametrize("reward", [1e30, -1e30, 1e-30])
def test_extreme_rewards_leave_the_parameters_finite(reward):
    state, metrics = controller.observe(
        trained(), tokens_of(GOOD, BAD), np.array([reward, 0.0]), config=CONFIG
    )
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))
    assert all(map(math.isfinite, metrics.values()))


def test_no_call_after_the_first_compiles():
    trained()
    sizes = [f._cache_size() for f in (controller.sample, controller._update)]
    trained(rounds=2)
    later = [f._cache_size() for f in (controller.sample, controller._update)]
    assert all(new <= old for new, old in zip(later, sizes, strict=True))


def test_one_more_token_in_the_vocabulary_than_the_embedding_expects_would_be_noticed():
    params = controller.init(0, max_tokens=MAX_TOKENS, config=CONFIG).params["params"]
    assert params["parent"]["embedding"].shape == (START + 1, 4) == (len(VOCABULARY) + 1, 4)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"estimator": "best"}, "unknown estimator 'best', expected one of reinforce, risk_se"),
        ({"hidden": 0}, "hidden: expected at least 1, got 0"),
        ({"elite": 1.5}, "elite: expected from 0.0 to 1.0, got 1.5"),
        ({"learning_rate": float("nan")}, "learning_rate: expected at least 0.0, got nan"),
        ({"entropy_weight": float("inf")}, "entropy_weight: expected at least 0.0, got inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(AutolossError, match=message):
        ControllerConfig(**settings)
