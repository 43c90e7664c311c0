"""Found and hand-designed losses side by side on test queries."""

import json
from collections.abc import Mapping
from typing import Any

from autoloss_jax.metrics import metric_title
from autoloss_jax.report import markup, wording
from autoloss_jax.report.differences import Differences
from autoloss_jax.report.markup import Column, Html, Row, Section
from autoloss_jax.report.reading import RunFiles, is_number
from autoloss_jax.report.wording import number

_TITLE, _ANCHOR = "Found and hand-designed losses on test queries", "comparison"
_NO_TEST = "The effectiveness test has not been run: there is no effectiveness.json yet."


def comparison(run: RunFiles) -> Section:
    """Every tested loss with its figures and the interval of its difference to the one to beat."""
    content = run.effectiveness
    if content is None:
        return Section(_TITLE, _ANCHOR, markup.missing(_NO_TEST))
    metric = run.metric
    rows = wording.sorted_rows(content["rows"], metric)
    best = run.best_hand_designed or "the best hand-designed loss"
    differences = Differences(rows)
    columns = [
        Column("loss", "name"),
        Column(f"difference to {best}", "plot"),
        Column("difference", "number"),
        Column(metric_title(metric), "number"),
        Column("p", "number"),
    ]
    counted = any(is_number(row.get("wins")) for row in rows)
    if counted:
        columns.append(Column("better / same / worse", "number minor"))
    body = []
    for row in rows:
        to_beat = row.get("name") == best
        body.append(_row(run, row, differences, to_beat=to_beat, counted=counted))
    body += differences.axis(len(columns))
    convention = wording.empty_convention(content)
    return Section(
        _TITLE,
        _ANCHOR,
        markup.paragraph(_reading(best, metric)),
        *_confirmed(run),
        markup.legend(_legend(rows)),
        markup.table(columns, body, "cards"),
        markup.paragraph(_test_note(content), "note"),
        markup.details("All metrics", _all_metrics(rows, metric, convention)),
        markup.details("Tests and effect sizes", _statistics(rows, best, convention)),
        markup.details("Formulas and learning rates", _formulas(rows)),
    )


def _row(
    run: RunFiles,
    row: Mapping[str, Any],
    differences: Differences,
    *,
    to_beat: bool,
    counted: bool,
) -> Row:
    kind, style = str(row.get("kind")), wording.style(row)
    known = kind == "hand_designed" or str(row.get("name")).startswith(kind)
    badges = [] if known else [wording.KINDS.get(kind, kind)]
    badges += ["the one to beat"] if to_beat else []
    badges += ["chosen by validation"] if row is run.best_row else []
    name = Html(f"{markup.text(row.get('name'))} {''.join(map(markup.badge, badges))}")
    words = wording.interval(row.get("difference"), signed=True)
    mean = wording.interval((row.get("test") or {}).get(run.metric))
    p_value = wording.NOTHING if to_beat else wording.p_value(row)
    cells = [
        name,
        differences.plot(row, style),
        wording.NOTHING if to_beat else words,
        mean,
        p_value,
    ]
    if counted:
        cells.append(wording.NOTHING if to_beat else wording.wins_ties_losses(row))
    return Row(cells, f"{style} chosen" if row is run.best_row else style)


def _reading(best: str, metric: str) -> str:
    return (
        f"Each point is a loss\u2019s {metric_title(metric)} less that of {best}, query by query, "
        "and its line the 95 % interval; right is better. Where the line crosses the dashed 0, "
        "chance explains the difference."
    )


def _confirmed(run: RunFiles) -> list[Html]:
    """A paragraph on the fresh seeds that the verdict rests on, if there are such."""
    confirmation = run.confirmation
    if confirmation is None:
        return []
    found, other = confirmation["found"], confirmation["hand_designed"]
    means = [number(wording.mean_of(row, run.metric)) for row in (found, other)]
    return [
        markup.paragraph(
            f"The verdict rests on other trainings, of the loss marked here and of "
            f"{other.get('name')} alone: on {confirmation.get('seeds')} fresh seeds their "
            f"{run.metric_title} is {means[0]} and {means[1]}, a difference of "
            f"{wording.interval(found.get('difference'), signed=True)}, "
            f"p = {wording.p_value(found)}."
        )
    ]


