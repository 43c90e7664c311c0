"""The sections of a run's page, each from the run's files alone."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from autoloss_jax.errors import AutolossError
from autoloss_jax.export import export_latex, export_mathml, export_source
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import LOSSES
from autoloss_jax.report import markup, wording
from autoloss_jax.report.charts import interval_scale, interval_svg
from autoloss_jax.report.figures import LossShape, loss_shape, search_curve, shape_charts
from autoloss_jax.report.markup import Column, Html, Row
from autoloss_jax.report.reading import RunFiles, is_number
from autoloss_jax.report.wording import number

MAX_REASONS = 15
_NO_FINALISTS = "The search has not finished: there is no finalists.json yet."
_NO_TEST = "The effectiveness test has not been run: there is no effectiveness.json yet."


def verdict(run: RunFiles) -> Html:
    """The sentence a reader wants first."""
    if run.effectiveness and run.effectiveness.get("verdict"):
        sentence = str(run.effectiveness["verdict"])
    elif run.effectiveness:
        sentence = "The effectiveness test recorded no verdict."
    elif run.best:
        sentence = (
            "No verdict yet: the losses found have not been tested against the hand-designed ones."
        )
    else:
        sentence = "No verdict yet: the search has not trained a loss."
    return markup.paragraph(sentence, "verdict")


def best_expression(run: RunFiles) -> Expression | None:
    """The best found loss; None if there is none or its text is not of this loss language."""
    if run.best is None:
        return None
    try:
        return parse(str(run.best.get("formula")))
    except AutolossError:
        return None


def best_loss(run: RunFiles) -> Html:
    title = "The best loss found"
    if run.best is None:
        return markup.section(title, markup.missing("No loss has been trained yet."))
    formula = str(run.best.get("formula"))
    expression = best_expression(run)
    if expression is None:
        note = "This version of the loss language cannot read the formula."
        return markup.section(title, markup.preformatted(formula), markup.missing(note))
    use = (
        "import autoloss_jax as al\n\n"
        f'loss_fn = al.compile_loss(\n    "{expression}"\n)\n'
        "value = loss_fn(scores, labels, where=mask)  # arrays [queries, list]\n"
    )
    return markup.section(
        title,
        Html(f'<div class="math">{export_mathml(expression)}</div>'),
        markup.paragraph(_symbols(expression), "note"),
        markup.preformatted(use),
        markup.details(
            "The same as a module that needs JAX only (best_loss.py)",
            markup.preformatted(export_source(expression, "jax")),
        ),
        markup.details("LaTeX", markup.preformatted(export_latex(expression))),
    )


def _symbols(expression: Expression) -> str:
    """What the formula's letters mean, as far as they occur."""
    meanings = {
        ("s_i", "s_j"): "s a document\u2019s score",
        ("y_i", "y_j"): "y its label",
        ("gain_i", "gain_j"): "g its gain 2^y \N{MINUS SIGN} 1",
        ("rank_i", "rank_j"): "\u03c1 its rank by score",
        ("discount_i", "discount_j"): "d its discount 1 / log2(1 + \u03c1)",
        ("n",): "n the number of documents",
        ("max_dcg",): "DCG\u2217 the DCG of the ideal order",
        ("sigmoid",): "\u03c3 the sigmoid",
        ("stop_gradient",): "sg no gradient flows through",
    }
    present = [text for names, text in meanings.items() if expression.uses(*names)]
    return f"{', '.join(present)}. The loss of a batch is the mean over its queries."


def comparison(run: RunFiles) -> Html:
    title = "Found and hand-designed losses on test queries"
    content = run.effectiveness
    if content is None:
        return markup.section(title, markup.missing(_NO_TEST))
    metric = run.metric
    rows = wording.sorted_rows(content["rows"], metric)
    best = str(content.get("best_hand_designed") or "the best hand-designed loss")
    estimates = {id(row): _estimate(row, metric) for row in rows}
    known = [estimate for estimate in estimates.values() if estimate]
    scale = interval_scale(known) if known else (0.0, 1.0)
    mark = next((wording.mean_of(r, metric) for r in rows if r.get("name") == best), None)
    columns = (
        Column("loss", "name"),
        Column("", "plot"),
        Column(f"{metric.upper()} [interval]", "number"),
        Column(f"difference to {best}", "number"),
        Column("p", "number"),
    )
    body = []
    for row in rows:
        kind, estimate = str(row.get("kind")), estimates[id(row)]
        plot = Html(interval_svg(*estimate, scale, mark, kind)) if estimate else wording.NOTHING
        badge = Html(f'<span class="badge">{markup.text(wording.KINDS.get(kind, kind))}</span>')
        mean = wording.interval((row.get("test") or {}).get(metric))
        difference = wording.interval(row.get("difference"), signed=True)
        name = Html(f"{markup.text(row.get('name'))} {badge}")
        body.append(Row((name, plot, mean, difference, wording.p_value(row)), kind))
    return markup.section(
        title,
        markup.table(columns, body, "cards"),
        markup.paragraph(_test_note(content, best), "note"),
        markup.details("All metrics", _all_metrics(rows, metric)),
        markup.details("Formulas and learning rates", _formulas(rows)),
    )


