"""Phase II on tiny data: the same chances for every loss, honest figures, an honest verdict."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from autoloss_jax import effectiveness
from autoloss_jax.comparison import Contender, compare
from autoloss_jax.comparison import Tested as Shown  # a name in Test is collected as a test
from autoloss_jax.data import Dataset, Fold, Queries, make_dataset, synthetic
from autoloss_jax.effectiveness import (
    EFFECTIVENESS_FILE,
    TEST_METRICS,
    EffectivenessConfig,
    clean_folds,
    contenders,
    effectiveness_test,
)
from autoloss_jax.errors import AutolossError
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import HAND_DESIGNED, LOSSES
from autoloss_jax.models import MLP

CONFIG = EffectivenessConfig(
    model="linear", seeds=2, learning_rates=(0.003, 0.1), queries_per_step=8, block_steps=3,
    patience=2, max_steps=12, max_buckets=1,
)  # fmt: skip
HAND = ["ranknet", "softmax"]
# Nothing the batched path holds: pairs see the scores as differences only.
UNFIT = parse("sum_ij(softplus(s_j - s_i) * (1 + 0 * sigmoid(s_i + s_j)), where=y_i > y_j)")


@pytest.fixture(scope="module", autouse=True)
def compile_once():
    """All tests of this file train the same shapes, so they share one compiled program."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("train_runs", "evaluate_runs"):
            patch.setattr(effectiveness, name, functools.cache(getattr(effectiveness, name)))
        yield


@pytest.fixture(scope="module")
def data():
    return synthetic(num_queries=60, num_features=6, list_length=(3, 6))


@pytest.fixture(scope="module")
def found():
    return [parse("sum_ij(square(relu(1 - (s_i - s_j))), where=y_i > y_j)")]


@pytest.fixture(scope="module")
def measured():
    """What every model that was read on test queries scored, in the order they were read."""
    return []


