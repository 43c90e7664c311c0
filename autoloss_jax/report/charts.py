"""Line charts as inline SVG, whose colours come from the page's style sheet, light or dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 480, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 10, 12, 46
_FAR = 4000.0  # beyond every edge, and still drawn exactly


@dataclass(frozen=True)
class Curve:
    """One line; `style` is its class in the style sheet. Points that are not finite break it."""

    points: Points
    style: str


@dataclass(frozen=True)
class Chart:
    """What a chart shows, in the units of its data."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    dots: Points = ()
    y_range: tuple[float, float] | None = None
    zero_line: bool = True


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


def _range(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    spread = (high - low) or max(abs(high), 1e-6)
    return low - 0.05 * spread, high + 0.05 * spread


def chart_svg(chart: Chart) -> str:
    """The chart as an SVG element that fills its container's width."""
    everything = [*chart.dots, *(point for curve in chart.curves for point in curve.points)]
    x_range = _range([x for x, _ in everything])
    y_range = chart.y_range or _range([y for _, y in everything])

    def place(x: float, y: float) -> str:
        right = _LEFT + (x - x_range[0]) / (x_range[1] - x_range[0]) * (WIDTH - _LEFT - _RIGHT)
        down = (y_range[1] - y) / (y_range[1] - y_range[0]) * (HEIGHT - _TOP - _BOTTOM) + _TOP
        return f"{right:.1f} {max(-_FAR, min(_FAR, down)):.1f}"

    dots = [place(x, y) for x, y in chart.dots if y_range[0] <= y <= y_range[1]]
    curves = []
    for curve in chart.curves:
        pieces = _pieces(curve.points)
        path = "".join("M" + "L".join(place(*point) for point in piece) for piece in pieces)
        curves.append(f'<path class="curve {escape(curve.style)}" d="{path}"/>')
    # An inner viewport cuts off what lies outside the range.
    box = (_LEFT, _TOP, WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM)
    viewport = 'x="{}" y="{}" width="{}" height="{}"'.format(*box)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(chart.title)}">{_axes(chart, x_range, y_range, place)}'
        + "".join(f'<path class="dot" d="M{dot}h0"/>' for dot in dots)
        + f'<svg {viewport} viewBox="{" ".join(map(str, box))}">{"".join(curves)}</svg></svg>'
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


def _axes(
    chart: Chart,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    place: Callable[[float, float], str],
) -> str:
    parts = []
    for y in ticks(*y_range):
        right, down = place(x_range[0], y).split()
        style = "zero" if y == 0.0 and chart.zero_line else "grid"
        parts.append(f'<path class="{style}" d="M{right} {down}H{WIDTH - _RIGHT}"/>')
        label = f"{y:g}".replace("-", "\N{MINUS SIGN}")
        parts.append(f'<text x="{_LEFT - 6}" y="{float(down) + 4:.1f}" class="end">{label}</text>')
    for x in ticks(*x_range):
        right = place(x, y_range[0]).split()[0]
        label = f"{x:g}".replace("-", "\N{MINUS SIGN}")
        base = HEIGHT - _BOTTOM
        parts.append(f'<path class="grid" d="M{right} {base}v4"/>')
        parts.append(f'<text x="{right}" y="{base + 18}" class="middle">{label}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 6}" class="middle">{escape(chart.x_label)}</text>'
    )
    up = (_TOP + HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text transform="translate(14 {up}) rotate(-90)" class="middle">'
        f"{escape(chart.y_label)}</text>"
    )
    return "".join(parts)


def interval_svg(
    mean: float, low: float, high: float, scale: tuple[float, float], mark: float | None, style: str
) -> str:
    """A mean and its interval on a scale that rows share, with a line at `mark`."""
    width = 200

    def place(value: float) -> float:
        return 6 + (value - scale[0]) / (scale[1] - scale[0]) * (width - 12)

    line = "" if mark is None else f'<path class="mark" d="M{place(mark):.1f} 0v22"/>'
    ends = f"M{place(low):.1f} 7v8m0-4H{place(high):.1f}m0-4v8"
    return (
        f'<svg class="interval {escape(style)}" viewBox="0 0 {width} 22" aria-hidden="true">{line}'
        f'<path class="whisker" d="{ends}"/><circle cx="{place(mean):.1f}" cy="11" r="4.5"/></svg>'
    )


def interval_scale(estimates: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """The range that all `(mean, low, high)` lie in, a little wider."""
    return _range([value for estimate in estimates for value in estimate])


def robust_range(values: Sequence[float]) -> tuple[float, float]:
    """The values' range, without what lies far below nearly all of them."""
    low, high = float(np.quantile(values, 0.05)), max(values)
    return _range([max(min(values), low - (high - low)), high])
