"""An interrupted effectiveness test goes on where it stopped, to the same bits."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from autoloss_jax import convergence, effectiveness, gbdt, interruption, processes, trainer
from autoloss_jax.data import make_dataset, synthetic
from autoloss_jax.effectiveness import (
    EFFECTIVENESS_FILE,
    PER_QUERY_FILE,
    TEST_SCORES_FILE,
    EffectivenessConfig,
    effectiveness_test,
)
from autoloss_jax.language.parsing import parse

CONFIG = EffectivenessConfig(
    model="linear", seeds=2, learning_rates=(0.003, 0.1), queries_per_step=8, block_steps=3,
    patience=2, max_steps=12, max_buckets=1, lambdamart=True, dump_scores=True,
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
        for name, value in (("MAX_TREES", 20), ("PATIENCE", 5), ("GRID", {
                "learning_rate": (0.1,), "num_leaves": (5,), "min_data_in_leaf": (5,)})):  # fmt: skip
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
    return effectiveness_test(data, FOUND, config, hand_designed=["ranknet"], out=str(out))


def results(folder):
    return [(folder / name).read_bytes() for name in RESULTS]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The results of a test that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run(data, folder)
    return results(folder)


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


def test_killed_after_every_block_it_trains_none_twice(data, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        blocks = count_calls(patch, convergence, "_plan")
        run(data, tmp_path / "whole")
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
    assert trained == len(blocks)
    assert kills == len(blocks) - 1
