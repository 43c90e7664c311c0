"""Buckets and batch plans: exact, balanced, reproducible."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoloss_jax.data import (
    BucketShapes,
    Queries,
    assign_folds,
    batches,
    bucket_queries,
    common_shapes,
    draw_batches,
    held_out_rows,
    pad_queries,
    padding_waste,
    plan_buckets,
    rare_buckets,
    slots_per_bucket,
)
from autoloss_jax.data.synthetic import synthetic_lengths
from autoloss_jax.errors import AutolossError


def make(lengths, relevant=None):
    """Query q has features q + 1 and, where relevant, labels 1."""
    lengths = np.asarray(lengths)
    query = np.repeat(np.arange(len(lengths)), lengths)
    labels = np.ones(len(query)) if relevant is None else np.asarray(relevant)[query]
    return Queries(
        (query + 1.0)[:, None],
        labels,
        np.append(0, np.cumsum(lengths)),
        tuple(map(str, range(len(lengths)))),
    )


def padded(lengths, bounds):
    return sum(min(b for b in bounds if b >= n) for n in lengths)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=20), most=st.integers(1, 4))
def test_planned_buckets_are_the_best_of_all(lengths, most):
    bounds = plan_buckets(lengths, most)
    sizes = sorted(set(lengths))
    choices = itertools.chain.from_iterable(
        itertools.combinations(sizes[:-1], count) for count in range(min(most, len(sizes)))
    )
    best = min(padded(lengths, (*choice, sizes[-1])) for choice in choices)
    assert padded(lengths, bounds) == best
    assert len(bounds) <= most and bounds[-1] == sizes[-1] and list(bounds) == sorted(set(bounds))


def test_every_query_is_in_one_bucket():
    queries = make([3, 1, 7, 2, 7])
    buckets = bucket_queries(queries, max_buckets=2)
    assert [batch.mask.shape for batch in buckets.batches] == [(3, 3), (2, 7)]
    np.testing.assert_array_equal(np.concatenate(buckets.members), [0, 1, 3, 2, 4])
    for batch, members in zip(buckets.batches, buckets.members, strict=True):
        np.testing.assert_array_equal(batch.mask.sum(axis=1), queries.lengths[members])
        expected = np.where(batch.mask, members[:, None] + 1, 0)
        np.testing.assert_array_equal(batch.features[..., 0], expected)
        np.testing.assert_array_equal(batch.labels, batch.mask)
        assert batch.features.dtype == batch.labels.dtype == np.float32
    assert padding_waste(buckets) == pytest.approx(1 - 20 / (3 * 3 + 2 * 7))


def test_given_bounds_and_dropped_empty_buckets():
    buckets = bucket_queries(make([3, 9]), bounds=(4, 6, 10))
    assert [batch.mask.shape for batch in buckets.batches] == [(1, 4), (1, 10)]


def test_many_documents_get_more_buckets(monkeypatch):
    """As few as keep the waste below 15 %, from three to twelve; few documents get three."""
    lengths = np.arange(1, 201)

    def waste(count):
        bounds = plan_buckets(lengths, count)
        return 1 - lengths.sum() / padded(lengths, bounds)

    assert len(plan_buckets(lengths)) == 3 and waste(3) > 0.15
    monkeypatch.setattr(batches, "MANY_DOCUMENTS", lengths.sum())
    chosen = len(plan_buckets(lengths))
    assert 3 < chosen < 12 and waste(chosen) < 0.15 < waste(chosen - 1)
    assert plan_buckets(lengths) == plan_buckets(lengths, chosen)
    assert len(plan_buckets([100] * 101 + [99] * 101)) == 2
    sizes = 2 ** np.arange(14)
    assert len(plan_buckets(np.repeat(sizes, sizes[::-1]))) == 12  # however much they waste


def test_padding_wastes_less_than_15_percent_at_the_shape_of_mslr_web30k():
    lengths = synthetic_lengths(31_531, (1, 1_251), 120, np.random.default_rng(0))
    assert abs(lengths.mean() - 120) < 3 and lengths.min() >= 1 and lengths.max() > 800
    bounds = np.array(plan_buckets(lengths))
    places = bounds[np.searchsorted(bounds, lengths)]
    assert 1 - lengths.sum() / places.sum() < 0.15
    assert len(bounds) <= 10


def test_a_bucket_of_few_queries_is_not_seen_more_often_than_others():
    lengths = [2] * 600 + [5] * 390 + [9] * 10
    buckets = bucket_queries(make(lengths), max_buckets=3)
    plan = draw_batches(3, buckets, None, 1, steps=1000, queries_per_step=10)
    # Shares 6, 3.9 and 0.1 of a step: a tenth of the steps has a long list, by turns.
    np.testing.assert_array_equal([v.sum() for v in plan.valid], [6000, 4000, 100])
    rows, valid = plan.rows[2][0, :, 0], plan.valid[2][0, :, 0]
    assert (np.bincount(rows[valid]) == 10).all() and not rows[~valid].any()
    assert set(np.diff(np.flatnonzero(valid))) == {10}
    starts = {np.flatnonzero(draw_batches(k, buckets, None, 1, 20, 10).valid[2])[0]
              for k in range(20)}  # fmt: skip
    assert len(starts) > 3  # short plans, one a block, begin anywhere


def test_a_bucket_is_rare_if_its_share_is_no_whole_row():
    assert rare_buckets((600, 390, 10), 10) == (2,)
    assert rare_buckets((600, 390, 10), 100) == ()
    assert rare_buckets((10, 980, 10), 10) == (0, 2)
    assert rare_buckets((1, 1, 1), 1) == (1, 2)


def test_a_bucket_that_is_not_rare_is_in_every_step():
    """So nothing but rare buckets need be skipped, and small sets have none."""
    buckets = bucket_queries(make([2] * 60 + [5] * 39 + [9] * 8), max_buckets=3)
    for queries_per_step in (5, 10, 32):
        plan = draw_batches(0, buckets, None, 1, 40, queries_per_step)
        sometimes = [b for b, valid in enumerate(plan.valid) if not valid.any(-1).all()]
        assert tuple(sometimes) == rare_buckets(buckets.rows, queries_per_step)


def test_a_plan_of_one_step_can_be_empty_of_a_rare_bucket():
    buckets = bucket_queries(make([2] * 60 + [5] * 39 + [9]), max_buckets=3)
    counts = [draw_batches(k, buckets, None, 1, 1, 10).valid[2].sum() for k in range(50)]
    assert set(counts) == {0, 1} and sum(counts) < 15  # 5 expected


def test_sets_of_different_lists_in_common_shapes():
    parts = [make([2, 2, 2, 5]), make([3, 9, 8]), make([1])]
    shapes = common_shapes(parts, max_buckets=2)
    # Lists up to 3 and up to 9 waste least: a part has at most 3 of the short, 2 of the long ones.
    assert shapes == ((3, 9), (3, 2))
    for part in parts:
        buckets = bucket_queries(part, shapes)
        assert [batch.mask.shape for batch in buckets.batches] == [(3, 3), (2, 9)]
        assert sorted(np.concatenate(buckets.members)) == list(range(len(part)))
        for batch, members in zip(buckets.batches, buckets.members, strict=True):
            lengths = batch.mask.sum(axis=1)
            np.testing.assert_array_equal(lengths[: len(members)], part.lengths[members])
            for array in batch:
                assert not array[len(members) :].any()
        assert slots_per_bucket(buckets, 6) == (4, 2)
    alone = bucket_queries(parts[0], common_shapes(parts[:1], max_buckets=2))
    for batch, planned in zip(
        alone.batches, bucket_queries(parts[0], max_buckets=2).batches, strict=True
    ):
        for array, expected in zip(batch, planned, strict=True):
            np.testing.assert_array_equal(array, expected)  # shapes of one set fill nothing


def test_rows_without_documents_are_never_drawn():
    shapes = common_shapes([make([2] * 9 + [5]), make([2, 2, 2])], max_buckets=2)
    buckets = bucket_queries(make([2, 2, 2]), shapes)
    plan = draw_batches(0, buckets, None, 1, steps=4, queries_per_step=5)
    assert [rows.shape for rows in plan.rows] == [(1, 4, 5), (1, 4, 1)]
    assert plan.valid[0].sum(axis=2).tolist() == [[3] * 4]
    assert all(set(step) <= {0, 1, 2} for step in plan.rows[0][0])
    assert not plan.valid[1].any()


def test_more_queries_than_rows_are_refused():
    with pytest.raises(AutolossError, match="3 queries in a bucket, expected at most 2"):
        bucket_queries(make([1, 1, 1]), BucketShapes((4,), (2,)))


def test_slots_follow_the_shares():
    buckets = bucket_queries(make([2] * 60 + [5] * 39 + [9]), max_buckets=3)
    assert slots_per_bucket(buckets, 10) == (6, 4, 1)
    assert slots_per_bucket(buckets, 100) == (60, 39, 1)


def test_batches_come_in_epochs_of_the_training_queries():
    queries = make([2] * 10 + [5] * 6)
    buckets = bucket_queries(queries, max_buckets=2)
    folds = np.arange(16) % 3
    plan = draw_batches(7, buckets, folds, 3, steps=12, queries_per_step=8)
    assert [rows.shape for rows in plan.rows] == [(3, 12, 5), (3, 12, 3)]
    assert all(rows.dtype == np.int32 for rows in plan.rows) and all(v.all() for v in plan.valid)
    for rows, members in zip(plan.rows, buckets.members, strict=True):
        for fold in range(3):
            drawn, counts = np.unique(rows[fold], return_counts=True)
            np.testing.assert_array_equal(drawn, np.flatnonzero(folds[members] != fold))
            assert counts.max() - counts.min() <= 1
    again = draw_batches(7, buckets, folds, 3, steps=12, queries_per_step=8)
    other = draw_batches(8, buckets, folds, 3, steps=12, queries_per_step=8)
    np.testing.assert_array_equal(plan.rows[0], again.rows[0])
    assert (plan.rows[0] != other.rows[0]).any()


def test_too_few_rows_leave_slots_unused():
    buckets = bucket_queries(make([2, 2, 2, 5]), max_buckets=2)
    plan = draw_batches(0, buckets, np.array([0, 0, 1, 1]), 2, steps=3, queries_per_step=8)
    # Slots 6 and 2. Fold 0 trains on query 2 and 3, fold 1 on queries 0 and 1, both short.
    np.testing.assert_array_equal(plan.valid[0].sum(axis=2), [[1, 1, 1], [2, 2, 2]])
    np.testing.assert_array_equal(plan.valid[1].sum(axis=2), [[1, 1, 1], [0, 0, 0]])
    assert not plan.rows[0][~plan.valid[0]].any()
    assert all(set(step) == {0, 1} for step in plan.rows[0][1])


def test_without_folds_all_queries_train():
    buckets = bucket_queries(make([2, 2, 2, 5]), max_buckets=1)
    plan = draw_batches(0, buckets, None, 1, steps=2, queries_per_step=2)
    assert sorted(plan.rows[0].ravel()) == [0, 1, 2, 3]


@pytest.mark.parametrize("num_folds", [2, 5])
def test_folds_are_balanced_in_size_and_relevance(num_folds):
    relevant = np.arange(53) % 4 > 0
    queries = make([2] * 53, relevant)
    folds = assign_folds(queries, num_folds, seed=3)
    assert folds.dtype == np.int32
    for kind in (folds, folds[relevant], folds[~relevant]):
        counts = np.bincount(kind, minlength=num_folds)
        assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(folds, assign_folds(queries, num_folds, seed=3))
    assert (folds != assign_folds(queries, num_folds, seed=4)).any()


def test_held_out_rows_cover_every_query_once():
    buckets = bucket_queries(make([2, 3, 9, 9, 2]), max_buckets=2)
    folds = np.array([0, 1, 0, 0, 1])
    plan = held_out_rows(buckets, folds, 2)
    assert [rows.shape for rows in plan.rows] == [(2, 1, 2), (2, 1, 2)]
    for fold in range(2):
        held = [
            members[rows[fold][valid[fold]]]
            for rows, valid, members in zip(plan.rows, plan.valid, buckets.members, strict=True)
        ]
        assert sorted(np.concatenate(held)) == list(np.flatnonzero(folds == fold))


def test_refusals():
    queries = make([2, 3])
    buckets = bucket_queries(queries)
    with pytest.raises(AutolossError, match="expected at least one list"):
        plan_buckets([])
    with pytest.raises(AutolossError, match="expected at least one list"):
        bucket_queries(queries.select([]), bounds=(3,))
    with pytest.raises(AutolossError, match="max_buckets is -1, expected at least 0"):
        plan_buckets([1], -1)
    with pytest.raises(AutolossError, match=r"bounds \(4, 4\), expected increasing"):
        bucket_queries(queries, bounds=(4, 4))
    with pytest.raises(AutolossError, match="expected the last to hold the longest list: 3"):
        bucket_queries(queries, bounds=(2,))
    with pytest.raises(AutolossError, match="a list of 3 documents, expected at most 2"):
        pad_queries(queries, np.array([1]), 2)
    with pytest.raises(AutolossError, match="steps is 0, expected at least 1"):
        draw_batches(0, buckets, None, 1, 0, 1)
    with pytest.raises(AutolossError, match="no folds given, expected them for num_folds=2"):
        draw_batches(0, buckets, None, 2, 1, 1)
    with pytest.raises(AutolossError, match=r"folds of shape \(3,\), expected \(2,\)"):
        held_out_rows(buckets, np.zeros(3, int), 1)
    with pytest.raises(AutolossError, match="folds from 0 to 2, expected 0 to 1"):
        held_out_rows(buckets, np.array([0, 2]), 2)
    with pytest.raises(AutolossError, match="fold 1 of 2 holds out every query"):
        draw_batches(0, buckets, np.array([1, 1]), 2, 1, 1)
    with pytest.raises(AutolossError, match="num_folds is 1, expected at least 2"):
        assign_folds(queries, 1, 0)
    with pytest.raises(AutolossError, match="1 queries with a relevant document, expected at"):
        assign_folds(make([2, 3], [1, 0]), 2, 0)
