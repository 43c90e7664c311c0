"""Ragged ranking data: queries with their documents, folds, data sets, and one padded bucket."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import InitVar, dataclass
from typing import Any, NamedTuple

import numpy as np

from autoloss_jax.errors import AutolossError

MAX_LABEL = 31  # the gain 2**label - 1 and its sums stay far inside a 32-bit float

CHUNK_DOCUMENTS = 1 << 14
"""Features are computed and copied so many documents at a time, to keep temporary arrays small."""


class ListBatch(NamedTuple):
    """One length bucket, padded; numpy or jax arrays."""

    features: Any  # f32[queries, list, features], 0 at padding
    labels: Any  # f32[queries, list], 0 at padding
    mask: Any  # bool[queries, list], True at a real document


class FeatureView:
    """Features that are computed from others when they are read, so that no copy is kept.

    `view[rows]` and `np.asarray(view)` are ordinary arrays, f32[..., features].
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(
        self, source: np.ndarray | FeatureView, function: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """`function` takes features f32[..., features] of any documents to features like them."""
        self.source, self.function = source, function
        self.shape: tuple[int, int] = source.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, tuple):  # documents and features
            result: np.ndarray = np.asarray(self)[rows]
            return result
        return self.function(self.source[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        result = np.empty(self.shape, np.float32)
        for start in range(0, len(self), CHUNK_DOCUMENTS):
            part = slice(start, start + CHUNK_DOCUMENTS)
            result[part] = self[part]
        return result if dtype is None else result.astype(dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Queries:
    """Ragged lists of documents; the arrays are converted, checked and made read-only.

    Features may be memory-mapped, or a `FeatureView`: neither is copied. With
    ``features_checked`` they are known to be finite, and not read.

    Raises:
        AutolossError: shapes that do not fit together, a query without documents, a value that is
            not finite as a 32-bit float, a label outside 0 to 31.
    """

    features: np.ndarray | FeatureView  # f32[documents, features]
    labels: np.ndarray  # f32[documents]
    offsets: np.ndarray  # i64[queries + 1]; documents of query q are offsets[q]:offsets[q + 1]
    query_ids: tuple[str, ...]
    features_checked: InitVar[bool] = False

    def __post_init__(self, features_checked: bool) -> None:
        if not isinstance(self.features, FeatureView):
            _set(self, "features", _convert(self.features, np.float32, "features"))
        _set(self, "labels", _convert(self.labels, np.float32, "labels"))
        _set(self, "offsets", _convert(self.offsets, np.int64, "offsets"))
        object.__setattr__(self, "query_ids", tuple(str(name) for name in self.query_ids))
        _check_shapes(self)
        _check_labels(self)
        if not features_checked:
            _check_features(self.features)

    def __len__(self) -> int:
        return len(self.query_ids)

    @property
    def lengths(self) -> np.ndarray:
        """i64[queries]: documents of each query."""
        return np.diff(self.offsets)

    @property
    def num_documents(self) -> int:
        return len(self.labels)

    @property
    def num_features(self) -> int:
        return int(self.features.shape[1])

    def select(self, indices: Sequence[int] | np.ndarray) -> Queries:
        """The queries at ``indices``, in the order given.

        Raises:
            AutolossError: an index outside 0 .. queries - 1.
        """
        chosen = np.asarray(indices, np.int64).reshape(-1)
        wrong = chosen[(chosen < 0) | (chosen >= len(self))]
        if wrong.size:
            raise AutolossError(f"query index {wrong[0]}, expected 0 to {len(self) - 1}")
        lengths = self.lengths[chosen]
        offsets = np.append(0, np.cumsum(lengths))
        shift = np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        rows = np.arange(offsets[-1]) + shift
        names = tuple(self.query_ids[q] for q in chosen)
        return Queries(self.features[rows], self.labels[rows], offsets, names)

    def has_relevant(self) -> np.ndarray:
        """bool[queries]: whether a document of the query has a positive label."""
        if not len(self):
            return np.zeros(0, bool)
        return np.maximum.reduceat(self.labels, self.offsets[:-1]) > 0


@dataclass(frozen=True)
class Fold:
    """Three disjoint roles of queries. Raises AutolossError for an empty or ill-fitting part."""

    name: str
    train: Queries
    validation: Queries
    test: Queries

    def __post_init__(self) -> None:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        for role, part in parts.items():
            if not len(part):
                raise AutolossError(f"{self.name}: no {role} queries, expected at least one")
        counts = {role: part.num_features for role, part in parts.items()}
        if len(set(counts.values())) > 1:
            raise AutolossError(
                f"{self.name}: expected the same number of features in every part, got {counts}"
            )

    @property
    def num_features(self) -> int:
        return self.train.num_features


@dataclass(frozen=True)
class Dataset:
    """Named folds and a hash over all their content. Raises AutolossError without a fold."""

    name: str
    folds: tuple[Fold, ...]
    sha256: str

    def __post_init__(self) -> None:
        if not self.folds:
            raise AutolossError(f"{self.name}: no folds, expected at least one")
        counts = {fold.name: fold.num_features for fold in self.folds}
        if len(set(counts.values())) > 1:
            raise AutolossError(
                f"{self.name}: expected the same number of features in every fold, got {counts}"
            )

    @property
    def num_features(self) -> int:
        return self.folds[0].num_features


def make_dataset(name: str, folds: Iterable[Fold]) -> Dataset:
    """A data set from folds already in memory, hashed over all their arrays and names."""
    folds = tuple(folds)
    digest = hashlib.sha256()
    for fold in folds:
        for part in (fold.train, fold.validation, fold.test):
            for array in (part.features, part.labels, part.offsets):
                digest.update(repr((fold.name, array.shape, array.dtype.str)).encode())
                digest.update(np.ascontiguousarray(array).data)
            digest.update(repr(part.query_ids).encode())
    return Dataset(name, folds, digest.hexdigest())


def concatenate(parts: Sequence[Queries]) -> Queries:
    """All queries of ``parts``, one part after the other.

    Raises:
        AutolossError: no parts, or parts of different numbers of features.
    """
    if not parts:
        raise AutolossError("nothing to concatenate, expected at least one set of queries")
    widths = [part.num_features for part in parts]
    if len(set(widths)) > 1:
        raise AutolossError(f"expected the same number of features in every part, got {widths}")
    lengths = np.concatenate([part.lengths for part in parts])
    return Queries(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.append(0, np.cumsum(lengths)),
        tuple(name for part in parts for name in part.query_ids),
    )


def _set(queries: Queries, name: str, array: np.ndarray) -> None:
    view = array.view()  # the caller's own array stays writable
    view.flags.writeable = False
    object.__setattr__(queries, name, view)


def as_numbers(value: Any, name: str) -> np.ndarray:
    """An array as numpy has it.

    Raises:
        AutolossError: rows of different lengths, masked values, or what numpy would turn into
            numbers with something lost or made up: complex numbers, dates, text, matrices that it
            does not know.
    """
    if np.ma.is_masked(value):
        raise AutolossError(f"{name}: masked values, expected a number for every place")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise AutolossError(f"{name}: expected an array of real numbers: {error}") from error
    if array.dtype.kind not in "biufO" or (array.ndim == 0 and array.dtype == object):
        found = type(value).__name__ if array.ndim == 0 else f"an array of {array.dtype}"
        raise AutolossError(f"{name}: {found}, expected an array of real numbers")
    return array


def _convert(value: Any, dtype: type, name: str) -> np.ndarray:
    given = as_numbers(value, name)
    try:
        with np.errstate(over="ignore", invalid="raise"):
            array: np.ndarray = np.ascontiguousarray(given, dtype)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise AutolossError(f"{name}: expected an array of {dtype.__name__}: {error}") from error
    if dtype is np.int64 and array.shape == given.shape and (array != given).any():
        raise AutolossError(f"{name}: {given[array != given][0]}, expected whole numbers")
    return array


def _check_shapes(queries: Queries) -> None:
    features, labels, offsets = queries.features, queries.labels, queries.offsets
    if features.ndim != 2 or labels.ndim != 1 or len(features) != len(labels):
        raise AutolossError(
            "expected features [documents, features] and labels [documents], got shapes "
            f"{features.shape} and {labels.shape}"
        )
    if not features.shape[1]:
        raise AutolossError(f"features of shape {features.shape}, expected at least one a document")
    if offsets.shape != (len(queries) + 1,):
        raise AutolossError(
            f"offsets of shape {offsets.shape}, expected ({len(queries) + 1},): one more than the "
            f"{len(queries)} query ids"
        )
    if offsets[0] != 0 or offsets[-1] != len(labels):
        raise AutolossError(
            f"offsets run from {offsets[0]} to {offsets[-1]}, expected 0 to {len(labels)}"
        )
    empty = np.flatnonzero(np.diff(offsets) < 1)
    if empty.size:
        name = queries.query_ids[empty[0]]
        raise AutolossError(f"query {name!r} has no documents, expected increasing offsets")


def _check_labels(queries: Queries) -> None:
    bad = np.flatnonzero(~np.isfinite(queries.labels) | (queries.labels < 0))
    bad = bad if bad.size else np.flatnonzero(queries.labels > MAX_LABEL)
    if bad.size:
        raise AutolossError(
            f"label {queries.labels[bad[0]]} of document {bad[0]}, expected 0 to {MAX_LABEL}"
        )


def _check_features(features: np.ndarray | FeatureView) -> None:
    for start in range(0, len(features), CHUNK_DOCUMENTS):
        part = features[start : start + CHUNK_DOCUMENTS]
        finite = np.isfinite(part)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise AutolossError(
                f"feature {column} of document {start + row} is {part[row, column]}, expected a "
                "finite 32-bit float"
            )
