"""The feed: resident and streamed data give the same bits."""

import dataclasses
import logging
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autoloss_jax import convergence, feed
from autoloss_jax.data import (
    all_rows,
    assign_folds,
    batches,
    bucket_queries,
    common_shapes,
    draw_batches,
    held_out_rows,
    plan_labels,
    scale_fold,
    synthetic,
)
from autoloss_jax.effectiveness import EffectivenessConfig, effectiveness_test
from autoloss_jax.errors import AutolossError
from autoloss_jax.feed import Feed, fits
from autoloss_jax.losses import LOSSES
from autoloss_jax.models import MLP
from autoloss_jax.proxy import ProxyConfig, ProxyTraining
from autoloss_jax.training import candidates_mesh

CONFIG = ProxyConfig(folds=2, queries_per_step=9, rung_steps=3, rungs=(1, 2), max_buckets=2)


@pytest.fixture(scope="module")
def data():
    return synthetic(num_queries=80, num_features=8, list_length=(3, 12))


@pytest.fixture(scope="module")
def buckets(data):
    return bucket_queries(scale_fold(data.folds[0]).train, max_buckets=2)


@pytest.fixture
def small_pieces(monkeypatch):
    """Evaluations in several pieces, as large data has them."""
    monkeypatch.setattr(batches, "PIECE_DOCUMENTS", 100)


def run_proxies(data, placement):
    proxy = ProxyTraining(
        scale_fold(data.folds[0]).train, MLP((6,)), LOSSES["softmax"], CONFIG, 5, 0, placement
    )
    losses = [LOSSES[name] for name in ("mse", "ranknet", "listnet", "lambdarank")]
    return proxy, proxy.run(losses, seed=1)


@pytest.mark.slow
def test_proxy_runs_are_the_same_bit_for_bit(data, small_pieces):
    (resident, expected), (streamed, found) = (
        run_proxies(data, placement) for placement in ("resident", "streamed")
    )
    assert resident.feed.resident and not streamed.feed.resident
    assert streamed._held_out.rows[0].shape[1] > 2
    for a, b in zip(found.outcomes, expected.outcomes, strict=True):
        assert a[:-1] == b[:-1]
        np.testing.assert_array_equal(a.differences, b.differences)
    jax.tree.map(np.testing.assert_array_equal, found.best, expected.best)
    assert found.reference_ndcg == expected.reference_ndcg
    # Rounds, rungs and folds: all have the same shapes. Both placements share a function.
    assert streamed.trainer._train._cache_size() <= 2
    assert streamed.trainer._evaluate._cache_size() <= 2


def test_pieces_change_no_value_but_by_rounding(data, monkeypatch):
    _, expected = run_proxies(data, "resident")
    monkeypatch.setattr(batches, "PIECE_DOCUMENTS", 100)
    _, found = run_proxies(data, "resident")
    for a, b in zip(found.outcomes, expected.outcomes, strict=True):
        assert a.steps == b.steps
        np.testing.assert_allclose(np.sort(a.differences), np.sort(b.differences), atol=1e-5)


@pytest.mark.slow
def test_the_effectiveness_test_is_the_same_bit_for_bit(data, small_pieces, monkeypatch):
    config = EffectivenessConfig(
        model="linear", seeds=2, learning_rates=(0.01, 0.1), block_steps=3, patience=1,
        max_steps=6, queries_per_step=9, max_buckets=2, confirmation_seeds=0,
    )  # fmt: skip
    made = []
    original = convergence.Feed
    monkeypatch.setattr(convergence, "Feed", lambda *a: made.append(original(*a)) or made[-1])
    found, expected = (
        effectiveness_test(data, [], config, hand_designed=["softmax", "mse"], placement=placement)
        for placement in ("streamed", "resident")
    )
    assert {f.resident for f in made} == {True, False}
    assert found == expected