@pytest.fixture(scope="module")
def result(data, found, measured, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    original = effectiveness._measure

    def spy(model, params, queries):
        batches = [batch for batch, _ in queries.lists()]
        scores = [np.asarray(model.apply(params, b.features, b.mask)) for b in batches]
        measured.append((scores, batches))
        return original(model, params, queries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effectiveness, "_measure", spy)
        content = effectiveness_test(data, found, CONFIG, hand_designed=HAND, out=str(folder))
    assert json.loads((folder / EFFECTIVENESS_FILE).read_text()) == json.loads(json.dumps(content))
    return content


def row_of(content, name):
    return next(row for row in content["rows"] if row["name"] == name)


# --- the file ---


def test_rows_say_what_the_design_says(result, found):
    assert {row["name"] for row in result["rows"]} == {"found 1", *HAND}
    for row in result["rows"]:
        assert row["kind"] == ("found" if row["name"] == "found 1" else "hand_designed")
        assert set(row["test"]) == set(TEST_METRICS) == {
            "ndcg@1", "ndcg@3", "ndcg@5", "ndcg@10", "ndcg@30", "mrr", "map"}  # fmt: skip
        for interval in (*row["test"].values(), row["difference"]):
            assert set(interval) == {"mean", "ci_low", "ci_high"}
            assert interval["ci_low"] <= interval["mean"] <= interval["ci_high"]
        assert 0 < row["p_value"] <= row["p_value_corrected"] <= 1
        assert set(row["learning_rate"]) <= set(CONFIG.learning_rates)
        assert all(step in (3, 6, 9, 12) for steps in row["steps"] for step in steps)
        assert [len(steps) for steps in row["steps"]] == [CONFIG.seeds]
    assert row_of(result, "found 1")["formula"] == str(found[0])
    means = [row["test"]["ndcg@10"]["mean"] for row in result["rows"]]
    assert means == sorted(means, reverse=True)
    assert result["folds"] == ["Fold1"]
    assert result["best_found"] == "found 1"
    assert (result["seeds"], result["empty"], result["metric"]) == (2, "skip", "ndcg@10")


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


def test_figures_agree_with_scikit_learn(data, result, measured):
    ndcg_score = pytest.importorskip("sklearn.metrics").ndcg_score
    assert len(measured) == 3 * CONFIG.seeds  # the test queries are read once for each model
    names = ["found 1", *HAND]
    for k, name in enumerate(names):
        per_seed = []
        for scores, batches in measured[k * CONFIG.seeds : (k + 1) * CONFIG.seeds]:
            values = []
            for s, batch in zip(scores, batches, strict=True):
                for row, labels, mask in zip(s, batch.labels, batch.mask, strict=True):
                    y, own = np.asarray(labels)[np.asarray(mask)], row[np.asarray(mask)]
                    assert len(set(own)) == len(own)  # without ties
                    if y.max() > 0 and len(y) > 1:
                        values.append(ndcg_score([2.0**y - 1], [own.astype(float)], k=3))
                    elif y.max() > 0:
                        values.append(1.0)
            per_seed.append(values)
        expected = np.mean(per_seed)
        assert row_of(result, name)["test"]["ndcg@3"]["mean"] == pytest.approx(expected, abs=1e-6)


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


def test_every_loss_gets_the_same_budget(data, found, monkeypatch):
    calls = []

    def spy(training, mesh):
        train = original(training, mesh)

        def call(states, programs, rates, active, batches, plan):
            calls.append((np.asarray(rates)[: np.sum(active)], plan))
            return train(states, programs, rates, active, batches, plan)

        return call

    original = effectiveness.train_runs
    monkeypatch.setattr(effectiveness, "train_runs", spy)
    config = dataclasses.replace(CONFIG, patience=100)  # so that all train to the end
    told = []
    effectiveness_test(data, found, config, hand_designed=HAND,
                       on_progress=lambda text, share: told.append((text, share)))  # fmt: skip
    assert len(calls) == 4  # blocks of 3 steps make 12
    for rates, plan in calls:
        np.testing.assert_allclose(rates, 3 * [0.003, 0.1])  # every rate for every loss
        assert plan.rows[0].shape[:2] == (CONFIG.seeds, 3)
    assert told == [("fold Fold1", share) for share in (0.25, 0.5, 0.75, 1.0)]


def test_a_loss_does_not_depend_on_what_else_is_tested(data, result):
    content = effectiveness_test(data, [], CONFIG, hand_designed=["softmax"])
    alone, among = row_of(content, "softmax"), row_of(result, "softmax")
    for name in ("learning_rate", "steps", "validation", "test"):
        assert alone[name] == among[name]
    assert content["verdict"].startswith("No found loss was tested")


def test_the_exact_path_is_the_batched_path(data, result, monkeypatch):
    """The losses forced through the exact path, one program each, earn what they earned."""
    monkeypatch.setattr(effectiveness, "_fits", lambda loss: False)
    content = effectiveness_test(data, [], CONFIG, hand_designed=HAND)
    for name in HAND:
        exact, batched = row_of(content, name), row_of(result, name)
        assert exact["learning_rate"] == batched["learning_rate"]
        assert exact["validation"] == pytest.approx(batched["validation"], abs=2e-3)
        for metric in TEST_METRICS:
            given, expected = exact["test"][metric]["mean"], batched["test"][metric]["mean"]
            assert given == pytest.approx(expected, abs=5e-3)


def test_a_loss_that_does_not_fit_takes_the_exact_path(data, result):
    assert not effectiveness._fits(UNFIT)
    assert all(effectiveness._fits(LOSSES[name]) for name in HAND_DESIGNED)
    content = effectiveness_test(data, [UNFIT], CONFIG, hand_designed=["ranknet"])
    unfit, twin = row_of(content, "found 1"), row_of(content, "ranknet")
    assert unfit["test"]["ndcg@10"]["mean"] == pytest.approx(
        twin["test"]["ndcg@10"]["mean"], abs=5e-3
    )


def test_a_rate_that_explodes_is_not_chosen(data):
    config = dataclasses.replace(CONFIG, learning_rates=(1e38, 0.1))
    content = effectiveness_test(data, [], config, hand_designed=["ranknet"])
    assert content["rows"][0]["learning_rate"] == [0.1]
    config = dataclasses.replace(CONFIG, learning_rates=(1e38, 3e38))
    with pytest.raises(AutolossError, match="no hand-designed loss could be trained"):
        effectiveness_test(data, [], config, hand_designed=["ranknet"])


def test_scores_are_compiled_once_for_all_models(measured, result):
    scores, batches = measured[0]
    model = effectiveness.make_model("linear")
    size = effectiveness._scores._cache_size()
    params = model.init(jax.random.key(0), batches[0].features[:1], batches[0].mask[:1])
    effectiveness._scores(model, params, batches[0].features, batches[0].mask)
    assert effectiveness._scores._cache_size() <= size + 1


# --- the verdict ---


def compared(found, hand=None, *, validation=(0.6, 0.5), defined=None, empty="skip"):
    """The comparison of given per-query figures of one found and two hand-designed losses."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.7, 80)
    hand = base if hand is None else hand
    figures = {"found 1": base + found, "a": hand, "b": base - 0.2}
    losses = [Contender(n, LOSSES["mse"], "found" if n == "found 1" else "hand_designed")
              for n in figures]  # fmt: skip
    values = dict(zip(figures, (0.7, *validation), strict=True))
    tested = [Shown(0.1, [3], values[n], {"ndcg@10": v}) for n, v in figures.items()]
    defined = np.ones(80, bool) if defined is None else defined
    return compare(losses, [tested], [{"ndcg@10": defined}], metric="ndcg@10", empty=empty, seed=0)


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


def test_the_correction_counts_the_comparisons_made():
    content = compared(np.zeros(80))
    a, b = row_of(content, "a"), row_of(content, "b")
    assert a["p_value_corrected"] == 1.0
    assert b["p_value_corrected"] == b["p_value"]  # one comparison: with itself, a makes none


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
    failed = Shown(float("nan"), [], float("-inf"), {})
    fine = Shown(0.1, [3], 0.5, {"ndcg@10": np.array([0.2, 0.4])})
    defined = [{"ndcg@10": np.ones(2, bool)}]
    content = compare(losses, [[failed, fine]], defined, metric="ndcg@10", empty="skip", seed=0)
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
