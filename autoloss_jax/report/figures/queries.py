"""Two losses query by query: their sorted differences as bars."""

from collections.abc import Sequence

import numpy as np

from autoloss_jax.report.figures.charts import Chart, Curve, chart_svg, data_range
from autoloss_jax.statistics import TIE_TOLERANCE

MAX_BARS = 400


def sorted_bars(differences: np.ndarray) -> np.ndarray:
    """The differences from the greatest gain to the greatest loss; quantiles where there are many.

    differences: f64[queries], at least one.
    """
    ordered = np.sort(differences)[::-1]
    if len(ordered) <= MAX_BARS:
        return ordered
    return ordered[np.round(np.linspace(0, len(ordered) - 1, MAX_BARS)).astype(int)]


def differences_svg(differences: np.ndarray, y_label: str, title: str) -> str:
    """Bars of the sorted per-query differences, f64[queries], and their mean as a line."""
    bars = sorted_bars(differences)
    edges = np.linspace(0.0, len(differences), len(bars) + 1)
    mean = float(differences.mean())
    ends = [(float(edges[0]), mean), (float(edges[-1]), mean)]
    curves = [
        Curve(_outline(bars, edges, bars > TIE_TOLERANCE), "gain"),
        Curve(_outline(bars, edges, bars < -TIE_TOLERANCE), "loss"),
        Curve(ends, "mean-line"),
    ]
    chart = Chart(
        title=title,
        x_label="test queries, sorted by their difference",
        y_label=y_label,
        curves=[curve for curve in curves if curve.points],
        y_range=data_range([*bars.tolist(), 0.0]),
    )
    return chart_svg(chart)


def _outline(
    bars: np.ndarray, edges: np.ndarray, chosen: np.ndarray
) -> Sequence[tuple[float, float]]:
    """The bars that are chosen, which stand side by side, as one closed line from zero to zero."""
    points: list[tuple[float, float]] = []
    for k in np.flatnonzero(chosen):
        left, right, value = float(edges[k]), float(edges[k + 1]), float(bars[k])
        points += [(left, value), (right, value)]
    return [(points[0][0], 0.0), *points, (points[-1][0], 0.0)] if points else []
