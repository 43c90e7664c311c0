"""Phase II on tiny data: the same chances for every loss, honest figures, an honest verdict."""

import dataclasses
import itertools
import json
import sys

import jax
import numpy as np
import pytest

from autoloss_jax import (
    convergence,
    effectiveness,
    evaluation,
    fold_tests,
    gbdt,
    trainer,
)  # fmt: skip
from autoloss_jax.comparison import Contender, compare, confirmed_rows
from autoloss_jax.comparison import Tested as Shown  # a name in Test is collected as a test
from autoloss_jax.data import Dataset, Fold, Queries, make_dataset, synthetic
from autoloss_jax.effectiveness import (
    EffectivenessConfig,
    _warn_of_limits,
    clean_folds,
    contenders,
    effectiveness_test,
)
from autoloss_jax.errors import AutolossError
from autoloss_jax.evaluation import METRICS
from autoloss_jax.execution.programs import unfit
from autoloss_jax.files import read_arrays
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import HAND_DESIGNED, LOSSES
from autoloss_jax.metrics import ndcg_per_query
from autoloss_jax.models import MLP
from autoloss_jax.runs import EFFECTIVENESS_FILE, PER_QUERY_FILE, TEST_SCORES_FILE
from autoloss_jax.statistics import randomisation_p_value
from autoloss_jax.trainer import Trainer
from autoloss_jax.training import CPU_CHUNK
from autoloss_jax.verdicts import found_verdict

CONFIG = EffectivenessConfig(
    model="linear", seeds=2, learning_rates=(0.003, 0.1), queries_per_step=8, block_steps=3,
    patience=2, max_steps=12, max_buckets=1, confirmation_seeds=0,
)  # fmt: skip
HAND = ["ranknet", "softmax"]
# Nothing the batched path holds: pairs see the scores as differences only.
UNFIT = parse("sum_ij(softplus(s_j - s_i) * (1 + 0 * sigmoid(s_i + s_j)), where=y_i > y_j)")


@pytest.fixture(scope="module")
def data():
    return synthetic(num_queries=60, num_features=6, list_length=(3, 6))


@pytest.fixture(scope="module")
def found():
    return [parse("sum_ij(square(relu(1 - (s_i - s_j))), where=y_i > y_j)")]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def result(data, found, run_folder):
    config = dataclasses.replace(CONFIG, dump_scores=True)
    content = effectiveness_test(data, found, config, hand_designed=HAND, out=str(run_folder))
    stored = (run_folder / EFFECTIVENESS_FILE).read_text()
    assert json.loads(stored) == json.loads(json.dumps(content))
    return content


def row_of(content, name):
    return next(row for row in content["rows"] if row["name"] == name)


# --- the file ---


def test_rows_say_what_the_design_says(result, found):
    assert {row["name"] for row in result["rows"]} == {"found 1", *HAND}
    for row in result["rows"]:
        assert row["kind"] == ("found" if row["name"] == "found 1" else "hand_designed")
        assert set(row["test"]) == set(METRICS) == {
            "ndcg@1", "ndcg@3", "ndcg@5", "ndcg@10", "ndcg@30", "mrr", "map", "err"}  # fmt: skip
        for interval in (*row["test"].values(), row["difference"]):
            assert set(interval) == {"mean", "ci_low", "ci_high"}
            assert interval["ci_low"] <= interval["mean"] <= interval["ci_high"]
        for test in ("p_value", "t_p_value"):
            assert 0 < row[test] <= row[f"{test}_corrected"] <= 1
        effect = row["effect_size_interval"]
        assert effect["ci_low"] <= row["effect_size"] <= effect["ci_high"]
        queries = result["queries"] - result["empty_queries"]
        assert row["wins"] + row["ties"] + row["losses"] == queries
        assert set(row["learning_rate"]) <= set(CONFIG.learning_rates)
        assert all(step in (3, 6, 9, 12) for steps in row["steps"] for step in steps)
        assert [len(steps) for steps in row["steps"]] == [CONFIG.seeds]
    assert row_of(result, "found 1")["formula"] == str(found[0])
    means = [row["test"]["ndcg@10"]["mean"] for row in result["rows"]]
    assert means == sorted(means, reverse=True)
    assert result["folds"] == ["Fold1"]
    assert result["best_found"] == "found 1"
    assert (result["seeds"], result["empty"], result["metric"]) == (2, "skip", "ndcg@10")


def test_the_figures_of_every_query_are_kept(data, result, run_folder):
    arrays = read_arrays(run_folder / PER_QUERY_FILE)
    assert list(arrays) == ["names", "query_ids", "values", "defined"]
    assert arrays["names"].tolist() == [row["name"] for row in result["rows"]]
    test = data.folds[0].test
    assert arrays["query_ids"].tolist() == [f"Fold1/{name}" for name in test.query_ids]
    np.testing.assert_array_equal(arrays["defined"], test.has_relevant())  # in the file's order
    np.testing.assert_array_equal(
        np.isnan(arrays["values"]), np.tile(~test.has_relevant(), (len(result["rows"]), 1))
    )
    for row, values in zip(result["rows"], arrays["values"], strict=True):
        assert np.nanmean(values) == pytest.approx(row["test"]["ndcg@10"]["mean"], abs=1e-12)


