"""Hostile losses among ordinary ones: they rank worst, with the reason, and disturb nobody.

The language protects its arithmetic, so what no formula can do is injected where it would come
from: a loss that holds a marked number gets another gradient.
"""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autoloss_jax import convergence, search_rounds
from autoloss_jax import proxy as proxy_module
from autoloss_jax.data import scale_fold, synthetic
from autoloss_jax.effectiveness import EffectivenessConfig, effectiveness_test
from autoloss_jax.execution.batched import truncated_program_gradient
from autoloss_jax.language.operators import LARGE
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import LOSSES
from autoloss_jax.proposers import PROPOSERS, make_proposer
from autoloss_jax.proxy import CONSTANT_SCORES, FAILURES, NO_UPDATE, ProxyConfig, ProxyTraining
from autoloss_jax.report import finalists_table, report_html, wording
from autoloss_jax.report.reading import read_run
from autoloss_jax.search import search
from autoloss_jax.search_rounds import SearchConfig
from autoloss_jax.training import FAULTS

# What a marked number does to the gradient by the scores [queries, list].
EFFECTS = {
    0.7015625: lambda g: jnp.full_like(g, jnp.nan),
    0.7025625: lambda g: g.at[0, 0].set(jnp.inf),
    0.7035625: lambda g: g.at[0, 0].set(-jnp.inf),
    0.7045625: lambda g: g.at[0, 0].set(jnp.nan),
    0.7055625: jnp.zeros_like,
    0.7065625: lambda g: jnp.full_like(g, LARGE),  # down with all scores
    0.7075625: lambda g: jnp.full_like(g, -LARGE),  # up with all scores
    0.7085625: lambda g: 2.0**90 * g,
}
NAN, INF, MINUS_INF, ONE_NAN, ZERO, DOWN, UP, HUGE = (
    parse(f"mean_i(square(s_i - y_i - {mark}))") for mark in EFFECTS
)
FAST = 1e4, 1e8, 1e38
"""Learning rates of a model driven down, of one driven up, and of one that explodes."""


def hostile_gradient(truncation_level=0, also=lambda program: False):
    """`program_score_gradient` with the effects; NaN for every program of which `also` holds."""
    original = truncated_program_gradient(truncation_level)

    def gradient(program, scores, labels, masks):
        found = original(program, scores, labels, masks)
        constants = [part.constant for part in (program.pair, program.document)]
        for mark, effect in EFFECTS.items():
            hit = jnp.any(jnp.stack([jnp.any(c == np.float32(mark)) for c in constants]))
            found = [jnp.where(hit, effect(g), g) for g in found]
        return [jnp.where(also(program), jnp.nan, g) for g in found]

    return gradient


class Shutter(nn.Module):
    """A ranker whose scores are never below 0: driven down, all of them are 0.

    Driven far up, they are finite and differ, but their derivatives are not finite: a minimum
    hides an exponential that overflows, and 0 times infinity is no number.
    """

    @nn.compact
    def __call__(self, features, mask):
        del mask
        scores = nn.relu(nn.Dense(1)(features)[..., 0] + 2.0)
        return scores + jnp.minimum(jnp.exp(scores / 1e5), 1.0)


# ------------------------------------------------------------------------------ a round of Phase I

CONFIG = ProxyConfig(
    folds=2, queries_per_step=8, learning_rate=0.05, rung_steps=4, rungs=(1, 1), max_buckets=1
)
ORDINARY = [LOSSES[name] for name in ("ranknet", "mse", "listnet", "lambdarank")]
# By hostile loss, its learning rate if not the usual one, and why it fails.
HOSTILE = [
    (NAN, None, FAULTS[1]),
    (INF, None, FAULTS[1]),
    (MINUS_INF, None, FAULTS[1]),
    (ONE_NAN, None, FAULTS[1]),
    (ZERO, None, NO_UPDATE),
    (DOWN, FAST[0], CONSTANT_SCORES),
    (UP, FAST[1], FAULTS[3]),
    (LOSSES["pairwise_hinge"], FAST[2], FAULTS[2]),
]
# Hostile ones stand in the chunks of ordinary ones, before, between and behind them.
MIXED = [0, "a", 1, 2, "b", 3, 4, "c", 5, 6, "d", 7]
CAPACITY = len(MIXED)


@pytest.fixture(scope="module")
def training():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy_module, "program_score_gradient", hostile_gradient)
        data = synthetic(num_queries=60, num_features=6, list_length=(3, 8))
        yield ProxyTraining(scale_fold(data.folds[0]).train, Shutter(), LOSSES["softmax"], CONFIG,
                            CAPACITY, seed=0)  # fmt: skip


