"""Charts of lines and points over two axes.

Their text is a fixed size in the chart's own units, so the margins below suit the larger text that
the style sheet sets on narrow screens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 86, 16, 12, 56
_FAR = 4000.0  # beyond every edge, and still drawn exactly


@dataclass(frozen=True)
class Curve:
    """One line; `style` is its class in the style sheet. Points that are not finite break it."""

    points: Points
    style: str


class Mark(NamedTuple):
    """A point with a name, which hovering shows, and an interval if low and high are given."""

    x: float
    y: float
    style: str
    name: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Chart:
    """What a chart shows, in the units of its data."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve] = ()
    dots: Points = ()
    marks: Sequence[Mark] = ()
    y_range: tuple[float, float] | None = None
    zero_line: bool = True


class _Frame(NamedTuple):
    """Where a chart's data lie."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def right(self, x: float) -> float:
        low, high = self.x_range
        return _LEFT + (x - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def down(self, y: float) -> float:
        low, high = self.y_range
        place = (high - y) / (high - low) * (HEIGHT - _TOP - _BOTTOM) + _TOP
        return max(-_FAR, min(_FAR, place))

    def place(self, x: float, y: float) -> str:
        return f"{self.right(x):.1f} {self.down(y):.1f}"

    def shows(self, y: float) -> bool:
        return self.y_range[0] <= y <= self.y_range[1]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within a range.

    >>> ticks(0.0, 9.7)
    [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, last + 1)]


def tick_label(value: float) -> str:
    """A tick's number with a true minus sign.

    >>> tick_label(-0.5)
    '−0.5'
    """
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def data_range(values: Sequence[float]) -> tuple[float, float]:
    """What the finite values span, a twentieth wider at each end."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    spread = (high - low) or max(abs(high), 1e-6)
    return low - 0.05 * spread, high + 0.05 * spread


def robust_range(values: Sequence[float]) -> tuple[float, float]:
    """The values' range, without what lies far below nearly all of them."""
    low, high = float(np.quantile(values, 0.05)), max(values)
    return data_range([max(min(values), low - (high - low) / 4), high])


def chart_svg(chart: Chart) -> str:
    """The chart as an SVG element that fills its container's width."""
    points = [*chart.dots, *(point for curve in chart.curves for point in curve.points)]
    points += [(m.x, y) for m in chart.marks for y in (m.y, m.low, m.high) if y is not None]
    x_range = data_range([x for x, _ in points])
    frame = _Frame(x_range, chart.y_range or data_range([y for _, y in points]))
    dots = [frame.place(x, y) for x, y in chart.dots if frame.shows(y)]
    curves = []
    for curve in chart.curves:
        pieces = _pieces(curve.points)
        path = "".join("M" + "L".join(frame.place(*point) for point in piece) for piece in pieces)
        curves.append(f'<path class="curve {escape(curve.style)}" d="{path}"/>')
    # An inner viewport cuts off what lies outside the range.
    box = (_LEFT, _TOP, WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM)
    viewport = 'x="{}" y="{}" width="{}" height="{}"'.format(*box)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(chart.title)}">{_axes(chart, frame)}'
        + "".join(f'<path class="dot" d="M{dot}h0"/>' for dot in dots)
        + f'<svg {viewport} viewBox="{" ".join(map(str, box))}">{"".join(curves)}</svg>'
        + "".join(_mark(mark, frame) for mark in chart.marks if frame.shows(mark.y))
        + "</svg>"
    )


def _pieces(points: Points) -> list[list[tuple[float, float]]]:
    """Runs of finite points."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _mark(mark: Mark, frame: _Frame) -> str:
    right = frame.right(mark.x)
    whisker = ""
    if mark.low is not None and mark.high is not None:
        low, high = (max(_TOP, min(HEIGHT - _BOTTOM, frame.down(y))) for y in (mark.low, mark.high))
        whisker = f'<path d="M{right - 4:.1f} {low:.1f}h8m-4 0V{high:.1f}m-4 0h8"/>'
    return (
        f'<g class="mark {escape(mark.style)}"><title>{escape(mark.name)}</title>{whisker}'
        f'<circle cx="{right:.1f}" cy="{frame.down(mark.y):.1f}" r="5"/></g>'
    )


def _axes(chart: Chart, frame: _Frame) -> str:
    parts = []
    for y in ticks(*frame.y_range):
        down = frame.down(y)
        style = "zero" if y == 0.0 and chart.zero_line else "grid"
        parts.append(f'<path class="{style}" d="M{_LEFT} {down:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 7, down + 5, tick_label(y), "end"))
    base = HEIGHT - _BOTTOM
    for x in ticks(*frame.x_range):
        right = frame.right(x)
        parts.append(f'<path class="grid" d="M{right:.1f} {base}v4"/>')
        parts.append(_text(right, base + 20, tick_label(x), "middle"))
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 9, chart.x_label, "middle"))
    up = (_TOP + HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text transform="translate(18 {up:g}) rotate(-90)" class="middle">'
        f"{escape(chart.y_label)}</text>"
    )
    return "".join(parts)


def _text(x: float, y: float, content: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{escape(content)}</text>'