def _legend(rows: list[Mapping[str, Any]]) -> list[tuple[str, str]]:
    marks = {"found": "found-mark", "hand_designed": "other-mark", "reference": "reference-mark"}
    kinds = {str(row.get("kind")) for row in rows}
    return [(mark, wording.KINDS[kind]) for kind, mark in marks.items() if kind in kinds]


def _test_note(content: Mapping[str, Any]) -> str:
    corrected = any(row.get("p_value_corrected") is not None for row in content["rows"])
    folds, seeds = content.get("folds"), content.get("seeds")
    parts = ["In brackets 95 % intervals."]
    if content.get("best_found"):
        parts.append(
            "The marked loss is the one that validation queries chose; another that looks better "
            "here does so on the test queries only, and taking it would be taking luck."
        )
    if corrected:
        parts.append(
            "p: how often chance alone makes such a difference, by a paired randomisation test, "
            "corrected for the number of comparisons (Holm)."
        )
    parts += [wording.empty_convention(content), *filter(None, [wording.truncation(content)])]
    if isinstance(folds, list) and folds:
        parts.append(f"Folds: {', '.join(map(str, folds))}.")
    if is_number(seeds):
        parts.append(f"Seeds per loss: {seeds}.")
    failed = content.get("failed")
    if isinstance(failed, list) and failed:
        reasons = content.get("failure_reasons")
        why = reasons if isinstance(reasons, dict) else {}
        names = [f"{name} ({why[name]})" if why.get(name) else str(name) for name in failed]
        parts.append(f"Not shown, since training broke down: {', '.join(names)}.")
    return " ".join(parts)


def _all_metrics(rows: list[Mapping[str, Any]], metric: str, convention: str) -> Html:
    names = dict.fromkeys([metric, *(name for row in rows for name in row.get("test") or {})])
    columns = (Column("loss", "name"), *(Column(metric_title(name), "number") for name in names))
    body = [
        Row((row.get("name"), *(number(wording.mean_of(row, name)) for name in names)),
            wording.style(row))
        for row in rows
    ]  # fmt: skip
    return Html(markup.table(columns, body, "cards") + markup.paragraph(convention, "note"))


def _statistics(rows: list[Mapping[str, Any]], best: str, convention: str) -> Html:
    columns = (
        Column("loss", "name"),
        Column("effect size", "number"),
        Column("p randomisation", "number"),
        Column("p t-test", "number"),
        Column("p corrected (Holm)", "number"),
        Column("better / same / worse", "number"),
    )
    body = [
        Row(
            (
                row.get("name"),
                number(row.get("effect_size"), 3, signed=True),
                *(
                    wording.probability(row.get(key))
                    for key in ("p_value", "t_p_value", "p_value_corrected")
                ),
                wording.wins_ties_losses(row),
            ),
            wording.style(row),
        )
        for row in rows
        if row.get("name") != best
    ]
    note = (
        f"All against {best}, paired by query. Effect size: the mean difference over its standard "
        f"deviation (Cohen\u2019s d). {convention}"
    )
    return Html(markup.table(columns, body, "cards") + markup.paragraph(note, "note"))


def _formula(row: Mapping[str, Any]) -> Html:
    """The formula, or the settings of what has none."""
    formula = row.get("formula")
    if formula is None:
        formula = json.dumps(row["settings"]) if row.get("settings") else wording.NOTHING
    return markup.code(formula)


def _formulas(rows: list[Mapping[str, Any]]) -> Html:
    columns = (
        Column("loss", "name"),
        Column("learning rate", "number"),
        Column("formula", "formula"),
    )
    body = [
        Row(
            (
                row.get("name"),
                wording.rates(row.get("learning_rate")),
                _formula(row),
            )
        )
        for row in rows
    ]
    return markup.table(columns, body, "cards")