def run_round(training, hostile, halving):
    """The outcomes of MIXED, its hostile losses hostile or not."""
    letters = iter(ORDINARY)
    losses, rates = [], training._rates()
    for place, entry in enumerate(MIXED, start=1):  # 0 is the reference
        if isinstance(entry, str):
            losses.append(next(letters))
            continue
        loss, rate, _ = HOSTILE[entry]
        losses.append(loss if hostile else LOSSES["approx_ndcg"])
        if hostile and rate:
            rates[training.trainer.slot(place)] = rate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_rates", lambda: rates)
        return training.run(losses, seed=3, halving=halving)


@pytest.fixture(scope="module")
def rounds(training):
    return {hostile: run_round(training, hostile, halving=False) for hostile in (True, False)}


def test_every_kind_of_failure_is_told_apart(rounds):
    assert {why for *_, why in HOSTILE} == set(FAILURES)
    for entry, outcome in zip(MIXED, rounds[True].outcomes, strict=True):
        if isinstance(entry, str):
            assert outcome.reason == ""
            assert np.isfinite([outcome.reward, outcome.reward_se, outcome.ndcg]).all()
        else:
            assert outcome.reason == HOSTILE[entry][2], entry
            assert outcome.reason in FAILURES
            assert (outcome.reward, outcome.reward_se) == (-np.inf, np.inf)
            assert np.isnan(outcome.ndcg)


def test_the_documentation_has_every_reason():
    page = (Path(__file__).parents[2] / "docs" / "run_folder.md").read_text()
    assert [why for why in FAILURES if f"| {why} |" not in page] == []


def test_neighbours_of_hostile_losses_keep_every_bit(rounds):
    ordinary = [k for k, entry in enumerate(MIXED) if isinstance(entry, str)]
    for k in ordinary:
        given, expected = (rounds[hostile].outcomes[k] for hostile in (True, False))
        assert given[:-1] == expected[:-1]
        np.testing.assert_array_equal(given.differences, expected.differences)
    assert rounds[True].reference_ndcg == rounds[False].reference_ndcg
    jax.tree.map(np.testing.assert_array_equal, rounds[True].reference, rounds[False].reference)


def test_hostile_losses_pass_no_rung_and_give_no_model(training):
    outcome = run_round(training, hostile=True, halving=True)
    for entry, one in zip(MIXED, outcome.outcomes, strict=True):
        if isinstance(entry, int):
            assert one.reason == HOSTILE[entry][2]
            assert one.steps < training.full_steps
    for leaf in jax.tree.leaves(outcome.best.params):
        assert np.isfinite(leaf).all()


def test_a_huge_gradient_is_the_same_loss(training):
    """Gradients are scaled to norm 1, exactly where the factor is a power of 2."""
    huge = training.run([HUGE], seed=3, halving=False).outcomes[0]
    assert huge.reason == ""
    assert np.isfinite(huge.reward)
    both = [LOSSES["mse"], parse(f"{2**60} * {LOSSES['mse']}")]
    scaled = training.run(both, seed=3, halving=False).outcomes
    np.testing.assert_array_equal(scaled[0].differences, scaled[1].differences)


# As near to a failure as formulas come: all of it is protected.
EXTREME = [
    "mean_i(s_i / (y_i - y_i))",
    "mean_i(exp(1000 * (s_i + y_i)))",
    "sum_i(1e30 * s_i * (1 + y_i) * 1e30)",
    "mean_i(log(s_i - s_i) * s_i * y_i)",
    "sum_ij(exp(100 * (s_i - s_j)) / exp(100 * (s_j - s_i)), where=y_i > y_j)",
    "mean_i(((s_i * y_i * 1e15) ** 4) ** 4)",
    "mean_i(sqrt(-square(s_i)) * y_i)",
    "mean_i(s_i ** -4 * y_i)",
    "sum_i(s_i / (1e-30 * (1 + y_i)))",
    "mean_i(-exp(s_i * y_i))",
    "sum_i(0 * s_i * y_i)",
]


def test_formulas_as_hostile_as_the_language_allows_never_fail_by_a_number(training):
    outcomes = training.run([parse(text) for text in EXTREME], seed=3, halving=False).outcomes
    for text, outcome in zip(EXTREME, outcomes, strict=True):
        assert outcome.reason in ("", NO_UPDATE, CONSTANT_SCORES), (text, outcome.reason)
    assert outcomes[-1].reason == NO_UPDATE


# ------------------------------------------------------------------------------ proposers