def test_the_best_hand_designed_loss_is_chosen_on_validation(result):
    hand = [row for row in result["rows"] if row["kind"] == "hand_designed"]
    best = max(hand, key=lambda row: row["validation"])
    assert result["best_hand_designed"] == best["name"]
    assert best["difference"] == {"mean": 0.0, "ci_low": 0.0, "ci_high": 0.0}
    assert (best["p_value"], best["p_value_corrected"], best["effect_size"]) == (1.0, 1.0, 0.0)
    assert best["name"] in result["verdict"]
    for row in result["rows"]:
        difference = row["test"]["ndcg@10"]["mean"] - best["test"]["ndcg@10"]["mean"]
        assert row["difference"]["mean"] == pytest.approx(difference, abs=1e-9)


def test_scores_are_those_of_the_test_documents(data, result, run_folder):
    test = data.folds[0].test
    dumped = read_arrays(run_folder / TEST_SCORES_FILE)
    assert list(dumped) == ["names", "scores", "query_ids", "offsets", "labels"]
    assert dumped["names"].tolist() == [row["name"] for row in result["rows"]]
    assert dumped["scores"].shape == (3, CONFIG.seeds, test.num_documents)
    assert dumped["scores"].dtype == np.float32
    assert dumped["query_ids"].tolist() == [f"Fold1/{name}" for name in test.query_ids]
    np.testing.assert_array_equal(dumped["offsets"], test.offsets)
    np.testing.assert_array_equal(dumped["labels"], test.labels)


def independent_ndcg(scores, labels, k):
    """scikit-learn's, which also takes the mean over the orders of tied documents."""
    ndcg_score = pytest.importorskip("sklearn.metrics").ndcg_score
    if len(labels) == 1:  # which it refuses
        return 1.0
    return ndcg_score([2.0**labels - 1], [scores.astype(float)], k=k)


@pytest.mark.parametrize("empty", ["skip", "zero", "one"])
def test_figures_agree_with_scikit_learn_on_the_dumped_scores(
    data, found, result, run_folder, empty
):
    dumped = read_arrays(run_folder / TEST_SCORES_FILE)
    lists = list(itertools.pairwise(dumped["offsets"]))
    content = result
    if empty != "skip":
        config = dataclasses.replace(CONFIG, empty=empty)
        content = effectiveness_test(data, found, config, hand_designed=HAND)
    for name, scores in zip(dumped["names"], dumped["scores"], strict=True):
        for k in (1, 3, 10):
            values = []
            for a, b in lists:
                labels = dumped["labels"][a:b]
                if labels.max() > 0:
                    seeds = [independent_ndcg(s[a:b], labels, k) for s in scores]
                    values.append(np.mean(seeds))
                elif empty != "skip":
                    values.append({"zero": 0.0, "one": 1.0}[empty])
            given = row_of(content, name)["test"][f"ndcg@{k}"]["mean"]
            assert given == pytest.approx(np.mean(values), abs=1e-6)


def test_figures_agree_with_lightgbm_on_the_dumped_scores(result, run_folder):
    """It counts queries without a relevant document as 1, and wants scores without ties."""
    lightgbm = pytest.importorskip("lightgbm")
    dumped = read_arrays(run_folder / TEST_SCORES_FILE)
    lengths, labels = np.diff(dumped["offsets"]), dumped["labels"]
    empty = np.array([labels[a:b].max() == 0 for a, b in itertools.pairwise(dumped["offsets"])])
    for name, scores in zip(dumped["names"], dumped["scores"], strict=True):
        values = []
        for of_seed in scores:
            assert len(set(of_seed)) == len(of_seed)
            values.append(lightgbm_ndcg(lightgbm, of_seed, labels, lengths, 10))
        mean = (np.mean(values) * len(lengths) - empty.sum()) / (~empty).sum()
        given = row_of(result, name)["test"]["ndcg@10"]["mean"]
        assert given == pytest.approx(mean, abs=1e-6)


def lightgbm_ndcg(lightgbm, scores, labels, lengths, k):
    """LightGBM's metric, by a model of no trees that starts from the scores."""
    params = {"objective": "lambdarank", "metric": "ndcg", "eval_at": [k], "verbosity": -1,
              "num_threads": 1, "min_data_in_leaf": 10**6}  # fmt: skip
    data = lightgbm.Dataset(np.zeros((len(labels), 1)), labels, group=lengths,
                            init_score=scores.astype(np.float64), params=params)  # fmt: skip
    booster = lightgbm.Booster(params, data)
    ((_, _, value, _),) = booster.eval_train()
    return value


def test_empty_queries_count_by_the_convention(data, found, result):
    test = data.folds[0].test
    share = np.mean(test.has_relevant())
    assert 0 < share < 1
    assert result["queries"] == len(test)
    assert result["empty_queries"] == len(test) - test.has_relevant().sum()
    skipped = row_of(result, "ranknet")["test"]["ndcg@10"]["mean"]
    for empty, value in (("zero", 0.0), ("one", 1.0)):
        config = dataclasses.replace(CONFIG, empty=empty)
        content = effectiveness_test(data, found, config, hand_designed=HAND)
        mean = row_of(content, "ranknet")["test"]["ndcg@10"]["mean"]
        assert mean == pytest.approx(share * skipped + (1 - share) * value, abs=1e-6)


# --- the same chances, and test queries unseen ---


