"""Ragged queries: what is kept, what is refused."""

import numpy as np
import pytest

from autoloss_jax.data import Dataset, Fold, Queries, concatenate, make_dataset
from autoloss_jax.errors import AutolossError


def make(lengths=(2, 1, 3), features=2, labels=None):
    documents = sum(lengths)
    return Queries(
        np.arange(documents * features, dtype=np.float64).reshape(documents, features),
        np.arange(documents) % 3 if labels is None else labels,
        np.append(0, np.cumsum(lengths)),
        tuple(f"q{q}" for q in range(len(lengths))),
    )


def test_types_lengths_and_counts():
    queries = make()
    assert queries.features.dtype == queries.labels.dtype == np.float32
    assert queries.offsets.dtype == np.int64
    assert len(queries) == 3 and queries.num_documents == 6 and queries.num_features == 2
    np.testing.assert_array_equal(queries.lengths, [2, 1, 3])
    np.testing.assert_array_equal(queries.has_relevant(), [True, True, True])
    np.testing.assert_array_equal(make(labels=[0, 0, 0, 0, 1, 0]).has_relevant(), [0, 0, 1])


def test_arrays_are_read_only_and_the_callers_stay_writable():
    labels = np.zeros(6, np.float32)
    queries = make(labels=labels)
    with pytest.raises(ValueError, match="read-only"):
        queries.labels[0] = 1
    labels[0] = 1


def test_select_keeps_the_order_given():
    chosen = make().select([2, 0])
    assert chosen.query_ids == ("q2", "q0")
    np.testing.assert_array_equal(chosen.offsets, [0, 3, 5])
    np.testing.assert_array_equal(chosen.features[:, 0], [6, 8, 10, 0, 2])
    np.testing.assert_array_equal(chosen.labels, [0, 1, 2, 0, 1])
    assert len(make().select([])) == 0
    assert make().select([]).has_relevant().shape == (0,)
    with pytest.raises(AutolossError, match="query index 3, expected 0 to 2"):
        make().select([0, 3])


def test_concatenate_is_the_inverse_of_splitting():
    queries = make()
    joined = concatenate([queries.select([0]), queries.select([1, 2])])
    np.testing.assert_array_equal(joined.features, queries.features)
    np.testing.assert_array_equal(joined.offsets, queries.offsets)
    assert joined.query_ids == queries.query_ids
    with pytest.raises(AutolossError, match="nothing to concatenate"):
        concatenate([])
    with pytest.raises(AutolossError, match=r"same number of features in every part, got \[2, 3\]"):
        concatenate([queries, make(features=3)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros(6)}, r"features \[documents, features\].*\(6,\) and \(6,\)"),
        ({"labels": np.zeros(5)}, r"\(6, 2\) and \(5,\)"),
        ({"labels": ["a"] * 6}, "labels: an array of <U1, expected an array of real numbers"),
        ({"labels": [1j] * 6}, "labels: an array of complex128, expected an array of real numbers"),
        ({"features": [[1], [1, 2]]}, "features: expected an array of real numbers: .*inhomog"),
        (
            {"features": np.zeros((6, 2), "M8[s]")},
            r"features: an array of datetime64\[s\], expected",
        ),
        ({"features": np.ma.masked_less(np.eye(6, 2), 1)}, "features: masked values, expected a"),
        ({"features": np.full((6, 2), 10**400, object)}, "an array of float32: int too large"),
        ({"features": np.zeros((6, 0))}, r"features of shape \(6, 0\), expected at least one"),
        ({"offsets": [0, 2, 2.5, 6]}, "offsets: 2.5, expected whole numbers"),
        ({"offsets": [0, 2, np.nan, 6]}, "offsets: expected an array of int64"),
        ({"offsets": [0, 2, 2**70, 6]}, "offsets: expected an array of int64"),
        ({"offsets": [0, 4, 2, 6]}, "query 'q1' has no documents, expected increasing offsets"),
        ({"offsets": [0, 6]}, r"offsets of shape \(2,\), expected \(4,\)"),
        ({"offsets": [0, 2, 3, 5]}, "offsets run from 0 to 5, expected 0 to 6"),
        ({"offsets": [0, 3, 3, 6]}, "query 'q1' has no documents"),
        ({"labels": [0, 0, -1, 0, 0, 0]}, "label -1.0 of document 2, expected 0 to 31"),
        ({"labels": [0, 0, 0, 32, 0, 0]}, "label 32.0 of document 3"),
        ({"labels": [0, np.nan, 0, 0, 0, 0]}, "label nan of document 1"),
        ({"features": np.full((6, 2), 1e39)}, "feature 0 of document 0 is inf"),
    ],
)
def test_refusals(change, message):
    good = make()
    arguments = {
        name: change.get(name, getattr(good, name))
        for name in ("features", "labels", "offsets", "query_ids")
    }
    with pytest.raises(AutolossError, match=message):
        Queries(**arguments)


def test_folds_and_data_sets_fit_together():
    queries = make()
    fold = Fold("Fold1", queries, queries, queries)
    assert fold.num_features == make_dataset("d", [fold]).num_features == 2
    with pytest.raises(AutolossError, match="Fold1: no validation queries"):
        Fold("Fold1", queries, queries.select([]), queries)
    with pytest.raises(AutolossError, match="Fold1: expected the same number of features"):
        Fold("Fold1", queries, queries, make(features=3))
    with pytest.raises(AutolossError, match="d: no folds"):
        Dataset("d", (), "")
    wide = make(features=3)
    with pytest.raises(AutolossError, match="d: expected the same number of features in every"):
        make_dataset("d", [fold, Fold("Fold2", wide, wide, wide)])


def test_the_hash_sees_every_value():
    def digest(labels):
        queries = make(labels=labels)
        return make_dataset("d", [Fold("Fold1", queries, queries, queries)]).sha256

    assert digest([0, 0, 0, 0, 0, 1]) == digest([0, 0, 0, 0, 0, 1]) != digest([0, 0, 0, 0, 1, 0])
