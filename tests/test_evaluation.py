"""Metrics of flat scores: every query's own, in the order of the file, whatever the buckets."""

import numpy as np
import pytest

from autoloss_jax.data import BucketShapes, Queries, batches, bucket_queries
from autoloss_jax.evaluation import METRICS, EvaluationQueries
from autoloss_jax.metrics import err_per_query

LENGTHS = [3, 7, 1, 4, 7, 2]
SHAPES = BucketShapes((4, 7), (5, 3))  # four and two queries: a row of each is none


@pytest.fixture(scope="module")
def queries():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, sum(LENGTHS))
    labels[:3] = 0  # the first query has no relevant document
    return Queries(
        rng.normal(size=(sum(LENGTHS), 2)), labels, np.append(0, np.cumsum(LENGTHS)),
        tuple("abcdef"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def scores():
    return np.random.default_rng(1).integers(0, 5, sum(LENGTHS)).astype(np.float32)  # with ties


@pytest.fixture(scope="module")
def laid_out(queries):
    return EvaluationQueries(bucket_queries(queries, SHAPES), max_label=3.0)


def test_figures_are_those_of_each_query(queries, scores, laid_out):
    mask = np.arange(7) < np.array(LENGTHS)[:, None]
    padded_scores, labels = np.zeros((6, 7), np.float32), np.zeros((6, 7), np.float32)
    padded_scores[mask], labels[mask] = scores, queries.labels  # in one batch, in order
    figures = laid_out.measure(scores)
    assert list(figures) == list(METRICS)
    for name, values in figures.items():
        expected, defined = METRICS[name](padded_scores, labels, mask, 3.0)
        np.testing.assert_array_equal(defined, queries.has_relevant())
        np.testing.assert_allclose(values, np.where(defined, expected, np.nan), atol=1e-6)
        assert values.dtype == np.float64


def test_only_what_is_asked_for_is_measured(scores, laid_out):
    figures = laid_out.measure(scores, ("mrr",))
    assert list(figures) == ["mrr"]
    np.testing.assert_array_equal(figures["mrr"], laid_out.measure(scores)["mrr"])


def test_err_is_relative_to_the_highest_label(queries, scores, laid_out):
    a, b = queries.offsets[1:3]
    value, _ = err_per_query(scores[a:b], queries.labels[a:b], max_label=3.0)
    other, _ = err_per_query(scores[a:b], queries.labels[a:b])  # of grades up to 4
    assert laid_out.measure(scores)["err"][1] == pytest.approx(float(value), abs=1e-6)
    assert float(other) < float(value)


@pytest.mark.parametrize("documents", [1 << 17, 8])
def test_scores_of_batches_are_flattened_in_the_order_of_the_file(queries, documents, monkeypatch):
    """Of the model "first feature", whose padded rows and places hold anything."""
    monkeypatch.setattr(batches, "PIECE_DOCUMENTS", documents)
    buckets = bucket_queries(queries, SHAPES)
    pieces = [buckets.batch(bucket, rows) for bucket, rows, _ in buckets.pieces()]
    assert len(pieces) == (2 if documents > 8 else 4)
    padded = [np.where(batch.mask, batch.features[..., 0], np.nan) for batch in pieces]
    laid_out = EvaluationQueries(buckets, max_label=3.0)
    flat = laid_out.flatten(padded)
    assert flat.dtype == np.float32
    np.testing.assert_array_equal(flat, queries.features[:, 0])
