"""What every proposer promises, what evolution does, and that both learners beat random search."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from autoloss_jax.controller import ControllerConfig
from autoloss_jax.errors import AutolossError
from autoloss_jax.evolution import EvolutionConfig
from autoloss_jax.execution.batched import losses_and_gradients
from autoloss_jax.execution.programs import encode
from autoloss_jax.language import grammar
from autoloss_jax.language.grammar import START, TABLES, VOCABULARY, from_tokens, to_tokens
from autoloss_jax.language.mutations import are_complete
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import HAND_DESIGNED
from autoloss_jax.proposers import (
    PROPOSERS,
    Proposer,
    make_proposer,
)
from autoloss_jax.runs import RunFolder

COUNT = 16
SMALL = {
    "random": {},
    "evolution": {"population": 24, "tournament": 4},
    "controller": {"hidden": 8, "embedding": 4, "learning_rate": 0.03},
    "hybrid": {
        "controller": ControllerConfig(hidden=8, embedding=4, learning_rate=0.03),
        "evolution": EvolutionConfig(population=24, tournament=4),
    },
}


def small(name: str, max_tokens: int = 16) -> Proposer:
    return make_proposer(name, max_tokens=max_tokens, **SMALL[name])


def row(formula: str, max_tokens: int = 16) -> np.ndarray:
    tokens = to_tokens(parse(formula))
    return np.array(tokens + [START] * (max_tokens - len(tokens)), np.int32)


def rewards_of(tokens: np.ndarray) -> np.ndarray:
    """Something to learn that also fails and is not a number at times: long losses are good."""
    rewards = np.sum(tokens != START, axis=1) + 0.01 * tokens[:, 1]
    rewards[tokens[:, 2] % 5 == 0] = -np.inf
    rewards[tokens[:, 2] % 7 == 0] = np.nan
    return rewards


def play(proposer: Proposer, state, rounds: int) -> tuple[object, list[np.ndarray]]:
    proposed = []
    for _ in range(rounds):
        state, tokens = proposer.propose(state, COUNT)
        proposed.append(tokens)
        state, _ = proposer.observe(state, tokens, rewards_of(tokens))
    return state, proposed


@pytest.mark.parametrize("max_tokens", [4, 16])
@pytest.mark.parametrize("name", PROPOSERS)
def test_every_proposal_is_a_loss_that_can_be_trained(name, max_tokens):
    proposer = small(name, max_tokens)
    _, proposed = play(proposer, proposer.init(1), 6)
    tokens = np.concatenate(proposed)
    assert tokens.shape == (6 * COUNT, max_tokens)
    assert tokens.dtype == np.int32
    assert np.all(are_complete(tokens))
    losses = [from_tokens(t) for t in tokens]
    assert all(not loss.indices for loss in losses)
    for loss, given_ in zip(losses, tokens, strict=True):
        assert to_tokens(loss) == given_[given_ != START].tolist()
    assert encode(losses).count == len(losses)


@pytest.mark.parametrize("name", PROPOSERS)
def test_the_same_seed_proposes_the_same(name):
    proposals = []
    for seed in (7, 7, 8):
        proposer = small(name)
        proposals.append(np.concatenate(play(proposer, proposer.init(seed), 5)[1]))
    np.testing.assert_array_equal(proposals[0], proposals[1])
    assert not np.array_equal(proposals[0], proposals[2])


@pytest.mark.parametrize("name", PROPOSERS)
def test_before_the_first_reward_every_proposer_is_random_search(name):
    proposer = small(name)
    _, tokens = proposer.propose(proposer.init(7), 200)
    np.testing.assert_array_equal(tokens, grammar.sample_batch(7, 0, 200, 16))


@pytest.mark.parametrize("name", PROPOSERS)
def test_batches_of_one_state_differ_and_calls_change_nothing_in_it(name):
    proposer = small(name)
    state = proposer.init(0)
    later, first = proposer.propose(state, COUNT)
    np.testing.assert_array_equal(proposer.propose(state, COUNT)[1], first)
    assert not np.array_equal(proposer.propose(later, COUNT)[1], first)


@pytest.mark.parametrize("name", PROPOSERS)
def test_a_state_from_a_file_goes_on_as_if_nothing_had_happened(name, tmp_path):
    proposer = small(name)
    state, _ = play(proposer, proposer.init(3), 4)
    straight_on = play(proposer, state, 3)[1]
    template = proposer.init(0)
    from_bytes = serialization.from_bytes(template, serialization.to_bytes(state))
    with RunFolder.open(tmp_path / "run", {}) as run:
        run.checkpoints("search").save(0, state)
        _, from_run = run.checkpoints("search").latest(template)
    for restored in (from_bytes, from_run):
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        np.testing.assert_array_equal(play(proposer, restored, 3)[1], straight_on)


@pytest.mark.parametrize("name", PROPOSERS)
def test_all_kinds_of_failure_are_one(name):
    continued = []
    for failure in (-np.inf, np.nan, np.inf):
        proposer = small(name)
        state, tokens = proposer.propose(proposer.init(0), COUNT)
        rewards = np.where(np.arange(COUNT) % 3 == 0, failure, np.arange(COUNT) / COUNT)
        state, metrics = proposer.observe(state, tokens, rewards)
        assert metrics["failed"] == pytest.approx(6 / 16)
        assert metrics["reward_max"] == 14 / 16
        assert all(np.isfinite(value) for value in metrics.values())
        continued.append(play(proposer, state, 3)[1])
    np.testing.assert_array_equal(continued[0], continued[1])
    np.testing.assert_array_equal(continued[0], continued[2])


@pytest.mark.parametrize("name", PROPOSERS)
def test_a_batch_of_failures_is_survived(name):
    proposer = small(name)
    state = proposer.init(0)
    for _ in range(4):
        state, tokens = proposer.propose(state, COUNT)
        state, metrics = proposer.observe(state, tokens, np.full(COUNT, -np.inf))
        assert metrics["failed"] == 1.0
        assert all(np.isfinite(value) for value in metrics.values())
    assert np.all(are_complete(play(proposer, state, 2)[1][-1]))


@partial(jax.jit, static_argnames="max_tokens")
def replay(preferences, max_tokens):
    """Writes losses by preferences f32[count, steps, tokens]; whether a token was always legal."""

    def write(state, preference):
        legal = grammar.legal_tokens(state)
        token = jnp.argmax(jnp.where(legal, preference, -jnp.inf))
        return grammar.advance(state, token), jnp.any(legal) | (state.open == 0)

    def one(preferences):
        state, any_legal = jax.lax.scan(write, grammar.start(max_tokens), preferences)
        return jnp.all(any_legal) & (state.open == 0)

    return jax.vmap(one)(preferences)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 5, 24]), st.sampled_from([-3.0, 0.0, 3.0]))
def test_some_token_is_legal_wherever_one_is_missing(seed, max_tokens, greed):
    # Greed for arguments drives losses to the limits of length and stages.
    preferences = np.random.default_rng(seed).normal(size=(64, max_tokens, len(VOCABULARY)))
    assert np.all(replay((preferences + greed * TABLES.arity).astype(np.float32), max_tokens))


@pytest.mark.parametrize(
    "name, settings_, message",
    [
        ("bayes", {}, "unknown proposer 'bayes', expected one of random, evolution, control"),
        ("evolution", {"size": 3}, "unknown proposer setting 'size', expected one of population,"),
        ("evolution", {"population": 0}, "population: expected at least 1, got 0"),
        ("evolution", {"crossover": 2.0}, "crossover: expected from 0 to 1, got 2.0"),
        ("hybrid", {"bred": 1.5}, "bred: expected from 0 to 1, got 1.5"),
        ("random", {"max_tokens": 3}, "expected max_tokens of at least 4, got 3"),
        ("random", {"hidden": 3}, "unknown proposer setting 'hidden', expected none"),
    ],
)
def test_what_cannot_be_made_is_refused(name, settings_, message):
    with pytest.raises(AutolossError, match=message):
        make_proposer(name, **settings_)


@pytest.mark.parametrize("name", PROPOSERS)
def test_bad_calls_are_refused(name):
    proposer = small(name)
    state, tokens = proposer.propose(proposer.init(0), 2)
    with pytest.raises(AutolossError, match="a seed from 0 to .* got -1"):
        proposer.init(-1)
    with pytest.raises(AutolossError, match="at least 1 loss, got 0"):
        proposer.propose(state, 0)
    with pytest.raises(AutolossError, match=r"tokens \[count, 16\] .* got \(2, 16\) and \(3,\)"):
        proposer.observe(state, tokens, np.zeros(3))
    with pytest.raises(AutolossError, match=r"got \(2, 15\) and \(2,\)"):
        proposer.observe(state, tokens[:, :15], np.zeros(2))
    tokens = np.stack([tokens[0], np.zeros(16, np.int32)])
    with pytest.raises(AutolossError, match="row 1 of the observed tokens is not a complete loss"):
        proposer.observe(state, tokens, np.zeros(2))


def test_who_failed_is_never_in_the_population():
    proposer = small("evolution")
    state, _ = play(proposer, proposer.init(0), 8)
    assert np.all(state.births > 0)
    assert np.all(np.isfinite(state.rewards))
    np.testing.assert_array_equal(state.rewards, rewards_of(state.tokens))


def test_the_oldest_die_first():
    proposer = make_proposer("evolution", max_tokens=16, population=3)
    tokens = np.stack([row(f"{op}_i(s_i * y_i)") for op in ("sum", "mean", "max", "logsumexp")])
    state, _ = proposer.observe(proposer.init(0), tokens, np.array([9.0, 2.0, -np.inf, 1.0]))
    assert sorted(state.rewards) == [1.0, 2.0, 9.0]
    state, metrics = proposer.observe(state, tokens[:1], np.array([0.5]))
    # The best is also the oldest.
    assert sorted(state.rewards) == [0.5, 1.0, 2.0]
    assert metrics["living"] == 3.0
    assert metrics["living_mean"] == pytest.approx((0.5 + 1.0 + 2.0) / 3)
    state, _ = proposer.observe(state, np.repeat(tokens, 2, 0), np.arange(8.0))
    assert sorted(state.rewards) == [5.0, 6.0, 7.0]


def test_children_are_new():
    proposer = small("evolution")
    state, _ = play(proposer, proposer.init(0), 8)
    _, children = proposer.propose(state, COUNT)
    assert len(np.unique(children, axis=0)) == COUNT
    assert not {c.tobytes() for c in children} & {t.tobytes() for t in state.tokens}


def test_children_come_from_the_best():
    proposer = make_proposer("evolution", max_tokens=24, population=2, tournament=50, fresh=0.0)
    best = row("sum_ij(tanh(tanh(tanh(tanh(tanh(s_i - s_j))))), where=y_i != y_j)", 24)
    other = row("max_i(s_i * y_i)", 24)
    state, _ = proposer.observe(proposer.init(0), np.stack([best, other]), np.array([1.0, 0.0]))
    _, children = proposer.propose(state, COUNT)
    tanh = to_tokens(parse("max_i(tanh(s_i))"))[1]
    assert np.mean(np.any(children == tanh, axis=1)) > 0.7


# A search without noise: how close a loss's gradient comes, in direction, to that of a known loss.
QUERIES, LIST, BATCH = 8, 8, 64
_gradients = jax.jit(losses_and_gradients)


def directions(losses) -> np.ndarray:
    rng = np.random.default_rng(0)
    labels = rng.choice(5, p=[0.5, 0.2, 0.15, 0.1, 0.05], size=(QUERIES, LIST)).astype(np.float32)
    labels[:, 0] = 3.0
    scores = rng.normal(size=(QUERIES, LIST)).astype(np.float32)
    scores = np.broadcast_to(scores, (len(losses), QUERIES, LIST))
    gradients = _gradients(encode(losses), scores, labels, np.ones((QUERIES, LIST), bool))[1]
    gradients = np.asarray(gradients, np.float64)
    size = np.linalg.norm(gradients, axis=-1, keepdims=True)
    return np.where(size > 1e-12, gradients / np.maximum(size, 1e-12), 0.0)


def best_cosine(name: str, seed: int, target: np.ndarray, budget: int) -> float:
    proposer = make_proposer(name)
    state, best = proposer.init(seed), -1.0
    for _ in range(budget // BATCH):
        state, tokens = proposer.propose(state, BATCH)
        found = directions([from_tokens(t) for t in tokens])
        cosines = np.sum(found * target, (1, 2)) / QUERIES
        # Losses without a gradient are rejected; equal directions share one reward.
        rewards = np.where(np.any(found != 0.0, (1, 2)), np.round(cosines, 5), -np.inf)
        state, _ = proposer.observe(state, tokens, rewards)
        best = max(best, float(rewards.max()))
    return best


@pytest.mark.slow
def test_learners_beat_random_search_at_equal_budget():
    best: dict[str, list[float]] = {name: [] for name in PROPOSERS}
    for target in ("lambdarank", "approx_ndcg", "approx_mrr", "pairwise_mse"):
        direction = directions([HAND_DESIGNED[target].formula] * BATCH)[0]
        for name in PROPOSERS:
            best[name] += [best_cosine(name, seed, direction, 2048) for seed in range(4)]
    for name in ("evolution", "controller", "hybrid"):
        test = stats.wilcoxon(best[name], best["random"], alternative="greater")
        assert test.pvalue < 0.05, best
