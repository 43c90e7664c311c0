"""Queries that are evaluated: one score a document in, the metrics of every query out.

Scores are flat here, one for each document in the order of the file, whatever made them. So the
scores that a run writes for others to evaluate are the very ones that its own figures come from.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from autoloss_jax.data import Buckets
from autoloss_jax.metrics import (
    MetricPerQuery,
    average_precision_per_query,
    err_per_query,
    metric_name,
    mrr_per_query,
    ndcg_per_query,
)

NDCG_CUTOFFS = (1, 3, 5, 10, 30)

_Metric = Callable[[Array, Array, Array, float], tuple[Array, Array]]


def _ndcg_at(k: int) -> _Metric:
    return lambda scores, labels, mask, _: ndcg_per_query(scores, labels, where=mask, k=k)


METRICS: dict[str, _Metric] = {
    **{f"ndcg@{k}": _ndcg_at(k) for k in NDCG_CUTOFFS},
    "mrr": lambda s, y, mask, _: mrr_per_query(s, y, where=mask),
    "map": lambda s, y, mask, _: average_precision_per_query(s, y, where=mask),
    "err": lambda s, y, mask, top: err_per_query(s, y, where=mask, max_label=top),
}
"""By name: of scores, labels and mask [queries, list] and the highest label there can be."""


class _Piece(NamedTuple):
    """Some queries of one bucket, padded; rows may follow that are no query."""

    queries: np.ndarray  # i64[queries]: their places among all
    documents: np.ndarray  # i64[documents]: the same of their documents
    mask: np.ndarray  # bool[rows, list]
    labels: np.ndarray  # f32[rows, list]


class EvaluationQueries:
    """Queries laid out for metrics, without their features.

    Attributes:
      queries: in the order of the file, which is that of flat scores and of figures.
    """

    def __init__(
        self, buckets: Buckets, max_label: float, metric: MetricPerQuery | None = None
    ) -> None:
        """`metric`: one of the user's, measured beside METRICS under its `metric_name`."""
        self.queries = buckets.queries
        self._max_label = max_label
        self._own = () if metric is None else ((metric_name(metric), metric),)
        self._pieces = [_piece(buckets, *piece) for piece in buckets.pieces()]

    def flatten(self, scores: Iterable[Any]) -> np.ndarray:
        """f32[documents] from the scores [rows, list] of each of `Buckets.pieces`."""
        flat = np.empty(self.queries.num_documents, np.float32)
        for piece, padded in zip(self._pieces, scores, strict=True):
            flat[piece.documents] = np.asarray(padded)[piece.mask]
        return flat

    def measure(
        self, scores: np.ndarray, names: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """f64[queries] by metric, NaN where a metric is undefined.

        Args:
          scores: f32[documents].
          names: of METRICS, or of the user's metric; all by default.
        """
        names = [*dict(self._own), *METRICS] if names is None else names
        figures = {name: np.empty(len(self.queries)) for name in names}
        for piece in self._pieces:
            padded = np.zeros(piece.mask.shape, np.float32)
            padded[piece.mask] = scores[piece.documents]
            found = _measure(
                padded, piece.labels, piece.mask, names=tuple(names), max_label=self._max_label,
                own=self._own,
            )  # fmt: skip
            for name, values in found.items():
                figures[name][piece.queries] = np.asarray(values)[: len(piece.queries)]
        return figures


def _piece(buckets: Buckets, bucket: int, rows: np.ndarray, count: int) -> _Piece:
    queries, places = buckets.queries, buckets.members[bucket][rows[:count]]
    list_length = np.arange(buckets.sizes[bucket])
    mask = np.zeros((len(rows), len(list_length)), bool)
    mask[:count] = list_length < queries.lengths[places][:, None]
    documents = (queries.offsets[places][:, None] + list_length)[mask[:count]]
    labels = np.zeros(mask.shape, np.float32)
    labels[mask] = queries.labels[documents]
    return _Piece(places, documents, mask, labels)


@partial(jax.jit, static_argnames=("names", "max_label", "own"))
def _measure(
    scores: Array, labels: Array, mask: Array, *, names: tuple[str, ...], max_label: float,
    own: tuple[tuple[str, MetricPerQuery], ...],
) -> dict[str, Array]:  # fmt: skip
    """f32[rows] by metric."""
    figures = {}
    for name in names:
        if name in dict(own):
            values, defined = dict(own)[name](scores, labels, where=mask)
        else:
            values, defined = METRICS[name](scores, labels, mask, max_label)
        figures[name] = jnp.where(defined, values, jnp.nan)
    return figures
