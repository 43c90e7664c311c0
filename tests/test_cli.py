"""The command line: what it refuses, how it is stopped, and one whole run of every command."""

import os
import signal
import sys
from dataclasses import fields

import numpy as np
import pytest

from autoloss_jax.cli import commands, main, plans, progress
from autoloss_jax.cli.flags import CommandFlags, effectiveness_config, flag_name, search_config
from autoloss_jax.cli.help import SUMMARIES
from autoloss_jax.data import load_letor
from autoloss_jax.effectiveness import EffectivenessConfig
from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.batched import interpreter_in_use
from autoloss_jax.explain import explain
from autoloss_jax.files import read_json
from autoloss_jax.losses import HAND_DESIGNED, LOSSES
from autoloss_jax.proxy import ProxyConfig
from autoloss_jax.runs import RunFolder
from autoloss_jax.search_rounds import SearchConfig

SMALL = [
    "--budget=4", "--proposals=16", "--proposer=random", "--model=linear", "--hall_of_fame=4",
    "--fresh_seeds=1", "--finalists=2", "--proxy_rung_steps=4", "--proxy_rungs=1,1",
    "--test_seeds=1", "--max_buckets=1", "--test_learning_rates=0.01", "--test_max_steps=40",
    "--test_confirmation_seeds=2", "--hand_designed=mse,softmax", "--compilation_cache=none",
]  # fmt: skip


