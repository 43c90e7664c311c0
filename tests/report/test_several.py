"""The page that compares runs, and what is refused."""

import html
import json
import re

import numpy as np
import pytest

from autoloss_jax.errors import AutolossError
from autoloss_jax.report import write_report
from autoloss_jax.statistics import bootstrap_interval


@pytest.fixture
def both(tmp_path, example):
    return (
        example.write_full(tmp_path / "mlp"),
        example.write_full(tmp_path / "linear", shift=-0.02, model="linear"),
    )


@pytest.fixture
def compared(both, tmp_path):
    """Writes the page and returns its text without markup."""

    def text():
        source = write_report(*both, out=tmp_path / "page.html").read_text(encoding="utf-8")
        return html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", "", source, flags=re.DOTALL))

    return text


def change(folder, file, **changes):
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | changes))


def test_runs_stand_side_by_side(both, compared):
    text = compared()
    assert "2 runs on MSLR/Fold1: 2 of the 2 that tested a found loss" in text
    assert text.count("A better loss was found") == 2
    assert text.count("+0.0121 \N{PLUS-MINUS SIGN} 0.0031") == 2
    assert 'search.model"mlp""linear"' in text
    assert "search.budget" not in text
    assert "Rewards do not compare" in text  # another model
    assert "Queries without a relevant document are left out" in text


def test_their_best_losses_are_compared_on_the_same_queries(both, compared):
    values = [np.load(folder / "per_query.npz") for folder in both]
    rows = [arrays["values"][arrays["names"].tolist().index("found 1")] for arrays in values]
    difference = (rows[1] - rows[0])[np.isfinite(rows[0])]
    mean, low, high = bootstrap_interval(difference)
    expected = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]< 0.0011,179".replace("-", "\N{MINUS SIGN}")
    assert expected in compared()


def test_runs_of_other_queries_are_not_paired(both, compared):
    arrays = dict(np.load(both[1] / "per_query.npz"))
    arrays["query_ids"] = np.char.add(arrays["query_ids"], "x")
    np.savez(both[1] / "per_query.npz", **arrays)
    assert "tested on other queries" in compared()
    (both[1] / "per_query.npz").unlink()
    assert "Fewer than two of these runs recorded figures of single queries" in compared()


@pytest.mark.parametrize(
    ("change_of", "what"),
    [
        ({"metric": "ndcg@1"}, "the metric differs (mlp: ndcg@10; linear: ndcg@1)"),
        ({"empty": "zero"}, "the convention for queries without a relevant document differs"),
        ({"folds": ["Fold1"]}, "the tested folds differs"),
    ],
)
def test_what_does_not_compare_is_marked(both, compared, change_of, what):
    change(both[1], "effectiveness.json", **change_of)
    assert f"Test figures do not compare, since {what}" in compared()


def test_runs_without_a_data_hash_are_marked(both, compared):
    config = json.loads((both[1] / "config.json").read_text())["config"]
    change(both[1], "config.json", config=config | {"data": {}})
    assert "Not known to be of the same data: linear record no data hash." in compared()


def test_runs_that_have_not_got_far_are_compared_as_far_as_they_have(tmp_path, example):
    folders = [example.write_folder(tmp_path / name) for name in ("a", "b")]
    text = write_report(*folders, out=tmp_path / "page.html").read_text(encoding="utf-8")
    assert "None of these runs has trained a candidate." in text
    assert "All settings and environments are equal." in text
    assert "none of the 0 that tested a found loss" in text


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path, example):
    folders = [tmp_path / parent / "run" for parent in ("first", "second")]
    for folder in folders:
        folder.parent.mkdir()
        example.write_folder(folder)
    text = write_report(*folders, out=tmp_path / "page.html").read_text(encoding="utf-8")
    assert str(folders[0]) in text and str(folders[1]) in text


def test_many_runs_have_curves_of_their_own(tmp_path, example):
    folders = [
        example.write_folder(tmp_path / f"run{k}", ledger=example.ledger(40)) for k in range(6)
    ]
    text = write_report(*folders, out=tmp_path / "page.html").read_text(encoding="utf-8")
    styles = re.findall(r'class="curve ([\w ]+)"', text)
    assert len(set(styles)) == len(styles) == 6


def test_runs_of_other_data_are_refused(both, tmp_path, example):
    other = example.write_full(tmp_path / "other", sha256="beef" * 16)
    message = (
        r"runs of different data cannot be compared, expected the same data in all: .*mlp has "
        r"MSLR/Fold1 \(sha256 9f2c9f2c9f2c…\), .*other has MSLR/Fold1 \(sha256 beefbeefbeef…\)"
    )
    with pytest.raises(AutolossError, match=message):
        write_report(both[0], other, out=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_folder_given_twice_is_refused(both, tmp_path):
    with pytest.raises(AutolossError, match="mlp is given twice; expected different run folders"):
        write_report(both[0], both[0] / ".." / "mlp", out=tmp_path / "page.html")


def test_where_the_page_goes(both, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write_report(*both).resolve() == tmp_path / "comparison.html"
    assert write_report(both[0]) == both[0] / "report.html"
    assert write_report(both[0], out="one.html").resolve() == tmp_path / "one.html"
    source = (tmp_path / "comparison.html").read_bytes()
    assert write_report(*both).read_bytes() == source


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (".", r"\. is a folder: expected a file to write the page to"),
        ("absent/page.html", r"absent/page\.html: there is no folder absent to write"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(both, tmp_path, monkeypatch, out, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AutolossError, match=message):
        write_report(*both, out=out)


def test_no_folder_is_refused():
    with pytest.raises(AutolossError, match="expected at least one run folder, got none"):
        write_report()


def test_nothing_from_a_file_becomes_markup(tmp_path, example):
    hostile = "<script>alert('x')</script>&\""
    folders = []
    for name in ("<b>a", "<b>b"):
        tested = example.effectiveness() | {"verdict": hostile, "metric": hostile}
        for row in tested["rows"]:
            row["formula"] = hostile
            row["test"] = {hostile: example.estimate(0.5)}
        folders.append(example.write_folder(
            tmp_path / name,
            config=example.config(model=hostile + name) | {"command": hostile},
            finalists={"finalists": [{"formula": hostile, "reward": 0.1}], "reference": hostile},
            ledger=[{"status": hostile, "formula": hostile, "reward": hostile}],
            effectiveness=tested,
        ))  # fmt: skip
    source = write_report(*folders, out=tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in source
    assert "<b>" not in source
    assert "alert(&#x27;x&#x27;)" in source
