"""The names that users import, and that importing them does nothing else."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import autoloss_jax as al

# What the documentation promises under these names.
PROMISED = [
    "parse", "compile_loss", "encode", "batched_loss", "random_expressions", "LOSSES", "ndcg",
    "ndcg_per_query", "err", "export_source", "load_letor", "synthetic", "search",
    "effectiveness_test",
]  # fmt: skip

_IMPORT_ONLY = """
import logging, os, sys
before = set(os.listdir("."))
import autoloss_jax
import jax
jax.config.update("jax_num_cpu_devices", 3)  # refused once a backend has started
assert jax.device_count() == 3, jax.devices()
assert not logging.getLogger().handlers
assert "matplotlib.pyplot" not in sys.modules
assert set(os.listdir(".")) == before
"""


@pytest.mark.parametrize("name", PROMISED)
def test_every_promised_name_is_there(name):
    assert name in al.__all__
    assert getattr(al, name) is not None


def test_all_names_exist_and_are_sorted_as_the_linter_sorts_them():
    assert [name for name in al.__all__ if not hasattr(al, name)] == []
    assert len(set(al.__all__)) == len(al.__all__)


def test_importing_starts_no_backend_and_writes_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ONLY],
        cwd=tmp_path,
        env={"JAX_PLATFORMS": "cpu", "PYTHONPATH": ":".join(p or "." for p in sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_the_names_work_together():
    scores, labels = np.array([[2.0, 1.0, 0.0]]), np.array([[0.0, 1.0, 2.0]])
    mse = al.parse("mean_i(square(s_i - y_i))")
    assert str(mse) == "mean_i(square(s_i - y_i))"
    # (4 + 0 + 4) / 3
    assert float(al.compile_loss(mse)(scores, labels)) == pytest.approx(8 / 3)
    many = al.batched_loss(
        al.encode([mse, al.LOSSES["mse"]]),
        np.broadcast_to(scores, (2, 1, 3)).astype(np.float32),
        labels.astype(np.float32),
        np.ones((1, 3), bool),
    )
    np.testing.assert_allclose(np.asarray(many).ravel(), [8 / 3, 8 / 3], rtol=1e-6)
    assert float(al.ndcg(labels, labels)) == pytest.approx(1.0)
    assert len(al.random_expressions(jax.random.key(0), 3)) == 3
    assert "square" in al.export_source("mse", "numpy")
    assert len(al.synthetic(num_queries=20).folds) == 1
