"""Means and their intervals, one in a table's row, on a scale that the rows share."""

from collections.abc import Sequence
from html import escape

from autoloss_jax.report.figures.charts import data_range, tick_label, ticks

_WIDTH, _MARGIN = 240, 20

Estimate = tuple[float, float, float]
"""A mean and the ends of its interval."""


def interval_scale(
    estimates: Sequence[Estimate], include: Sequence[float] = ()
) -> tuple[float, float]:
    """The range that all estimates and the values to include lie in, a little wider."""
    return data_range([*(value for estimate in estimates for value in estimate), *include])


def _place(value: float, scale: tuple[float, float]) -> float:
    return _MARGIN + (value - scale[0]) / (scale[1] - scale[0]) * (_WIDTH - 2 * _MARGIN)


def interval_svg(
    estimate: Estimate, scale: tuple[float, float], mark: float | None, style: str, label: str
) -> str:
    """A mean and its interval, with a dashed line at `mark`; `label` says it in words."""
    mean, low, high = (_place(value, scale) for value in estimate)
    line = "" if mark is None else f'<path class="mark" d="M{_place(mark, scale):.1f} 0v22"/>'
    ends = f"M{low:.1f} 7v8m0-4H{high:.1f}m0-4v8"
    return (
        f'<svg class="interval {escape(style)}" viewBox="0 0 {_WIDTH} 22" role="img" '
        f'aria-label="{escape(label)}">{line}'
        f'<path class="whisker" d="{ends}"/><circle cx="{mean:.1f}" cy="11" r="4.5"/></svg>'
    )


def interval_axis(scale: tuple[float, float]) -> str:
    """The numbers of the scale, to stand below the rows."""
    parts = []
    for tick in ticks(*scale, count=5):
        right = _place(tick, scale)
        parts.append(f'<path d="M{right:.1f} 0v5"/>')
        parts.append(f'<text x="{right:.1f}" y="18" class="middle">{tick_label(tick)}</text>')
    line = f'<path d="M{_MARGIN} 0H{_WIDTH - _MARGIN}"/>'
    return (
        f'<svg class="interval axis" viewBox="0 0 {_WIDTH} 22" aria-hidden="true">{line}'
        + "".join(parts)
        + "</svg>"
    )
