"""The page of a run: what it says of whole, partial, damaged and hostile folders."""

import html.parser
import json
import re

import numpy as np
import pytest

from autoloss_jax.errors import AutolossError
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import LOSSES
from autoloss_jax.report import report_html, write_report
from autoloss_jax.report.reading import read_run
from autoloss_jax.report.wording import STATUSES

HOSTILE = "<script>alert('x')</script>&\""
VOID = {"meta", "br", "img", "hr", "input", "link"}


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
    assert text.index("A better loss was found") < text.index("is better than lambdarank")
    assert text.index("is better than lambdarank") < text.index("The best loss found")
    assert "+0.0078 (95 % interval \N{MINUS SIGN}0.0018 to" in text
    assert "What to do: train with the found loss" in text
    assert "Queries without a relevant document are left out" in text
    assert "61 of 1240 test queries" in text
    assert "autoloss run \\\n    --data MSLR/Fold1 \\\n    --out runs/mlp" in text
    assert "search.budget" in text
    names = re.findall(r'<td class="name" data-label="loss">([\w ]+?) ?<', source)
    assert names[:8] == ["found 1", "lambdarank", "found 2", "softmax", "approx_ndcg", "ranknet",
                         "mse", "lambdamart"]  # fmt: skip
    assert "600 / 79 / 500" in text
    assert "{&quot;trees&quot;: 90}" in source  # the settings of what has no formula
    assert "< 0.001" in text  # 6 * 0.0001
    assert "Here RankNet, softmax and lambdarank coincide." in text
    assert "6 min 12 s" in text  # 2 min 0 s and 4 min 12 s, without the pause between
    assert "rediscovered among its best: ranknet" in text


def test_a_page_is_self_contained_and_the_same_every_time(full):
    source = write_report(full).read_text(encoding="utf-8")
    assert report_html(read_run(full)) == source
    elements = Page(source).elements
    assert not {tag for tag, _ in elements} & {"script", "link", "img", "iframe"}
    assert not [a for _, attributes in elements for a in attributes if a == "src"]
    ids = {attributes.get("id") for _, attributes in elements}
    links = [attributes["href"] for tag, attributes in elements if tag == "a"]
    assert len(links) > 8
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert "url(" not in source
    assert "@import" not in source


def test_figures_have_names_and_every_section_a_link(full):
    elements = page(full).elements
    figures = [attributes for tag, attributes in elements
               if tag == "svg" and attributes.get("role") == "img"]  # fmt: skip
    assert len(figures) == 8 + 1 + 2 + 2 + 1 + 2
    assert all(attributes["aria-label"] for attributes in figures)
    others = [attributes for tag, attributes in elements
              if tag == "svg" and "role" not in attributes and "x" not in attributes]  # fmt: skip
    assert all(attributes.get("aria-hidden") == "true" for attributes in others)


def test_every_table_of_figures_names_the_convention(full, example):
    sentence = "Queries without a relevant document are left out"
    text = page(full).text
    # The comparison, its metrics, its tests, query by query, the test's front, the hall of fame.
    assert text.count(sentence) == 6
    content = example.effectiveness() | {"empty": "one"}
    (full / "effectiveness.json").write_text(json.dumps(content))
    assert page(full).text.count("Queries without a relevant document count as 1") == 5


def test_the_funnel_counts_what_is_left_after_each_step(full, example):
    text = page(full).text
    records = example.ledger()
    count = {status: sum(r["status"] == status for r in records) for status in STATUSES}
    left = len(records)
    assert f"all that were proposed{left}" in text
    for status, words in (("duplicate", "duplicate"), ("rejected", "rejected"),
                          ("failed", "failed")):  # fmt: skip
        left -= count[status]
        assert f"{count[status]} {words}: {STATUSES[status]}{left}" in text
    assert left == count["trained"]
    promoted = sum(r["status"] == "trained" and r["steps"] == 200 for r in records)
    assert f"trained to the last rung, the others stopped earlier{promoted}" in text
    assert "the best, evaluated again on fresh seeds3" in text
    assert "same gradient" in text and "same gradient: mean_i(s_i)" not in text


