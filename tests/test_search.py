"""Phase I from end to end, on tiny data: records, resumption, schedules and refusals."""

import dataclasses
import json
from collections import Counter
from functools import partial

import jax
import numpy as np
import pytest

from autoloss_jax import canaries, search_rounds
from autoloss_jax.candidates import Candidates
from autoloss_jax.checkpoints import Checkpoints
from autoloss_jax.data import Dataset, Fold, Queries, fit_scaling, synthetic
from autoloss_jax.errors import AutolossError
from autoloss_jax.language.constants import with_scaled_constants
from autoloss_jax.language.grammar import from_tokens
from autoloss_jax.language.parsing import parse
from autoloss_jax.language.simplification import simplify
from autoloss_jax.losses import LOSSES
from autoloss_jax.metrics import mrr_per_query, ndcg_per_query
from autoloss_jax.models import MLP, Linear, describe_model
from autoloss_jax.proposers import PROPOSERS, known_losses
from autoloss_jax.proxy import ProxyConfig, ProxyTraining
from autoloss_jax.screening import make_probe
from autoloss_jax.search import run_search, search
from autoloss_jax.search_rounds import SearchConfig

PROXY = ProxyConfig(
    folds=2, queries_per_step=8, learning_rate=0.05, rung_steps=3, rungs=(1, 1), max_buckets=1
)
CONFIG = SearchConfig(
    budget=12, proposer="random", model="linear", proposals=14, max_tokens=16, hall_of_fame=4,
    fresh_seeds=2, finalists=3, proxy=PROXY,
)  # fmt: skip
FIELDS = {"index", "round", "formula", "status", "reason", "reward", "reward_se", "ndcg", "steps",
          "seconds"}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def compile_once():
    """All searches of this file train the same shapes, so they share one compiled program."""
    made = {}
    patch = pytest.MonkeyPatch()

    class Shared(ProxyTraining):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            trainer = self.trainer
            key = trainer.slots, self.training.metric_cutoff, self.training.metric
            both = made.setdefault(key, (trainer._train, trainer._evaluate))
            trainer._train, trainer._evaluate = both

    patch.setattr(search_rounds, "ProxyTraining", Shared)
    yield made
    patch.undo()


@pytest.fixture(scope="module")
def data():
    return synthetic(num_queries=50, num_features=6, list_length=(3, 6))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A search that was never interrupted: its result and its folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return search(data, CONFIG, out=str(folder)), folder


def timeless(records):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def assert_same(given, expected):
    assert timeless(given.records) == timeless(expected.records)
    assert given.finalists == expected.finalists


# --- what a search records ---


