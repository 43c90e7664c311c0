"""What a larger formula buys: size against reward and against the test metric."""

from collections.abc import Sequence

from autoloss_jax.report import markup, wording
from autoloss_jax.report.figures.charts import Mark
from autoloss_jax.report.figures.search import Sized, front_chart, pareto_front
from autoloss_jax.report.markup import Column, Html, Row, Section
from autoloss_jax.report.reading import RunFiles, is_number
from autoloss_jax.report.sections.formula import readable
from autoloss_jax.report.sections.search import fully_trained, reward_label
from autoloss_jax.report.wording import as_estimate, number

_NO_FINALISTS = "The search has not finished: there is no finalists.json yet."


def sizes(run: RunFiles) -> Section:
    """The Pareto fronts of the search and of the test."""
    title, anchor = "Size against quality", "size"
    candidates = [
        Sized(expression.size, float(record["reward"]), str(expression))
        for record in fully_trained(run)
        if (expression := readable(record.get("formula")))
    ]
    tested = [
        Sized(expression.size, mean, str(row.get("name")), wording.style(row))
        for row in run.rows
        if (expression := readable(row.get("formula")))
        and (mean := wording.mean_of(row, run.metric)) is not None
    ]
    if not candidates and not tested:
        return Section(title, anchor, markup.missing("No loss has been trained or tested yet."))
    panels, tables = [], []
    if candidates:
        panels.append(_search_front(run, candidates))
        note = "Rewards as they were selected: the best of many is always too high."
        tables.append(_front_table("The front of the search", candidates, reward_label(run), note))
    if tested:
        panels.append(_test_front(run, tested))
        note = "Read off the test queries afterwards: a picture, not a choice. "
        note += wording.empty_convention(run.effectiveness or {})
        metric = f"test {run.metric_title}"
        tables.append(_front_table("The front of the test", tested, metric, note))
    about = (
        "The line is the Pareto front: the best that a formula of at most that size reached. "
        "Size counts operators, quantities and numbers."
    )
    lines = markup.legend([("best", "Pareto front"), ("found-mark", "found"),
                           ("other-mark", "hand-designed")])  # fmt: skip
    return Section(
        title,
        anchor,
        markup.paragraph(about),
        Html(f'<div class="keep">{lines}<div class="panels">{"".join(panels)}</div></div>'),
        *tables,
    )


def _search_front(run: RunFiles, candidates: Sequence[Sized]) -> Html:
    finalists = (run.finalists or {}).get("finalists", ())
    marks = []
    for row in finalists:
        reward, error, size = row.get("reward"), row.get("reward_se"), row.get("size")
        if is_number(reward) and is_number(size):
            ends = (reward - error, reward + error) if is_number(error) else (None, None)
            marks.append(Mark(size, reward, "found", str(row.get("formula")), *ends))
    chart = front_chart(
        candidates, marks, reward_label(run), "Size of the candidates against their reward"
    )
    caption = f"In the search: {len(candidates):,} candidates trained to the end."
    if marks:
        caption += (
            " The marks are the finalists, evaluated again on fresh seeds, with standard errors."
        )
    if chart.hidden:
        caption += f" {chart.hidden:,} candidates lie below the figure."
    return markup.figure(Html(chart.svg), caption)


def _test_front(run: RunFiles, tested: Sequence[Sized]) -> Html:
    names = [f"{loss.name}: {number(loss.value)}" for loss in tested]
    marks = [
        Mark(loss.size, loss.value, loss.style, name)
        for loss, name in zip(tested, names, strict=True)
    ]
    label = f"test {run.metric_title}"
    chart = front_chart(tested, marks, label, "Size of the tested losses against test queries")
    caption = f"On test queries: {len(tested)} losses, trained to convergence."
    row = run.best_row
    half = as_estimate((row or {}).get("difference"))
    if half and half[1] < half[2]:
        caption += (
            f" Differences below about {number((half[2] - half[1]) / 2, 3)} are within chance."
        )
    return markup.figure(Html(chart.svg), caption)


def _front_table(title: str, losses: Sequence[Sized], value: str, note: str) -> Html:
    columns = (
        Column("size", "number"),
        Column(value, "number"),
        Column("loss", "formula"),
    )
    body = [
        Row((loss.size, number(loss.value, signed=loss.style == ""), markup.code(loss.name)))
        for loss in pareto_front(losses)
    ]
    content = markup.table(columns, body, "cards") + markup.paragraph(note, "note")
    return markup.details(title, Html(content))


def hall_of_fame(run: RunFiles) -> Section:
    """The finalists and what was left of their rewards on fresh seeds."""
    title, anchor = "Hall of fame", "fame"
    if run.finalists is None:
        return Section(title, anchor, markup.missing(_NO_FINALISTS))
    rows = run.finalists["finalists"]
    if not rows:
        nothing = "No candidate was good enough to be kept."
        return Section(title, anchor, markup.missing(nothing))
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
    against = f" over that of {run.reference}" if run.reference else ""
    note = (
        f"Reward: the gain in {run.metric_title}{against}, measured again on fresh seeds after "
        "the search, with its standard error. \u201cWhen selected\u201d is the reward that chose "
        "them among many, which luck may have flattered. " + wording.empty_convention(run.finalists)
    )
    contents = [markup.table(columns, body, "cards"), markup.paragraph(note, "note")]
    rediscovered = run.finalists.get("rediscovered")
    if isinstance(rediscovered, list) and rediscovered:
        names = ", ".join(map(str, rediscovered))
        contents.append(
            markup.paragraph(
                f"Hand-designed losses that the search rediscovered among its best: {names}. They "
                "are no finds and not listed."
            )
        )
    return Section(title, anchor, *contents)
