"""Whole runs of two processes: the same as of one, whatever is done to them meanwhile."""

import itertools
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from autoloss_jax import processes
from autoloss_jax.files import read_json
from tests.pairs import SMALL, Commands, environment, free_port, read_run_folder, taken_port

LONG = 900  # seconds; how long a whole run may take on a machine with other work
GONE = (1, -signal.SIGABRT)
"""How a process ends that has lost another: by itself, or aborted by JAX, which found it first."""


@pytest.fixture
def commands(tmp_path):
    commands = Commands(tmp_path)
    yield commands
    commands.end()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folders of one run by one device, eight, and two processes; and a cache of programs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    commands = Commands(folder)
    whole = ["run", *SMALL, "--profile", f"--compilation_cache={folder / 'cache'}"]
    running = [
        commands.begin([*whole, f"--out={folder / 'one'}"], 1, "one.log"),
        commands.begin([*whole, f"--out={folder / 'eight'}"], 8, "eight.log"),
        *commands.begin_two([*whole, f"--out={folder / 'two'}"]),
    ]
    try:
        for process in running:
            assert process.wait(timeout=LONG) == 0, [p.read_text() for p in folder.glob("*.log")]
    finally:
        commands.end()
    return folder


class _Pair:
    """Two processes on one run, begun again and again by the same command.

    The second one cannot write where its --out says, and never needs to.
    """

    def __init__(self, undisturbed, commands, out):
        self.arguments = ["run", *SMALL, "--profile", f"--out={out}"]
        self.arguments.append(f"--compilation_cache={undisturbed / 'cache'}")
        self.commands, self.out = commands, out
        self.running = []

    def begin(self):
        self.running = self.commands.begin_two(self.arguments, ((), ("--out=/proc/none",)))

    def log(self, process):
        return self.commands.log(f"{process}.log")

    def at_work(self):
        """Whether the first one has opened the folder, so both are there."""
        return re.search("writing to|going on in", self.log(0))

    def wait_for(self, what):
        """Waits until `what` is true, or the file of that name is there, or both have ended."""
        reached = what if callable(what) else (self.out / what).exists
        until = time.monotonic() + LONG
        while not reached() and not self.ended():
            assert time.monotonic() < until, [self.log(0), self.log(1)]
            time.sleep(0.02)

    def ended(self):
        return all(process.poll() is not None for process in self.running)

    def send(self, number, process):
        self.running[process].send_signal(number)

    def statuses(self):
        """How both end, and how many seconds from now that takes at most."""
        started = time.monotonic()
        return [process.wait(timeout=LONG) for process in self.running], time.monotonic() - started


def _inject(pair, number, victim):
    """Sends a signal to one of two processes, and checks how both end. Returns what came of it."""
    pair.send(number, victim)
    statuses, seconds = pair.statuses()
    logs = [pair.log(0), pair.log(1)]
    if 0 in statuses:  # all was done: none of them ends before
        return "came too late"
    assert not any("Traceback (most recent" in log for log in logs), logs
    if number == signal.SIGKILL:
        other = 1 - victim
        assert statuses[victim] == -signal.SIGKILL
        assert statuses[other] in GONE, (statuses, logs)
        assert "another process is gone" in logs[other] or "another task died" in logs[other], logs
        # What a call of XLA takes comes on top, and other work on the machine.
        assert seconds < processes.HEARTBEAT_TIMEOUT + 60
        return f"the other ended with {statuses[other]} after {seconds:.1f} s"
    expected = [128 + signal.SIGTERM] * 2
    expected[victim] = 128 + number
    assert statuses == expected, (statuses, logs)
    stops = [re.search(r"stopped by (\w+), all processes at step (\d+); to go on", x) for x in logs]
    assert stops[0][2] == stops[1][2]
    assert stops[victim][1] == signal.Signals(number).name
    return f"both stopped at step {stops[0][2]}"


def _planned(pair):
    """The faults of every run of the tests: where, and what."""

    def lines(count):
        path = pair.out / "ledger.jsonl"
        return lambda: path.exists() and path.read_bytes().count(b"\n") >= count

    yield "compiling", pair.at_work, signal.SIGKILL, 0
    yield "Phase I", lines(8), signal.SIGKILL, 1
    yield "Phase I again", pair.at_work, signal.SIGTERM, 1
    yield "Phase II", "finalists.json", signal.SIGKILL, 0
    yield "Phase II again", pair.at_work, signal.SIGINT, 0


