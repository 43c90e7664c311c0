"""SIGKILL at any moment of a run: the same command goes on, to the same bits.

`--kills N` kills are spread over as many runs as it takes, each killed again and again and then
left to end; `--fault-seed` chooses the moments.
"""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from autoloss_jax.files import read_ledger

KILLED_AT = Path(__file__).with_name("killed_at.py")
ROOT = Path(__file__).parents[2]
SIGKILLED = -9

# In the order of a run: those of a phase can be hit while it has not ended.
SEARCH = [
    "before sampling", "during sampling", "after sampling", "before proxy training",
    "during proxy training", "after proxy training", "during update", "before ledger",
    "half ledger", "written ledger", "after ledger", "half search checkpoint",
    "rename search checkpoint", "after search checkpoint", "during opening",
]  # fmt: skip
FINALISTS = ["half finalists", "rename finalists", "after finalists"]
TEST = [
    "before test training", "during test training", "half test checkpoint",
    "rename test checkpoint", "after test checkpoint", "before reading test queries",
    "after reading test queries", "half tested part", "rename tested part", "after tested part",
]  # fmt: skip
RESULTS = [
    "before comparing", "during comparing", "half per query", "rename per query",
    "after per query", "half effectiveness", "rename effectiveness", "after effectiveness",
]  # fmt: skip
REPORT = [
    "before report", "during report", "half report file", "rename report file", "after report",
    "half best loss", "rename best loss", "after best loss",
]  # fmt: skip
A_RUN = 12
"""Kills of one run, at most."""

ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}


@pytest.fixture
def start(tiny_run):
    """Starts a run in a folder, to be killed at a moment."""

    def start(out, record, moment="never", count=1):
        command = [sys.executable, str(KILLED_AT), moment, str(count), str(record), *tiny_run]
        return subprocess.run(
            [*command, f"--out={out}"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
            timeout=600, check=False,
        )  # fmt: skip

    return start


def results(folder):
    """What must be equal: all of a run, wall-clock fields aside."""
    records = read_ledger(folder / "ledger.jsonl")
    assert records
    for record in records:
        del record["seconds"]
    files = ["finalists.json", "effectiveness.json", "per_query.npz", "best_loss.py"]
    return records, {name: (folder / name).read_bytes() for name in files}


@pytest.fixture
def whole(start, tmp_path):
    """The results of a run that is never killed."""
    done = start(tmp_path / "whole" / "run", tmp_path / "record")
    assert done.returncode == 0, done.stderr
    return results(tmp_path / "whole" / "run")


def moments(rng, kills):
    """Where and at which count one run is killed, in the order of a run."""
    kinds = [SEARCH, FINALISTS, TEST, RESULTS, REPORT]
    counts = [0] * len(kinds)
    for _ in range(kills):
        counts[rng.choices(range(len(kinds)), [6, 1, 5, 2, 2])[0]] += 1
    for kind, count in zip(kinds, counts, strict=True):
        for _ in range(count):
            if kind in (SEARCH, TEST) and rng.random() < 0.25:
                yield f"random:{rng.uniform(0.0, 4.0):.3f}", 1
            else:
                yield rng.choice(kind), rng.choice([1, 1, 2]) if kind in (SEARCH, TEST) else 1


@pytest.mark.slow
def test_killed_at_any_moment_a_run_ends_as_if_it_had_not_been(
    start, whole, tmp_path, request, record_property
):
    rng = random.Random(request.config.getoption("--fault-seed"))
    wanted, hit, runs = request.config.getoption("--kills"), Counter(), 0
    while hit.total() < wanted:
        folder, record = tmp_path / str(runs), tmp_path / f"{runs}.txt"
        runs += 1
        for moment, count in moments(rng, min(A_RUN, wanted - hit.total())):
            done = start(folder / "run", record, moment, count)
            assert done.returncode in (0, SIGKILLED), done.stderr
            if done.returncode == SIGKILLED:
                hit[moment.partition(":")[0]] += 1
        done = start(folder / "run", record)
        assert done.returncode == 0, done.stderr
        assert results(folder / "run") == whole
        left = [path for path in (folder / "run").rglob("*") if path.suffix in (".tmp", ".damaged")]
        assert left == []
        said = f"{hit.total()} kills of {runs} runs, which ended as if never killed: {dict(hit)}"
        print(said, flush=True)
    record_property("kills", said)
