"""The report's figures: the search's course, and losses over the difference of two scores."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from autoloss_jax.execution.exact import compile_loss
from autoloss_jax.language.expressions import Expression
from autoloss_jax.report.charts import Chart, Curve, Points, chart_svg, robust_range

MAX_DOTS = 1500
_BLOCKS = 20
DIFFERENCES = np.linspace(-5.0, 5.0, 201)


class SearchCurve(NamedTuple):
    """The chart of a search. svg: the chart. hidden: how many candidates lie below it."""

    svg: str
    hidden: int


def search_curve(trained: Sequence[Mapping[str, Any]], y_label: str) -> SearchCurve:
    """The reward of every trained candidate, their mean by rounds and the best so far.

    trained: at least one ledger record with a `reward`.
    """
    rewards = [float(record["reward"]) for record in trained]
    y_range = robust_range(rewards)
    every = -(-len(rewards) // MAX_DOTS)
    best = list(itertools.accumulate(rewards, max))
    steps: list[tuple[float, float]] = []
    for number, value in enumerate(best, start=1):
        if steps and value > steps[-1][1]:
            steps.append((number, steps[-1][1]))
        if not steps or value > steps[-1][1]:
            steps.append((number, value))
    steps.append((len(best), best[-1]))
    chart = Chart(
        title="Reward over the candidates trained",
        x_label="candidates trained",
        y_label=y_label,
        curves=(Curve(_means(trained, rewards), "mean"), Curve(steps, "best")),
        dots=list(enumerate(rewards, start=1))[::every],
        y_range=y_range,
    )
    return SearchCurve(chart_svg(chart), sum(reward < y_range[0] for reward in rewards))


def _means(trained: Sequence[Mapping[str, Any]], rewards: Sequence[float]) -> Points:
    """The mean reward of each round, or of about 20 blocks if there are few or very many rounds."""
    rounds = [record.get("round") for record in trained]
    starts = [k for k, mine in enumerate(rounds) if k == 0 or mine != rounds[k - 1]]
    if not 3 <= len(starts) <= 200:
        starts = list(range(0, len(rewards), max(1, len(rewards) // _BLOCKS)))
    ends = [*starts[1:], len(rewards)]
    return [
        ((start + 1 + end) / 2, float(np.mean(rewards[start:end])))
        for start, end in zip(starts, ends, strict=True)
    ]


class LossShape(NamedTuple):
    """A loss of two documents over the difference of their scores, scaled to slope at most 1."""

    values: np.ndarray  # f32[201], 0 at the lowest
    slopes: np.ndarray  # f32[201]


def loss_shape(expression: Expression) -> LossShape | None:
    """The loss of labels 1 and 0 and scores d / 2 and -d / 2 over DIFFERENCES; None if it is flat.

    Training normalises gradients, so a loss's scale means nothing and is divided out.
    """
    loss_fn = compile_loss(expression)
    difference = jnp.asarray(DIFFERENCES, jnp.float32)
    labels = jnp.broadcast_to(jnp.array([1.0, 0.0]), (len(DIFFERENCES), 2))

    def total(d: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = loss_fn(jnp.stack([d / 2, -d / 2], axis=-1), labels, reduce_fn=None)
        return jnp.sum(values), values

    slopes, values = jax.jit(jax.grad(total, has_aux=True))(difference)
    slope_scale = float(jnp.max(jnp.abs(slopes)))
    if not 0.0 < slope_scale < 1e29:
        return None
    values = np.asarray(values - jnp.min(values)) / slope_scale
    return LossShape(values, np.asarray(slopes) / slope_scale)


def shape_charts(shapes: Mapping[str, LossShape]) -> tuple[str, str]:
    """Two charts, of value and of gradient; `shapes` by the curves' styles."""

    def chart(title: str, y_label: str, of: str) -> str:
        curves = [
            Curve(list(zip(DIFFERENCES.tolist(), getattr(shape, of).tolist(), strict=True)), style)
            for style, shape in shapes.items()
        ]
        x_label = "score of the relevant \N{MINUS SIGN} of the other"
        return chart_svg(Chart(title, x_label, y_label, curves))

    return (
        chart("Loss over the score difference", "loss (scaled)", "values"),
        chart("Gradient over the score difference", "gradient (scaled)", "slopes"),
    )
