"""Several processes: who started them, what they agree on, and how they end."""

import json

import pytest

from autoloss_jax import processes
from autoloss_jax.checkpoints import decode_state, encode_state
from autoloss_jax.cli import main
from autoloss_jax.errors import AutolossError
from autoloss_jax.runs import open_run
from tests.pairs import SLURM, SMALL, Commands

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
    as_one_of_two(0, json.dumps({"a": 1, "b": {"c": 2}}))
    said = r"process 1 has another thing than process 0.*\n  b.c: process 0 3, process 1 2$"
    with pytest.raises(processes.SharedError, match=said):
        processes.agree("thing", {"a": 1, "b": {"c": 3}})
    as_one_of_two(1, json.dumps({"a": 1}))
    said = 'than process 0.*\n  b: process 0 absent, process 1 "' + "x" * 150
    with pytest.raises(processes.SharedError, match=said) as refused:
        processes.agree("thing", {"a": 1, "b": "x" * 5_000})
    assert len(str(refused.value)) < 500  # a long value is not shown whole


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


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_a_lost_process_is_known_by_what_the_error_says(monkeypatch, kind):
    error = kind("UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:11684")
    assert not processes.lost(error)  # alone, nobody can be lost
    monkeypatch.setattr(processes, "joined", lambda: True)
    assert processes.lost(error) and not processes.lost(kind("division by zero"))


@pytest.mark.slow
def test_a_second_process_compiles_nothing_that_the_first_one_has(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    kept = []
    commands = Commands(tmp_path)
    for k in range(2):
        arguments = [*SMALL, f"--compilation_cache={cache}", f"--out={tmp_path / str(k)}"]
        log = tmp_path / f"{k}.log"
        monkeypatch.setenv("PYTHONHASHSEED", str(k))  # sets of "i" and "j" come in another order
        process = commands.begin(["search", *arguments], 1, log.name)
        assert process.wait(timeout=600) == 0, log.read_text()
        # Named by what was compiled and for what: what is not found there is compiled and added.
        kept.append({file.name for file in cache.glob("*-cache")})
    assert len(kept[0]) > 50  # small programs too
    assert kept[1] == kept[0]
