"""A loss against itself without each of its parts: the same chances, paired, and honest words."""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from autoloss_jax import ablation
from autoloss_jax.ablation import ablation_test
from autoloss_jax.convergence import EffectivenessConfig
from autoloss_jax.data import load_dataset, synthetic
from autoloss_jax.effectiveness import effectiveness_test
from autoloss_jax.errors import AutolossError
from autoloss_jax.explain import explain, gradient_direction
from autoloss_jax.files import write_arrays
from autoloss_jax.language.parsing import parse
from autoloss_jax.language.simplification import simplify
from autoloss_jax.losses import LOSSES
from autoloss_jax.metrics import ndcg_per_query
from autoloss_jax.report import ablation_table
from autoloss_jax.runs import ABLATION_FILE, PER_QUERY_FILE
from autoloss_jax.statistics import bootstrap_interval, randomisation_p_value

ROOT = Path(__file__).parents[1]
CONFIG = EffectivenessConfig(
    model="linear", seeds=2, learning_rates=(0.01, 0.1), queries_per_step=16, block_steps=5,
    patience=2, max_steps=30, max_buckets=1, confirmation_seeds=0,
)  # fmt: skip
RANKNET = "sum_ij(softplus(s_j - s_i), where=y_i > y_j)"
# What is left of it without ranknet ranks the wrong way round.
LOSS = f"1 + {RANKNET} + 0.1 * sum_i(s_i * y_i)"


def row_of(content, removed):
    return next(row for row in content["ablations"] if row["removed"] == removed)


@pytest.fixture(scope="module")
def data():
    return synthetic(num_queries=200, num_features=8, list_length=(6, 12))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module")
def content(data, folder):
    return ablation_test(data, LOSS, CONFIG, out=str(folder))


# --- a real one ---


def ndcg_at_two(scores, labels, *, where):
    return ndcg_per_query(scores, labels, where=where, k=2)


def test_by_a_metric_of_ones_own(data, content, tmp_path):
    own = ablation_test(data, LOSS, CONFIG, metric=ndcg_at_two, out=str(tmp_path))
    assert own["whole"]["test"]["mean"] < content["whole"]["test"]["mean"]
    assert own["verdict"].startswith(f"By {__name__}.ndcg_at_two on ")
    assert content["verdict"].startswith("By NDCG@10 on ")


def test_a_part_that_matters_is_shown_to_matter(content):
    row = row_of(content, RANKNET)
    assert row["formula"] == "1 + 0.1 * sum_i(s_i * y_i)"
    assert row["difference"]["ci_high"] < 0 and row["p_value_corrected"] < 0.05
    assert row["outcome"] == "worse"
    assert content["ablations"][0] == row
    assert (
        f"the loss is worse without `{RANKNET}` ({row['difference']['mean']:+.4f}"
        in (content["verdict"])
    )


def test_differences_are_paired_and_to_the_whole_loss(content):
    trained = [row for row in content["ablations"] if not row["reason"]]
    assert len(trained) >= 3
    for row in [*trained, content["nearest"]]:
        difference = row["test"]["mean"] - content["whole"]["test"]["mean"]
        assert row["difference"]["mean"] == pytest.approx(difference, abs=1e-12)


def test_the_conditions_are_those_of_an_effectiveness_test(data, content):
    """The whole loss, and what is left of it, do as they do beside other losses."""
    left = row_of(content, "0.1")
    other = effectiveness_test(
        data, [parse(content["formula"]), parse(left["formula"])], CONFIG,
        hand_designed=["mse", "softmax"],
    )  # fmt: skip
    rows = {row["formula"]: row for row in other["rows"]}
    for expected in ({"formula": content["formula"], **content["whole"]}, left):
        row = rows[expected["formula"]]
        assert row["learning_rate"] == expected["learning_rate"]
        assert row["test"]["ndcg@10"] == pytest.approx(expected["test"], abs=1e-6)


