"""Many runs in one process, one after the other: nothing grows, nothing is left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoloss_jax.files import read_json

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_many_runs_in_one_process_leave_nothing_and_compile_once(tmp_path):
    out = tmp_path / "soak"
    command = [
        sys.executable, str(ROOT / "experiments" / "soak.py"), "--runs=7", "--hours=1",
        "--repeated=6", "--proposers=random", "--models=linear", "--out", str(out),
    ]  # fmt: skip
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == [*["search"] * 4, "test", *["search"] * 2]
    # By now there was one of each kind: searches from scratch and in turns, stopped, and a test.
    warm, before, last = lines[4], lines[5], lines[6]
    for name in ("descriptors", "threads", "children", "live_arrays"):
        assert last[name] <= warm[name], (name, [line[name] for line in lines])
    # The first search again: its programs are there.
    for name in ("programs", "compiled"):
        assert last[name] == before[name], (name, [line[name] for line in lines])
    assert last["temporary_files"] == last["live_arrays"] == last["children"] == 0
    assert list((out / "temporary").iterdir()) == []
    report = read_json(out / "report.json")
    assert report["runs"] == 7 and report["tests"] == 1
    assert report["models_trained"] == last["trained"] > 6 * 24
    assert "MB" in done.stdout and report["verdict"] in " ".join(done.stdout.split())
