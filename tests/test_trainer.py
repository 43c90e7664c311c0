"""The candidate batch: halved when memory runs out, with the same results."""

import re

import jax
import numpy as np
import pytest

from autoloss_jax.data import scale_fold, synthetic
from autoloss_jax.errors import AutolossError
from autoloss_jax.losses import LOSSES
from autoloss_jax.memory import free_host_memory, free_memory, is_out_of_memory, needed_memory
from autoloss_jax.models import Linear
from autoloss_jax.proxy import ProxyConfig, ProxyTraining
from autoloss_jax.training import CPU_CHUNK, candidates_mesh, place, reorder_runs, spread_runs

CONFIG = ProxyConfig(
    folds=2, queries_per_step=8, learning_rate=0.05, rung_steps=3, rungs=(1, 1), max_buckets=1
)
CANDIDATES = list(LOSSES.values())[:9]
LEAST = 2 * CPU_CHUNK  # a chunk on each of two devices
EXHAUSTED = "RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nmore lines"


@pytest.fixture(scope="module")
def queries():
    data = synthetic(num_queries=40, num_features=6, list_length=(3, 6))
    return scale_fold(data.folds[0]).train


@pytest.fixture(scope="module")
def make_proxy(queries):
    """Makes proxy trainings that share their compiled programs."""
    first = None

    def make():
        nonlocal first
        proxy = ProxyTraining(queries, Linear(), LOSSES["softmax"], CONFIG, 17, seed=0)
        first = first or proxy.trainer
        proxy.trainer._train, proxy.trainer._evaluate = first._train, first._evaluate
        return proxy

    return make


@pytest.fixture(scope="module")
def expected(make_proxy):
    return make_proxy().run(CANDIDATES, seed=1)


class Limited:
    """A compiled training, or evaluation, that runs out of memory for more than `most` runs."""

    def __init__(self, function, most, error=None):
        self.function, self.most = function, most
        self.error = error or jax.errors.JaxRuntimeError(EXHAUSTED)
        self.lower = function.lower
        self.calls = []

    def __call__(self, states, *arguments):
        runs = states.alive.shape[1]
        self.calls.append(runs)
        if runs > self.most:
            jax.tree.map(lambda x: x.delete(), states)  # as donated arguments are gone
            raise self.error
        return self.function(states, *arguments)


def assert_same_round(given, expected):
    for a, b in zip(given.outcomes, expected.outcomes, strict=True):
        assert a[:-1] == b[:-1]
        np.testing.assert_array_equal(a.differences, b.differences)
    jax.tree.map(np.testing.assert_array_equal, given.best, expected.best)
    assert given.reference_ndcg == expected.reference_ndcg


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError(EXHAUSTED), MemoryError()])
def test_the_batch_is_halved_and_nothing_changes(make_proxy, expected, error, caplog):
    proxy = make_proxy()
    limited = proxy.trainer._train = Limited(proxy.trainer._train, LEAST, error)
    assert proxy.trainer.batch == 24
    assert_same_round(proxy.run(CANDIDATES, seed=1), expected)
    assert proxy.trainer.batch == LEAST
    assert limited.calls[:3] == [24, 16, 8]
    assert set(limited.calls[3:]) == {8}
    assert "halved, from 24 to 16 runs" in caplog.text
    assert "halved, from 16 to 8 runs" in caplog.text
    limited.calls.clear()
    assert_same_round(proxy.run(CANDIDATES, seed=1), expected)  # the next round begins there
    assert set(limited.calls) == {8}


def test_an_evaluation_that_does_not_fit_is_halved_too(make_proxy, expected):
    proxy = make_proxy()
    proxy.trainer._evaluate = Limited(proxy.trainer._evaluate, 16)
    assert_same_round(proxy.run(CANDIDATES, seed=1), expected)
    assert proxy.trainer.batch == 16


def test_a_program_that_is_predicted_not_to_fit_is_never_run(make_proxy, expected, monkeypatch):
    proxy = make_proxy()
    # The need is said to be a byte for each run.
    monkeypatch.setattr("autoloss_jax.trainer.needed_memory", lambda compiled: proxy.trainer.batch)
    monkeypatch.setattr("autoloss_jax.trainer.free_memory", lambda device: 10)
    limited = proxy.trainer._train = Limited(proxy.trainer._train, 100)
    assert_same_round(proxy.run(CANDIDATES, seed=1), expected)
    assert set(limited.calls) == {8}


