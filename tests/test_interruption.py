"""An interrupted effectiveness test goes on where it stopped, to the same bits."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from autoloss_jax import (
    convergence,
    fold_tests,
    gbdt,
    interruption,
    processes,
    trainer,
    training,
)
from autoloss_jax.data import make_dataset, synthetic
from autoloss_jax.effectiveness import (
    EffectivenessConfig,
    effectiveness_test,
)
from autoloss_jax.language.parsing import parse
from autoloss_jax.runs import EFFECTIVENESS_FILE, PER_QUERY_FILE, TEST_SCORES_FILE, RunFolder

CONFIG = EffectivenessConfig(
    model="linear", seeds=2, learning_rates=(0.003, 0.03, 0.1), queries_per_step=8, block_steps=3,
    patience=2, max_steps=12, max_buckets=1, lambdamart=True, dump_scores=True,
    confirmation_seeds=2,
)  # fmt: skip
FOUND = [
    parse("sum_ij(square(relu(1 - (s_i - s_j))), where=y_i > y_j)"),
    # Nothing the batched path holds, so it is a group by itself.
    parse("sum_ij(softplus(s_j - s_i) * (1 + 0 * sigmoid(s_i + s_j)), where=y_i > y_j)"),
]
RESULTS = (EFFECTIVENESS_FILE, PER_QUERY_FILE, TEST_SCORES_FILE)
PARTS = 2 * 3  # folds x (two groups and the reference)
BLOCKS = CONFIG.max_steps // CONFIG.block_steps


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Compiled once, few trees, and a checkpoint after every block."""
    pytest.importorskip("lightgbm")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("train_runs", "evaluate_runs"):
            patch.setattr(trainer, name, functools.cache(getattr(trainer, name)))
        grid = {"learning_rate": (0.1,), "num_leaves": (5,), "min_data_in_leaf": (5,)}
        for name, value in (("MAX_TREES", 20), ("PATIENCE", 5), ("GRID", grid)):
            patch.setattr(gbdt, name, value)
        patch.setattr(
            convergence, "exact_score_gradient", functools.cache(convergence.exact_score_gradient)
        )
        patch.setattr(interruption, "SECONDS", 0.0)
        patch.setattr(interruption, "SHARE", np.inf)
        yield


@pytest.fixture(scope="module")
def data():
    folds = [
        dataclasses.replace(
            synthetic(num_queries=60, num_features=6, list_length=(3, 6), seed=seed).folds[0],
            name=f"Fold{seed}",
        )
        for seed in (0, 1)
    ]
    return make_dataset("two", folds)


def run(data, out, **settings):
    config = dataclasses.replace(CONFIG, **settings)
    return effectiveness_test(
        data, FOUND, config, hand_designed=["mse", "ranknet", "softmax"], out=str(out)
    )


def results(folder):
    return [(folder / name).read_bytes() for name in RESULTS]


class Killed(Exception):
    """As if the process ended."""