def test_a_block_holds_what_its_plan_names_and_no_more(buckets):
    streamed = Feed(buckets, candidates_mesh(), "streamed")
    resident = Feed(buckets, candidates_mesh(), "resident")
    folds = assign_folds(buckets.queries, 2, 0)
    plan = draw_batches(0, buckets, folds, 2, 2, 6)
    ((small, renumbered),) = streamed.blocks([plan])
    ((whole, same),) = resident.blocks([plan])
    for bucket in range(len(buckets)):
        rows = plan.rows[bucket]
        assert len(small[bucket].labels) == min(rows.size, len(buckets.members[bucket]))
        np.testing.assert_array_equal(same.rows[bucket], rows)
        np.testing.assert_array_equal(renumbered.valid[bucket], plan.valid[bucket])
        for a, b in zip(small[bucket], whole[bucket], strict=True):
            np.testing.assert_array_equal(
                np.asarray(a)[np.asarray(renumbered.rows[bucket])], np.asarray(b)[rows]
            )


def test_replicates_of_the_same_rows_share_them(buckets):
    streamed = Feed(buckets, candidates_mesh(), "streamed")
    shapes = []

    def evaluate(states, active, batches, plan):
        shapes.append([batch.mask.shape for batch in batches])
        return jnp.zeros((1, 3, sum(rows.shape[2] for rows in plan.rows)))

    streamed.evaluate(evaluate, None, None, all_rows(buckets, 3))
    assert shapes == [[batch.mask.shape for batch in buckets.batches]]


def test_the_next_block_is_made_while_one_is_used(buckets, monkeypatch):
    streamed = Feed(buckets, candidates_mesh(), "streamed")
    made, ready = [], threading.Event()

    def load(plan, shared):
        made.append(plan)
        if len(made) == 2:
            ready.set()
        return plan

    monkeypatch.setattr(streamed, "_load", load)
    blocks = streamed.blocks(iter("abcd"))
    assert next(blocks) == "a"
    assert ready.wait(10)  # b is made though nobody has asked for it
    assert len(made) == 2  # and c is not
    assert list(blocks) == ["b", "c", "d"] and made == list("abcd")
    assert list(streamed.blocks([])) == []