def test_a_part_that_does_nothing_is_not_trained(content):
    row = row_of(content, "1")
    assert row["reason"] == "the gradient points the same way"
    assert row["cosine"] == pytest.approx(1.0)
    assert (row["test"], row["p_value_corrected"], row["outcome"]) == (None, None, "same")
    assert "the same without `1`, for the gradient points the same way" in content["verdict"]


def test_the_nearest_hand_designed_loss_stands_beside_it(content):
    nearest = explain(LOSS).nearest[0]
    stored = content["nearest"]
    assert (stored["name"], stored["cosine"]) == (nearest.name, nearest.cosine)
    assert stored["formula"] == str(LOSSES[nearest.name])


def test_the_file_is_what_is_returned_and_a_second_call_reads_it(
    data, content, folder, monkeypatch
):
    assert json.loads((folder / ABLATION_FILE).read_text()) == json.loads(json.dumps(content))
    monkeypatch.setattr("autoloss_jax.effectiveness.FoldTests", None)  # nothing trains again
    assert json.loads(json.dumps(ablation_test(data, LOSS, CONFIG, out=str(folder)))) == (
        json.loads(json.dumps(content))
    )


def test_the_table_shows_every_part(content):
    console = Console(width=300, no_color=True)
    with console.capture() as capture:
        console.print(ablation_table(content))
    text = capture.get()
    for row in content["ablations"]:
        assert row["formula"] in text
    assert "the whole loss" in text and content["nearest"]["name"] in text
    assert "the gradient points the same way" in text


# --- what is not trained ---


@pytest.mark.parametrize(
    ("loss", "removed", "outcome", "reason"),
    [
        ("mse", "square around s_i - y_i", "nothing to learn", "its gradient ignores the labels"),
        (f"{RANKNET} + sum_i(y_i * sign(s_i))", RANKNET, "nothing to learn", "no gradient"),
        # Gains are ordered as labels are.
        ("lambdarank", "abs around gain_i - gain_j", "same", "the gradient points the same way"),
        ("poly1_softmax", "exp(-logsumexp_j(s_j - s_i))", "as another", "the gradient points as "
         "without sum_i(y_i * exp(-logsumexp_j(s_j - s_i))) / sum_i(y_i)"),
        ("lambdarank", "max_dcg", None, ""),
    ],
)  # fmt: skip
def test_what_is_known_without_training(loss, removed, outcome, reason):
    rows = ablation._rows(parse(loss) if "(" in loss else simplify(LOSSES[loss]))
    row = next(row for row in rows if row["removed"] == removed)
    assert (row["outcome"], row["reason"]) == (outcome, reason)


