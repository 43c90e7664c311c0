"""Line charts for notebooks, which show an object's `_repr_html_`."""

from collections.abc import Mapping
from html import escape
from typing import NamedTuple

from autoloss_jax.errors import AutolossError
from autoloss_jax.report.figures.charts import Chart, Curve, Points, chart_svg

_COLOURS = {
    "first": "stroke: #d9480f",
    "second": "stroke: #3b82c4; stroke-dasharray: 7 4",
    "third": "stroke: #9b59d0; stroke-dasharray: 2 4",
    "fourth": "stroke: #2f9e5b; stroke-dasharray: 10 3 2 3",
}
"""By the class of a curve; readable on light and dark, for a notebook follows its own theme."""

_STYLE = """
.autoloss-picture { max-width: 36rem; }
.autoloss-picture .chart { display: block; width: 100%; height: auto; }
.autoloss-picture .chart text { font: 13px system-ui, sans-serif; fill: currentColor; }
.autoloss-picture .end { text-anchor: end; } .autoloss-picture .middle { text-anchor: middle; }
.autoloss-picture path { fill: none; stroke: currentColor; }
.autoloss-picture .grid { stroke-opacity: .15; }
.autoloss-picture .zero { stroke-opacity: .5; stroke-dasharray: 2 3; }
.autoloss-picture .curve, .autoloss-picture .key path { stroke-width: 2.25; }
.autoloss-picture .dot { stroke-width: 4; stroke-linecap: round; stroke-opacity: .4; }
.autoloss-picture .key { margin-right: 1.25rem; white-space: nowrap; }
.autoloss-picture .key svg { width: 2rem; height: .6rem; margin-right: .4rem; }
"""


class Picture(NamedTuple):
    """A chart with its legend, as HTML; a notebook shows it."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def picture(
    title: str,
    x_label: str,
    y_label: str,
    curves: Mapping[str, Points],
    dots: Points = (),
) -> Picture:
    """A line chart to show in a notebook.

    Args:
      title: what it shows, for those who cannot see it.
      x_label: along the horizontal axis.
      y_label: along the vertical axis.
      curves: up to four, points (x, y) by the name that the legend gives them.
      dots: single points (x, y) besides.

    Raises:
      AutolossError: no curve, or more than four.
    """
    if not 1 <= len(curves) <= len(_COLOURS):
        raise AutolossError(f"{len(curves)} curves, expected 1 to {len(_COLOURS)}")
    styles = dict(zip(curves, _COLOURS, strict=False))
    lines = [Curve(points, styles[name]) for name, points in curves.items()]
    svg = chart_svg(Chart(title, x_label, y_label, lines, dots=dots))
    colours = "".join(f".autoloss-picture .{name} {{ {c}; }}\n" for name, c in _COLOURS.items())
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 32 10"><path class="{styles[name]}" d="M0 5H32"/>'
        f"</svg>{escape(name)}</span>"
        for name in curves
    )
    style = f"<style>{_STYLE}{colours}</style>"
    return Picture(f'<div class="autoloss-picture">{style}{svg}<div>{keys}</div></div>')
