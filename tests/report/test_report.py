"""The page of a run: what it says of whole, partial, damaged and hostile folders."""

import html.parser
import json
import random
import re

import pytest

from autoloss_jax.errors import AutolossError
from autoloss_jax.losses import LOSSES
from autoloss_jax.report import report_html, write_report
from autoloss_jax.report.reading import read_run
from autoloss_jax.report.wording import STATUSES

FOUND = (
    "sum_ij(softplus(s_j - s_i) * sqrt(gain_i - gain_j) * discount_j, where=y_i > y_j) / max_dcg"
)
HOSTILE = "<script>alert('x')</script>&\""
VOID = {"meta", "br", "img", "hr", "input", "link"}


def estimate(mean, half=0.012):
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half}


def row(name, kind, mean, formula, p=None):
    difference = None if p is None else estimate(mean - 0.4713, 0.006)
    test = {f"ndcg@{k}": estimate(mean + shift) for k, shift in ((10, 0), (1, -0.09), (30, 0.07))}
    return {
        "name": name, "formula": formula, "kind": kind, "learning_rate": [0.01, 0.003, 0.01],
        "test": test | {"mrr": estimate(mean + 0.3), "map": estimate(mean - 0.05)},
        "p_value": p, "p_value_corrected": None if p is None else min(1.0, 6 * p),
        "difference": difference,
    }  # fmt: skip


def effectiveness():
    means = {"softmax": 0.4688, "lambdarank": 0.4713, "approx_ndcg": 0.4654, "ranknet": 0.4601,
             "mse": 0.4411}  # fmt: skip
    rows = [
        row(n, "hand_designed", m, str(LOSSES[n]), None if n == "lambdarank" else 0.02)
        for n, m in means.items()
    ]
    rows += [
        row("found_1", "found", 0.4791, FOUND, 0.0001),
        row("found_2", "found", 0.47, FOUND, 0.4),
    ]
    rows.append(row("linear regression", "reference", 0.4302, "mean_i(square(s_i - y_i))", 1e-9))
    verdict = ("found_1 beats lambdarank, the best hand-designed loss, by 0.0078 NDCG@10 "
               "[0.0018, 0.0138] on 1,240 test queries (p = 0.0006, corrected).")  # fmt: skip
    return {
        "rows": rows, "verdict": verdict, "best_hand_designed": "lambdarank", "empty": "skip",
        "queries": 1240, "empty_queries": 61, "folds": ["Fold1", "Fold2", "Fold3"], "seeds": 5,
        "metric": "ndcg@10",
    }  # fmt: skip


def finalists():
    formulas = [FOUND, "sum_i(gain_i * logsumexp_j(s_j - s_i))", str(LOSSES["ranknet"])]
    return [
        {"formula": f, "size": 15 - 3 * k, "reward": 0.0121 - 0.004 * k, "reward_se": 0.0031,
         "selection_reward": 0.0243 - 0.005 * k}
        for k, f in enumerate(formulas)
    ]  # fmt: skip


def ledger(count=400):
    rng = random.Random(0)
    reasons = {"duplicate": ["same canonical form", "same gradient: mean_i(s_i)"],
               "rejected": ["label-free", "zero gradient", "does not raise NDCG on free scores"],
               "failed": ["not finite after 12 steps"]}  # fmt: skip
    records = []
    for k in range(count):
        status = rng.choices(["trained", *reasons], [0.45, 0.3, 0.23, 0.02])[0]
        reward = None
        if status == "trained":
            reward = min(0.024, rng.gauss(-0.06 + 0.00012 * k, 0.03)) - (0.4 if k % 29 == 0 else 0)
        records.append({
            "index": k, "round": k // 25, "formula": FOUND, "status": status,
            "reason": None if status == "trained" else rng.choice(reasons[status]),
            "reward": reward, "reward_se": reward and 0.004, "ndcg": reward and 0.4 + reward,
            "steps": 200, "seconds": 0.4,
        })  # fmt: skip
    return records


def config():
    settings = {
        "command": "autoloss run --data MSLR/Fold1 --out runs/mlp --seed 7 --budget 400",
        "search": {"seed": 7, "budget": 400, "proposer": "controller", "schedule": "from_scratch"},
        "model": {"name": "mlp", "widths": [64, 32]},
        "data": {"sha256": "9f2c" * 16},
    }
    fingerprint = {"versions": {"python": "3.11.7", "jax": "0.10.2"}, "device": "cpu"}
    return {"config": settings, "fingerprint": fingerprint, "created": "2026-03-02T10:12:44+00:00"}