def test_a_loss_without_gradient_is_refused(data, tmp_path):
    with pytest.raises(AutolossError, match=r"'sum_i\(y_i \* sign\(s_i\)\)' has no gradient"):
        ablation_test(data, "sum_i(y_i * sign(s_i))", CONFIG, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_gradient_directions_are_those_of_explain():
    direction = gradient_direction(LOSSES["lambdarank"])
    assert np.linalg.norm(direction) == pytest.approx(1.0)
    for name, cosine in explain("lambdarank").nearest:
        assert gradient_direction(LOSSES[name]) @ direction == pytest.approx(cosine)
    huge = gradient_direction(parse("sum_ij(exp(square(s_i - s_j)) * 1e20, where=y_i > y_j)"))
    assert np.linalg.norm(huge) == pytest.approx(1.0)
    assert not gradient_direction(parse("mean_i(y_i * sign(s_i))")).any()


# --- the statistics and the words, of figures made by hand ---

DEFINED = np.array([True] * 16 + [False] * 4)


def made(monkeypatch, tmp_path, differences, *, loss="pairwise_hinge", empty="skip", failed=()):
    """The content for an effectiveness test that showed these differences to the whole loss."""
    nearest = explain(loss).nearest[0].name
    names = ["found 1", *(f"found {k}" for k in range(2, 2 + len(differences) - 1)), nearest]
    values = np.stack([np.zeros(20), *differences])
    values[:, ~DEFINED] = math.nan

    def test(dataset, expressions, config, *, hand_designed, metric, out, on_progress):
        assert hand_designed == [nearest] and metric is None and not config.lambdamart
        shown = [k for k, name in enumerate(names) if name not in failed]
        write_arrays(tmp_path / PER_QUERY_FILE, {
            "names": np.array(names)[shown], "values": values[shown], "defined": DEFINED,
        })  # fmt: skip
        rows = [
            {"name": names[k], "test": {"ndcg@10": {"mean": 0.5}}, "learning_rate": [0.1]}
            for k in shown
        ]
        return {
            "rows": rows, "metric": "ndcg@10", "folds": ["Fold1", "Fold2"], "seeds": 3,
            "truncation_level": 0, "empty": empty, "queries": 20, "empty_queries": 4,
            "failed": list(failed), "failure_reasons": dict.fromkeys(failed, "too steep"),
        }  # fmt: skip

    monkeypatch.setattr(ablation, "effectiveness_test", test)
    config = EffectivenessConfig(lambdamart=True)
    return ablation_test(None, loss, config, out=str(tmp_path))


def test_p_values_are_corrected_for_the_trained_and_words_follow_them(monkeypatch, tmp_path):
    alternating = np.resize([0.1, -0.1], 20)
    # Without relu, and without the margin; the nearest loss is no part of the family.
    content = made(monkeypatch, tmp_path, [np.full(20, -0.2), alternating, alternating])
    relu, margin = content["ablations"]
    assert (relu["removed"], margin["removed"]) == ("relu around 1 + (s_j - s_i)", "1")
    p_value = randomisation_p_value(np.full(16, -0.2))
    assert (relu["p_value"], relu["p_value_corrected"]) == (p_value, 2 * p_value)
    assert relu["difference"] == {"mean": pytest.approx(-0.2)} | {
        key: pytest.approx(-0.2) for key in ("ci_low", "ci_high")
    }
    assert (relu["outcome"], margin["outcome"]) == ("worse", "not shown")
    interval = bootstrap_interval(alternating[:16])
    assert margin["difference"] == interval._asdict()
    assert content["nearest"]["p_value"] == randomisation_p_value(alternating[:16])
    assert content["verdict"] == (
        "By NDCG@10 on 16 test queries of Fold1, Fold2, 3 models a loss, the loss is worse without "
        "`relu around 1 + (s_j - s_i)` (-0.2000); not shown to be better or worse without any one "
        "of `1` (+0.0000): a shorter formula may do, but the intervals begin at "
        f"{interval.ci_low:+.4f}."
    )


def test_of_many_parts_the_verdict_names_those_that_may_matter_least():
    rows = [
        {"removed": name, "difference": {"mean": low + 0.01, "ci_low": low, "ci_high": 0.02}}
        for name, low in (("a", -0.04), ("b", -0.01), ("c" * 70, -0.02), ("d", -0.03))
    ]
    assert ablation._not_shown(rows) == (
        "not shown to be better or worse without any one of 4 parts, among them `b` (+0.0000), "
        f"`{'c' * 57}...` (-0.0100), `d` (-0.0200): a shorter formula may do, but the intervals "
        "begin at -0.0100 to -0.0400"
    )


def test_a_loss_that_is_better_without_a_part(monkeypatch, tmp_path):
    content = made(monkeypatch, tmp_path, [np.full(20, 0.1), np.zeros(20), np.zeros(20)])
    assert (
        "the loss is better without `relu around 1 + (s_j - s_i)` (+0.1000)" in (content["verdict"])
    )


def test_queries_without_a_relevant_document_count_alike_for_all(monkeypatch, tmp_path):
    differences = [np.full(20, -0.2), np.zeros(20), np.zeros(20)]
    content = made(monkeypatch, tmp_path, differences, empty="zero")
    mean = row_of(content, "relu around 1 + (s_j - s_i)")["difference"]["mean"]
    assert mean == pytest.approx(-0.2 * 16 / 20)
    assert "on 20 test queries" in content["verdict"]


def test_a_training_that_fails_says_so(monkeypatch, tmp_path):
    differences = [np.zeros(20), np.full(20, -0.2), np.zeros(20)]
    content = made(monkeypatch, tmp_path, differences, failed=["found 2"])
    assert row_of(content, "relu around 1 + (s_j - s_i)")["reason"] == "training failed: too steep"
    assert row_of(content, "1")["difference"]["mean"] == pytest.approx(-0.2)
    assert "without `relu around 1 + (s_j - s_i)` one whose training fails" in content["verdict"]
    with pytest.raises(AutolossError, match="could not be trained: too steep"):
        made(monkeypatch, tmp_path, differences, failed=["found 1"])


def test_a_loss_without_parts(monkeypatch, tmp_path):
    content = made(monkeypatch, tmp_path, [np.zeros(20)], loss="softmax")
    assert content["ablations"] == []
    assert content["verdict"].endswith("the loss is without parts that could be removed.")


# --- the job ---


def run_job(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "experiments" / "ablation.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def write_letor(path, first):
    """Ten queries, whose label is the sign of the first feature."""
    rng = np.random.default_rng(first)
    lines = []
    for query in range(first, first + 10):
        for document, x in enumerate(rng.normal(size=(5, 2))):
            label = 1 if document == 0 else int(x[0] > 0)
            lines.append(f"{label} qid:{query} 1:{x[0]:.4f} 2:{x[1]:.4f}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))


@pytest.fixture
def run(tmp_path):
    """The folder of a run that was tested on two of the three folds of the data beside it."""
    for fold in range(3):
        for place, name in enumerate(("train", "vali", "test")):
            write_letor(
                tmp_path / "data" / f"Fold{fold + 1}" / f"{name}.txt", 30 * fold + 10 * place
            )
    config = {
        "data": {"sha256": load_dataset(str(tmp_path / "data")).sha256, "tested_folds": [1, 3]},
        "effectiveness": asdict(CONFIG),
    }
    folder = tmp_path / "run"
    folder.mkdir()
    content = {"config": config, "fingerprint": {}, "created": ""}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "finalists.json").write_text(json.dumps({"finalists": [{"formula": LOSS}]}))
    return folder


# By default other models than those of the run's seed, by which the loss was chosen.
@pytest.mark.slow
@pytest.mark.parametrize("flags, seed", [([], CONFIG.seed + 1), (["--seed=5"], 5)])
def test_the_job_explains_the_best_loss_of_a_run_as_it_was_tested(run, flags, seed):
    done = run_job("--from", run, "--data", run.parent / "data", "--seeds=1", *flags)
    assert done.returncode == 0, done.stderr
    content = json.loads((run / "ablation" / ABLATION_FILE).read_text())
    assert content["formula"] == str(simplify(parse(LOSS)))
    assert (content["folds"], content["seeds"]) == (["Fold1", "Fold3"], 1)
    stored = json.loads((run / "ablation" / "config.json").read_text())
    expected = asdict(CONFIG) | {"seed": seed, "seeds": 1}
    assert stored["config"]["effectiveness"] == json.loads(json.dumps(expected))
    assert done.stdout.startswith(str(explain(LOSS)))
    assert done.stdout.endswith(content["verdict"] + "\n")
    assert "Which of its parts matter" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_job_refuses_other_data_and_two_losses(run):
    done = run_job("--from", run)
    assert done.returncode == 1
    assert f"--from {run}: it was on other data than --data names" in done.stderr
    done = run_job("--from", run, "--loss", "mse")
    assert done.returncode == 1
    assert "expected either --from or --loss" in done.stderr + done.stdout
