"""Where a loss pushes the scores of a list of three documents, as a field of arrows."""

import functools
import itertools
import math
from html import escape
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from autoloss_jax.execution.exact import compile_loss
from autoloss_jax.language.expressions import Expression
from autoloss_jax.report.figures.charts import tick_label

LABELS = (2.0, 1.0, 0.0)
REACH = 3.0
_COUNT = 12
GRID = (np.arange(_COUNT) + 0.5) / _COUNT * 2 * REACH - REACH  # no point is a tie of neighbours

_SIZE, _LEFT, _TOP, _BOTTOM, _RIGHT = 480, 74, 12, 62, 16
_SIDE = _SIZE - _LEFT - _RIGHT
_HEIGHT = _TOP + _SIDE + _BOTTOM


class Field(NamedTuple):
    """Descent directions of the two score differences, at most 1 long.

    across: f64[rows, columns], of the first difference; up: of the second. Rows are the second
    difference over GRID, columns the first.
    """

    across: np.ndarray
    up: np.ndarray


@functools.lru_cache(maxsize=64)  # a compilation each
def gradient_field(expression: Expression) -> Field | None:
    """The field of labels 2, 1, 0 over the differences of neighbouring scores; None if it is flat.

    The scores have mean 0. The longest arrow gets length 1.
    """
    first, second = np.meshgrid(GRID, GRID)  # s(2) - s(1), s(1) - s(0)
    middle = (second - first) / 3
    scores = np.stack([middle + first, middle, middle - second], axis=-1)
    loss_fn = compile_loss(expression)
    labels = jnp.broadcast_to(jnp.array(LABELS), scores.shape)
    gradient = jax.jit(jax.grad(lambda s: loss_fn(s, labels, reduce_fn=jnp.sum)))
    slopes = np.asarray(gradient(jnp.asarray(scores, jnp.float32)), np.float64)
    across, up = slopes[..., 1] - slopes[..., 0], slopes[..., 2] - slopes[..., 1]
    longest = float(np.hypot(across, up).max())
    if not 0.0 < longest < 1e29:
        return None
    return Field(across / longest, up / longest)


def _right(x: float) -> float:
    return _LEFT + (x + REACH) / (2 * REACH) * _SIDE


def _down(y: float) -> float:
    return _TOP + (REACH - y) / (2 * REACH) * _SIDE


def field_svg(field: Field, title: str) -> str:
    """The arrows, over the six orders of the documents, which are shaded by their NDCG."""
    arrows = "".join(
        _arrow(float(x), float(y), float(field.across[row, column]), float(field.up[row, column]))
        for row, y in enumerate(GRID)
        for column, x in enumerate(GRID)
    )
    return (
        f'<svg class="chart field" viewBox="0 0 {_SIZE} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{_regions()}<path class="arrow" d="{arrows}"/>'
        f"{_region_labels()}{_axes()}</svg>"
    )


def _arrow(x: float, y: float, across: float, up: float) -> str:
    """A shaft and a head in the direction of descent; a point where there is none.

    Its length is the root of the gradient's, so that weak pushes can still be seen.
    """
    length = math.hypot(across, up)
    right, down = _right(x), _down(y)
    if length < 1e-6:
        return f"M{right:.1f} {down:.1f}h.1"
    cell = _SIDE / _COUNT
    scale = cell * 0.92 * math.sqrt(length) / length
    dx, dy = across * scale, -up * scale
    x0, y0, x1, y1 = right - dx / 2, down - dy / 2, right + dx / 2, down + dy / 2
    size = min(6.0, 0.45 * cell * math.sqrt(length)) / math.hypot(dx, dy)
    sides = [
        (x1 - size * (dx * c - dy * s), y1 - size * (dx * s + dy * c))
        for c, s in ((math.cos(0.5), math.sin(0.5)), (math.cos(0.5), -math.sin(0.5)))
    ]
    head = f"L{x1:.1f} {y1:.1f}L".join(f"{x:.1f} {y:.1f}" for x, y in sides)
    # The head's line goes from one side over the tip to the other.
    return f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}M{head}"


def order_ndcg(order: tuple[int, ...]) -> float:
    """NDCG of the documents of LABELS in an order, given as their places.

    >>> order_ndcg((0, 1, 2))
    1.0
    """

    def dcg(places: tuple[int, ...]) -> float:
        return sum((2 ** LABELS[p] - 1) / math.log2(2 + k) for k, p in enumerate(places))

    return dcg(order) / dcg((0, 1, 2))


# Each order of the three documents is a region of the plane, bounded by the lines on which two
# scores tie; its corners as (x, y), x being s(2) - s(1) and y s(1) - s(0).
_R = REACH
_REGIONS = {
    (0, 1, 2): ((0, 0), (_R, 0), (_R, _R), (0, _R)),
    (0, 2, 1): ((0, 0), (_R, 0), (_R, -_R)),
    (2, 0, 1): ((0, 0), (_R, -_R), (0, -_R)),
    (2, 1, 0): ((0, 0), (0, -_R), (-_R, -_R), (-_R, 0)),
    (1, 2, 0): ((0, 0), (-_R, 0), (-_R, _R)),
    (1, 0, 2): ((0, 0), (-_R, _R), (0, _R)),
}


def _regions() -> str:
    parts = []
    least = min(order_ndcg(order) for order in itertools.permutations(range(3)))
    for order, corners in _REGIONS.items():
        ndcg = order_ndcg(order)
        points = " ".join(f"{_right(x):.1f},{_down(y):.1f}" for x, y in corners)
        opacity = 0.04 + 0.3 * (ndcg - least) / (1 - least)
        parts.append(f'<polygon points="{points}" fill-opacity="{opacity:.2f}"/>')
    ties = f"M{_LEFT} {_down(0):.1f}h{_SIDE}M{_right(0):.1f} {_TOP}v{_SIDE}"
    ties += f"M{_right(-_R):.1f} {_down(_R):.1f}L{_right(_R):.1f} {_down(-_R):.1f}"
    return "".join(parts) + f'<path class="grid" d="{ties}"/>'


def _region_labels() -> str:
    parts = []
    for order, corners in _REGIONS.items():
        x, y = (sum(values) / len(corners) for values in zip(*corners, strict=True))
        parts.append(
            f'<text x="{_right(x):.1f}" y="{_down(y) + 5:.1f}" class="middle region">'
            f"{order_ndcg(order):.2f}</text>"
        )
    return "".join(parts)


def _axes() -> str:
    parts = []
    base = _TOP + _SIDE
    for tick in (-2, 0, 2):
        parts.append(
            f'<text x="{_right(tick):.1f}" y="{base + 20}" class="middle">{tick_label(tick)}</text>'
            f'<text x="{_LEFT - 7}" y="{_down(tick) + 5:.1f}" class="end">{tick_label(tick)}</text>'
        )
    middle = _TOP + _SIDE / 2
    minus = "\N{MINUS SIGN}"
    parts.append(
        f'<text x="{_LEFT + _SIDE / 2:g}" y="{base + 46}" class="middle">'
        f"score of label 2 {minus} of label 1</text>"
        f'<text transform="translate(20 {middle:g}) rotate(-90)" class="middle">'
        f"score of label 1 {minus} of label 0</text>"
    )
    return "".join(parts)