def test_test_labels_change_nothing_but_test_figures(data, found, result):
    fold = data.folds[0]
    rng = np.random.default_rng(0)
    labels = rng.permutation(fold.test.labels)
    other = Queries(fold.test.features, labels, fold.test.offsets, fold.test.query_ids)
    changed = make_dataset(data.name, [Fold(fold.name, fold.train, fold.validation, other)])
    content = effectiveness_test(changed, found, CONFIG, hand_designed=HAND)
    assert content["best_hand_designed"] == result["best_hand_designed"]
    for row in result["rows"]:
        same = row_of(content, row["name"])
        for name in ("learning_rate", "steps", "validation"):
            assert same[name] == row[name]
        assert same["test"] != row["test"]


def test_what_the_limit_of_steps_ended_is_said(data, caplog):
    config = dataclasses.replace(CONFIG, learning_rates=(1e-5,), max_steps=6)  # two looks
    with caplog.at_level("WARNING"):
        content = effectiveness_test(data, [], config, hand_designed=["ranknet"])
    assert not content["rows"][0]["converged"]
    assert "max_steps 6 ended trainings under ranknet before 2 looks without" in caplog.text
    caplog.clear()
    patient = dataclasses.replace(CONFIG, learning_rates=(1e-30,), max_steps=12)  # nothing moves
    content = effectiveness_test(data, [], patient, hand_designed=["ranknet"])
    assert content["rows"][0]["steps"] == [[3, 3]]
    assert content["rows"][0]["converged"]
    assert "max_steps" not in caplog.text


@pytest.mark.parametrize(
    "chosen, said",
    [
        (
            [0.1, 0.1],
            "the highest learning rate, 0.1, did best in 2 of 3 trainings: with higher ones",
        ),
        (
            [0.01, 0.01],
            "the lowest learning rate, 0.01, did best in 2 of 3 trainings: with lower ones",
        ),
        ([0.1, 0.01], ""),
    ],
)
def test_learning_rates_at_the_end_of_the_grid_are_said(caplog, chosen, said):
    rows = [{"name": "a", "converged": True, "learning_rate": [0.03]},
            {"name": "b", "converged": True, "learning_rate": chosen},
            {"name": "lambdamart", "converged": True, "learning_rate": None}]  # fmt: skip
    rates = (0.01, 0.03, 0.1)
    with caplog.at_level("WARNING"):
        _warn_of_limits(rows, [], dataclasses.replace(CONFIG, learning_rates=rates))
        _warn_of_limits(rows, [], dataclasses.replace(CONFIG, learning_rates=(0.1,)))
    assert caplog.text.count("learning rate") == bool(said)
    assert said in caplog.text


def test_trainings_that_max_steps_ended_are_named_those_on_fresh_seeds_too(caplog):
    def row(name, converged):
        return {"name": name, "converged": converged, "learning_rate": None}

    rows = [row("a", False), row("b", True), row("c", True)]
    fresh = confirmed_rows({"found": row("b", False), "hand_designed": row("c", True)})
    with caplog.at_level("WARNING"):
        _warn_of_limits(rows, fresh, CONFIG)
    assert "max_steps 12 ended trainings under a, b on fresh seeds before 2 looks" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING"):
        _warn_of_limits(rows[1:], confirmed_rows({"found": None, "hand_designed": None}), CONFIG)
    assert "max_steps" not in caplog.text


def _bytes(programs, slot):
    """What tells one slot's loss from another's."""
    return b"".join(np.asarray(x)[slot].tobytes() for x in jax.tree.leaves(programs))


def test_every_loss_gets_the_same_budget(data, found, monkeypatch):
    calls = []

    def spy(training, mesh):
        train = original(training, mesh)

        def call(states, programs, rates, active, batches, plan):
            slots = np.flatnonzero(active)
            trained = [(_bytes(programs, slot), float(rates[slot])) for slot in slots]
            calls.append((trained, plan))
            return train(states, programs, rates, active, batches, plan)

        call.lower = train.lower
        return call

    original = trainer.train_runs
    monkeypatch.setattr(trainer, "train_runs", spy)
    config = dataclasses.replace(CONFIG, patience=100)  # so that all train to the end
    told = []
    effectiveness_test(data, found, config, hand_designed=HAND,
                       on_progress=lambda text, share: told.append((text, share)))  # fmt: skip
    assert len(calls) == 4  # blocks of 3 steps make 12
    for trained, plan in calls:
        assert len(trained) == len(set(trained)) == 6  # each of three losses with each of two rates
        assert len({loss for loss, _ in trained}) == 3
        assert {rate for _, rate in trained} == set(np.float32(CONFIG.learning_rates).tolist())
        assert plan.rows[0].shape[:2] == (CONFIG.seeds, 3)
    assert told == [("fold Fold1", share) for share in (0.25, 0.5, 0.75, 1.0)]


def test_a_loss_does_not_depend_on_what_else_is_tested(data, result):
    content = effectiveness_test(data, [], CONFIG, hand_designed=["softmax"])
    alone, among = row_of(content, "softmax"), row_of(result, "softmax")
    for name in ("learning_rate", "steps", "validation", "test"):
        assert alone[name] == among[name]
    assert content["verdict"].startswith("No found loss was tested")


