"""Ranking data that is in memory already: arrays of documents to queries and a data set."""

from typing import Any

import numpy as np

from autoloss_jax.data.queries import Dataset, Fold, Queries, make_dataset
from autoloss_jax.errors import AutolossError


def queries_from_arrays(features: Any, labels: Any, query_ids: Any) -> Queries:
    """Queries from one row a document, in any order.

    Args:
      features: f32[documents, features].
      labels: f32[documents], graded relevance, 0 to 31, 0 being irrelevant.
      query_ids: [documents], whole numbers or strings; documents of the same id are one query.

    Returns:
      The queries in the order in which each first occurs, their documents in the order given.

    Raises:
      AutolossError: numbers of documents that differ, a query id that is missing or no single
        value, a feature that is not finite, a label out of range.

    >>> queries = queries_from_arrays([[0.1], [0.2], [0.3]], [1, 0, 2], ["b", "a", "b"])
    >>> queries.query_ids, queries.labels.tolist(), queries.offsets.tolist()
    (('b', 'a'), [1.0, 2.0, 0.0], [0, 2, 3])
    """
    ids = np.asarray(query_ids)
    counts = {"features": np.shape(features)[:1], "labels": np.shape(labels)[:1]}
    if ids.ndim != 1 or any(count != ids.shape for count in counts.values()):
        raise AutolossError(
            "expected features [documents, features], labels [documents] and query_ids "
            f"[documents], got shapes {np.shape(features)}, {np.shape(labels)} and {ids.shape}"
        )
    if not ids.size:
        raise AutolossError("no documents, expected at least one")
    if ids.dtype.kind == "f" and not (np.isfinite(ids) & (ids == np.floor(ids))).all():
        raise AutolossError("query_ids: a value is missing or no whole number")
    if ids.dtype.kind == "f":
        ids = ids.astype(np.int64)  # a column that had a gap once
    if ids.dtype.kind == "O":
        missing = [k for k, name in enumerate(ids) if name is None or name != name]
        if missing:
            raise AutolossError(f"query_ids: the id of document {missing[0]} is missing")
        ids = ids.astype(str)
    _, first, number = np.unique(ids, return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))[number]  # of each document's query
    order = np.argsort(place, kind="stable")
    offsets = np.append(0, np.cumsum(np.bincount(place)))
    names = tuple(str(name) for name in ids[np.sort(first)])
    return Queries(np.asarray(features)[order], np.asarray(labels)[order], offsets, names)


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
        if not 0 < share < 1:
            raise AutolossError(f"{what} is {share!r}, expected a share between 0 and 1")
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
