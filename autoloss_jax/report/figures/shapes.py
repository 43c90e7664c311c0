"""Losses over the difference of two scores: their value and their gradient."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from autoloss_jax.execution.exact import compile_loss
from autoloss_jax.language.expressions import Expression
from autoloss_jax.report.figures.charts import Chart, Curve, chart_svg

DIFFERENCES = np.linspace(-5.0, 5.0, 201)


class LossShape(NamedTuple):
    """A loss of two documents over the difference of their scores, scaled to slope at most 1."""

    values: np.ndarray  # f32[201], 0 at the lowest
    slopes: np.ndarray  # f32[201]


@functools.lru_cache(maxsize=64)  # a compilation each
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