def test_runs_that_go_on_lie_together(data, monkeypatch):
    """No step trains more chunks than the runs that go on fill, and each run earns what it did."""
    config = dataclasses.replace(CONFIG, learning_rates=(0.003, 0.1, 0.3), max_steps=30)
    hand = sorted(HAND_DESIGNED)[:12]  # 36 runs
    steps, train = [], Trainer.train

    def watched(self, runs, losses, rates, active, feed, plans):
        steps.append((active.sum(), self.chunks_of(active), self.mesh.size))
        return train(self, runs, losses, rates, active, feed, plans)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", watched)
        packed = effectiveness_test(data, [], config, hand_designed=hand)
    assert all(chunks == -(-active // (CPU_CHUNK * devices)) for active, chunks, devices in steps)
    assert steps[-1][1] < steps[0][1]  # so some were moved
    monkeypatch.setattr(Trainer, "chunks_of", lambda self, active: 0)  # nothing is worth moving
    assert effectiveness_test(data, [], config, hand_designed=hand) == packed


def test_the_exact_path_is_the_batched_path(data, result, monkeypatch):
    """The losses forced through the exact path, one program each, earn what they earned."""
    monkeypatch.setattr(convergence, "unfit", lambda loss: "by order")
    content = effectiveness_test(data, [], CONFIG, hand_designed=HAND)
    for name in HAND:
        exact, batched = row_of(content, name), row_of(result, name)
        assert exact["learning_rate"] == batched["learning_rate"]
        assert exact["validation"] == pytest.approx(batched["validation"], abs=2e-3)
        for metric in METRICS:
            given, expected = exact["test"][metric]["mean"], batched["test"][metric]["mean"]
            assert given == pytest.approx(expected, abs=5e-3)


def test_a_loss_that_does_not_fit_takes_the_exact_path(data, result):
    assert unfit(UNFIT)
    assert not any(unfit(LOSSES[name]) for name in HAND_DESIGNED)
    content = effectiveness_test(data, [UNFIT], CONFIG, hand_designed=["ranknet"])
    other, twin = row_of(content, "found 1"), row_of(content, "ranknet")
    assert other["test"]["ndcg@10"]["mean"] == pytest.approx(
        twin["test"]["ndcg@10"]["mean"], abs=5e-3
    )


def test_a_rate_that_explodes_is_not_chosen(data):
    config = dataclasses.replace(CONFIG, learning_rates=(1e38, 0.1))
    content = effectiveness_test(data, [], config, hand_designed=["ranknet"])
    assert content["rows"][0]["learning_rate"] == [0.1]
    config = dataclasses.replace(CONFIG, learning_rates=(1e38, 3e38))
    with pytest.raises(AutolossError, match="no hand-designed loss could be trained"):
        effectiveness_test(data, [], config, hand_designed=["ranknet"])


@pytest.mark.slow
def test_folds_share_every_compiled_program(found):
    """Of other sizes, with lists of other lengths, and with a loss of the exact path besides."""
    folds = [
        dataclasses.replace(
            synthetic(num_queries=n, num_features=6, list_length=(3, longest), seed=n).folds[0],
            name=f"Fold{n}",
        )
        for n, longest in ((40, 5), (64, 9), (55, 7))
    ]  # fmt: skip
    programs = []

    def spied(build):
        def spy(training, mesh):
            programs.append(build.__wrapped__(training, mesh))
            return programs[-1]

        return spy

    config = dataclasses.replace(CONFIG, max_buckets=2)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("train_runs", "evaluate_runs"):
            patch.setattr(trainer, name, spied(getattr(trainer, name)))
        sizes = [fold_tests._scores._cache_size(), evaluation._measure._cache_size()]
        content = effectiveness_test(
            make_dataset("three", folds), [*found, UNFIT], config, hand_designed=["ranknet"]
        )
    # At most, for jax may have dropped one.
    assert len(programs) == 2 * 2
    assert all(program._cache_size() <= 1 for program in programs)
    assert fold_tests._scores._cache_size() <= sizes[0] + config.max_buckets
    assert evaluation._measure._cache_size() <= sizes[1] + config.max_buckets
    assert content["folds"] == ["Fold40", "Fold64", "Fold55"]
    assert [len(row["learning_rate"]) for row in content["rows"]] == [3, 3, 3]


# --- the reference ---


@pytest.fixture
def quick_trees(monkeypatch):
    pytest.importorskip("lightgbm")
    for name, value in (("MAX_TREES", 20), ("PATIENCE", 5), ("GRID", {
            "learning_rate": (0.1,), "num_leaves": (5,), "min_data_in_leaf": (5,)})):  # fmt: skip
        monkeypatch.setattr(gbdt, name, value)


def test_lambdamart_is_measured_as_the_losses_are(data, result, quick_trees, tmp_path):
    config = dataclasses.replace(CONFIG, lambdamart=True, dump_scores=True)
    content = effectiveness_test(data, [], config, hand_designed=["softmax"], out=str(tmp_path))
    row = row_of(content, "lambdamart")
    assert (row["kind"], row["formula"]) == ("reference", None)
    assert row["settings"] == [{"learning_rate": 0.1, "num_leaves": 5, "min_data_in_leaf": 5}]
    assert len(row["steps"][0]) == CONFIG.seeds
    assert set(row["test"]) == set(METRICS)
    for name in ("learning_rate", "steps", "validation", "test"):  # the others are as without it
        assert row_of(content, "softmax")[name] == row_of(result, "softmax")[name]
    dumped = read_arrays(tmp_path / TEST_SCORES_FILE)
    place = dumped["names"].tolist().index("lambdamart")
    values = []
    for a, b in itertools.pairwise(dumped["offsets"]):
        labels = dumped["labels"][a:b]
        if labels.max() > 0:
            seeds = [independent_ndcg(s[a:b], labels, 10) for s in dumped["scores"][place]]
            values.append(np.mean(seeds))
    assert row["test"]["ndcg@10"]["mean"] == pytest.approx(np.mean(values), abs=1e-6)
    assert "lambdamart, the reference" in content["verdict"]


def test_lambdamart_without_lightgbm_is_refused_at_once(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(AutolossError, match="lambdamart needs LightGBM, which is not installed"):
        effectiveness_test(data, [], dataclasses.replace(CONFIG, lambdamart=True))


def test_scores_have_to_be_written_somewhere(data):
    with pytest.raises(AutolossError, match=r"dump_scores is True, expected a run folder \(out\)"):
        effectiveness_test(data, [], dataclasses.replace(CONFIG, dump_scores=True))


# --- the verdict ---


def compared(
    found, hand=None, *, validation=(0.6, 0.5), defined=None, empty="skip", spread=None,
    confirmed=None,
):  # fmt: skip
    """The comparison of given per-query figures of one found and two hand-designed losses.

    spread: f64[seeds, queries], by which each seed of the found loss is off.
    """
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.7, 80)
    hand = base if hand is None else hand
    figures = {"found 1": base + found, "a": hand, "b": base - 0.2}
    losses = [Contender(n, LOSSES["mse"], "found" if n == "found 1" else "hand_designed")
              for n in figures]  # fmt: skip
    values = dict(zip(figures, (0.7, *validation), strict=True))
    defined = np.ones(80, bool) if defined is None else defined
    spread = np.zeros((1, 80)) if spread is None else spread
    tested = []
    for name, figure in figures.items():
        off = spread * (name == "found 1")
        by_seed, mean = (np.where(defined, figure + x, np.nan) for x in (off, off.mean(0)))
        tested.append(Shown(0.1, [3], True, values[name], {"ndcg@10": mean}, by_seed))
    return compare(losses, [tested], metric="ndcg@10", empty=empty, seed=0, confirmed=confirmed)


def test_verdicts():
    noise = np.random.default_rng(1).normal(0, 0.05, 80)
    better = compared(0.05 + noise)["verdict"]
    assert better.startswith("The best found loss is better than a, the hand-designed loss that")
    assert "NDCG@10 +0.0" in better
    worse = compared(-0.05 + noise)["verdict"]
    assert worse.startswith("The best found loss is worse than a")
    assert worse.endswith("Use a.")
    undecided = compared(noise - noise.mean() + 0.001)["verdict"]
    assert undecided.startswith("No found loss is shown to be better than a")
    assert "within what chance explains" in undecided
    assert compared(np.zeros(80))["verdict"].startswith("No found loss is shown to be better")
    # The opponent is what validation chose, even where the test would have chosen the other.
    assert "better than b" in compared(noise, validation=(0.4, 0.5))["verdict"]


def test_what_more_seeds_would_settle():
    """The share that is put into the figures is found, and the verdict tells of a large one."""
    rng = np.random.default_rng(5)
    of_queries = rng.normal(0, 0.05, 80)
    of_queries -= of_queries.mean()

    def with_noise(size, seeds=4):
        return compared(of_queries, spread=rng.normal(0, size, (seeds, 80)))

    content = with_noise(0.1)  # of the variance of a mean over seeds 0.0025 is the trainings'
    share = row_of(content, "found 1")["seed_share"]
    assert share == pytest.approx(0.5, abs=0.12)
    interval = row_of(content, "found 1")["difference"]
    half = (interval["ci_high"] - interval["ci_low"]) / 2
    assert (
        f"Of this uncertainty about {100 * share:.0f} % comes from initial weights and batches: "
        f"with four times as many seeds the interval would reach about "
        f"{np.sqrt(1 - 0.75 * share) * half:.4f} to each side, not {half:.4f}."
    ) in content["verdict"]
    more = with_noise(0.1, seeds=16)  # and so it comes about
    interval = row_of(more, "found 1")["difference"]
    narrowed = (interval["ci_high"] - interval["ci_low"]) / 2
    assert narrowed == pytest.approx(np.sqrt(1 - 0.75 * share) * half, rel=0.2)
    content = with_noise(0.01)
    assert row_of(content, "found 1")["seed_share"] < 0.05
    assert "seeds" not in content["verdict"]
    assert row_of(with_noise(0.1, seeds=1), "found 1")["seed_share"] is None
    assert row_of(content, "a")["seed_share"] is None  # the best itself


# --- the confirmation ---


@pytest.fixture(scope="module")
def confirmed(data, found, tmp_path_factory):
    """A test with a confirmation, and its folder."""
    folder = tmp_path_factory.mktemp("confirmed")
    config = dataclasses.replace(CONFIG, confirmation_seeds=3)
    told = []
    content = effectiveness_test(
        data, found, config, hand_designed=HAND, out=str(folder),
        on_progress=lambda text, share: told.append((text, share)),
    )  # fmt: skip
    return content, read_arrays(folder / PER_QUERY_FILE), told


def test_the_two_that_validation_chooses_are_trained_on_fresh_seeds(data, found, result, confirmed):
    content, arrays, _ = confirmed
    confirmation, best = content["confirmation"], content["best_hand_designed"]
    assert (confirmation["seeds"], confirmation["failed"]) == (4, {})  # the next multiple of 2
    assert content["rows"] == result["rows"]  # which are as without it
    assert result["confirmation"] is None
    assert arrays["confirmed_names"].tolist() == ["found 1", best]
    for kind, name, of_queries in zip(
        ("found", "hand_designed"), ("found 1", best), arrays["confirmed_values"], strict=True
    ):
        row, chosen = confirmation[kind], row_of(content, name)
        for key in ("name", "formula", "kind", "learning_rate"):
            assert row[key] == chosen[key]
        assert [len(steps) for steps in row["steps"]] == [4]
        # The same as two tests of this loss alone, at its rate, with the seeds of the confirmation.
        losses = {"found": (found, HAND[:1]), "hand_designed": ([], [best])}[kind]
        alone = [
            row_of(effectiveness_test(
                data, losses[0],
                dataclasses.replace(CONFIG, seed=CONFIG.seed + fold_tests._FRESH + lot,
                                    learning_rates=tuple(row["learning_rate"])),
                hand_designed=losses[1],
            ), name)
            for lot in range(2)
        ]  # fmt: skip
        assert row["steps"] == [[*alone[0]["steps"][0], *alone[1]["steps"][0]]]
        of_lots = np.array([[r["test"][m]["mean"] for m in METRICS] for r in (row, *alone, chosen)])
        np.testing.assert_allclose(of_lots[0], of_lots[1:3].mean(0), atol=1e-5)  # chunks differ
        assert (of_lots[0] != of_lots[3]).any()
        assert np.nanmean(of_queries) == pytest.approx(row["test"]["ndcg@10"]["mean"], abs=1e-12)
    difference = np.subtract(*arrays["confirmed_values"])
    row = confirmation["found"]
    assert row["difference"]["mean"] == pytest.approx(np.nanmean(difference), abs=1e-12)
    assert row["p_value"] == randomisation_p_value(difference[arrays["defined"]], CONFIG.seed)
    assert "p_value_corrected" not in row  # one comparison
    assert f"{row['difference']['mean']:+.4f}" in content["verdict"]
    assert "on 4 fresh seeds" in content["verdict"]


def test_progress_tells_of_the_confirmation_and_ends_at_one(confirmed):
    texts, shares = zip(*confirmed[2], strict=True)
    assert list(dict.fromkeys(texts)) == ["fold Fold1", "confirmation, fold Fold1"]
    assert list(shares) == sorted(shares)
    # Three losses at two rates with two seeds, then two losses with four seeds.
    last = max(share for text, share in confirmed[2] if text == "fold Fold1")
    assert last <= 12 / 20 < shares[-1] <= 1


def test_the_verdict_rests_on_the_fresh_seeds():
    noise = np.random.default_rng(1).normal(0, 0.02, 80)
    base = np.random.default_rng(0).uniform(0.3, 0.7, 80)

    def shown(figures, reason=""):
        test = {} if reason else {"ndcg@10": figures}
        seeds = None if reason else np.stack([figures] * 5)
        return Shown(0.1, [3], True, 0.5, test, seeds, reason=reason)

    def verdict(first, fresh, reason=""):
        pair = [shown(base + fresh + noise, reason), shown(base)]
        content = compared(first + noise, confirmed=[pair])
        return content["verdict"], content["confirmation"]

    text, confirmation = verdict(-0.05, 0.05)
    assert text.startswith("The best found loss is better than a, ")
    assert text.endswith(") on 5 fresh seeds.")
    assert "corrected" not in text
    assert confirmation["seeds"] == 5
    text, _ = verdict(0.05, -0.05)
    assert text.startswith("The best found loss is worse than a, ")
    assert text.endswith(" on 5 fresh seeds. Use a.")
    text, confirmation = verdict(0.05, 0.05, "the scores of its model are not finite")
    assert confirmation == {
        "seeds": None, "failed": {"found 1": "the scores of its model are not finite"},
        "found": None, "hand_designed": None,
    }  # fmt: skip
    assert text.startswith("The best found loss is better than a, ")  # by the first seeds
    assert text.endswith(
        "On fresh seeds training broke down under found 1 (the scores of its model are not "
        "finite), so nothing is confirmed."
    )


def test_without_a_found_loss_nothing_is_confirmed(data):
    config = dataclasses.replace(CONFIG, confirmation_seeds=3)
    content = effectiveness_test(data, [], config, hand_designed=HAND)
    assert content["confirmation"] is None


def reference_compared(difference, found=0.01):
    """A reference that is better than the best found loss by `difference` on every query."""
    rng = np.random.default_rng(0)
    base, noise = rng.uniform(0.3, 0.7, 80), rng.normal(0, 0.02, 80)
    losses = [Contender("found 1", LOSSES["mse"], "found"),
              Contender("a", LOSSES["mse"], "hand_designed"),
              effectiveness.LAMBDAMART]  # fmt: skip
    if found is None:
        losses = losses[1:]
    figures = {"found 1": base + (found or 0), "a": base, "lambdamart": base + difference + noise}
    tested = [
        Shown(0.1, [3], True, 0.5 if c.name == "a" else 0.6, {"ndcg@10": figures[c.name]},
              settings={"num_leaves": 7} if c.kind == "reference" else None)
        for c in losses
    ]  # fmt: skip
    return compare(losses, [tested], metric="ndcg@10", empty="skip", seed=0)


def test_the_reference_has_a_row_and_a_sentence_and_no_part_in_the_verdict():
    content = reference_compared(0.1)
    row = row_of(content, "lambdamart")
    assert (row["kind"], row["formula"], row["settings"]) == (
        "reference",
        None,
        [{"num_leaves": 7}],
    )
    assert all("settings" not in r for r in content["rows"] if r["kind"] != "reference")
    assert row["p_value_corrected"] == row["p_value"]  # a comparison of its own
    assert (content["best_hand_designed"], content["best_found"]) == ("a", "found 1")
    against = content["against_reference"]
    assert (against["reference"], against["loss"]) == ("lambdamart", "found 1")
    # Better than the found loss by 0.1 - 0.01 and noise, on every query.
    assert against["difference"]["mean"] == pytest.approx(-0.09, abs=0.01)
    assert (against["wins"], against["ties"], against["losses"]) == (0, 0, 80)
    verdict = content["verdict"]
    assert verdict.startswith("The best found loss is better than a, the hand-designed loss")
    assert (
        "The loss that validation chooses of all, found 1, is worse than lambdamart, the "
        in verdict
    )
    without = reference_compared(-5.0)["verdict"]
    assert without.startswith(verdict.partition(" The loss that validation")[0])
    assert "found 1, is better than lambdamart" in without
    assert "is not shown to differ from lambdamart" in reference_compared(0.01)["verdict"]
    # Without a found loss it is the best hand-designed one that is compared.
    assert reference_compared(0.1, None)["against_reference"]["loss"] == "a"
    assert compared(np.zeros(80))["against_reference"] is None


def test_the_correction_counts_the_comparisons_made():
    content = compared(np.zeros(80))
    a, b = row_of(content, "a"), row_of(content, "b")
    assert a["p_value_corrected"] == 1.0
    assert b["p_value_corrected"] == b["p_value"]  # one comparison: with itself, a makes none


def test_a_difference_whose_interval_holds_0_is_not_shown():
    content = compared(0.05 + np.random.default_rng(1).normal(0, 0.05, 80))
    rows, found = content["rows"], row_of(content, "found 1")
    assert found["p_value_corrected"] < 0.05 and found["difference"]["ci_low"] > 0
    given = found_verdict(rows, "a", "ndcg@10", found_failed=False)
    assert given.startswith("The best found loss is better than a")
    found["difference"]["ci_low"] = -1e-5
    given = found_verdict(rows, "a", "ndcg@10", found_failed=False)
    assert given.startswith("No found loss is shown to be better than a")


def test_the_conventions_by_hand():
    defined = np.arange(80) < 60
    base = np.random.default_rng(0).uniform(0.3, 0.7, 80)
    for empty, mean in (("skip", base[:60].mean()), ("zero", base[:60].sum() / 80),
                        ("one", (base[:60].sum() + 20) / 80)):  # fmt: skip
        content = compared(np.zeros(80), defined=defined, empty=empty)
        assert row_of(content, "a")["test"]["ndcg@10"]["mean"] == pytest.approx(mean)
        assert (content["queries"], content["empty_queries"]) == (80, 20)


def test_a_loss_that_fails_is_left_out_and_named():
    losses = [Contender("found 1", LOSSES["mse"], "found"), Contender("a", LOSSES["mse"],
              "hand_designed")]  # fmt: skip
    failed = Shown(float("nan"), [], False, float("-inf"), {})
    fine = Shown(0.1, [3], True, 0.5, {"ndcg@10": np.array([0.2, 0.4])})
    content = compare(losses, [[failed, fine]], metric="ndcg@10", empty="skip", seed=0)
    assert content["failed"] == ["found 1"]
    assert content["best_found"] is None
    assert [row["name"] for row in content["rows"]] == ["a"]
    assert content["verdict"].startswith("No found loss could be trained")


# --- folds and refusals ---


def fold_of(name, train, validation, test):
    def queries(names):
        return Queries(np.ones((len(names), 1)), np.ones(len(names)), np.arange(len(names) + 1),
                       tuple(names))  # fmt: skip

    return Fold(name, *map(queries, (train, validation, test)))


def test_folds_whose_test_queries_the_search_saw_are_left_out():
    data = Dataset("five", (
        fold_of("1", "abc", "d", "e"), fold_of("2", "bcd", "e", "a"), fold_of("3", "cda", "b", "e"),
        fold_of("4", "abc", "e", "d"), fold_of("5", "abc", "d", "fg"),
    ), "0" * 64)  # fmt: skip
    clean = clean_folds(data)
    assert [fold.name for fold in clean.folds] == ["1", "3", "5"]
    assert (clean.name, clean.sha256) == (data.name, data.sha256)


def test_contenders():
    found = [parse("mean_i(square(s_i - y_i))"), LOSSES["ranknet"]]
    named = contenders(found, ["softmax"])
    assert [(c.name, c.kind) for c in named] == [
        ("found 1", "found"), ("found 2", "found"), ("softmax", "hand_designed")]  # fmt: skip
    assert [c.name for c in contenders([])] == list(HAND_DESIGNED)
    with pytest.raises(AutolossError, match="unknown loss 'softmx'; expected one of"):
        contenders([], ["softmx"])


def test_the_folder_knows_a_user_s_model(data, found, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        effectiveness, "run_effectiveness", lambda *_, model, **__: given.append(model) or {}
    )
    for _ in range(2):  # goes on
        effectiveness_test(data, found, CONFIG, model=MLP((4,)), out=str(tmp_path))
    assert given == [MLP((4,))] * 2
    with pytest.raises(AutolossError, match=r"effectiveness.model: stored .*MLP.*given \"linear\""):
        effectiveness_test(data, found, CONFIG, out=str(tmp_path))


def test_a_finished_folder_is_read_and_another_test_refused(data, found, result, tmp_path):
    effectiveness_test(data, [], CONFIG, hand_designed=["ranknet"], out=str(tmp_path))
    again = effectiveness_test(
        data, [], CONFIG, hand_designed=["ranknet"], out=str(tmp_path),
        on_progress=lambda *_: pytest.fail("it trains again"),
    )  # fmt: skip
    assert again["rows"][0]["name"] == "ranknet"
    with pytest.raises(AutolossError, match="losses"):
        effectiveness_test(data, [], CONFIG, hand_designed=["softmax"], out=str(tmp_path))
    with pytest.raises(AutolossError, match="effectiveness.seeds: stored 2, given 3"):
        effectiveness_test(data, [], dataclasses.replace(CONFIG, seeds=3),
                           hand_designed=["ranknet"], out=str(tmp_path))  # fmt: skip


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"empty": "drop"}, "empty is 'drop'; expected one of skip, zero, one"),
        ({"metric_cutoff": 7}, "metric_cutoff is 7; expected 1, 3, 5, 10 or 30"),
        ({"seeds": 0}, "seeds is 0, expected at least 1"),
        ({"truncation_level": -1}, "truncation_level is -1, expected at least 0"),
        ({"seed": -1}, "seed is -1"),
        ({"patience": 0}, "patience is 0"),
        ({"max_steps": 2}, "max_steps is 2, expected at least one block of 3"),
        ({"learning_rates": ()}, r"learning_rates is \(\), expected positive numbers"),
        ({"learning_rates": (0.1, -1.0)}, "expected positive numbers"),
        ({"learning_rates": (float("nan"),)}, "expected positive numbers"),
        ({"features": "rank"}, "unknown features 'rank'"),
        ({"model": "svm"}, "unknown model 'svm'"),
    ],
)
def test_bad_settings_are_refused(data, setting, message):
    with pytest.raises(AutolossError, match=message):
        effectiveness_test(data, [], dataclasses.replace(CONFIG, **setting))


