"""SIGKILL at any moment of a run: the same command goes on, to the same bits.

`--kills N` kills are spread over as many runs as it takes, each killed again and again and then
left to end; `--fault-seed` chooses the moments.
"""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
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

ARGUMENTS = [
    "run", "--budget=30", "--proposals=12", "--proposer=evolution", "--model=linear",
    "--hall_of_fame=4", "--fresh_seeds=1", "--finalists=2", "--proxy_rung_steps=4",
    "--proxy_rungs=1,1", "--max_buckets=1", "--test_seeds=2", "--test_learning_rates=0.003,0.03",
    "--test_block_steps=4", "--test_max_steps=24", "--hand_designed=mse,softmax",
]  # fmt: skip


def write_letor(path, first, count):
    """Queries number `first` on, whose label is the sign of the first feature."""
    rng = np.random.default_rng(first)
    lines = []
    for query in range(first, first + count):
        for document in range(rng.integers(4, 9)):
            x = rng.normal(size=3)
            label = 1 if document == 0 else int(x[0] > 0)
            lines.append(f"{label} qid:{query} 1:{x[0]:.4f} 2:{x[1]:.4f} 3:{x[2]:.4f}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a run in a folder, to be killed at a moment; all starts share compiled programs."""
    base = tmp_path_factory.mktemp("kills")
    for k in (1, 2):
        for part, first, count in (("train", 0, 30), ("vali", 30, 15), ("test", 30 + 15 * k, 15)):
            write_letor(base / "data" / f"Fold{k}" / f"{part}.txt", first, count)

    def start(out, record, moment="never", count=1):
        command = [
            sys.executable, str(KILLED_AT), moment, str(count), str(record), *ARGUMENTS,
            f"--data={base / 'data'}", f"--compilation_cache={base / 'cache'}", f"--out={out}",
        ]  # fmt: skip
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
            env=ENVIRONMENT,
        )  # fmt: skip

    return start


ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}


def results(folder):
    """What must be equal: all of a run, wall-clock fields aside."""
    records = read_ledger(folder / "ledger.jsonl")
    assert records
    for record in records:
        del record["seconds"]
    files = ["finalists.json", "effectiveness.json", "per_query.npz", "best_loss.py"]
    return records, {name: (folder / name).read_bytes() for name in files}


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = start(folder / "run", folder / "record")
    assert done.returncode == 0, done.stderr
    return results(folder / "run")


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