@pytest.mark.parametrize(
    ("p", "mean", "heading", "advice"),
    [
        (0.01, 0.02, "A better loss was found", "train with the found loss"),
        (0.2, 0.02, "No better loss is shown", "train with lambdarank"),
        (0.01, -0.02, "The found loss is worse", "train with lambdarank"),
    ],
)
def test_the_verdict_says_what_to_do(full, example, p, mean, heading, advice):
    content = example.effectiveness()
    row = next(row for row in content["rows"] if row["name"] == "found 1")
    row |= {"p_value_corrected": p, "difference": example.estimate(mean, 0.0125)}
    (full / "effectiveness.json").write_text(json.dumps(content))
    text = page(full).text
    assert text.index(heading) < text.index(f"What to do: {advice}")
    assert ("known to about \u00b1\u00a00.013 NDCG@10" in text) == (p == 0.2)
    assert ('al.compile_loss(al.LOSSES["lambdarank"])' in text) == ("lambdarank" in advice)


def test_the_verdict_rests_on_fresh_seeds(full, example):
    """Whatever the row of the table says, heading, advice and counts are those of fresh seeds."""
    content = example.effectiveness()
    content["confirmation"] = example.confirmation(-0.02, 0.01)
    (full / "effectiveness.json").write_text(json.dumps(content))
    arrays = example.per_query([row["name"] for row in content["rows"]])
    arrays["confirmed_names"] = np.array(["found 1", "lambdarank"])
    arrays["confirmed_values"] = np.stack([np.arange(1240) % 2 * 0.5, np.full(1240, 0.25)])
    np.savez(full / "per_query.npz", **arrays)
    text = page(full).text
    assert "The found loss is worse" in text
    assert (
        "on 24 fresh seeds their NDCG@10 is 0.4500 and 0.4700, a difference of −0.0200 "
        "[−0.0325, −0.0075], p = 0.010."
    ) in text
    assert "found 1 ranks 620 better than lambdarank, 0 the same and 620 worse" in text
    assert "620 / 0 / 620" in text


def test_a_confirmation_that_failed_leaves_the_table(full, example):
    content = example.effectiveness()
    content["confirmation"] = {
        "seeds": None, "failed": {"found 1": "why"}, "found": None, "hand_designed": None,
    }  # fmt: skip
    (full / "effectiveness.json").write_text(json.dumps(content))
    text = page(full).text
    assert "A better loss was found" in text
    assert "fresh seeds their" not in text


def test_a_test_of_hand_designed_losses_alone_recommends_one(tmp_path, example):
    content = example.effectiveness() | {"best_found": None}
    content["rows"] = [row for row in content["rows"] if row["kind"] == "hand_designed"]
    text = page(example.write_folder(tmp_path / "run", effectiveness=content)).text
    assert "No found loss was compared" in text
    assert "What to do: train with lambdarank." in text
    assert 'al.compile_loss(al.LOSSES["lambdarank"])' in text
    assert "There is no found loss to use yet." in text
    assert "No found loss was tested." in text


def test_a_test_of_given_losses_has_no_search_to_tell_of(tmp_path, example):
    config = example.config()
    config["config"]["losses"] = {"finalists": False}
    files = {"config": config, "effectiveness": example.effectiveness()}
    text = page(example.write_folder(tmp_path / "run", **files)).text
    assert "The search" not in text
    assert "Hall of fame" not in text
    assert "Size against quality" in text


