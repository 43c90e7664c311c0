"""The run folder: who may open it, what it refuses, and what survives a kill or a bad disk."""

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from autoloss_jax import runs
from autoloss_jax.errors import AutolossError
from autoloss_jax.files import read_json, write_json
from autoloss_jax.runs import RunFolder

CONFIG = {"seed": 0, "model": {"kind": "mlp", "sizes": [64, 32]}, "rate": 0.1}

# Holds the folder in argv[1], says so, and waits to be killed.
_HOLD = """
import sys, time
from autoloss_jax.runs import RunFolder
run = RunFolder.open(sys.argv[1], {"seed": 0})
run.append([{"index": 0}])
print("held", flush=True)
time.sleep(60)
"""


def _all_files(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_said_about_a_run_is_kept_and_never_compared(tmp_path):
    RunFolder.open(tmp_path, CONFIG, about={"command": "a", "seed": 1}).close()
    RunFolder.open(tmp_path, CONFIG, about={"command": "b"}).close()
    stored = read_json(tmp_path / "config.json")
    assert (stored["command"], stored["config"]) == ("a", CONFIG)


def test_a_new_folder_holds_config_and_fingerprint(tmp_path):
    folder = tmp_path / "deep" / "run"
    with RunFolder.open(folder, CONFIG) as run:
        assert run.path == folder
        assert not run.resumed
        assert run.read_ledger() == []
        assert run.checkpoints("search").latest() is None
    stored = read_json(folder / "config.json")
    assert stored["config"] == CONFIG
    assert stored["fingerprint"] == runs.fingerprint()
    assert set(stored) == {"config", "fingerprint", "created"}


def test_the_same_configuration_opens_the_folder_again(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as run:
        run.append([{"index": 0}])
        run.append([{"index": 1}, {"index": 2}])
    before = read_json(tmp_path / "config.json")
    with RunFolder.open(tmp_path, CONFIG) as run:
        assert run.resumed
        run.truncate_ledger(2)
        run.append([{"index": 9}])
        assert run.read_ledger() == [{"index": 0}, {"index": 1}, {"index": 9}]
    assert read_json(tmp_path / "config.json") == before
    assert not (tmp_path / "run.log").exists()  # nothing to report


def test_a_dataclass_is_the_same_configuration_as_its_dict(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Config:
        grid: tuple[float, ...] = (0.1, float("inf"))

    RunFolder.open(tmp_path, Config()).close()
    with RunFolder.open(tmp_path, {"grid": [0.1, float("inf")]}) as run:
        assert run.resumed


def test_another_configuration_is_refused_naming_the_settings(tmp_path):
    RunFolder.open(tmp_path, CONFIG).close()
    before = _all_files(tmp_path)
    given = {"seed": 1, "model": {"kind": "mlp", "sizes": [64]}, "rate": 0.1, "budget": 5}
    with pytest.raises(AutolossError) as refusal:
        RunFolder.open(tmp_path, given)
    assert str(refusal.value).splitlines()[1:] == [
        "  seed: stored 0, given 1",
        "  model.sizes: stored [64, 32], given [64]",
        "  budget: stored absent, given 5",
    ]
    assert "another configuration" in str(refusal.value)
    assert _all_files(tmp_path) == before
    RunFolder.open(tmp_path, CONFIG).close()  # the refusal holds no lock


def test_a_setting_that_is_no_longer_given_is_named(tmp_path):
    RunFolder.open(tmp_path, {"a": {"b": 1}}).close()
    with pytest.raises(AutolossError, match=r"a\.b: stored 1, given absent"):
        RunFolder.open(tmp_path, {})


def test_a_folder_in_use_is_refused_in_this_process_too(tmp_path):
    message = f"in use by another run .*process {os.getpid()} "
    with RunFolder.open(tmp_path, CONFIG), pytest.raises(AutolossError, match=message):
        RunFolder.open(tmp_path, CONFIG)
    RunFolder.open(tmp_path, CONFIG).close()


def test_closing_twice_does_nothing(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    run.close()
    with RunFolder.open(tmp_path, CONFIG):
        run.close()  # must not free the lock of the second run
        with pytest.raises(AutolossError, match="in use"):
            RunFolder.open(tmp_path, CONFIG)


def test_a_lock_not_yet_signed_is_refused(tmp_path):
    RunFolder.open(tmp_path, CONFIG).close()
    with (tmp_path / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(AutolossError, match="in use .*began this moment"):
            RunFolder.open(tmp_path, CONFIG)


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", _HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(AutolossError) as refusal:
                RunFolder.open(folder, {"seed": 0})
            with pytest.raises(AutolossError, match="in use"):
                RunFolder.open(folder, {"seed": 1})
            lock = read_json(folder / "lock")
        finally:
            holder.send_signal(signal.SIGKILL)
    assert lock["pid"] == holder.pid
    said = f"process {holder.pid} on {lock['host']}, since {lock['since']}"
    assert said in str(refusal.value)
    with RunFolder.open(folder, {"seed": 0}) as run:
        assert run.resumed
        assert run.read_ledger() == [{"index": 0}]


def test_a_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(AutolossError, match="file is a file: expected a folder"):
        RunFolder.open(path, CONFIG)
    with pytest.raises(AutolossError, match="cannot write the run folder"):
        RunFolder.open(path / "below", CONFIG)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("thesis.tex", "mine", "has no config.json but holds 'thesis.tex'"),
        ("config.json", '{"model_type": "bert"}', "its config.json is no run's"),
        ("config.json", "[]", "its config.json is no run's"),
        ("config.json", "{", "config.json is damaged"),
    ],
)
def test_a_foreign_folder_is_refused_untouched(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    before = _all_files(tmp_path)
    with pytest.raises(AutolossError, match=message):
        RunFolder.open(tmp_path, CONFIG)
    assert _all_files(tmp_path) == before


def test_a_run_killed_before_its_config_was_written_begins_anew(tmp_path):
    (tmp_path / "lock").write_text("{")
    (tmp_path / ".config.json.0123abcd.tmp").write_text("{")
    with RunFolder.open(tmp_path, CONFIG) as run:
        assert not run.resumed
    assert sorted(os.listdir(tmp_path)) == ["config.json", "lock"]


def test_another_environment_is_warned_of_and_recorded_once(tmp_path, caplog):
    RunFolder.open(tmp_path, CONFIG).close()
    stored = read_json(tmp_path / "config.json")
    stored["fingerprint"]["versions"]["jax"] = "0.0.1"
    write_json(tmp_path / "config.json", stored)
    for _ in range(2):
        caplog.clear()
        RunFolder.open(tmp_path, CONFIG).close()
        change = f'versions.jax: stored "0.0.1", now "{jax.__version__}"'
        assert change in caplog.text
        assert change in (tmp_path / "run.log").read_text()
    now = read_json(tmp_path / "config.json")
    assert [entry["fingerprint"] for entry in now.pop("resumed_with")] == [runs.fingerprint()]
    assert now == stored


def test_what_the_caller_says_of_the_environment_joins_the_fingerprint(tmp_path, caplog):
    RunFolder.open(tmp_path, CONFIG, environment={"interpreter": "xla"}).close()
    stored = read_json(tmp_path / "config.json")
    assert stored["fingerprint"] == runs.fingerprint() | {"interpreter": "xla"}
    assert caplog.text == ""
    RunFolder.open(tmp_path, CONFIG, environment={"interpreter": "kernel"}).close()
    assert 'interpreter: stored "xla", now "kernel"' in caplog.text


def test_the_fingerprint_says_what_results_depend_on():
    found = runs.fingerprint()
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["platform"] == "cpu"
    assert "devices" not in found  # of the CPU; tests/test_processes.py shows it
    assert json.loads(json.dumps(found)) == found


def test_opening_cuts_off_a_torn_line(tmp_path, caplog):
    with RunFolder.open(tmp_path, CONFIG) as run:
        run.append([{"index": 0}])
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"index": 1, "form')
    with RunFolder.open(tmp_path, CONFIG) as run:
        run.append([{"index": 1}])
        assert run.read_ledger() == [{"index": 0}, {"index": 1}]
    assert "cut off a torn last line" in caplog.text
    assert "cut off a torn last line" in (tmp_path / "run.log").read_text()


def test_attach_log_ends_with_its_context(tmp_path):
    with runs.attach_log(tmp_path / "run.log"):
        runs.logging.warning("heard %d", 1)
    runs.logging.warning("unheard")
    text = (tmp_path / "run.log").read_text()
    assert text.endswith(" WARNING heard 1\n")