def _estimate(row: Mapping[str, Any], metric: str) -> tuple[float, float, float] | None:
    """Mean and interval of a test metric; the interval is the mean where none is recorded."""
    mean = wording.mean_of(row, metric)
    if mean is None:
        return None
    value = row["test"][metric]
    if (
        isinstance(value, Mapping)
        and is_number(value.get("ci_low"))
        and is_number(value["ci_high"])
    ):
        return mean, float(value["ci_low"]), float(value["ci_high"])
    return mean, mean, mean


def _test_note(content: Mapping[str, Any], best: str) -> str:
    corrected = any(row.get("p_value_corrected") is not None for row in content["rows"])
    folds, seeds = content.get("folds"), content.get("seeds")
    parts = [f"Differences are paired by query, against {best} (dashed line)."]
    if corrected:
        parts.append("p is corrected for the number of comparisons.")
    parts.append(wording.empty_convention(content))
    if isinstance(folds, list) and folds:
        parts.append(f"Folds: {', '.join(map(str, folds))}.")
    if is_number(seeds):
        parts.append(f"Seeds per loss: {seeds}.")
    return " ".join(parts)


def _all_metrics(rows: list[Mapping[str, Any]], metric: str) -> Html:
    names = dict.fromkeys([metric, *(name for row in rows for name in row.get("test") or {})])
    columns = (Column("loss"), *(Column(name.upper(), "number") for name in names))
    return markup.table(
        columns,
        [
            Row((row.get("name"), *(number(wording.mean_of(row, name)) for name in names)),
                str(row.get("kind")))
            for row in rows
        ],
    )  # fmt: skip


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
                markup.code(row.get("formula")),
            )
        )
        for row in rows
    ]
    return markup.table(columns, body, "cards")


def search_course(run: RunFiles) -> Html:
    title = "The search"
    if not run.ledger:
        missing = "No candidate has been recorded: there is no ledger.jsonl yet."
        return markup.section(title, markup.missing(missing))
    if not run.trained:
        return markup.section(title, markup.missing("No candidate has been trained yet."))
    reference = (run.finalists or {}).get("reference")
    curve = search_curve(
        run.trained, f"reward ({run.metric.upper()} gain)" if reference else "reward"
    )
    caption = f"Every candidate\u2019s reward as it was selected, over {len(run.trained)} trained."
    if reference:
        caption += f" 0 is {reference}."
    if curve.hidden:
        caption += f" {curve.hidden} lower rewards lie below the figure."
    lines = markup.legend(
        [("best", "best so far"), ("mean", "mean of a round"), ("dot", "candidate")]
    )
    return markup.section(title, lines, markup.figure(Html(curve.svg), caption))


def funnel(run: RunFiles) -> Html:
    title = "What became of the candidates"
    if not run.ledger:
        return markup.section(title, markup.missing("No candidate has been recorded yet."))
    total = len(run.ledger)
    counts = wording.status_counts(run.ledger)
    columns = (Column("", "name"), Column("candidates", "number"), Column("", "plot"))

    def row(name: str, count: int, meaning: str, style: str) -> Row:
        bar = Html(f'<span class="bar" style="width:{100 * count / total:.1f}%"></span>')
        about = Html(f'<span class="note">{markup.text(meaning)}</span>')
        return Row((Html(f"{markup.text(name)}<br>{about}"), count, bar), style)

    rows = [row("sampled", total, "all that were proposed", "all")]
    rows += [
        row(
            status,
            count,
            wording.STATUSES.get(status, "a status this version does not know"),
            status,
        )
        for status, count in counts.items()
    ]
    contents = [markup.table(columns, rows)]
    reasons = wording.reason_counts(run.ledger)
    if reasons:
        shown = [Row((reason, status, count)) for status, reason, count in reasons[:MAX_REASONS]]
        rest = sum(count for *_, count in reasons[MAX_REASONS:])
        if rest:
            shown.append(Row((f"{len(reasons) - MAX_REASONS} other reasons", "", rest)))
        head = (Column("reason"), Column("status"), Column("candidates", "number"))
        contents += [Html("<h3>Why they were not trained</h3>"), markup.table(head, shown)]
    return markup.section(title, *contents)


