"""A run's results as tables for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from autoloss_jax.comparison import confirmed_rows
from autoloss_jax.files import printable
from autoloss_jax.metrics import metric_title
from autoloss_jax.report.reading import DEFAULT_METRIC
from autoloss_jax.report.wording import (
    KINDS,
    NOTHING,
    empty_convention,
    interval,
    number,
    p_value,
    probability,
    rates,
    sorted_rows,
    truncation,
)

_STYLES = {"found": "bold green", "reference": "dim"}


def _text(content: str) -> Text:
    """Text as it is: nothing in it is markup or an escape sequence."""
    return Text(printable(content))


def effectiveness_table(effectiveness: Mapping[str, Any]) -> Table:
    """The content of effectiveness.json: losses by descending test metric, with their intervals."""
    metric = str(effectiveness.get("metric") or DEFAULT_METRIC)
    best = effectiveness.get("best_hand_designed")
    table = Table(
        title=_text(str(effectiveness.get("verdict") or "Effectiveness test")),
        caption=_text(f"{empty_convention(effectiveness)} {truncation(effectiveness)}".strip()),
    )
    for heading in ("loss", "kind"):
        table.add_column(heading)
    for heading in (
        metric_title(metric),
        f"difference to {best or 'best hand-designed'}",
        "p",
        "rate",
    ):
        table.add_column(_text(heading), justify="right")
    confirmation = effectiveness.get("confirmation") or {}
    rows = [(row, "") for row in sorted_rows(effectiveness.get("rows", ()), metric)]
    rows += [
        (row, f", {confirmation.get('seeds')} fresh seeds") for row in confirmed_rows(confirmation)
    ]
    for row, seeds in rows:
        test = row.get("test") or {}
        table.add_row(
            _text(f"{row.get('name')}{seeds}"),
            _text(KINDS.get(str(row.get("kind")), str(row.get("kind")))),
            _text(interval(test.get(metric))),
            _text(interval(row.get("difference"), signed=True)),
            p_value(row),
            rates(row.get("learning_rate")),
            style=_STYLES.get(str(row.get("kind"))),
        )
    return table


def finalists_table(finalists: Mapping[str, Any] | list[Mapping[str, Any]]) -> Table:
    """The content of finalists.json: the hall of fame in its order."""
    content: Mapping[str, Any] = finalists if isinstance(finalists, Mapping) else {}
    rows = content.get("finalists", ()) if isinstance(finalists, Mapping) else finalists
    reference = content.get("reference")
    metric = metric_title(str(content.get("metric") or DEFAULT_METRIC))
    against = f", a difference in {metric} to {reference}" if reference else ""
    caption = f"Reward on fresh seeds{against}. {empty_convention(content)}"
    table = Table(title="Finalists", caption=_text(caption))
    table.add_column("#", justify="right")
    table.add_column("formula", overflow="fold")
    for heading in ("size", "reward", "error", "when selected"):
        table.add_column(heading, justify="right")
    for place, row in enumerate(rows, start=1):
        table.add_row(
            str(place),
            _text(str(row.get("formula"))),
            number(row.get("size"), 0),
            number(row.get("reward"), signed=True),
            number(row.get("reward_se")),
            number(row.get("selection_reward"), signed=True),
        )
    return table


def ablation_table(ablation: Mapping[str, Any]) -> Table:
    """The content of ablation.json: the whole loss, then what is left of it, the worst first."""
    metric = str(ablation.get("metric") or DEFAULT_METRIC)
    whole, nearest = ablation["whole"], ablation["nearest"]
    caption = (
        "Differences to the whole loss, paired by test query, with 95 % intervals; p by Holm for "
        f"all that were trained. {empty_convention(ablation)} {truncation(ablation)}"
    ).strip()
    table = Table(title=_text(str(ablation["formula"])), caption=_text(caption))
    for heading in ("without", "what is left"):
        table.add_column(heading, overflow="fold")
    for heading in ("cosine", metric_title(metric), "difference", "p"):
        table.add_column(heading, justify="right")
    table.add_row("nothing", "the whole loss", number(1, 3), interval(whole["test"]))
    for row in ablation["ablations"]:
        trained = row["test"] is not None
        table.add_row(
            _text(row["removed"]),
            _text(row["formula"]),
            number(row["cosine"], 3),
            interval(row["test"]) if trained else NOTHING,
            interval(row["difference"], signed=True) if trained else _text(row["reason"]),
            probability(row["p_value_corrected"]),
        )
    table.add_section()
    table.add_row(
        "nearest loss",
        _text(f"{nearest['name']}, hand-designed"),
        number(nearest["cosine"], 3),
        interval(nearest["test"]),
        interval(nearest["difference"], signed=True),
        probability(nearest["p_value"]),
    )
    return table