def write_letor(path, first, count, seed):
    """Queries number `first` on, whose label is the sign of the first feature."""
    rng = np.random.default_rng(seed)
    lines = []
    for query in range(first, first + count):
        for document in range(rng.integers(4, 9)):
            x = np.append(rng.normal(), rng.normal())
            label = 1 if document == 0 else int(x[0] > 0)
            lines.append(f"{label} qid:{query} 1:{x[0]:.4f} 2:{x[1]:.4f}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))


def write_fold(folder, train, validation, test):
    """A fold whose parts hold ten queries each, numbered from ten times the given tens."""
    parts = {"train": train, "vali": validation, "test": [test]}
    for name, tens in parts.items():
        for ten in tens if isinstance(tens, list) else [tens]:
            write_letor(folder / f"{name}.{ten}", 10 * ten, 10, ten)
        files = sorted(folder.glob(f"{name}.[0-9]*"))
        (folder / f"{name}.txt").write_text("".join(file.read_text() for file in files))
        for file in files:
            file.unlink()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three folds: the test queries of the second train in the first, those of the third do not."""
    folder = tmp_path_factory.mktemp("letor") / "tiny"
    write_fold(folder / "Fold1", [0, 1], 2, 3)
    write_fold(folder / "Fold2", [2, 3], 1, 0)
    write_fold(folder / "Fold3", [0, 1], 2, 4)
    return folder


def call(*arguments):
    return main(["autoloss", *map(str, arguments)])


# --- bad input ---


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "expected a command first, one of run, search, test, report, data, export, "
             "explain, losses;"),
        (["runn"], "got 'runn'"),
        (["--budget", "3", "run"], "got '--budget'"),
        (["run", "search"], "unexpected argument 'search'"),
        (["losses", "a"], "unexpected argument 'a'"),
        (["run", "--budgt", "3"], "Did you mean: budget"),
        (["run", "--budget"], "Missing value for flag --budget"),
        (["run", "--budget", "0"], "--budget=0: expected a whole number of at least 1"),
        (["run", "--budget", "2.5"], "--budget=2.5: expected a whole number"),
        (["run", "--seed", "-1"], "--seed=-1: expected a whole number of at least 0"),
        (["run", "--seed", str(2**31)], "--seed is 2147483648, expected 0 to 2**31 - 1"),
        (["run", "--model", "forest"], "--model=forest: expected one of linear, mlp, attention"),
        (["run", "--interpreter=gpu"], "--interpreter=gpu: expected one of auto, xla, kernel"),
        (["run", "--proxy_keep", "2"], "--proxy_keep is 2.0, expected above 0 and up to 1"),
        (["run", "--proxy_rungs", "1,x"], "--proxy_rungs=1,x: expected a whole number"),
        (["run", "--proxy_rungs", "0"], "--proxy_rungs is (0,)"),
        (["run", "--test_learning_rates", "nan"], "expected a number that is finite"),
        (["run", "--test_learning_rates", "-1"], "--test_learning_rates is (-1.0,)"),
        (["run", "--metric_cutoff", "7"], "--metric_cutoff is 7; expected 1, 3, 5, 10 or 30"),
        (["run", "--max_tokens", "3"], "--max_tokens=3: expected a whole number of at least 4"),
        (["run", "--truncation_level=-1"], "expected a whole number of at least 0"),
        (
            ["test", "--truncation_level=5", "--loss", "sum_ij(s_i * s_j * y_i)"],
            "--truncation_level is 5; expected 0, or losses that fit a batched program: 'sum_ij",
        ),
        (
            ["run", "--truncation_level=5", "--interpreter=kernel"],
            "truncation_level is 5, and the interpreter 'kernel' does not truncate pairs",
        ),
        (["run", "--tensorboard=5"], "Non-boolean argument"),
        (["run", "--reference", "softmx"], "unknown loss 'softmx'. Did you mean 'softmax'?"),
        (["run", "--reference", "max_i(s_i) * y_i"], "index i is free"),
        (["run", "--reference", "sum_ij(s_i * s_j * y_i)"], "does not fit a batched program"),
        (["run", "--data", "absent"], "no such file or folder"),
        (["run", "--data", "a,b"], "2 files, expected three"),
        (["search", "--loss", "mse"], "--loss and --from are for"),
        (["test", "--loss", "sum_i(s_i"], "formula, column 6"),
        (["test", "--loss", "nothing"], "unknown loss 'nothing'"),
        (["test", "--hand_designed", "none"], "expected at least one hand-designed loss"),
        (["test", "--hand_designed", "mse,foo"], "--hand_designed: unknown loss 'foo'"),
        (["test", "--from", "absent"], "absent is not a run folder"),
        (["report"], "expected a run folder, or several: autoloss report DIR ..."),
        (["report", "absent", "gone"], "absent is not a run folder"),
        (["report", "absent"], "absent is not a run folder"),
        (["export"], "expected either --loss or --from"),
        (["export", "--loss", "mse", "--from", "x"], "expected either --loss or --from"),
        (["export", "--loss", "mse", "--target", "c"], "expected one of jax, torch, numpy, latex"),
        (["export", "--loss", "foo"], "unknown loss 'foo'"),
        (["explain"], "expected one loss: autoloss explain LOSS, or --loss, or --from"),
        (["explain", "mse", "--loss", "mse"], "expected one loss: autoloss explain LOSS"),
        (["explain", "mse", "softmax"], "unexpected argument 'softmax'"),
        (["explain", "sum_i(s_i"], "formula, column 6"),
        (["explain", "--from", "absent"], "absent is not a run folder"),
        (["losses", "--data", "x"], "Unknown command line flag 'data'"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_status_2_and_writes_nothing(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("autoloss: ")
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("train", "1 qid:1 1:0.5\n1 qd:1 1:0.5\n", "train.txt:2: "),
        ("test", "1 qid:1 1:x 2:1\n", "test.txt:1: "),
        ("train", "1 qid:1 1:1 2:2\n0 qid:2 1:1 2:2\n1 qid:1 1:1 2:2\n", "train.txt:3: "),
        ("test", "1 qid:1 1:1 3:2\n", "test.txt: 3 features"),
        ("vali", "", "vali.txt"),
        ("test", "0 qid:1 1:1 2:2\n", "no test query has a relevant document"),
        ("train", "1 qid:1 1:1 2:2\n0 qid:1 1:1 2:1\n", "expected at least"),
    ],
)
def test_bad_data_ends_with_status_2_and_writes_nothing(name, text, message, tmp_path, capsys):
    write_fold(tmp_path / "Fold1", [0, 1], 2, 3)
    (tmp_path / "Fold1" / f"{name}.txt").write_text(text)
    out = tmp_path / "out"
    assert call("run", "--data", tmp_path, "--out", out, *SMALL) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_foreign_folder_a_used_one_and_one_of_another_configuration_are_refused(
    data, tmp_path, capsys
):
    arguments = ["search", "--data", data, *SMALL, "--out"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    assert call(*arguments, foreign) == 2
    assert [file.name for file in foreign.iterdir()] == ["notes.txt"]
    with RunFolder.open(tmp_path / "used", {"seed": 1}):
        assert call(*arguments, tmp_path / "used") == 2
        assert "is in use by another run" in capsys.readouterr().err
    before = (tmp_path / "used" / "config.json").read_bytes()
    assert call(*arguments, tmp_path / "used") == 2
    assert "holds a run of another configuration" in capsys.readouterr().err
    assert (tmp_path / "used" / "config.json").read_bytes() == before
    assert call(*arguments, data / "Fold1" / "train.txt") == 2
    assert "is a file: expected a folder" in capsys.readouterr().err


def test_a_full_disk_is_status_1(data, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(commands, "run_search", full)
    assert call("search", "--data", data, *SMALL, "--out", tmp_path / "out") == 1
    assert "autoloss: [Errno 28] No space left on device" in capsys.readouterr().err


def test_tensorboard_without_its_library_is_refused(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    out = tmp_path / "out"
    assert call("run", "--data", data, *SMALL, "--out", out, "--tensorboard") == 2
    assert "pip install 'autoloss_jax[tb]'" in capsys.readouterr().err
    assert not out.exists()


def test_lambdamart_without_its_library_is_refused(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    out = tmp_path / "out"
    assert call("test", "--data", data, *SMALL, "--out", out, "--lambdamart") == 2
    said = capsys.readouterr().err
    assert "--lambdamart needs LightGBM" in said and "pip install 'autoloss_jax[gbdt]'" in said
    assert not out.exists()


# --- stopping ---


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_its_status_and_the_command_to_go_on(
    number, status, data, tmp_path, monkeypatch, capsys
):
    def stop(*_, **__):
        os.kill(os.getpid(), number)
        raise AssertionError("the signal came too late")

    monkeypatch.setattr(commands, "run_search", stop)
    out, before = tmp_path / "my run", signal.getsignal(number)
    assert call("search", "--data", data, *SMALL, "--out", out) == status
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"stopped by {number.name}; to go on: autoloss search" in said
    assert f"'{out}'" in said  # quoted, for it holds a blank
    assert signal.getsignal(number) is before
    RunFolder.open(out, read_json(out / "config.json")["config"]).close()  # free again


def test_the_command_to_go_on_names_a_folder_that_was_made_up(data, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        commands, "run_search", lambda *_, **__: signal.raise_signal(signal.SIGTERM)
    )
    assert call("search", "--data", data, *SMALL) == 143
    (made_up,) = (tmp_path / "runs").iterdir()
    assert f"--out runs/{made_up.name}" in capsys.readouterr().err


# --- the machine ---


def test_the_interpreter_asked_for_is_used_and_recorded(data, tmp_path, monkeypatch):
    used = []

    def search(*_, **__):
        used.append(interpreter_in_use())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(commands, "run_search", search)
    arguments = ["search", "--data", data, *SMALL, "--out", tmp_path / "out"]
    assert call(*arguments, "--interpreter=kernel") == 1
    assert used == ["kernel"]
    assert interpreter_in_use() == "xla"
    assert read_json(tmp_path / "out" / "config.json")["fingerprint"]["interpreter"] == "kernel"


# --- flags, configurations, plans ---


def parsed(command, *arguments):
    flags = CommandFlags(command)
    assert flags.parse([str(argument) for argument in arguments]) == []
    return flags.values


def test_without_flags_the_configurations_are_the_default_ones():
    assert search_config(parsed("run")) == SearchConfig()
    assert effectiveness_config(parsed("run")) == EffectivenessConfig()


def test_every_setting_has_a_flag_and_shared_ones_share_their_default():
    values = parsed("run")
    for kind, prefix in (
        (SearchConfig, ""),
        (ProxyConfig, "proxy_"),
        (EffectivenessConfig, "test_"),
    ):
        for field in fields(kind):
            if field.name != "proxy":
                assert values[flag_name(field.name, prefix)].value == field.default


def test_flags_reach_the_configurations():
    values = parsed(
        "run", "--seed", 7, "--proxy_rungs", "1,2,4", "--test_patience=3", "--empty=one",
        "--truncation_level", 20,
    )  # fmt: skip
    search, test = search_config(values), effectiveness_config(values)
    assert (search.seed, search.proxy.rungs) == (7, (1, 2, 4))
    assert (test.seed, test.patience, test.empty) == (7, 3, "one")
    assert search.proxy.truncation_level == test.truncation_level == 20
    assert not (test.lambdamart or test.dump_scores)
    given = effectiveness_config(parsed("test", "--dump_scores", "--lambdamart"))
    assert given.lambdamart and given.dump_scores


def plan(command, *arguments):
    flags = CommandFlags(command)
    flags.parse([str(argument) for argument in arguments])
    own = plans.has_finalists(command, flags.values.out)
    return plans.make_plan(command, [str(a) for a in arguments], flags.values, own)


def test_found_losses_are_not_tested_on_what_their_search_has_seen(data):
    run = plan("run", "--data", data)
    assert (run.searched, run.tested) == (0, (0, 2))
    assert "1 of 3 folds (Fold2) are left out" in run.notes[0]
    assert plan("test", "--data", data).tested == (0, 1, 2)
    only = plan("run", "--data", data, "--fold", 2)
    assert (only.searched, only.tested) == (1, (1,))


def test_a_fold_that_is_not_there_is_refused(data):
    with pytest.raises(AutolossError, match=r"--fold 4: expected all, or a number from 1 to 3"):
        plan("run", "--data", data, "--fold", 4)


def test_neither_path_nor_command_nor_machine_is_part_of_the_configuration(
    data, monkeypatch, tmp_path
):
    first = plan("run", "--data", data / "Fold1", "--out", "a")
    monkeypatch.chdir(data / "Fold1")
    parts = "train.txt,./vali.txt,../Fold1/test.txt"
    second = plan("search", "--out=b", "--devices=1", "--data", parts, "--tensorboard")
    assert first.described() == second.described()
    assert first.described() != plan("run", "--data", ".", "--seed", 1).described()


def test_parsed_data_are_kept_where_the_flag_says(data, user_cache, tmp_path):
    given = "search", "--data", data / "Fold3"

    def entries(folder):
        return list(folder.glob("letor-*/*/features.npy"))

    default = plan(*given)
    assert entries(user_cache / "autoloss_jax" / "data")
    elsewhere = plan(*given, "--data_cache", tmp_path / "kept", "--verify_data")
    assert len(entries(tmp_path / "kept")) == 3
    nowhere = plan(*given, "--data_cache=none")
    assert default.described() == elsewhere.described() == nowhere.described()
    assert default.placement == "auto"
    streamed = plan(*given, "--data_placement=streamed")
    assert streamed.placement == "streamed" and streamed.described() == default.described()


def test_a_named_loss_counts_as_hand_designed_and_a_formula_as_found(data):
    losses = plan(
        "test", "--data", data, "--hand_designed=none",
        "--loss=pairwise_logistic", "--loss=mean_i((s_i - y_i) ** 2)", "--loss=ranknet",
    ).losses  # fmt: skip
    assert losses == plans.Tested(False, (str(LOSSES["mse"]),), ("ranknet",))


# --- what is printed ---


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help_names_every_command_and_status(arguments, capsys):
    assert call(*arguments) == 0
    printed = capsys.readouterr().out
    for word in (
        "run",
        "search",
        "test",
        "report",
        "export",
        "explain",
        "losses",
        "143",
        "autoloss run",
    ):
        assert word in printed


@pytest.mark.parametrize("command", SUMMARIES)
def test_help_of_a_command_has_an_example_and_its_flags(command, capsys):
    assert call(command, "--help") == 0
    printed = capsys.readouterr().out
    assert f"\n  autoloss {command}" in printed
    names = set(CommandFlags(command).values) - {"?"}
    assert [name for name in names if f"--{name}" not in printed] == []
    assert max(map(len, printed.splitlines())) <= 100


def test_losses_lists_every_loss_with_formula_and_source(capsys):
    assert call("losses") == 0
    printed = capsys.readouterr().out
    for name, loss in HAND_DESIGNED.items():
        assert f"{name}\n    {loss.formula}\n    {loss.source}\n" in printed


@pytest.mark.parametrize(
    "target, word",
    [
        ("jax", "import jax"),
        ("numpy", "import numpy"),
        ("torch", "import torch"),
        ("latex", "\\sum"),
        ("lightgbm", "def ranker_objective("),
        ("xgboost", "def objective("),
    ],
)
def test_export_prints_source(target, word, capsys):
    assert call("export", "--loss", "ranknet", "--target", target) == 0
    assert word in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ranknet", "approx_ndcg"])
def test_explain_prints_what_a_loss_does(name, capsys):
    formula = str(LOSSES[name])  # approx_ndcg's begins with a sign, as flags do
    for arguments in ([name], [formula], ["--loss", formula], [f"--loss={formula}"]):
        assert call("explain", *arguments) == 0
        assert capsys.readouterr().out == f"{explain(name)}\n"


def test_progress_is_logged_at_most_every_ten_seconds(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.logging_to_stderr() as handler, progress.Reporter(handler, bars=False) as shown:
        for now[0] in (100.0, 105.0, 109.9, 110.0, 111.0):
            shown.on_test(f"at {now[0]}", 0.5)
    lines = capsys.readouterr().err.splitlines()
    # Old versions of rich end with an empty line.
    told = [line.split(",")[0] for line in lines if line]
    assert told == ["test: at 100.0", "test: at 110.0"]


# --- whole runs ---


@pytest.mark.slow
def test_a_run_and_what_can_be_done_with_its_folder(data, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["run", "--data", data / "Fold1", *SMALL, "--out", out]
    assert call(*arguments, "--tensorboard") == 0
    printed = capsys.readouterr()
    result = read_json(out / "effectiveness.json")
    assert result["verdict"] in printed.out
    assert {"mse", "softmax"} < {row["name"] for row in result["rows"]}
    for name in ("config.json", "ledger.jsonl", "finalists.json", "report.html", "run.log"):
        assert (out / name).stat().st_size > 0
    assert list((out / "metrics").iterdir())
    best = next(r["formula"] for r in result["rows"] if r["name"] == result["best_found"])
    assert best in (out / "best_loss.py").read_text()
    assert "canaries passed" in (out / "run.log").read_text()

    results = {name: (out / name).read_bytes() for name in ("effectiveness.json", "ledger.jsonl")}
    (out / "report.html").unlink()
    assert call(*arguments) == 0  # finished: the report is written again, and nothing else
    assert "finished already" in capsys.readouterr().err
    assert (out / "report.html").exists()
    assert {name: (out / name).read_bytes() for name in results} == results

    with RunFolder.open(out, read_json(out / "config.json")["config"]):
        assert call("report", out) == 0  # reads, and so needs no lock
    assert call("export", "--from", out, "--target", "numpy") == 0
    assert best in capsys.readouterr().out
    assert call("explain", "--from", out) == 0
    assert capsys.readouterr().out == f"{explain(best)}\n"
    found = plan("test", "--from", out, "--data", data / "Fold1").losses.found
    assert best in found
    assert plan("test", "--from", out, "--data", data / "Fold1", "--fold", 1).tested == (0,)


@pytest.mark.slow
def test_search_and_test_in_two_parts(data, tmp_path, capsys):
    arguments = ["--data", data / "Fold1", *SMALL, "--out", tmp_path / "out"]
    assert call("search", *arguments) == 0
    assert "Finalists" in capsys.readouterr().out
    assert call("test", *arguments) == 0
    assert "Best found loss:" in capsys.readouterr().out
    kinds = {row["kind"] for row in read_json(tmp_path / "out" / "effectiveness.json")["rows"]}
    assert kinds == {"found", "hand_designed"}


def test_the_default_data_are_the_same_every_time():
    assert plan("run").dataset.sha256 == plan("run", "--seed", 3).dataset.sha256
    assert plan("run").dataset.name.startswith("synthetic")


def test_data_of_other_content_is_another_configuration(data, tmp_path):
    write_fold(tmp_path / "Fold1", [0, 1], 2, 5)
    assert load_letor(tmp_path).sha256 != load_letor(data / "Fold1").sha256
    first, second = plan("run", "--data", tmp_path), plan("run", "--data", data / "Fold1")
    assert first.described() != second.described()
