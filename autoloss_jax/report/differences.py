"""The differences of a table's rows, as points with intervals on one scale."""

from collections.abc import Iterable, Mapping
from typing import Any

from autoloss_jax.report import wording
from autoloss_jax.report.figures.intervals import interval_axis, interval_scale, interval_svg
from autoloss_jax.report.markup import Html, Row


class Differences:
    """Draws what rows have under `difference`, with a dashed line at 0."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        known = [e for row in rows if (e := wording.as_estimate(row.get("difference")))]
        self._scale, self._any = interval_scale(known, [0.0]), bool(known)

    def plot(self, row: Mapping[str, Any], style: str, otherwise: str = wording.NOTHING) -> Any:
        """A row's cell; `otherwise` if the row has no difference."""
        difference = row.get("difference")
        estimate = wording.as_estimate(difference)
        if estimate is None:
            return otherwise
        words = wording.interval(difference, signed=True)
        return Html(interval_svg(estimate, self._scale, 0.0, style, f"difference {words}"))

    def axis(self, columns: int) -> list[Row]:
        """The row below, with the scale in the second of the columns; [] if nothing is drawn."""
        if not self._any:
            return []
        return [Row(("", Html(interval_axis(self._scale)), *[""] * (columns - 2)), "axis")]