def write_folder(folder, **files):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(files.pop("config", config())))
    records = files.pop("ledger", None)
    if records is not None:
        (folder / "ledger.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def full(tmp_path):
    return write_folder(
        tmp_path / "mlp",
        ledger=ledger(),
        finalists={"finalists": finalists(), "reference": "softmax", "empty": "skip"},
        effectiveness=effectiveness(),
    )


class Page(html.parser.HTMLParser):
    """Checks that elements nest, and gathers the text and the elements."""

    def __init__(self, source):
        super().__init__()
        self.open, self.text, self.elements = [], "", []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def page(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_a_whole_run_is_told_verdict_first(full):
    path = write_report(full)
    assert path == full / "report.html"
    source = path.read_text(encoding="utf-8")
    text = Page(source).text
    assert text.index("found_1 beats lambdarank") < text.index("The best loss found")
    assert "Queries without a relevant document are left out" in text
    assert "61 of 1240 test queries" in text
    assert "autoloss run --data MSLR/Fold1" in text
    assert "search.budget" in text
    assert source.count("<svg") >= 3 + 8  # two shapes, the search, an interval a row
    names = re.findall(r'data-label="loss">([\w ]+) <span', source)
    assert names == ["found_1", "lambdarank", "found_2", "softmax", "approx_ndcg", "ranknet", "mse",
                     "linear regression"]  # fmt: skip
    assert "< 0.001" in text  # 6 * 0.0001
    assert "Here softmax and RankNet coincide." in text


def test_a_page_is_self_contained_and_the_same_every_time(full):
    source = write_report(full).read_text(encoding="utf-8")
    assert report_html(read_run(full)) == source
    elements = Page(source).elements
    assert not {tag for tag, _ in elements} & {"script", "link", "img", "iframe"}
    assert not [a for _, attributes in elements for a in attributes if a in ("src", "href")]
    assert "url(" not in source
    assert "@import" not in source


def test_the_funnel_counts_every_candidate_once(full):
    text = page(full).text
    records = ledger()
    for status in ("trained", "duplicate", "rejected", "failed"):
        count = sum(record["status"] == status for record in records)
        meaning = STATUSES[status]
        assert f"{status}{meaning}{count}" in text
    assert f"all that were proposed{len(records)}" in text
    assert "same gradient" in text and "mean_i(s_i)" not in text


def test_a_new_run_says_what_is_missing(tmp_path):
    text = page(write_folder(tmp_path / "new")).text
    for sentence in (
        "No verdict yet: the search has not trained a loss.",
        "No loss has been trained yet.",
        "The effectiveness test has not been run: there is no effectiveness.json yet.",
        "No candidate has been recorded: there is no ledger.jsonl yet.",
        "There is no found loss to draw yet.",
        "The search has not finished: there is no finalists.json yet.",
    ):
        assert sentence in text


def test_a_search_without_test_shows_its_best_candidate(tmp_path):
    records = [
        {"index": 0, "status": "trained", "formula": str(LOSSES["mse"]), "reward": -0.2},
        {"index": 1, "status": "trained", "formula": str(LOSSES["softmax"]), "reward": 0.1},
        {"index": 2, "status": "failed", "formula": "n", "reward": None},
    ]
    folder = write_folder(tmp_path / "searching", ledger=records)
    assert read_run(folder).best["formula"] == str(LOSSES["softmax"])
    text = page(folder).text
    assert "have not been tested against the hand-designed ones" in text
    assert "no reason recorded" in text


def test_finalists_may_be_a_bare_list_and_a_named_best_is_preferred(tmp_path):
    folder = write_folder(tmp_path / "run", finalists=finalists())
    assert read_run(folder).best["formula"] == FOUND
    tested = effectiveness() | {"best_found": "found_2"}
    folder = write_folder(tmp_path / "run", finalists=finalists(), effectiveness=tested)
    assert read_run(folder).best["name"] == "found_2"


def test_nothing_from_a_file_becomes_markup(tmp_path):
    hostile_rows = [{**r, "name": HOSTILE, "kind": HOSTILE, "formula": HOSTILE,
                     "test": {HOSTILE: estimate(0.5), **r["test"]}}
                    for r in effectiveness()["rows"]]  # fmt: skip
    tested = {key: HOSTILE for key in effectiveness() if key not in ("metric", "rows")}
    folder = write_folder(
        tmp_path / "run",
        config={"config": {HOSTILE: 1, "command": HOSTILE}, "fingerprint": {}, "created": HOSTILE},
        ledger=[dict.fromkeys(ledger(1)[0], HOSTILE), {"status": "trained", "reward": 1.0}],
        finalists={"finalists": [{"formula": HOSTILE, "reward": HOSTILE}], "reference": HOSTILE,
                   "empty": HOSTILE},
        effectiveness=tested | {"rows": hostile_rows},
    )  # fmt: skip
    found = page(folder)
    assert "script" not in {tag for tag, _ in found.elements}
    assert all(name.islower() for _, attributes in found.elements for name in attributes
               if name not in ("viewBox",))  # fmt: skip
    assert "alert('x')" in found.text
    assert "This version of the loss language cannot read the formula." in found.text


def test_rows_without_values_are_shown_with_dashes(tmp_path):
    rows = [{"name": "a", "kind": "found", "test": {"ndcg@10": {"mean": None}}}, {"name": "b"}]
    folder = write_folder(tmp_path / "run", effectiveness={"rows": rows}, finalists=[])
    text = page(folder).text
    assert "The effectiveness test recorded no verdict." in text
    assert "No candidate was good enough to be kept." in text
    assert "convention for queries without a relevant document is not recorded" in text


def test_a_flat_or_constant_loss_is_not_drawn(tmp_path):
    folder = write_folder(tmp_path / "run", finalists=[{"formula": "sum_i(y_i) * 0 + n"}])
    assert "The found loss has no finite gradient here and is not drawn." in page(folder).text


def test_a_folder_without_configuration_is_refused(tmp_path):
    with pytest.raises(AutolossError, match=r"is not a run folder: expected a folder with config"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("finalists.json", '"none"', "'finalists' is a list of objects, got a text"),
        ("finalists.json", "[1]", "'finalists' is a list of objects, got something else there"),
        ("effectiveness.json", "[]", "'rows' is a list of objects, got a list"),
        ("effectiveness.json", "3", "'rows' is a list of objects, got 3"),
        ("effectiveness.json", '{"rows": ', "effectiveness.json is damaged"),
        ("config.json", "[]", "config.json: expected an object, got a list"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, file, content, message):
    folder = write_folder(tmp_path / "run")
    (folder / file).write_text(content)
    with pytest.raises(AutolossError, match=message):
        write_report(folder)
    assert not (folder / "report.html").exists()
