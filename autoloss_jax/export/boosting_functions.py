"""The functions that hand an exported loss's derivatives to a boosting library, in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from autoloss_jax.export.dual_numbers import Dual, _finite, value_of

MAX_STEP = 1.0  # of a document's score in one round, before the learning rate
SMALLEST_HESSIAN = 1e-12
TILE = 10_000  # pairs of documents taken together, so that they stay in the processor's cache


def values_of(query_losses: Callable, scores: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """The loss of every query of [..., list], as [..., 1, 1]."""
    flat = [x.reshape(-1, x.shape[-1]) for x in (scores, *others)]
    values = np.broadcast_to(value_of(query_losses(*flat)), (len(flat[0]), 1, 1))
    return values.reshape(*scores.shape[:-1], 1, 1)


def derivatives(
    query_losses: Callable, scores: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and Hessian diagonal [documents] of the sum of the queries' losses.

    groups: how many documents each query has, these standing together.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    groups = np.asarray(groups, np.int64)
    if scores.ndim != 1 or scores.shape != labels.shape or groups.sum() != len(scores):
        raise ValueError(
            "expected scores and labels [documents] and the documents of each query: got "
            f"{scores.shape}, {labels.shape} and groups of {groups.sum()} documents"
        )
    starts = np.cumsum(groups) - groups
    gradient, hessian = np.zeros(len(scores)), np.zeros(len(scores))
    order = np.argsort(groups, kind="stable")  # queries of like length are taken together
    order = order[groups[order] > 0]
    while len(order):
        length = groups[order[-1]]
        taken, order = np.split(order[::-1], [max(1, TILE // length**2)])
        order = order[::-1]
        mask = np.arange(length) < groups[taken][:, None]
        rows = np.where(mask, starts[taken][:, None] + np.arange(length), 0)
        part = np.where(mask, scores[rows], 0.0), np.where(mask, labels[rows], 0.0)
        loss = query_losses(*part, mask)
        if isinstance(loss, Dual):
            for total, derivative in ((gradient, loss.first), (hessian, loss.second)):
                of_query = np.broadcast_to(derivative, (length, len(taken), 1, 1))[:, :, 0, 0].T
                total[rows[mask]] = of_query[mask]
    return _finite(gradient), _finite(hessian)


def newton_hessian(gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """The Hessian diagonal raised to where it is positive and no Newton step exceeds MAX_STEP."""
    return np.maximum(hessian, np.maximum(np.abs(gradient) / MAX_STEP, SMALLEST_HESSIAN))


def weighted_derivatives(
    query_losses: Callable,
    scores: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None,
    weights: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """What boosting adds up: gradient and positive Hessian, times the weight of each document."""
    if groups is None or not len(groups):
        raise ValueError(
            "the training data has no groups: expected how many documents each query has"
        )
    gradient, hessian = derivatives(query_losses, scores, labels, groups)
    hessian = newton_hessian(gradient, hessian)
    if weights is None or not len(weights):
        return gradient, hessian
    if len(weights) == len(groups) != len(gradient):  # a weight a query
        weights = np.repeat(weights, groups)
    return gradient * weights, hessian * weights
