"""Screening: what is rejected before any training, and which losses are one and the same."""

import dataclasses

import numpy as np
import pytest

from autoloss_jax.data import Queries, synthetic
from autoloss_jax.errors import AutolossError
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import HAND_DESIGNED, LOSSES
from autoloss_jax.metrics import ndcg_per_query
from autoloss_jax.screening import Directions, make_probe, screen

RANKNET = "sum_ij(softplus(s_j - s_i), where=y_i > y_j)"


def queries_with(grades: int) -> Queries:
    """Training queries whose labels go from 0 to `grades`."""
    queries = synthetic(num_queries=60, num_features=6, list_length=(3, 20)).folds[0].train
    return dataclasses.replace(queries, labels=np.minimum(queries.labels, grades))


@pytest.fixture(scope="module")
def probe():
    return make_probe(queries_with(4), 0)


@pytest.mark.parametrize("grades", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_no_hand_designed_loss_is_rejected(grades, seed):
    verdicts = screen(
        [LOSSES[name] for name in HAND_DESIGNED], make_probe(queries_with(grades), seed)
    )
    assert {n: v.reason for n, v in zip(HAND_DESIGNED, verdicts, strict=True) if v.reason} == {}


@pytest.mark.parametrize(
    "text, reason",
    [
        ("sum_i(y_i * sign(s_i))", "its gradient is zero"),
        ("sum_i(y_i * stop_gradient(s_i))", "its gradient is zero"),
        ("sum_i(y_i * relu(-square(s_i)))", "its gradient is zero"),
        ("sum_i(gain_i) + 0 * sum_i(s_i)", "its gradient is zero"),
        ("mean_i(square(s_i))", "its gradient ignores the labels"),
        ("sum_ij(square(s_i - s_j)) + sum_i(y_i)", "its gradient ignores the labels"),
        ("sum_i(s_i) * sum_i(y_i)", "its gradient ignores the labels"),
        ("sum_ij(sigmoid(s_j - s_i)) / max_dcg", "its gradient ignores the labels"),
        (f"-({RANKNET})", "descent on free scores gains too little: -"),
        ("sum_i(y_i * s_i)", "descent on free scores gains too little: -"),
        ("mean_i(square(s_i + y_i))", "descent on free scores gains too little: -"),
    ],
)
def test_useless_losses_are_rejected_for_the_right_reason(probe, text, reason):
    (verdict,) = screen([parse(text)], probe)
    assert verdict.reason.startswith(reason)


def lower_is_better(scores, labels, *, where):
    """NDCG of labels that count downwards from 4."""
    return ndcg_per_query(scores, 4 - labels, where=where)


def test_descent_must_raise_the_metric_that_is_rewarded(probe):
    losses = [parse(RANKNET), parse(f"-({RANKNET})")]
    kept, refused = screen(losses, probe)
    assert kept.reason == "" and refused.reason.startswith("descent on free scores gains too")
    refused, kept = screen(losses, probe, lower_is_better)
    assert refused.reason == "descent on free scores does not raise the metric"
    assert kept.reason == ""


def test_a_verdict_depends_on_its_loss_alone(probe):
    losses = [LOSSES[name] for name in HAND_DESIGNED] * 4  # more than are measured together
    together = screen(losses, probe)
    assert len(together) == len(losses) > 64
    for k in (0, 5, 70):
        (alone,) = screen([losses[k]], probe)
        assert alone.reason == together[k].reason
        np.testing.assert_array_equal(alone.direction, together[k].direction)
    assert screen([], probe) == []


@pytest.mark.parametrize(
    "name, text, same",
    [
        ("ranknet", f"3 * {RANKNET}", True),
        ("ranknet", f"{RANKNET} + 7", True),
        ("ranknet", f"{RANKNET} + sum_i(square(y_i))", True),
        ("ranknet", "sum_ij(log(1 + exp(s_j - s_i)), where=y_i > y_j)", True),
        ("ranknet", f"-({RANKNET})", False),
        ("ranknet", "mean_ij(softplus(s_j - s_i), where=y_i > y_j)", False),  # weighs queries
        ("ranknet", "sum_ij(softplus(2 * (s_j - s_i)), where=y_i > y_j)", False),
        ("ranknet", str(LOSSES["pairwise_hinge"]), False),
        ("softmax", str(LOSSES["listnet"]), False),
        ("mse", "mean_i(square(s_i) - 2 * s_i * y_i)", True),
    ],
)
def test_one_direction_is_one_loss(probe, name, text, same):
    known, given = screen([LOSSES[name], parse(text)], probe)
    directions = Directions()
    assert directions.find(given.direction) is None
    directions.add(name, known.direction)
    assert directions.find(given.direction) == (name if same else None)


def test_no_two_hand_designed_losses_are_one(probe):
    directions = Directions()
    for name, verdict in zip(HAND_DESIGNED, screen(
            [LOSSES[name] for name in HAND_DESIGNED], probe), strict=True):  # fmt: skip
        assert directions.find(verdict.direction) is None
        directions.add(name, verdict.direction)


def test_directions_have_norm_one_and_leave_padding_out(probe):
    (verdict,) = screen([LOSSES["softmax"]], probe)
    assert np.linalg.norm(verdict.direction) == pytest.approx(1.0, abs=1e-6)
    outside = ~np.asarray(probe.mask).ravel()
    assert outside.any()
    assert not verdict.direction[outside].any()


def test_the_probe_holds_lists_of_unequal_labels():
    for grades in (1, 4):
        probe = make_probe(queries_with(grades), 3)
        for labels, others, mask in zip(probe.labels, probe.other_labels, probe.mask, strict=True):
            own = np.asarray(labels)[np.asarray(mask)]
            assert 6 <= own.size <= 12
            assert own.min() < own.max() <= grades
            other = np.asarray(others)[np.asarray(mask)]
            assert not np.array_equal(other, own)
            np.testing.assert_array_equal(np.sort(other), np.sort(own))


def test_queries_of_one_document_are_a_probe_too():
    ones = Queries(np.ones((3, 1)), np.array([2.0, 0.0, 1.0]), np.arange(4), ("a", "b", "c"))
    probe = make_probe(ones, 0)
    (verdict,) = screen([LOSSES["ranknet"]], probe)
    assert verdict.reason == ""


def test_the_probe_follows_the_seed():
    queries = queries_with(4)
    for a, b in zip(make_probe(queries, 1), make_probe(queries, 1), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(make_probe(queries, 1).scores, make_probe(queries, 2).scores)


def test_queries_without_relevance_are_refused():
    with pytest.raises(AutolossError, match="no query has a relevant document"):
        make_probe(queries_with(0), 0)