@pytest.mark.parametrize("name", list(PROPOSERS))
def test_no_reward_spoils_a_proposer(name):
    proposer = make_proposer(name, max_tokens=8)
    state = proposer.init(0)
    bad = [np.nan, np.inf, -np.inf]
    for rewards in (bad, [-np.inf] * 3, [np.nan] * 3, [0.1, np.nan, -np.inf], [0.1, 0.1, 0.1]):
        state, tokens = proposer.propose(state, 3)
        state, metrics = proposer.observe(state, tokens, np.array(rewards))
        assert metrics["failed"] == pytest.approx(np.mean(~np.isfinite(rewards)))
        for leaf in jax.tree.leaves(getattr(state, "params", ())):
            assert np.isfinite(leaf).all()
        best = getattr(state, "queue_rewards", getattr(state, "rewards", np.zeros(1)))
        assert not np.isnan(best).any()
        assert not np.isposinf(best).any()
    assert proposer.propose(state, 3)[1].shape == (3, 8)


# ------------------------------------------------------------------------------ whole phases

SEARCH = SearchConfig(
    budget=16, model="linear", proposals=24, max_tokens=12, hall_of_fame=4, fresh_seeds=1,
    finalists=3, proxy=dataclasses.replace(CONFIG, rung_steps=3),
)  # fmt: skip


@pytest.mark.slow
def test_a_search_among_failures_records_and_survives_them(tmp_path, monkeypatch):
    def odd(program):
        codes = jnp.sum(program.pair.code) + jnp.sum(program.document.code)
        return (codes + jnp.sum(program.document.where)) % 2 == parity

    reference = proxy_module.encode([LOSSES["softmax"]])
    codes = int(reference.pair.code.sum() + reference.document.code.sum())
    parity = 1 - (codes + int(reference.document.where.sum())) % 2
    monkeypatch.setattr(
        proxy_module, "program_score_gradient", lambda level: hostile_gradient(level, odd)
    )
    states = []
    original = make_proposer(SEARCH.proposer, max_tokens=SEARCH.max_tokens)

    def observe(state, tokens, rewards):
        assert not np.isnan(rewards).any()
        state, metrics = original.observe(state, tokens, rewards)
        states.append(state)
        return state, metrics

    monkeypatch.setattr(
        search_rounds, "make_proposer", lambda *_, **__: original._replace(observe=observe)
    )
    data = synthetic(num_queries=60, num_features=6, list_length=(3, 8))
    folder = tmp_path / "run"
    result = search(data, SEARCH, out=str(folder))
    failed = [r for r in result.records if r["status"] == "failed"]
    trained = [r for r in result.records if r["status"] == "trained"]
    assert len(failed) >= 3
    assert len(trained) >= 3
    assert {r["reason"] for r in failed} <= set(FAILURES)
    assert FAULTS[1] in {r["reason"] for r in failed}
    for record in failed:
        assert record["reward"] is record["reward_se"] is record["ndcg"] is None
    assert result.finalists
    assert {f.found_as for f in result.finalists} <= {r["formula"] for r in trained}
    for state in states:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.controller.params))
    run = read_run(folder)
    assert ("failed", FAULTS[1]) in {(status, why) for status, why, _ in
                                     wording.reason_counts(run.ledger)}  # fmt: skip
    html = report_html(run)
    assert FAULTS[1] in html
    assert ">nan<" not in html.lower()
    assert finalists_table(run.finalists or {}).row_count == len(result.finalists)


@pytest.mark.slow
def test_phase_ii_with_a_loss_whose_every_model_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(convergence, "program_score_gradient", hostile_gradient)
    data = synthetic(num_queries=60, num_features=6, list_length=(3, 6))
    config = EffectivenessConfig(
        model="linear", seeds=2, learning_rates=(0.003, 0.1), queries_per_step=8, block_steps=3,
        patience=2, max_steps=6, max_buckets=1, confirmation_seeds=0,
    )  # fmt: skip
    good = parse("sum_ij(square(relu(1 - (s_i - s_j))), where=y_i > y_j)")

    def figures(content):
        return {row["formula"]: (row["test"], row["validation"], row["learning_rate"])
                for row in content["rows"]}  # fmt: skip

    alone = effectiveness_test(data, [good], config, hand_designed=["ranknet"])
    assert alone["failed"] == []
    assert alone["failure_reasons"] == {}
    folder = tmp_path / "run"
    content = effectiveness_test(
        data, [NAN, good], config, hand_designed=["ranknet"], out=str(folder)
    )
    assert content["failed"] == ["found 1"]
    assert content["failure_reasons"] == {"found 1": FAULTS[1]}
    assert figures(content) == figures(alone)
    assert content["best_found"] == "found 2"
    assert f"found 1 ({FAULTS[1]})" in report_html(read_run(folder))
    assert effectiveness_test(data, [NAN], config, hand_designed=["ranknet"])["verdict"].startswith(
        "No found loss could be trained"
    )