def shapes(run: RunFiles) -> Html:
    title = "The found loss beside RankNet and softmax"
    expression = best_expression(run)
    if expression is None:
        return markup.section(title, markup.missing("There is no found loss to draw yet."))
    named = {"third": ("softmax", LOSSES["softmax"]), "second": ("RankNet", LOSSES["ranknet"])}
    named["first"] = ("found", expression)
    computed = {style: loss_shape(loss) for style, (_, loss) in named.items()}
    drawn = {style: shape for style, shape in computed.items() if shape is not None}
    entries = [(style, named[style][0]) for style in reversed(named) if style in drawn]
    value, gradient = shape_charts(drawn)
    caption = (
        "Two documents, one relevant (label 1) and one not (label 0), their scores d/2 and "
        "\N{MINUS SIGN}d/2. Each loss is scaled to a steepest gradient of 1 and its value shifted "
        "to 0 at its lowest, since training normalises gradients."
    )
    caption += _coincidences({named[style][0]: shape for style, shape in drawn.items()})
    if "first" not in drawn:
        caption += " The found loss has no finite gradient here and is not drawn."
    panels = Html(f'<div class="panels">{value}{gradient}</div>')
    return markup.section(title, markup.legend(entries), markup.figure(panels, caption))


def _coincidences(drawn: Mapping[str, LossShape]) -> str:
    """A sentence for each pair of losses of which one hides the other."""
    return "".join(
        f" Here {a} and {b} coincide."
        for a, b in itertools.combinations(drawn, 2)
        if np.allclose(drawn[a].slopes, drawn[b].slopes, atol=1e-3)
    )


def hall_of_fame(run: RunFiles) -> Html:
    title = "Hall of fame"
    if run.finalists is None:
        return markup.section(title, markup.missing(_NO_FINALISTS))
    rows = run.finalists["finalists"]
    if not rows:
        return markup.section(title, markup.missing("No candidate was good enough to be kept."))
    columns = (
        Column("formula", "formula"),
        Column("size", "number"),
        Column("reward \u00b1 error", "number"),
        Column("when selected", "number"),
    )
    body = []
    for row in rows:
        reward = number(row.get("reward"), signed=True)
        if row.get("reward_se") is not None:
            reward += f" \u00b1 {number(row['reward_se'])}"
        selected = number(row.get("selection_reward"), signed=True)
        size = number(row.get("size"), 0)
        body.append(Row((markup.code(row.get("formula")), size, reward, selected)))
    reference = run.finalists.get("reference")
    against = f" over that of {reference}" if reference else ""
    note = (
        f"Reward: the gain in {run.metric.upper()}{against}, measured again on fresh seeds after "
        "the search; those by which they were selected are too high, being the best of many. "
        + wording.empty_convention(run.finalists)
    )
    return markup.section(
        title, markup.table(columns, body, "cards"), markup.paragraph(note, "note")
    )


def reproduction(run: RunFiles) -> Html:
    config = run.config.get("config", {})
    contents = []
    command = run.config.get("command") or (isinstance(config, Mapping) and config.get("command"))
    if command:
        line = " ".join(map(str, command)) if isinstance(command, list) else str(command)
        contents.append(markup.preformatted(line))
    contents.append(
        markup.paragraph(f"Begun {run.config.get('created', 'at an unrecorded time')}.", "note")
    )
    contents.append(markup.details("Configuration", _settings(config)))
    contents.append(markup.details("Environment", _settings(run.config.get("fingerprint", {}))))
    for number_, resumed in enumerate(run.config.get("resumed_with", []), start=1):
        contents.append(
            markup.details(f"Environment after resuming, {number_}", _settings(resumed))
        )
    return markup.section("To reproduce it", *contents)


def _settings(value: Any) -> Html:
    columns = (Column("setting"), Column("value"))
    rows = [Row((markup.code(key), markup.code(item))) for key, item in _flatten(value).items()]
    return markup.table(columns, rows)


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested objects as one with dotted keys; every other value as JSON."""
    if not isinstance(value, dict) or not value:
        return {prefix: json.dumps(value)}
    flat: dict[str, str] = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