def test_queries_are_told_one_by_one(full, example):
    arrays = example.per_query([row["name"] for row in example.effectiveness()["rows"]])
    names = arrays["names"].tolist()
    differences = arrays["values"][names.index("found 1")]
    differences = differences - arrays["values"][names.index("lambdarank")]
    wins = int((differences > 1e-6).sum())
    losses = int((differences < -1e-6).sum())
    ties = 1179 - wins - losses
    text = page(full).text
    assert (
        f"found 1 ranks {wins} better than lambdarank, {ties} the same and {losses} worse" in text
    )
    assert f"{wins} / {ties} / {losses}" in text  # at a glance
    best = arrays["query_ids"][np.nanargmax(differences)]
    worst = arrays["query_ids"][np.nanargmin(differences)]
    assert text.index(best) < text.index(worst)


def test_an_older_run_says_that_single_queries_are_not_recorded(full):
    (full / "per_query.npz").unlink()
    text = page(full).text
    assert "there is no per_query.npz of its losses" in text
    assert "ranks 600 queries better than lambdarank, 79 the same and 500 worse" in text
    content = json.loads((full / "effectiveness.json").read_text())
    for row in content["rows"]:
        for name in ("wins", "ties", "losses", "t_p_value", "effect_size"):
            del row[name]
    (full / "effectiveness.json").write_text(json.dumps(content))
    text = page(full).text
    assert "there is no per_query.npz of its losses" in text
    assert "600" not in text


def test_an_ablation_says_which_parts_matter(full, example):
    assert "Which of its parts matter" not in page(full).text
    folder = full / "ablation"
    folder.mkdir()
    content = example.ablation()
    (folder / "ablation.json").write_text(json.dumps(content))
    found = page(full)
    text = found.text[found.text.index("By NDCG@10 the loss is worse without `discount_j`") :]
    for row in (
        "`discount_j`−0.0123 [−0.0183, −0.0063]< 0.0010.710",
        "`max_dcg`+0.0012 [−0.0048, +0.0072]0.6100.930",
        "`sqrt around gain_i - gain_j`the gradient points the same way––0.990",
        "lambdarank the nearest hand-designed loss−0.0040 ",
    ):
        assert row in text
    assert "The whole loss has NDCG@10 0.4766 [0.4646, 0.4886]" in text
    assert "It is of another loss" not in text
    figures = [a for tag, a in found.elements if tag == "svg" and a.get("role") == "img"]
    assert sum("interval" in a["class"] and "−0.0123" in a["aria-label"]
               for a in figures) == 1  # fmt: skip


def test_an_ablation_of_another_loss_is_named_as_such(full, example):
    (full / "ablation").mkdir()
    content = example.ablation() | {"formula": str(LOSSES["mse"])}
    (full / "ablation" / "ablation.json").write_text(json.dumps(content))
    assert f"It is of another loss: {LOSSES['mse']}." in page(full).text


def test_a_difference_whose_interval_holds_0_is_not_shown_whatever_p(full, example):
    content = example.effectiveness()
    row = next(row for row in content["rows"] if row["name"] == "found 1")
    row |= {"p_value_corrected": 0.04, "difference": example.estimate(0.012, 0.0125)}
    (full / "effectiveness.json").write_text(json.dumps(content))
    assert "No better loss is shown" in page(full).text


def test_code_to_paste_is_the_loss(full, example):
    text = page(full).text
    start = text.index("al.compile_loss(")
    literal = re.search(r'\(\n((?:    ".*"\n)+)\)', text[start:])[1]
    assert "".join(re.findall(r'"(.*)"', literal)) == str(parse(example.FOUND))
    for words in ("import jax", "import torch", "import numpy", r"\sum"):
        assert words in text


def test_a_new_run_says_what_is_missing(tmp_path, example):
    text = page(example.write_folder(tmp_path / "new")).text
    for sentence in (
        "No verdict yet: the search has not trained a loss.",
        "No loss has been trained yet.",
        "The effectiveness test has not been run: there is no effectiveness.json yet.",
        "No candidate has been recorded: there is no ledger.jsonl yet.",
        "There is no found loss to draw yet.",
        "The search has not finished: there is no finalists.json yet.",
    ):
        assert sentence in text