def test_a_failure_of_the_background_reaches_the_caller(buckets, monkeypatch):
    streamed = Feed(buckets, candidates_mesh(), "streamed")
    monkeypatch.setattr(streamed, "_load", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(streamed.blocks("ab"))


@pytest.mark.parametrize("placement", ["resident", "streamed"])
def test_cpu_devices_share_one_copy(buckets, placement):
    ((batches, _),) = Feed(buckets, candidates_mesh(), placement).blocks([all_rows(buckets)])
    for batch in batches:
        copies = {s.data.unsafe_buffer_pointer() for s in batch.features.addressable_shards}
        assert len(batch.features.addressable_shards) == 2 and len(copies) == 1


@pytest.mark.parametrize("placement", ["resident", "streamed"])
def test_lists_are_all_queries_once(buckets, small_pieces, placement):
    found = list(Feed(buckets, candidates_mesh(), placement).lists())
    assert len(found) > len(buckets)
    for bucket, whole in enumerate(buckets.batches):
        size = buckets.sizes[bucket]
        parts = [(b, n) for b, n in found if b.mask.shape[1] == size]
        assert len({b.mask.shape for b, _ in parts}) == 1 and parts[0][0].mask.size <= 100
        for place, expected in enumerate(whole):
            joined = np.concatenate([np.asarray(b[place])[:n] for b, n in parts])
            np.testing.assert_array_equal(joined, expected)
    some = list(Feed(buckets, candidates_mesh(), placement).lists(10))
    assert 10 <= sum(count for _, count in some) <= 10 + len(buckets)


def test_values_of_a_run_are_all_nan_where_one_piece_is(buckets, small_pieces):
    streamed = Feed(buckets, candidates_mesh(), "streamed")
    plan = all_rows(buckets)
    pieces = plan.rows[0].shape[1]
    slots = sum(rows.shape[2] for rows in plan.rows)
    calls = []

    def evaluate(states, active, batches, plan):
        values = np.zeros((2, 1, slots), np.float32)
        if len(calls) == 1:
            values[0, 0, 0] = np.nan
        calls.append(plan)
        return jnp.asarray(values)

    values = streamed.evaluate(evaluate, None, None, plan)
    assert len(calls) == pieces and values.shape == (2, 1, pieces * slots)
    assert np.isnan(values[0]).all() and not np.isnan(values[1]).any()


def test_every_query_is_evaluated_once(buckets, small_pieces):
    folds = assign_folds(buckets.queries, 3, 0)
    held = held_out_rows(buckets, folds, 3)
    exists, relevant = plan_labels(buckets, held)
    assert exists.sum() == buckets.num_queries
    assert relevant.sum() == buckets.queries.has_relevant().sum()
    for bucket, members in enumerate(buckets.members):
        for fold in range(3):
            rows = held.rows[bucket][fold][held.valid[bucket][fold]]
            np.testing.assert_array_equal(rows, np.flatnonzero(folds[members] == fold))


def test_where_data_fit(buckets, caplog):
    def mesh(count, **stats):
        device = SimpleNamespace(memory_stats=lambda: stats or None)
        return SimpleNamespace(local_devices=[device] * count)

    assert buckets.nbytes == sum(x.nbytes for batch in buckets.batches for x in batch)
    for share, expected in ((2.1, True), (1.9, False)):
        assert fits(buckets, mesh(4, bytes_limit=share * buckets.nbytes)) == expected
    assert Feed(buckets, candidates_mesh()).resident
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(feed, "HOST_BYTES", buckets.nbytes)
        assert fits(buckets, mesh(2))
        patch.setattr(feed, "HOST_BYTES", buckets.nbytes - 1)
        assert not fits(buckets, mesh(2))
        assert not Feed(buckets, candidates_mesh()).resident
    assert "48 queries" in caplog.text and "are streamed from host memory" in caplog.text


def test_buckets_in_common_shapes_reach_the_device_either_way(data):
    """Rows without documents, and a bucket without queries, as the folds of a test may have."""
    queries = scale_fold(data.folds[0]).train
    short = queries.select(np.flatnonzero(queries.lengths <= 6))
    buckets = bucket_queries(short, common_shapes([queries, short], max_buckets=2))
    assert len(buckets.members[1]) == 0 < buckets.rows[1]
    resident, streamed = (Feed(buckets, candidates_mesh(), p) for p in ("resident", "streamed"))
    for plan in (draw_batches(0, buckets, None, 1, 2, 6), all_rows(buckets)):
        ((small, renumbered),), ((whole, same),) = streamed.blocks([plan]), resident.blocks([plan])
        for bucket in range(2):
            assert len(small[bucket].labels) == min(plan.rows[bucket].size, buckets.rows[bucket])
            for a, b in zip(small[bucket], whole[bucket], strict=True):
                np.testing.assert_array_equal(
                    np.asarray(a)[np.asarray(renumbered.rows[bucket])],
                    np.asarray(b)[np.asarray(same.rows[bucket])],
                )
    exists, relevant = plan_labels(buckets, all_rows(buckets))
    assert exists.sum() == len(short) and relevant.sum() == short.has_relevant().sum()
    counts = [count for feed in (resident, streamed) for _, count in feed.lists()]
    assert sum(counts) == 2 * len(short)


def test_another_placement_is_refused(data, buckets):
    message = "unknown data placement 'disk'; expected one of auto, resident, streamed"
    with pytest.raises(AutolossError, match=message):
        Feed(buckets, candidates_mesh(), "disk")
    config = dataclasses.replace(EffectivenessConfig(), model="linear")
    with pytest.raises(AutolossError, match=message):
        effectiveness_test(data, [], config, hand_designed=["mse"], placement="disk")
