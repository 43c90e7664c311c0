"""The benchmark of the GPU kernel, where there is no GPU: it says so, and can be tried."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, str(ROOT / "experiments" / "benchmarks" / "gpu_kernel.py")]


def run(*arguments):
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="of machines without a GPU")
def test_without_a_gpu_nothing_is_measured_and_the_status_says_so(tmp_path):
    out = tmp_path / "out.json"
    done = run("--out", str(out))
    assert done.returncode == 3
    assert "no GPU is at hand: JAX found only 'cpu'. Nothing was measured" in done.stderr
    assert not out.exists()


@pytest.mark.slow
def test_interpreted_it_compares_both_paths_and_counts_the_floor(tmp_path):
    out = tmp_path / "out.json"
    small = ["--candidates=2", "--programs=2", "--queries=2", "--list_length=5", "--repetitions=1"]
    done = run("--interpret", *small, "--peak_tflops=10", "--peak_gbps=1000", "--out", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["interpreted"] == (jax.default_backend() != "gpu")
    assert [row["gradients_that_agree"] for row in result["rows"]] == [1.0] * 4
    for row in result["rows"]:
        floor = max(row["operations"] / 10e12, row["bytes"] / 1e12)
        assert row["floor_seconds"] == pytest.approx(floor)
        best = min(row["kernel"]["seconds"])
        assert row["kernel"]["share_of_floor"] == pytest.approx(floor / best)
    by_kind = {row["losses"]: row["operations"] for row in result["rows"]}
    assert by_kind["pair, about 9 operators"] > by_kind["per-document"]