def test_a_search_without_test_shows_its_best_candidate(tmp_path, example):
    records = [
        {"index": 0, "status": "trained", "formula": str(LOSSES["mse"]), "reward": -0.2},
        {"index": 1, "status": "trained", "formula": str(LOSSES["softmax"]), "reward": 0.1},
        {"index": 2, "status": "failed", "formula": "n", "reward": None},
    ]
    folder = example.write_folder(tmp_path / "searching", ledger=records)
    assert read_run(folder).best["formula"] == str(LOSSES["softmax"])
    text = page(folder).text
    assert "have not been tested against the hand-designed ones" in text
    assert "no reason recorded" in text


def test_finalists_may_be_a_bare_list_and_a_named_best_is_preferred(tmp_path, example):
    folder = example.write_folder(tmp_path / "run", finalists=example.finalists())
    assert read_run(folder).best["formula"] == example.FOUND
    tested = example.effectiveness() | {"best_found": "found 2"}
    folder = example.write_folder(
        tmp_path / "run", finalists=example.finalists(), effectiveness=tested
    )
    assert read_run(folder).best["name"] == "found 2"


def test_nothing_from_a_file_becomes_markup(tmp_path, example):
    hostile_rows = [{**r, "name": HOSTILE, "kind": HOSTILE, "formula": HOSTILE,
                     "test": {HOSTILE: example.estimate(0.5), **r["test"]}}
                    for r in example.effectiveness()["rows"]]  # fmt: skip
    tested = {key: HOSTILE for key in example.effectiveness() if key not in ("metric", "rows")}
    folder = example.write_folder(
        tmp_path / "run",
        config={"config": {HOSTILE: 1, "command": HOSTILE}, "fingerprint": {}, "created": HOSTILE},
        ledger=[dict.fromkeys(example.ledger(1)[0], HOSTILE), {"status": "trained", "reward": 1.0}],
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


def test_names_of_queries_and_losses_do_not_become_markup(full, example):
    content = json.loads(json.dumps(example.effectiveness()).replace("found 1", "<b>one"))
    content = json.loads(json.dumps(content).replace("lambdarank", "<b>best"))
    arrays = example.per_query([row["name"].replace("<b>one", "found 1")
                                for row in content["rows"]])  # fmt: skip
    arrays["names"] = np.char.replace(arrays["names"], "found 1", "<b>one")
    arrays["query_ids"] = np.char.add(arrays["query_ids"], "<b>")
    (full / "effectiveness.json").write_text(json.dumps(content))
    np.savez(full / "per_query.npz", **arrays)
    found = page(full)
    assert "<b>one ranks" in found.text
    assert re.search(r"Fold1/\d+<b>", found.text)
    assert "b" not in {tag for tag, _ in found.elements}


def test_rows_without_values_are_shown_with_dashes(tmp_path, example):
    rows = [{"name": "a", "kind": "found", "test": {"ndcg@10": {"mean": None}}}, {"name": "b"}]
    folder = example.write_folder(tmp_path / "run", effectiveness={"rows": rows}, finalists=[])
    text = page(folder).text
    assert "The effectiveness test recorded no verdict." in text
    assert "No candidate was good enough to be kept." in text
    assert "convention for queries without a relevant document is not recorded" in text


def test_a_flat_or_constant_loss_is_not_drawn(tmp_path, example):
    folder = example.write_folder(tmp_path / "run", finalists=[{"formula": "sum_i(y_i) * 0 + n"}])
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
def test_a_damaged_file_is_named(tmp_path, file, content, message, example):
    folder = example.write_folder(tmp_path / "run")
    (folder / file).write_text(content)
    with pytest.raises(AutolossError, match=message):
        write_report(folder)
    assert not (folder / "report.html").exists()
