"""Data sets from arrays in memory."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from autoloss_jax.data import dataset_from_arrays, queries_from_arrays
from autoloss_jax.errors import AutolossError


def arrays(queries=20, length=3):
    rng = np.random.default_rng(0)
    count = queries * length
    return rng.normal(size=(count, 4)), rng.integers(0, 3, count), np.arange(count) % queries


def test_documents_of_a_query_need_not_stand_together():
    features = np.arange(10.0).reshape(5, 2)
    queries = queries_from_arrays(features, [0, 1, 2, 3, 4], [7, 3, 7, 3, 5])
    assert queries.query_ids == ("7", "3", "5")
    np.testing.assert_array_equal(queries.offsets, [0, 2, 4, 5])
    np.testing.assert_array_equal(queries.labels, [0, 2, 1, 3, 4])
    np.testing.assert_array_equal(queries.features, features[[0, 2, 1, 3, 4]])


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (["b", "a", "b"], ("b", "a")),
        (np.array([b"b", b"a\xff", b"b"]), ("b", "a\\xff")),
        (np.array([3, 1.0, np.int8(3)], object), ("3", "1")),
        (np.array(["b", "a", "b"], object), ("b", "a")),
        (np.array([2.0, 10.0, 2.0]), ("2", "10")),
        (np.array([2, 10, 2], np.uint8), ("2", "10")),
    ],
)
def test_ids_are_text_or_whole_numbers(ids, names):
    assert queries_from_arrays(np.zeros((3, 1)), [0, 1, 0], ids).query_ids == names


@pytest.mark.parametrize(
    ("features", "labels", "ids", "message"),
    [
        (np.zeros((3, 1)), [0, 1], [1, 1, 1], r"got shapes \(3, 1\), \(2,\) and \(3,\)"),
        (np.zeros((3, 1)), [0, 1, 1], [[1, 1, 1]], r"got shapes \(3, 1\), \(3,\) and \(1, 3\)"),
        (np.zeros(3), [0, 1, 1], [1, 1, 1], r"expected features \[documents, features\]"),
        (np.zeros((0, 1)), [], [], "no documents, expected at least one"),
        (np.zeros((2, 1)), [0, 1], [1.0, np.nan], "a value is missing or no whole number"),
        (np.zeros((2, 1)), [0, 1], [1.0, 1.5], "a value is missing or no whole number"),
        (np.zeros((2, 1)), [0, 1], np.array(["a", None], object), "id of document 1 is missing"),
        (np.zeros((2, 1)), [0, 1], np.array(["1", 1], object), "id of document 1 is 1, expected w"),
        (np.zeros((2, 1)), [0, 1], np.array([(1,), None], object)[:1], "document 0 is .1,., expec"),
        (
            np.zeros((2, 1)),
            [0, 1],
            [2.0**60, 1],
            r"floats of 2\*\*53 or more, which may be rounded",
        ),
        (np.zeros((2, 1)), [0, 1], np.ma.masked_equal([1, 2], 2), "query_ids: masked values"),
        (np.zeros((2, 1)), [0, 1], np.zeros(2, "M8[D]"), "datetime64.D., expected whole numbers"),
        (np.zeros((2, 1)), [0, 1], [[1], [1, 2]], "query_ids: expected one id a document"),
        (None, [0, 1], [1, 2], "features: NoneType, expected an array of real numbers"),
        (csr_matrix(np.eye(2)), [0, 1], [1, 2], "features: csr_matrix, expected an array of real"),
        ([["1"], ["2"]], [0, 1], [1, 2], "features: an array of <U1, expected an array of real"),
        (np.array([[0.0], [np.inf]]), [0, 1], [1, 2], "feature 0 of document 1 is inf"),
        (np.zeros((2, 1)), [0, np.nan], [1, 2], "label nan of document 1"),
        (np.array([[0.0], [np.nan]]), [0, 1], [1, 2], "feature 0 of document 1 is nan"),
        (np.zeros((2, 1)), [0, -1], [1, 2], "label -1.0 of document 1, expected 0 to 31"),
    ],
)
def test_what_is_refused(features, labels, ids, message):
    with pytest.raises(AutolossError, match=message):
        queries_from_arrays(features, labels, ids)


def test_every_query_takes_one_role():
    dataset = dataset_from_arrays(*arrays(), validation=0.25, test=0.1, name="mine")
    fold = dataset.folds[0]
    parts = [fold.train, fold.validation, fold.test]
    assert [len(part) for part in parts] == [13, 5, 2]  # 20 queries: 5 and 2 are the shares
    assert sorted(int(q) for part in parts for q in part.query_ids) == list(range(20))
    assert dataset.name == "mine"


def test_the_cut_follows_the_seed():
    one, same, other = (dataset_from_arrays(*arrays(), seed=seed) for seed in (1, 1, 2))
    assert one.sha256 == same.sha256
    assert one.folds[0].test.query_ids != other.folds[0].test.query_ids


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"test": 0.0}, "test is 0.0, expected a share between 0 and 1"),
        ({"validation": 1.5}, "validation is 1.5, expected a share between 0 and 1"),
        ({"validation": 0.6, "test": 0.6}, "make 0 for training, 12 and 12"),
        ({"test": None}, "test is None, expected a share between 0 and 1"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0"),
        ({"test": 0.01}, "make 16 for training, 4 and 0; expected at least one each"),
    ],
)
def test_shares_that_leave_a_role_empty_are_refused(shares, message):
    with pytest.raises(AutolossError, match=message):
        dataset_from_arrays(*arrays(), **shares)
