"""Formulas that files and flags hold: the same errors, naming the file, the line or the flag."""

import json

import pytest

from autoloss_jax import search_rounds
from autoloss_jax.candidates import Candidates
from autoloss_jax.cli import main, plans
from autoloss_jax.cli.flags import CommandFlags
from autoloss_jax.data import synthetic
from autoloss_jax.errors import AutolossError
from autoloss_jax.losses import LOSSES
from autoloss_jax.runs import RunFolder
from autoloss_jax.screening import make_probe
from autoloss_jax.search import search
from autoloss_jax.search_rounds import SearchConfig

BAD = ["mean_i(s_i", "s_i", "__import__('os')", "n" * 20_000, "", "\x00", "mean_i(\ud800)", 7, None]


def finalist(formula):
    return {"formula": formula, "size": 3, "reward": 0.1, "reward_se": 0.0, "selection_reward": 0.1}


@pytest.fixture
def folder(tmp_path):
    def write(formula, ledger=False):
        (tmp_path / "config.json").write_text(json.dumps({"config": {}}))
        rows = [finalist("mean_i(square(s_i - y_i))"), finalist(formula)]
        (tmp_path / "finalists.json").write_text(json.dumps({"finalists": rows[ledger:]}))
        return tmp_path

    return write


@pytest.mark.parametrize("formula", BAD)
def test_a_finalist_is_named_by_file_and_place(folder, formula):
    path = folder(formula)
    with pytest.raises(AutolossError, match=r"finalists.json, finalist 2: .*formula") as caught:
        plans.finalists_of(str(path))
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


@pytest.mark.parametrize("formula", BAD)
@pytest.mark.parametrize("command", ["export", "explain"])
def test_commands_name_the_run_of_a_bad_formula(folder, capsys, formula, command):
    path = folder(formula, ledger=True)
    assert main(["autoloss", command, "--from", str(path)]) == 2
    shown = capsys.readouterr().err
    assert f"autoloss: --from {path}: its best found loss: " in shown
    assert "formula" in shown
    assert shown.replace("\n", "").isprintable()
    assert "Traceback" not in shown


@pytest.mark.parametrize("flag", ["--loss", "--reference"])
@pytest.mark.parametrize(
    "formula", ["mean_i(s_i", "s_i", "mean_i(\x1b[31m)", "x" * 20_000, "sofmax"]
)
def test_a_flag_is_named(capsys, tmp_path, flag, formula):
    command = "test" if flag == "--loss" else "search"
    given = CommandFlags(command)
    given.parse([f"{flag}={formula}", "--out", str(tmp_path / "run")])
    with pytest.raises(AutolossError, match=f"^{flag}") as caught:
        plans.make_plan(command, [], given.values)
    assert len(str(caught.value)) < 2000


def test_a_line_of_the_ledger_is_named():
    data = synthetic(num_queries=30, num_features=6, list_length=(3, 5))
    good = {"formula": str(LOSSES["mse"]), "status": "trained", "reward": 0.1}
    for bad in BAD:
        known = Candidates(make_probe(data.folds[0].train, 0))
        with pytest.raises(AutolossError, match=r"^ledger.jsonl, line 2: .*formula"):
            known.restore([good, good | {"formula": bad}])
    for reward in ("much", [1], True):
        with pytest.raises(AutolossError, match="line 1: reward is .*, expected a number or null"):
            known.restore([good | {"reward": reward}])


@pytest.mark.parametrize(
    "content",
    [{}, [], {"finalists": [{}]}, {"finalists": 3}, {"finalists": [finalist("s_i")]},
     {"finalists": [finalist(str(LOSSES["mse"])) | {"reward": "x"}]}],
)  # fmt: skip
def test_a_finished_search_of_a_damaged_file_says_so(tmp_path, monkeypatch, content):
    monkeypatch.setattr(RunFolder, "read_ledger", lambda self: [])
    data = synthetic(num_queries=30, num_features=6, list_length=(3, 5))
    config = SearchConfig(budget=1, model="linear")

    def damage(*_):
        (tmp_path / "finalists.json").write_text(json.dumps(content))
        raise KeyboardInterrupt

    # The folder is that of the search before anything is trained.
    monkeypatch.setattr(search_rounds, "ProxyTraining", damage)
    with pytest.raises(KeyboardInterrupt):
        search(data, config, out=str(tmp_path))
    with pytest.raises(AutolossError, match=r"finalists.json is damaged: expected finalists, but"):
        search(data, config, out=str(tmp_path))