def count_calls(patch, owner, name, limit=None):
    """Counts calls; the one after `limit` of them is killed."""
    calls = []
    function = getattr(owner, name)

    def counted(*arguments, **settings):
        if len(calls) == limit:
            raise Killed
        calls.append(arguments)
        return function(*arguments, **settings)

    patch.setattr(owner, name, counted)
    return calls


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """The results of a test that was never interrupted, and how many blocks it trained."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        blocks = count_calls(patch, convergence, "_plan")
        run(data, folder)
    confirmation = json.loads((folder / EFFECTIVENESS_FILE).read_text())["confirmation"]
    assert confirmation["seeds"] == CONFIG.confirmation_seeds
    return results(folder), len(blocks)


@pytest.fixture(scope="module")
def whole(uninterrupted):
    return uninterrupted[0]


@pytest.fixture(scope="module")
def blocks_of_whole(uninterrupted):
    assert uninterrupted[1] > PARTS // 3 * 2 * BLOCKS  # the confirmation's are the others
    return uninterrupted[1]


def test_killed_after_every_block_it_trains_none_twice(
    data, whole, blocks_of_whole, tmp_path, monkeypatch
):
    trained, kills = 0, 0
    while not (tmp_path / "killed" / EFFECTIVENESS_FILE).exists():
        with monkeypatch.context() as patch:
            again = count_calls(patch, convergence, "_plan", 1)
            try:
                run(data, tmp_path / "killed")
            except Killed:
                kills += 1
        trained += len(again)
    assert results(tmp_path / "killed") == whole
    assert trained == blocks_of_whole
    assert kills == blocks_of_whole - 1


def kill_in_block(patch, count):
    return count_calls(patch, convergence, "_plan", count)


@pytest.mark.parametrize("devices", [1, 2])
def test_it_may_go_on_with_other_devices_and_another_batch(
    data, whole, blocks_of_whole, tmp_path, devices
):
    """Begun on two devices in one batch, it goes on in halved ones."""
    with pytest.MonkeyPatch.context() as patch:
        kill_in_block(patch, 2)
        with pytest.raises(Killed):
            run(data, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        mesh = training.candidates_mesh(jax.devices()[:devices])
        patch.setattr(fold_tests, "candidates_mesh", lambda: mesh)
        blocks = kill_in_block(patch, None)
        first = trainer.Trainer.train
        failures = []

        def failing(self, *arguments):
            if self.batch > 4 * devices and not failures:
                failures.append(self.batch)
                raise trainer.OutOfMemory("no room")
            return first(self, *arguments)

        patch.setattr(trainer.Trainer, "train", failing)
        run(data, tmp_path)
    assert results(tmp_path) == whole
    assert failures
    # Two of the first group's blocks were not trained again, after the failure either; the one
    # that failed was planned twice.
    assert len(blocks) == blocks_of_whole - 2 + 1


def test_preempted_processes_save_where_they_stop(data, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(interruption, "SECONDS", np.inf)
        stops = []

        def stop_together():
            stops.append(1)
            if len(stops) == 3:
                raise processes.Preempted(3)

        patch.setattr(processes, "stop_together", stop_together)
        with pytest.raises(processes.Preempted):
            run(data, tmp_path)
    (saved,) = (tmp_path / "checkpoints" / interruption.TRAINING).iterdir()
    assert saved.name == "00000002.msgpack"  # two blocks were finished
    run(data, tmp_path)
    assert results(tmp_path) == whole


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("count", [1, 3])
def test_damaged_checkpoints_cost_time_and_nothing_else(
    data, whole, blocks_of_whole, tmp_path, monkeypatch, caplog, count
):
    """Killed in the second part's last block, the newest files of both kinds are damaged."""
    with monkeypatch.context() as patch:
        kill_in_block(patch, 2 * BLOCKS - 1)
        with pytest.raises(Killed):
            run(data, tmp_path)
    folder = tmp_path / "checkpoints"
    newest = sorted((folder / interruption.TRAINING).glob("*.msgpack"))[-count:]
    tested = folder / interruption.TESTED / "00000000.msgpack"
    for path in [*newest, tested]:
        damage(path)
    with monkeypatch.context() as patch:
        blocks = kill_in_block(patch, None)
        run(data, tmp_path)
    assert results(tmp_path) == whole
    for path in [*newest, tested]:
        assert f"{path} is damaged" in caplog.text
        assert path.with_name(path.name + ".damaged").exists()
    left = [f"going on from the one before, {newest[0].with_name('00000006.msgpack')}",
            "is left: what it knew is done again, from the beginning"]  # fmt: skip
    assert left[count == 3] in caplog.text
    # The first part again, the second from its last good block, and what comes after.
    assert len(blocks) == BLOCKS + (2 if count == 1 else BLOCKS) + blocks_of_whole - 2 * BLOCKS


def test_a_checkpoint_is_due_when_it_costs_little_of_the_time_since_the_last(monkeypatch, tmp_path):
    now = [0.0]
    monkeypatch.setattr(interruption, "SECONDS", 10.0)
    monkeypatch.setattr(interruption, "SHARE", 0.02)
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now[0])
    saved = []

    def state():
        now[0] += 1.0  # what it costs
        saved.append(now[0])
        return {"a": 1}

    with RunFolder.open(tmp_path, {}) as folder:
        part = interruption.PartCheckpoints(folder, 0, "mse", 1000)
        for block in range(1, 200):
            now[0] += 1.0
            part.offer(block, state)
    assert saved == [11.0, 62.0, 113.0, 164.0]  # after 10 seconds, then every 50


def test_checkpoints_of_other_losses_are_not_used(tmp_path, caplog):
    with RunFolder.open(tmp_path, {}) as folder:
        part = interruption.PartCheckpoints(folder, 1, "mse; softmax", 10)
        part.save(3, lambda: {"a": 1})
        part.finish([])
        assert part.latest({"a": 0}) == (3, {"a": 1})
        assert part.tested() == []
        other = interruption.PartCheckpoints(folder, 1, "mse; ranknet", 10)
        assert other.latest({"a": 0}) is None
        assert other.tested() is None
        assert caplog.text.count("a checkpoint of part 1 is of other losses: not used") == 2
        assert interruption.PartCheckpoints(folder, 2, "mse", 10).latest({"a": 0}) is None