def test_the_smallest_batch_that_fails_ends_with_what_was_needed(make_proxy, monkeypatch):
    proxy = make_proxy()
    proxy.trainer._train = Limited(proxy.trainer._train, 0)
    message = r"out of memory with 8 runs at once, the fewest .*\(4 on each of 2 devices\): RESO"
    with pytest.raises(AutolossError, match=message) as failed:
        proxy.run(CANDIDATES, seed=1)
    assert "more lines" not in str(failed.value)
    monkeypatch.setattr("autoloss_jax.trainer.needed_memory", lambda compiled: 7_000_000_000)
    monkeypatch.setattr("autoloss_jax.trainer.free_memory", lambda device: 5_000_000)
    message = "training needs 7,000 MB on each device, and 5 MB are free"
    with pytest.raises(AutolossError, match=message):
        make_proxy().run(CANDIDATES, seed=1)


def test_other_errors_are_not_taken_for_it(make_proxy):
    proxy = make_proxy()
    other = jax.errors.JaxRuntimeError("INTERNAL: something else")
    proxy.trainer._train = Limited(proxy.trainer._train, 0, other)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        proxy.run(CANDIDATES, seed=1)
    assert proxy.trainer.batch == 24
    assert not is_out_of_memory(RuntimeError(EXHAUSTED))  # not of JAX


def test_what_jax_says_when_there_is_no_memory_is_understood():
    with pytest.raises(jax.errors.JaxRuntimeError) as failed:
        jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros(1 << 45))())
    assert is_out_of_memory(failed.value)


def test_the_need_of_a_program_is_what_it_makes():
    """A result of 4 kB is made, one of 8 kB takes the place of an argument."""

    def function(x, y):
        return x + 1.0, jax.numpy.sort(y)

    compiled = jax.jit(function, donate_argnums=0).lower(
        np.zeros(2000, np.float32), np.zeros(1000, np.float32)
    ).compile()  # fmt: skip
    assert 4000 <= needed_memory(compiled) < 4000 + 8000


def test_free_memory_is_what_is_left_of_the_machine_or_the_container(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 99 kB\nMemAvailable:   80 kB\n")
    assert free_host_memory(tmp_path) == 80 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("10\n")
    assert free_host_memory(tmp_path) == 80 * 1024
    (group / "memory.max").write_text("50000\n")
    assert free_host_memory(tmp_path) == 49990
    (group / "memory.current").write_text("60000\n")
    assert free_host_memory(tmp_path) == 0
    device = jax.devices()[0]
    assert 0 < free_memory(device) <= free_host_memory()


class Accelerator:
    platform = "gpu"

    def __init__(self, stats):
        self.memory_stats = lambda: stats


def test_an_accelerator_knows_its_own_memory():
    assert free_memory(Accelerator({"bytes_limit": 100, "bytes_in_use": 30})) == 70
    assert free_memory(Accelerator(None)) is None


# --- slots ---


def test_places_fill_one_batch_after_the_other_and_its_devices_in_turn(make_proxy):
    trainer = make_proxy().trainer
    trainer.batch = 8
    assert trainer.slots == 24
    assert [trainer.slot(k) for k in range(10)] == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12]
    assert sorted(trainer.slot(k) for k in range(24)) == list(range(24))


def test_a_step_costs_the_chunks_of_the_busiest_device(make_proxy):
    trainer = make_proxy().trainer
    trainer.batch = 2 * 2 * CPU_CHUNK  # two chunks on each of two devices
    trainer.count = 2 * trainer.batch
    assert trainer.mesh.size == 2

    def chunks(*slots):
        active = np.zeros(trainer.slots, bool)
        active[list(slots)] = True
        return trainer.chunks_of(active)

    assert chunks() == 0
    assert chunks(0, 1, CPU_CHUNK - 1) == 1
    assert chunks(0, 2 * CPU_CHUNK) == 1  # one on each device
    assert chunks(0, CPU_CHUNK) == 2  # both on the first
    assert chunks(0, trainer.batch) == 2  # batches follow each other


def test_runs_are_moved_bit_by_bit():
    """Zeros keep their signs, and what is not a number stays what it is."""
    mesh = candidates_mesh()
    values = np.array([[-0.0, 1.5, np.nan, 3.0, 4.0, np.inf, 6.0, 7.0]], np.float32)
    order = np.array([5, 0, 2, 7, 0, 3, 0, 1])
    moved = reorder_runs(mesh, spread_runs(mesh, values, np.arange(8)), order)
    assert np.asarray(moved).tobytes() == values[:, order].tobytes()
    assert moved.sharding == spread_runs(mesh, values, order).sharding


def test_what_is_placed_keeps_its_values():
    mesh = candidates_mesh()
    placed = place(mesh, {"a": np.arange(4.0), "b": 3}, jax.sharding.PartitionSpec())
    assert np.asarray(placed["a"]).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert int(placed["b"]) == 3
    assert re.match("cpu", placed["a"].devices().pop().platform)
