"""Ranking data that is in memory already: arrays of documents to queries and a data set."""

from numbers import Integral, Real
from typing import Any

import numpy as np

from autoloss_jax.data.queries import Dataset, Fold, Queries, as_numbers, make_dataset
from autoloss_jax.errors import AutolossError

_EXACT = 2**53  # whole numbers below are floats


def queries_from_arrays(features: Any, labels: Any, query_ids: Any) -> Queries:
    """Queries from one row a document, in any order.

    Args:
      features: f32[documents, features].
      labels: f32[documents], graded relevance, 0 to 31, 0 being irrelevant.
      query_ids: [documents], whole numbers or strings; documents of the same id are one query.

    Returns:
      The queries in the order in which each first occurs, their documents in the order given.

    Raises:
      AutolossError: numbers of documents that differ, a query id that is missing or neither a whole
        number nor text, a feature that is not finite, a label out of range; masked values, complex
        numbers, dates or text in place of numbers.

    >>> queries = queries_from_arrays([[0.1], [0.2], [0.3]], [1, 0, 2], ["b", "a", "b"])
    >>> queries.query_ids, queries.labels.tolist(), queries.offsets.tolist()
    (('b', 'a'), [1.0, 2.0, 0.0], [0, 2, 3])
    """
    features, labels = as_numbers(features, "features"), as_numbers(labels, "labels")
    ids = _read_ids(query_ids)
    if ids.ndim != 1 or features.shape[:1] != ids.shape or labels.shape[:1] != ids.shape:
        raise AutolossError(
            "expected features [documents, features], labels [documents] and query_ids "
            f"[documents], got shapes {features.shape}, {labels.shape} and {ids.shape}"
        )
    if not ids.size:
        raise AutolossError("no documents, expected at least one")
    _, first, number = np.unique(ids, return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))[number]  # of each document's query
    order = np.argsort(place, kind="stable")
    offsets = np.append(0, np.cumsum(np.bincount(place)))
    names = tuple(str(name) for name in ids[np.sort(first)])
    return Queries(features[order], labels[order], offsets, names)


def _read_ids(query_ids: Any) -> np.ndarray:
    """Ids as whole numbers or text, so that unlike ones stay unlike."""
    if np.ma.is_masked(query_ids):
        raise AutolossError("query_ids: masked values, expected an id for every document")
    try:
        ids = np.asarray(query_ids)
    except ValueError as error:
        raise AutolossError(f"query_ids: expected one id a document: {error}") from error
    kind = ids.dtype.kind
    if kind == "f":  # a column that had a gap once
        if not (np.isfinite(ids) & (ids == np.floor(ids))).all():
            raise AutolossError("query_ids: a value is missing or no whole number")
        if (np.abs(ids) >= _EXACT).any():
            raise AutolossError("query_ids: floats of 2**53 or more, which may be rounded ids")
        return ids.astype(np.int64)
    if kind == "S":
        return np.array([name.decode("utf-8", "backslashreplace") for name in ids.reshape(-1)])
    if kind == "O" and ids.ndim == 1:
        return _read_objects(ids)
    if kind not in "biuU":
        raise AutolossError(f"query_ids: {ids.dtype}, expected whole numbers or text")
    return ids


def _read_objects(ids: np.ndarray) -> np.ndarray:
    for document, name in enumerate(ids):
        if name is None or (isinstance(name, Real) and name != name):
            raise AutolossError(f"query_ids: the id of document {document} is missing")
        whole = isinstance(name, Integral) or (isinstance(name, float) and name.is_integer())
        if not (whole or isinstance(name, str)) or isinstance(name, str) != isinstance(ids[0], str):
            raise AutolossError(
                f"query_ids: the id of document {document} is {name!r}, expected whole numbers or "
                "text, and not both"
            )
    return ids.astype(str) if isinstance(ids[0], str) else np.array([str(int(k)) for k in ids])


def dataset_from_arrays(
    features: Any,
    labels: Any,
    query_ids: Any,
    *,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    name: str = "arrays",
) -> Dataset:
    """A data set of one fold, whose queries are cut into three roles at random.

    Args:
      features, labels, query_ids: see `queries_from_arrays`.
      validation, test: the shares of the queries that take these roles; the others train.
      seed: of the cut.
      name: of the data set.

    Raises:
      AutolossError: as `queries_from_arrays`; shares that leave a role without queries.

    For a cut of your own: `make_dataset(name, [Fold("Fold1", train, validation, test)])`.
    """
    queries = queries_from_arrays(features, labels, query_ids)
    for what, share in (("validation", validation), ("test", test)):
        if not (isinstance(share, Real) and 0 < share < 1):
            raise AutolossError(f"{what} is {share!r}, expected a share between 0 and 1")
    if not (isinstance(seed, Integral) and seed >= 0):
        raise AutolossError(f"seed is {seed!r}, expected a whole number from 0")
    sizes = [round(share * len(queries)) for share in (validation, test)]
    cut = [len(queries) - sum(sizes), len(queries) - sizes[1]]
    if min(*sizes, cut[0]) < 1:
        raise AutolossError(
            f"{len(queries)} queries in shares of {validation} for validation and {test} for test "
            f"make {max(cut[0], 0)} for training, {sizes[0]} and {sizes[1]}; expected at least one "
            "each"
        )
    order = np.random.default_rng(seed).permutation(len(queries))
    parts = [queries.select(np.sort(part)) for part in np.split(order, cut)]
    return make_dataset(name, [Fold("Fold1", *parts)])