def _drawn(pair, seed):
    """Faults at random moments, without end."""
    draw = random.Random(seed)
    for _ in iter(int, 1):
        delay = draw.uniform(0, 12)
        number = draw.choice([*[signal.SIGKILL] * 4, signal.SIGTERM, signal.SIGINT])
        victim = draw.randrange(2)

        def later(delay=delay, begun=[]):  # noqa: B006
            if not begun and pair.at_work():
                begun.append(time.monotonic())
            return begun and time.monotonic() >= begun[0] + delay

        yield f"{delay:.1f} s", later, number, victim


@pytest.mark.slow
def test_two_processes_killed_and_stopped_at_every_turn_end_as_one(
    undisturbed, commands, tmp_path, request, capsys
):
    expected = read_run_folder(undisturbed / "one")
    count, seed = (request.config.getoption(name) for name in ("--kills", "--fault-seed"))
    pair = _Pair(undisturbed, commands, tmp_path / "run")
    faults = itertools.chain(_planned(pair), _drawn(pair, seed))
    for number, (where, moment, sent, victim) in enumerate(itertools.islice(faults, count)):
        pair.begin()
        pair.wait_for(moment)
        came = _inject(pair, sent, victim)
        with capsys.disabled():
            print(f"\nfault {number}: {sent.name} to process {victim}, {where}: {came}")
        if came == "came too late":
            assert read_run_folder(pair.out) == expected
            shutil.rmtree(pair.out)
    pair.begin()
    assert pair.statuses()[0] == [0, 0], [pair.log(0), pair.log(1)]
    assert read_run_folder(pair.out) == expected
    # What two began one goes on with: the ends of both phases again, from the last checkpoints.
    for name in ("finalists.json", "effectiveness.json"):
        (pair.out / name).unlink()
    alone = commands.begin(pair.arguments, 2, "alone.log")
    assert alone.wait(timeout=LONG) == 0, commands.log("alone.log")
    assert read_run_folder(pair.out) == expected


@pytest.mark.slow
def test_one_device_eight_and_two_processes_give_the_same_run(undisturbed, commands):
    folders = [undisturbed / name for name in ("one", "eight", "two")]
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
    assert "Best found loss" in (undisturbed / "0.log").read_text()
    assert "search" not in (undisturbed / "1.log").read_text()
    trained = sum(record["status"] == "trained" for record in one[0])
    counted = read_json(folders[0] / "profile.json")["candidates_trained"]
    assert trained < counted <= trained + 4  # the hall of fame again


@pytest.mark.slow
def test_processes_of_other_configurations_end_with_the_difference(commands, tmp_path):
    out = ["search", *SMALL, f"--out={tmp_path / 'run'}"]
    running = commands.begin_two(out, (("--seed=1",), ("--seed=2",)))
    assert [process.wait(timeout=LONG) for process in running] == [2, 2]
    for k, prefix in enumerate(("", "process 1: ")):
        log = commands.log(f"{k}.log")
        assert f"{prefix}autoloss: process 1 has another configuration than process 0" in log
        assert "  search.seed: process 0 1, process 1 2\n" in log
        assert "Check failure" not in log  # neither took the other for lost
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_that_do_not_meet_give_up(tmp_path):
    """The second one never comes; nor the first; another program listens at its port."""
    impatient = (
        "import sys; from autoloss_jax import processes, cli; processes.START_TIMEOUT = 3; "
        "sys.exit(cli.main(['autoloss', *sys.argv[1:]]))"
    )
    ports = [free_port(), free_port()]
    with taken_port() as taken:
        running = [
            subprocess.Popen(
                [sys.executable, "-c", impatient, "search", f"--out={tmp_path / 'run'}",
                 f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2",
                 f"--process_id={k}"],
                env=environment(), stderr=subprocess.PIPE, text=True,
            )
            for port, k in ((ports[0], 0), (ports[1], 1), (taken, 0))
        ]  # fmt: skip
        said = [process.communicate(timeout=LONG)[1] for process in running]
    assert [process.returncode for process in running] == [2, 2, 2], said
    for port, text in zip((*ports, taken), said, strict=True):
        assert f"autoloss: could not join the other processes at 127.0.0.1:{port}" in text
        expected = "a free port" if port == taken else "all of them to start within 3 seconds"
        assert f"expected {expected}" in text
        assert "Traceback" not in text and "Check failure" not in text
    assert not (tmp_path / "run").exists()