def test_a_loss_whose_pairs_cannot_be_truncated_is_refused(data, tmp_path):
    config = dataclasses.replace(CONFIG, truncation_level=3)
    with pytest.raises(AutolossError, match="truncation_level is 3; expected 0, or losses that fit "
                       "a batched program: 'sum_ij.*s_i [+] s_j"):  # fmt: skip
        effectiveness_test(data, [UNFIT], config, hand_designed=HAND, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_pairs_are_truncated_in_phase_ii_as_configured(data, result):
    config = dataclasses.replace(CONFIG, truncation_level=1)
    content = effectiveness_test(data, [], config, hand_designed=["ranknet", "mse"])
    assert (content["truncation_level"], result["truncation_level"]) == (1, 0)
    whole = effectiveness_test(data, [], CONFIG, hand_designed=["ranknet", "mse"])
    for name, same in (("ranknet", False), ("mse", True)):
        validation = [row_of(x, name)["validation"] for x in (content, whole)]
        assert (abs(validation[0] - validation[1]) < 1e-6) == same


def test_a_test_needs_a_hand_designed_loss_and_relevant_documents(data, found):
    with pytest.raises(AutolossError, match="at least one hand-designed loss to compare with"):
        effectiveness_test(data, found, CONFIG, hand_designed=[])
    fold = data.folds[0]
    for role in ("validation", "test"):
        part = getattr(fold, role)
        empty = dataclasses.replace(part, labels=np.zeros_like(part.labels))
        bare = make_dataset("bare", [dataclasses.replace(fold, **{role: empty})])
        with pytest.raises(AutolossError, match=f"no {role} query has a relevant document"):
            effectiveness_test(bare, found, CONFIG, hand_designed=HAND)


# --- a user's own metric ---


def lower_is_better(scores, labels, *, where):
    """NDCG of labels that count downwards from 4."""
    return ndcg_per_query(scores, 4 - labels, where=where, k=10)


def test_a_user_s_metric_validates_and_compares(data, tmp_path):
    upside_down = parse("sum_ij(softplus(s_j - s_i), where=y_j > y_i)")
    content = effectiveness_test(
        data, [upside_down], CONFIG, hand_designed=HAND, metric=lower_is_better, out=str(tmp_path)
    )
    name = content["metric"]
    assert name.endswith("test_effectiveness.lower_is_better")
    # By NDCG the loss is the worst there is, by the metric it is the best.
    row, ranknet = row_of(content, "found 1"), row_of(content, "ranknet")
    assert row["test"]["ndcg@10"]["mean"] < ranknet["test"]["ndcg@10"]["mean"]
    assert row["test"][name]["mean"] > ranknet["test"][name]["mean"]
    assert row["validation"] > ranknet["validation"]
    assert content["best_hand_designed"] in content["verdict"]
    # Every query has a document whose label is below 4: the metric's own queries count.
    assert content["empty_queries"] == 0
    values = read_arrays(tmp_path / PER_QUERY_FILE)["values"]
    means = [r["test"][name]["mean"] for r in content["rows"]]
    np.testing.assert_allclose(values.mean(1), means)


def test_a_metric_without_a_name_is_called_metric(data):
    def metric(scores, labels, *, where):
        return ndcg_per_query(scores, labels, where=where, k=10)

    content = effectiveness_test(
        data, [], CONFIG, hand_designed=HAND, metric=lambda *a, **k: metric(*a, **k)
    )
    assert content["metric"] == "metric"
    for row in content["rows"]:
        assert row["test"]["metric"] == row["test"]["ndcg@10"]