def test_the_ledger_holds_every_proposal(finished):
    result, folder = finished
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert lines == result.records
    assert all(set(record) == FIELDS for record in lines)
    assert [record["index"] for record in lines] == list(range(len(lines)))
    rounds = [record["round"] for record in lines]
    assert rounds == [k // CONFIG.proposals for k in range(len(lines))]
    for record in lines:
        assert str(parse(record["formula"])) == record["formula"]
        assert simplify(parse(record["formula"])) == parse(record["formula"])


def test_statuses_add_up(finished):
    records = finished[0].records
    statuses = Counter(record["status"] for record in records)
    assert set(statuses) <= {"trained", "duplicate", "rejected", "failed"}
    assert statuses["trained"] + statuses["failed"] >= CONFIG.budget
    before = Counter(r["status"] for r in records if r["round"] < records[-1]["round"])
    assert before["trained"] + before["failed"] < CONFIG.budget  # no round too many
    for record in records:
        trained = record["status"] == "trained"
        assert (record["reason"] == "") == trained
        assert (record["steps"] in (3, 6)) == (record["status"] in ("trained", "failed"))
        assert (record["ndcg"] is not None) == trained
        assert (record["reward_se"] is not None) == trained
    first = {}
    for record in records:
        if record["reason"] == "seen before":
            assert first[record["formula"]]["reward"] == record["reward"]
        else:
            assert record["formula"] not in first
            first[record["formula"]] = record
    assert len({r["formula"] for r in records if r["status"] == "trained"}) == statuses["trained"]


def test_finalists_are_evaluated_again(finished):
    result, folder = finished
    content = json.loads((folder / "finalists.json").read_text())
    assert [f["formula"] for f in content["finalists"]] == [
        str(f.expression) for f in result.finalists
    ]
    assert 1 <= len(result.finalists) <= CONFIG.finalists
    bounds = [f.reward - f.reward_se for f in result.finalists]
    assert bounds == sorted(bounds, reverse=True)
    records = {r["formula"]: r for r in result.records if r["status"] == "trained"}
    for f in content["finalists"]:
        assert f["size"] == parse(f["formula"]).size
        assert f["size"] <= parse(f["found_as"]).size
        assert records[f["found_as"]]["steps"] == 6  # it passed every rung
        assert f["selection_reward"] == records[f["found_as"]]["reward"] != f["reward"]
    assert content["metric"] == "ndcg@10"
    assert content["empty"] == "skip"


def test_the_folder_holds_what_the_design_says(finished):
    folder = finished[1]
    config = json.loads((folder / "config.json").read_text())["config"]
    assert config["search"]["proxy"]["rungs"] == [1, 1]
    assert config["search"]["reference"] == "softmax"
    assert len(config["data"]["sha256"]) == 64
    assert (folder / "checkpoints").is_dir()


def test_a_finished_search_is_read_back(data, finished):
    result, folder = finished

    def never(progress):
        raise AssertionError("it trains again")

    assert_same(search(data, CONFIG, out=str(folder), on_round=never), result)


# --- the same again ---


def test_two_searches_agree_with_and_without_a_folder(data, finished):
    assert_same(search(data, CONFIG), finished[0])
    other = search(data, dataclasses.replace(CONFIG, seed=1, budget=2))
    assert other.records[0]["formula"] != finished[0].records[0]["formula"]


class Killed(Exception):
    """As if the process ended after a round."""


def kill_after(count):
    def on_round(progress):
        if progress.round == count:
            raise Killed

    return on_round


@pytest.mark.parametrize(
    "proposer, schedule",
    [
        ("random", "from_scratch"),
        ("evolution", "alternating"),
        ("controller", "from_scratch"),
        ("hybrid", "from_scratch"),
        pytest.param("random", "alternating", marks=pytest.mark.slow),
        pytest.param("evolution", "from_scratch", marks=pytest.mark.slow),
        pytest.param("controller", "alternating", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_search_ends_as_if_it_had_not_been(data, tmp_path, proposer, schedule):
    tuning_rounds = 2 if proposer == "hybrid" else 0
    config = dataclasses.replace(
        CONFIG, proposer=proposer, schedule=schedule, budget=14, tuning_rounds=tuning_rounds
    )
    whole = search(data, config)
    rounds = whole.records[-1]["round"] + 1
    assert rounds >= 2, "too few rounds to interrupt"
    for count in range(1, rounds):
        with pytest.raises(Killed):
            search(data, config, out=str(tmp_path), on_round=kill_after(count))
        # Killed while writing what comes after the checkpoint: records too many, half a line.
        with (tmp_path / "ledger.jsonl").open("a") as ledger:
            ledger.write(json.dumps({"index": -1}) + '\n{"index"')
    assert_same(search(data, config, out=str(tmp_path)), whole)


def test_a_search_killed_in_its_first_round_begins_again(data, tmp_path, finished, monkeypatch):
    monkeypatch.setattr(Checkpoints, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        search(data, CONFIG, out=str(tmp_path))
    monkeypatch.undo()
    assert_same(search(data, CONFIG, out=str(tmp_path)), finished[0])


def test_a_warm_start_begins_with_the_hand_designed_losses(data):
    result = search(data, dataclasses.replace(CONFIG, warm_start=True, budget=1, proposals=20))
    first = [r["formula"] for r in result.records]
    known = [str(simplify(from_tokens(row))) for row in known_losses(CONFIG.max_tokens)]
    assert len(known) >= 5
    assert first[: len(known)] == known
    assert len(first) == 20
    assert {r["status"] for r in result.records[: len(known)]} <= {"trained", "duplicate"}


def test_the_numbers_in_the_best_losses_are_tuned(data):
    config = dataclasses.replace(CONFIG, warm_start=True, tuning_rounds=2)
    plain, tuned = (
        search(data, dataclasses.replace(config, tuning_rounds=rounds)).records for rounds in (0, 2)
    )
    begun, added = tuned[: len(plain)], tuned[len(plain) :]
    assert [r | {"seconds": 0} for r in begun] == [r | {"seconds": 0} for r in plain]
    assert {r["round"] - plain[-1]["round"] for r in added} == {1, 2}
    best = sorted(
        (r for r in plain if r["status"] == "trained" and r["steps"] == 6),
        key=lambda r: r["reward_se"] - r["reward"],
    )[:8]
    changed = [
        str(simplify(other))
        for r in best
        for other in with_scaled_constants(parse(r["formula"]), (0.5, 2.0))
    ]
    first = [r["formula"] for r in added if r["round"] == plain[-1]["round"] + 1]
    assert first == changed[: CONFIG.proposals]
    assert any(r["status"] == "trained" for r in added)


def test_the_schedules_differ(data, finished):
    result = search(data, dataclasses.replace(CONFIG, schedule="alternating"))
    given, expected = (
        [r["ndcg"] for r in records if r["status"] == "trained" and r["round"] == 1]
        for records in (result.records, finished[0].records)
    )
    assert given
    assert given != expected


def test_progress_is_told(data):
    told = []
    result = search(data, dataclasses.replace(CONFIG, budget=6), on_round=told.append)
    assert [p.round for p in told] == list(range(1, len(told) + 1))
    assert told[-1].trained >= told[-1].budget == 6
    full = {r["formula"]: r for r in result.records if r["steps"] == 6}
    assert told[-1].best_formula in full
    assert told[-1].best_reward == full[told[-1].best_formula]["reward"]
    counts = [sum(p.metrics[s] for s in ("trained", "duplicate", "rejected", "failed"))
              for p in told]  # fmt: skip
    assert counts == [CONFIG.proposals] * len(told)


# --- honesty ---


def test_validation_and_test_queries_are_never_touched(data, finished):
    class Untouchable(Queries):
        def __getattribute__(self, name):
            if name in ("features", "labels") and armed:
                raise AssertionError(f"read {name}")
            return super().__getattribute__(name)

    armed = False
    fold = data.folds[0]
    hidden = [Untouchable(q.features, q.labels, q.offsets, q.query_ids)
              for q in (fold.validation, fold.test)]  # fmt: skip
    fold = Fold(fold.name, fold.train, *hidden)
    armed = True
    assert_same(search(Dataset(data.name, (fold,), data.sha256), CONFIG), finished[0])


def test_a_metric_that_leaks_stops_the_search(data):
    def optimistic(scores, labels, *, where):
        return ndcg_per_query(scores + 1e-3 * labels, labels, where=where)

    with pytest.raises(canaries.CanaryError, match="a constant scorer"):
        search(data, CONFIG, metric=optimistic)


def test_a_model_that_looks_at_the_order_stops_the_search(data, monkeypatch):
    def by_position(self, params, features, mask):
        return -jax.numpy.arange(mask.shape[-1]) * jax.numpy.ones(mask.shape)

    original = search_rounds.SearchRounds.check_model

    def check(self, reference):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Linear, "apply", by_position)
            # Compiled, it would be the program of the searches before.
            patch.setattr(search_rounds, "_score", search_rounds._score.__wrapped__)
            original(self, reference)

    monkeypatch.setattr(search_rounds.SearchRounds, "check_model", check)
    with pytest.raises(canaries.CanaryError, match="The model looks at the order"):
        search(data, CONFIG)


# --- candidates ---


def test_equal_losses_share_one_reward(data):
    known = Candidates(make_probe(data.folds[0].train, 0))
    ranknet = LOSSES["ranknet"]
    triple = simplify(parse(f"3 * {ranknet}"))
    useless = simplify(parse("mean_i(square(s_i))"))
    judged = known.judge([ranknet, triple, ranknet, useless, LOSSES["mse"]])
    assert [tuple(judgement) for judgement in judged.values()] == [
        ("", ""),
        ("duplicate", f"same gradient: {ranknet}"),
        ("rejected", "it does not depend on both scores and labels"),
        ("", ""),
    ]
    known.learn({ranknet: 0.25, LOSSES["mse"]: -np.inf})
    known.share(judged)
    assert [known.reward(x) for x in (ranknet, triple, useless)] == [0.25, 0.25, -np.inf]
    again = known.judge([triple, useless])
    assert [tuple(j) for j in again.values()] == [("duplicate", "seen before")] * 2


@pytest.mark.parametrize(
    ("loss", "shortened"),
    [
        ("sum_ij(softplus(s_j - s_i), where=y_i > y_j) + max_i(y_i)",
         "sum_ij(softplus(s_j - s_i), where=y_i > y_j)"),
        # Of several ways to the same gradient, and step by step.
        ("sum_ij(s_i - s_j + abs(relu(gain_i)) * square(s_i - s_j), where=y_i != y_j)",
         "sum_ij(gain_i * square(s_i - s_j), where=y_i != y_j)"),
        ("sum_i(max(y_i, -1 - y_i) * log(1 + square(s_i))) + mean_i(abs(gain_i))",
         "sum_i(y_i * log(1 + square(s_i)))"),
        ("sum_ij(softplus(s_j - s_i) * abs(gain_i - gain_j), where=y_i > y_j)",
         "sum_ij(softplus(s_j - s_i) * (gain_i - gain_j), where=y_i > y_j)"),
        (str(LOSSES["listnet"]), str(LOSSES["listnet"])),
    ],
)  # fmt: skip
def test_parts_that_leave_the_gradient_as_it_is_are_idle(data, loss, shortened):
    known = Candidates(make_probe(data.folds[0].train, 0))
    losses = [simplify(parse(loss)), LOSSES["mse"]]
    assert known.without_idle_parts(losses) == [simplify(parse(shortened)), LOSSES["mse"]]
    assert known.without_idle_parts([]) == []


def test_a_rediscovered_loss_is_no_finalist(data, monkeypatch):
    known = Candidates(make_probe(data.folds[0].train, 0))
    twin = parse(f"2 * {LOSSES['mse']} + 1")
    new = parse("sum_ij(square(relu(2 - (s_i - s_j))), where=y_i > y_j)")
    assert known.hand_designed([twin, new, LOSSES["softmax"]]) == ["mse", None, "softmax"]

    def propose(state, count):
        return state, proposed

    original = PROPOSERS["random"](max_tokens=16)
    state = original.init(0)
    _, proposed = original.propose(state, CONFIG.proposals)
    monkeypatch.setattr(
        search_rounds, "make_proposer", lambda *_, **__: original._replace(propose=propose)
    )
    monkeypatch.setattr(search_rounds, "from_tokens", lambda row: next(losses))
    names = ["ranknet", "mse", "listnet", "softmax"]
    losses = iter([twin, new, *(LOSSES[name] for name in names)] + [twin] * CONFIG.proposals)
    proxy = dataclasses.replace(PROXY, keep=1.0)
    result = search(data, dataclasses.replace(CONFIG, budget=1, proxy=proxy))
    assert [f.expression for f in result.finalists] == [simplify(new)]


def test_what_the_batched_path_cannot_hold_is_refused(data):
    known = Candidates(make_probe(data.folds[0].train, 0))
    loss = parse("sum_i(y_i * sum_j(s_i * s_j))")
    status, reason = known.judge([loss])[loss]
    assert status == "rejected"
    assert reason


# --- refusals ---


def test_a_search_without_new_losses_ends(data, monkeypatch):
    monkeypatch.setattr(search_rounds, "BARREN_ROUNDS", 3)
    one = np.asarray(PROPOSERS["random"](max_tokens=16).propose(
        PROPOSERS["random"](max_tokens=16).init(0), CONFIG.proposals)[1])  # fmt: skip
    stuck = PROPOSERS["random"](max_tokens=16)._replace(propose=lambda state, count: (state, one))
    monkeypatch.setattr(search_rounds, "make_proposer", lambda *_, **__: stuck)
    result = search(data, CONFIG)
    assert 0 < sum(r["status"] == "trained" for r in result.records) < CONFIG.budget
    assert result.records[-1]["round"] == 3  # one that trains, three that do not
    assert result.finalists


def test_a_hall_of_fame_may_be_larger_than_a_round(data, tmp_path, caplog):
    config = dataclasses.replace(CONFIG, proposals=5, hall_of_fame=14, finalists=14, budget=20)
    with caplog.at_level("INFO"):
        result = search(data, config, out=str(tmp_path))
    full = [r for r in result.records if r["steps"] == 6]
    assert len(result.finalists) == min(14, len(full)) > 5
    # Who is selected for a reward had luck, of which the ledger and fresh seeds together tell.
    content = json.loads((tmp_path / "finalists.json").read_text())
    again = content["hall_of_fame"]
    assert again["losses"] == len(result.finalists)
    for name in ("selection_reward", "reward"):
        assert again[name] == pytest.approx(np.mean([f[name] for f in content["finalists"]]))
    assert again["selection_reward"] != again["reward"]
    assert f"winner's curse: the {len(result.finalists)} best were selected with" in caplog.text
    assert content["learning_rate"] == config.proxy.learning_rate


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"schedule": "both"}, "unknown schedule 'both'; expected one of from_scratch, alt"),
        ({"budget": 0}, "budget is 0, expected at least 1"),
        ({"finalists": -1}, "finalists is -1, expected at least 1"),
        ({"seed": -1}, "seed is -1, expected 0 to"),
        ({"features": "rank"}, "unknown features 'rank'; expected one of standardize"),
        ({"model": "svm"}, "unknown model 'svm'"),
        ({"proposer": "oracle"}, "unknown proposer 'oracle'"),
        ({"max_tokens": 2}, "max_tokens of at least 4, got 2"),
        ({"reference": "softmx"}, "unknown loss 'softmx'. Did you mean 'softmax'"),
        ({"proxy": ProxyConfig(folds=1)}, "folds is 1, expected at least 2"),
    ],
)
def test_bad_settings_are_refused_before_the_folder_is_touched(data, tmp_path, setting, message):
    with pytest.raises(AutolossError, match=message):
        search(data, dataclasses.replace(CONFIG, **setting), out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_configuration_is_refused(data, finished):
    for config, name in (
        (dataclasses.replace(CONFIG, seed=5), "search.seed: stored 0, given 5"),
        (dataclasses.replace(CONFIG, proxy=dataclasses.replace(PROXY, keep=0.25)),
         "search.proxy.keep: stored 0.5, given 0.25"),
    ):  # fmt: skip
        with pytest.raises(AutolossError, match=name):
            search(data, config, out=str(finished[1]))
    other = synthetic(num_queries=50, num_features=6, list_length=(3, 6), seed=1)
    with pytest.raises(AutolossError, match="data.sha256"):
        search(other, CONFIG, out=str(finished[1]))


# --- a user's own model and metric ---


def test_a_user_may_bring_a_model(data):
    run = partial(run_search, data.folds[0].train, dataclasses.replace(CONFIG, budget=2), None)
    assert_same(run(model=Linear()), run())


def test_the_folder_knows_a_user_s_model(data, tmp_path):
    config = dataclasses.replace(CONFIG, budget=2)
    search(data, config, model=Linear(), out=str(tmp_path))
    stored = json.loads((tmp_path / "config.json").read_text())["config"]["search"]["model"]
    assert stored == describe_model(Linear())
    with pytest.raises(AutolossError, match=r"search.model: stored .*Linear.*, given .*MLP"):
        search(data, config, model=MLP((4,)), out=str(tmp_path))


def reciprocal_rank(scores, labels, *, where):
    return mrr_per_query(scores, labels, where=where)


def test_a_user_s_metric_is_what_rewards(data, tmp_path, finished):
    result = search(data, CONFIG, metric=reciprocal_rank, out=str(tmp_path))
    trained = [r for r in result.records if r["status"] == "trained"]
    assert all("metric" in r and r["ndcg"] is None for r in trained)
    other = {r["formula"]: r for r in finished[0].records}
    shared = [(r, other[r["formula"]]) for r in trained if r["formula"] in other]
    assert [r["reward"] for r, _ in shared] != [o["reward"] for _, o in shared]
    # The reward is what the metric itself says of a model trained again.
    proxy = ProxyTraining(
        fit_scaling(data.folds[0].train, transform=CONFIG.features).apply(data.folds[0].train),
        Linear(), LOSSES["softmax"], PROXY, CONFIG.proposals, CONFIG.seed, metric=reciprocal_rank,
    )  # fmt: skip
    best = max((r for r in trained if r["steps"] == 6), key=lambda r: r["metric"])
    run = proxy.run([parse(best["formula"])], CONFIG.seed, halving=False)
    assert run.outcomes[0].ndcg == pytest.approx(best["metric"], abs=1e-6)
    finalists = json.loads((tmp_path / "finalists.json").read_text())
    assert finalists["metric"].endswith("test_search.reciprocal_rank")


def test_the_folder_knows_a_user_s_metric(data, tmp_path):
    config = dataclasses.replace(CONFIG, budget=1)
    search(data, config, metric=reciprocal_rank, out=str(tmp_path))
    for other, given in (
        (None, "absent"),
        (ndcg_per_query, '"autoloss_jax.metrics.ndcg_per_query"'),
        (partial(reciprocal_rank, k=3), r'".*reciprocal_rank\(k=3\)"'),
    ):
        with pytest.raises(AutolossError, match=f"search.metric: stored .*, given {given}"):
            search(data, config, metric=other, out=str(tmp_path))


def test_a_metric_without_a_name_is_refused_where_it_is_recorded(data, tmp_path):
    with pytest.raises(AutolossError, match="metric: expected a named function, since the run"):
        search(data, CONFIG, metric=lambda s, y, *, where: mrr_per_query(s, y, where=where),
               out=str(tmp_path / "run"))  # fmt: skip
    assert not (tmp_path / "run").exists()
