"""Several processes: who started them, what they agree on, and how they end."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoloss_jax import processes
from autoloss_jax.checkpoints import decode_state, encode_state
from autoloss_jax.cli import main
from autoloss_jax.errors import AutolossError
from autoloss_jax.files import read_json, read_ledger
from autoloss_jax.runs import open_run

ROOT = Path(__file__).parents[1]
SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a,b",
         "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}  # fmt: skip


# --- starting ---


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, None),
        (SLURM, "Slurm"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "4"}, "Slurm"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),  # srun -n1 in an allocation of four
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),  # a shell in an allocation
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://h:1", "OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://h:1", "OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "x"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "a TPU pod"),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, "a TPU pod"),
        ({"MEGASCALE_NUM_SLICES": "2"}, "a TPU pod"),
    ],
)
def test_a_launcher_is_known_by_its_environment(environment, expected):
    assert processes.launcher(environment) == expected


def test_without_a_launcher_or_flags_nothing_is_started(monkeypatch):
    monkeypatch.setattr("jax.distributed.initialize", lambda **_: pytest.fail("was called"))
    for name in [*SLURM, "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"]:
        monkeypatch.delenv(name, raising=False)
    processes.start()
    processes.start("localhost:1234", 1, 0)  # one process needs no others
    assert not processes.joined()
    assert not processes.several()
    assert processes.is_first()


def test_a_launcher_or_three_flags_start_jax(monkeypatch):
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **given: calls.append(given))
    processes.start("localhost:1234", 2, 1)
    assert (calls[0]["num_processes"], calls[0]["process_id"]) == (2, 1)
    assert calls[0]["cluster_detection_method"] == "deactivate"
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    processes.start()
    assert calls[1]["coordinator_address"] is calls[1]["cluster_detection_method"] is None
    assert calls[1]["heartbeat_timeout_seconds"] == processes.HEARTBEAT_TIMEOUT


def test_processes_that_are_not_reached_are_named(monkeypatch):
    def refuse(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: no answer\nmore")

    monkeypatch.setattr("jax.distributed.initialize", refuse)
    with pytest.raises(AutolossError, match="the other processes at host:1: DEADLINE_EXC.*answer;"):
        processes.start("host:1", 2, 1)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num_processes=2", "--process_id=0"], "--coordinator_address is missing: expected"),
        (["--coordinator_address=a:1"], "--num_processes is missing"),
        (["--coordinator_address=a:1", "--num_processes=2"], "--process_id is missing"),
        (["--coordinator_address=a", "--num_processes=2", "--process_id=0"],
         "--coordinator_address is 'a', expected host:port"),
        (["--coordinator_address=a:b", "--num_processes=2", "--process_id=0"], "is 'a:b'"),
        (["--coordinator_address=a:1", "--num_processes=2", "--process_id=2"],
         "--process_id is 2, expected from 0 to 1"),
        (["--num_processes=0"], "--num_processes=0: expected a whole number of at least 1"),
    ],
)  # fmt: skip
def test_incomplete_flags_are_refused(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["autoloss", "search", *flags]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- agreeing ---


@pytest.fixture
def as_one_of_two(monkeypatch):
    """Makes this process believe that it is one of two; the other one says what it is told to."""

    def pretend(process, other):
        monkeypatch.setattr(processes, "several", lambda: True)
        monkeypatch.setattr(processes, "is_first", lambda: process == 0)
        monkeypatch.setattr(
            processes, "gather", lambda text: [text, other] if process == 0 else [other, text]
        )

    return pretend


def test_one_process_has_nothing_to_agree_on():
    processes.agree("thing", 1)
    processes.stop_together()
    assert processes.gather("a") == ["a"]
    assert processes.from_first(lambda: (1, 2)) == (1, 2)
    assert processes.together(lambda: "b") == "b"
    assert processes.prefix() == ""


def test_processes_that_differ_all_end(as_one_of_two):
    as_one_of_two(0, "another digest")
    with pytest.raises(AutolossError, match="process 1 has another thing than process 0"):
        processes.agree("thing", {"a": 1})
    as_one_of_two(1, "another digest")
    with pytest.raises(AutolossError, match="process 1 has another thing than process 0"):
        processes.agree("thing", {"a": 1})


def test_the_first_process_answers_for_all(as_one_of_two):
    as_one_of_two(0, "{}")
    assert processes.from_first(lambda: {"a": [1.5, None]}) == {"a": [1.5, None]}

    def refuse():
        raise AutolossError("no such folder")

    with pytest.raises(AutolossError, match="no such folder"):
        processes.from_first(refuse)
    as_one_of_two(1, json.dumps({"result": {"a": 2}}))
    assert processes.from_first(lambda: pytest.fail("was called")) == {"a": 2}
    as_one_of_two(1, json.dumps({"error": "in use"}))
    with pytest.raises(AutolossError, match="in use"):
        processes.from_first(lambda: pytest.fail("was called"))


def test_what_is_refused_to_one_is_refused_to_all(as_one_of_two):
    as_one_of_two(0, "no file x")
    with pytest.raises(AutolossError, match="process 1 ended: no file x"):
        processes.together(lambda: 3)
    as_one_of_two(0, "")
    assert processes.together(lambda: 3) == 3

    def refuse():
        raise AutolossError("no file y")

    with pytest.raises(AutolossError, match="^no file y"):
        processes.together(refuse)


def test_only_the_first_process_has_the_folder(as_one_of_two, tmp_path):
    as_one_of_two(1, json.dumps({"result": None}))
    with open_run(tmp_path / "run", {"seed": 0}) as folder:
        assert folder is None
    assert not (tmp_path / "run").exists()
    as_one_of_two(0, "")
    with open_run(tmp_path / "run", {"seed": 0}) as folder:
        assert folder is not None and (tmp_path / "run/config.json").exists()
        with (
            pytest.raises(AutolossError, match="is in use by another run"),
            open_run(tmp_path / "run", {"seed": 0}),
        ):
            pass


def test_a_state_travels_as_text():
    state = {"a": [1.5, float("inf")], "b": None, "c": "x"}
    assert decode_state(encode_state(state), state) == state


# --- whole runs ---

SMALL = [
    "--budget=4", "--proposals=16", "--model=linear", "--hall_of_fame=4", "--fresh_seeds=1",
    "--finalists=2", "--proxy_rung_steps=4", "--proxy_rungs=1,1", "--max_buckets=1", "--profile",
    "--test_seeds=1", "--test_learning_rates=0.01", "--test_max_steps=40",
    "--hand_designed=mse,softmax",
]  # fmt: skip


@pytest.fixture
def begin(tmp_path):
    """Begins the command line with so many CPU devices; it writes to a file of the given name."""
    running = []

    def begin(arguments, devices, name):
        environment = {k: v for k, v in os.environ.items() if k not in SLURM}
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "autoloss_jax", *arguments]
        with (tmp_path / name).open("w") as log:
            running.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.wait()


def begin_two(begin, arguments, more=((), ())):
    """Two processes with a device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    join = [f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2"]
    return [
        begin([*arguments, *join, f"--process_id={k}", *more[k]], 1, f"{k}.log") for k in (0, 1)
    ]


def read_run_folder(folder):
    records = read_ledger(folder / "ledger.jsonl")
    assert records
    for record in records:
        del record["seconds"]
    return records, read_json(folder / "finalists.json"), read_json(folder / "effectiveness.json")


@pytest.mark.slow
def test_one_device_eight_and_two_processes_give_the_same_run(begin, tmp_path):
    cache = f"--compilation_cache={tmp_path / 'cache'}"
    folders = [tmp_path / name for name in ("one", "eight", "two")]
    arguments = [["run", *SMALL, cache, f"--out={folder}"] for folder in folders]
    running = [
        begin(arguments[0], 1, "one.log"),
        begin(arguments[1], 8, "eight.log"),
        *begin_two(begin, arguments[2]),
    ]
    for process in running:
        assert process.wait(timeout=900) == 0, [p.read_text() for p in tmp_path.glob("*.log")]
    one, eight, two = map(read_run_folder, folders)
    assert one == eight
    assert one == two
    stored = [read_json(folder / "config.json") for folder in folders]
    assert [c["machine"] for c in stored] == [
        {"devices": 1, "processes": 1}, {"devices": 8, "processes": 1},
        {"devices": 2, "processes": 2},
    ]  # fmt: skip
    assert stored[0]["fingerprint"] == stored[1]["fingerprint"] == stored[2]["fingerprint"]
    # The other process wrote nothing and said nothing of the search.
    assert "Best found loss" in (tmp_path / "0.log").read_text()
    assert "search" not in (tmp_path / "1.log").read_text()
    trained = sum(record["status"] == "trained" for record in one[0])
    counted = read_json(folders[0] / "profile.json")["candidates_trained"]
    assert trained < counted <= trained + 4  # the hall of fame again
    # Resumed by one process after the last round, a run of two ends the same.
    for name in ("finalists.json", "effectiveness.json"):
        (folders[2] / name).unlink()
    again = begin(arguments[2], 2, "again.log")
    assert again.wait(timeout=600) == 0
    assert read_run_folder(folders[2]) == one


@pytest.mark.slow
def test_a_second_process_compiles_nothing_that_the_first_one_has(begin, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    kept = []
    for k in range(2):
        arguments = [*SMALL, f"--compilation_cache={cache}", f"--out={tmp_path / str(k)}"]
        log = tmp_path / f"{k}.log"
        monkeypatch.setenv("PYTHONHASHSEED", str(k))  # sets of "i" and "j" come in another order
        assert begin(["search", *arguments], 1, log.name).wait(timeout=600) == 0, log.read_text()
        # Named by what was compiled and for what: what is not found there is compiled and added.
        kept.append({file.name for file in cache.glob("*-cache")})
    assert len(kept[0]) > 50  # small programs too
    assert kept[1] == kept[0]


@pytest.mark.slow
def test_processes_of_other_configurations_end_with_the_reason(begin, tmp_path):
    out = ["search", *SMALL, f"--out={tmp_path / 'run'}"]
    running = begin_two(begin, out, (("--seed=1",), ("--seed=2",)))
    assert [process.wait(timeout=120) for process in running] == [2, 2]
    for k, prefix in enumerate(("", "process 1: ")):
        expected = f"{prefix}autoloss: process 1 has another configuration than process 0"
        assert expected in (tmp_path / f"{k}.log").read_text()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_when_one_process_is_killed_the_other_ends(begin, tmp_path):
    running = begin_two(begin, ["search", *SMALL, f"--out={tmp_path / 'run'}"])
    deadline = time.monotonic() + 300
    while not (tmp_path / "run/run.log").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    running[1].kill()
    assert running[0].wait(timeout=300) != 0
    log = (tmp_path / "0.log").read_text()
    assert "another process is gone" in log or "another task died" in log


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_a_lost_process_is_known_by_what_the_error_says(monkeypatch, kind):
    error = kind("UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:11684")
    assert not processes.lost(error)  # alone, nobody can be lost
    monkeypatch.setattr(processes, "joined", lambda: True)
    assert processes.lost(error) and not processes.lost(kind("division by zero"))
