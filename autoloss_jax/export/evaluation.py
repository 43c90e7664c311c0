"""A loss and its derivatives in numpy, without a compiler: what an exported objective gives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from autoloss_jax.execution.exact import AXES
from autoloss_jax.export import dual_numbers as functions
from autoloss_jax.export.dual_numbers import Dual, document_scores, value_of
from autoloss_jax.language.expressions import LITERAL, Expression
from autoloss_jax.language.operators import LARGE, OPERATORS, REDUCTIONS

_INFIX: dict[str, Callable] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "neg": lambda a: -a,
}
_RELATIONS: dict[str, Callable] = {
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
}


class QueryDerivatives(NamedTuple):
    """The loss of every query, its gradient and the diagonal of its Hessian."""

    values: np.ndarray  # f64[queries]
    gradient: np.ndarray  # f64[queries, list]
    hessian: np.ndarray  # f64[queries, list]


@np.errstate(all="ignore")
def query_derivatives(
    expression: Expression, scores: np.ndarray, labels: np.ndarray, mask: np.ndarray
) -> QueryDerivatives:
    """Evaluates a loss on f64[queries, list] in double precision; equal to the exact path."""
    scores, labels = np.where(mask, scores, 0.0), np.where(mask, labels, 0.0)
    leaves = _leaves(scores, labels, mask)
    result = _evaluate(expression, leaves)
    values = np.broadcast_to(value_of(result), (len(scores), 1, 1))[:, 0, 0]
    derivatives = np.zeros((2, *scores.shape))
    if isinstance(result, Dual):
        shape = (scores.shape[1], len(scores), 1, 1)
        for k, d in enumerate((result.first, result.second)):
            derivatives[k] = np.where(mask, np.broadcast_to(d, shape)[:, :, 0, 0].T, 0.0)
    return QueryDerivatives(*(functions._finite(x) for x in (values, *derivatives)))


def _leaves(scores: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """What formulas are made of, by name: [queries, list or 1, list or 1]."""
    rank = functions.ranks(scores, mask)
    documents = {
        "y": labels,
        "gain": functions.gains(labels),
        "rank": rank,
        "discount": functions.discounts(rank),
        "mask": mask,
    }
    leaves: dict[str, Any] = {}
    for name, array in documents.items():
        leaves[f"{name}_i"], leaves[f"{name}_j"] = array[:, :, None], array[:, None, :]
    leaves["s_i"], leaves["s_j"] = document_scores(scores)
    leaves["n"] = mask.sum(-1, dtype=np.float64)[:, None, None]
    leaves["max_dcg"] = functions.max_dcg(labels, mask)[:, None, None]
    position = np.arange(mask.shape[-1])
    return leaves | {"i": position[:, None], "j": position[None, :]}


def _evaluate(node: Expression, leaves: dict[str, Any]) -> Any:
    if node.op == LITERAL:
        return np.full((1, 1, 1), max(-LARGE, min(node.value, LARGE)))
    if node.op in leaves:
        return leaves[node.op]
    args = [_evaluate(arg, leaves) for arg in node.args]
    if node.op in REDUCTIONS:
        reduction = REDUCTIONS[node.op]
        selected = np.ones((1, 1, 1), bool)
        for index in reduction.indices:
            selected = selected & leaves[f"mask_{index}"]
        if node.where is not None:
            selected = selected & _evaluate(node.where, leaves)
        axes = tuple(AXES[index] for index in sorted(reduction.indices))
        return getattr(functions, f"_{reduction.kind}")(args[0], selected, axes)
    function = _RELATIONS.get(node.op) or _INFIX.get(node.op)
    return (function or getattr(functions, OPERATORS[node.op].value.__name__))(*args)
