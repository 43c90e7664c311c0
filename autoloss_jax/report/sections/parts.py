"""Which parts of the found loss matter, if an ablation has asked."""

from collections.abc import Mapping, Sequence
from typing import Any

from autoloss_jax.language.simplification import simplify
from autoloss_jax.metrics import metric_title
from autoloss_jax.report import markup, wording
from autoloss_jax.report.differences import Differences
from autoloss_jax.report.markup import Column, Html, Row, Section
from autoloss_jax.report.reading import RunFiles
from autoloss_jax.report.sections.formula import best_expression, readable
from autoloss_jax.report.wording import number


def parts(run: RunFiles) -> Section:
    """The verdict of the ablation, and what is lost without each part of the loss."""
    content = run.ablation
    assert content is not None  # without one the page has no such section
    nearest = content.get("nearest")
    rows = [*content["ablations"], *([nearest] if isinstance(nearest, Mapping) else [])]
    metric = metric_title(str(content.get("metric") or run.metric))
    differences = Differences(rows)
    columns = (
        Column("without", "name"),
        Column("difference to the whole loss", "plot"),
        Column("difference", "number"),
        Column("p", "number"),
        Column("cosine", "number"),
    )
    body = []
    for row in rows:
        style = "hand_designed" if row is nearest else "found"
        cells = (
            _removed(row, nearest),
            differences.plot(row, style, row.get("reason") or wording.NOTHING),
            wording.interval(row.get("difference"), signed=True),
            wording.p_value(row),
            number(row.get("cosine"), 3),
        )
        body.append(Row(cells, style))
    body += differences.axis(len(columns))
    of = "" if _same_loss(run, content) else f" It is of another loss: {content.get('formula')}."
    return Section(
        "Which of its parts matter",
        "parts",
        markup.paragraph(f"{wording.with_minus(str(content.get('verdict')))}{of}"),
        markup.table(columns, body, "cards"),
        markup.paragraph(_note(content, metric), "note"),
        markup.details("What is left without each part", _formulas(rows, nearest)),
    )


def _removed(row: Mapping[str, Any], nearest: object) -> Html:
    if row is nearest:
        badge = markup.badge("the nearest hand-designed loss")
        return Html(f"{markup.text(row.get('name'))} {badge}")
    return markup.code(row.get("removed"))


def _formulas(rows: Sequence[Mapping[str, Any]], nearest: object) -> Html:
    columns = Column("without", "name"), Column("formula", "formula")
    body = [Row((_removed(row, nearest), markup.code(row.get("formula")))) for row in rows]
    return markup.table(columns, body, "cards")


def _same_loss(run: RunFiles, content: Mapping[str, Any]) -> bool:
    best, ablated = best_expression(run), readable(content.get("formula"))
    return best is not None and ablated is not None and simplify(best) == simplify(ablated)


def _note(content: Mapping[str, Any], metric: str) -> str:
    whole = content.get("whole")
    mean = wording.interval(whole.get("test")) if isinstance(whole, Mapping) else wording.NOTHING
    convention = f"{wording.empty_convention(content)} {wording.truncation(content)}".strip()
    return (
        f"The whole loss has {metric} {mean}, by other models than those above: it was chosen by "
        "those. Differences are paired by test query, in brackets 95 % intervals; p by a "
        "randomisation test, corrected for all parts that were trained (Holm), of the nearest loss "
        "as it is. Cosine: between the gradients of what is left and of the whole loss. "
        f"{convention}"
    )
