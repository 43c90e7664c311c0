"""The search: its course, and what became of the candidates."""

from collections.abc import Mapping
from typing import Any

from autoloss_jax.report import markup, wording
from autoloss_jax.report.figures.search import search_curve
from autoloss_jax.report.markup import Column, Html, Row, Section
from autoloss_jax.report.reading import RunFiles

MAX_REASONS = 15
_NO_LEDGER = "No candidate has been recorded: there is no ledger.jsonl yet."


def search_course(run: RunFiles) -> Section:
    """The rewards of the candidates in the order they were trained."""
    title, anchor = "The search", "search"
    if not run.ledger:
        return Section(title, anchor, markup.missing(_NO_LEDGER))
    if not run.trained:
        return Section(title, anchor, markup.missing("No candidate has been trained yet."))
    curve = search_curve(run.trained, reward_label(run))
    caption = (
        f"Every candidate\u2019s reward as it was selected, over {len(run.trained):,} trained."
    )
    reference = run.reference
    if reference:
        caption += f" 0 is {reference}, the loss that rewards are measured against"
        best = run.best_hand_designed
        other = f"; the test compares with {best} instead, which validation queries chose"
        caption += f"{other if best not in (None, reference) else ''}."
    if curve.hidden:
        caption += f" {curve.hidden:,} lower rewards lie below the figure."
    lines = markup.legend(
        [("best", "best so far"), ("mean", "mean of a round"), ("dot", "candidate")]
    )
    about = (
        "A candidate\u2019s reward is what a small model gains in "
        f"{run.metric_title} when trained under it, by cross-validation inside the training "
        "queries; no validation or test query takes part."
    )
    return Section(
        title, anchor, markup.paragraph(about), markup.figure(Html(lines + curve.svg), caption)
    )


def reward_label(run: RunFiles) -> str:
    """What the axis of rewards says."""
    return f"reward ({run.metric_title} gain)" if run.reference else "reward"


def funnel(run: RunFiles) -> Section:
    """How many candidates were left after each step, and why the others fell away."""
    title, anchor = "What became of the candidates", "funnel"
    if not run.ledger:
        return Section(title, anchor, markup.missing("No candidate has been recorded yet."))
    total = len(run.ledger)

    def row(name: str, count: int, meaning: str, style: str) -> Row:
        bar = Html(f'<span class="bar" style="width:{100 * count / total:.1f}%"></span>')
        about = Html(f'<span class="note">{markup.text(meaning)}</span>')
        return Row((Html(f"{markup.text(name)}<br>{about}"), f"{count:,}", bar), style)

    columns = (Column("step", "name"), Column("left", "number"), Column("", "plot"))
    contents = [markup.table(columns, [row(*stage) for stage in _stages(run)], "funnel")]
    reasons = wording.reason_counts(run.ledger)
    if reasons:
        shown = [
            Row((reason, status, f"{count:,}")) for status, reason, count in reasons[:MAX_REASONS]
        ]
        rest = sum(count for *_, count in reasons[MAX_REASONS:])
        if rest:
            shown.append(Row((f"{len(reasons) - MAX_REASONS} other reasons", "", f"{rest:,}")))
        head = (Column("reason"), Column("status"), Column("candidates", "number"))
        contents += [
            Html("<h3>Why they were not trained</h3>"),
            markup.table(head, shown, "reasons"),
        ]
    return Section(title, anchor, *contents)


def _stages(run: RunFiles) -> list[tuple[str, int, str, str]]:
    """Name, count of what is left, meaning and style of each step of the funnel."""
    counts = wording.status_counts(run.ledger)
    left = len(run.ledger)
    stages = [("sampled", left, "all that were proposed", "all")]
    fell = {"duplicate": "new", "rejected": "accepted", "failed": "trained"}
    cause = {"duplicate": "duplicate", "rejected": "rejected", "failed": "failed"}
    unknown = [status for status in counts if status not in wording.STATUSES]
    for status in unknown:
        left -= counts[status]
        stages.append((f"not {status}", left, f"{counts[status]:,} of an unknown status", ""))
    for status, name in fell.items():
        left -= counts[status]
        meaning = f"{counts[status]:,} {cause[status]}: {wording.STATUSES[status]}"
        meaning = meaning if counts[status] else f"no {cause[status]} ones"
        stages.append((name, left, meaning, "trained" if name == "trained" else ""))
    full = len(fully_trained(run))
    if run.trained and full < left:
        stages.append(("promoted", full, "trained to the last rung, the others stopped earlier",
                       "trained"))  # fmt: skip
    if run.finalists is not None:
        meaning = "the best, evaluated again on fresh seeds"
        stages.append(("finalists", len(run.finalists["finalists"]), meaning, "trained"))
    return stages


def fully_trained(run: RunFiles) -> list[Mapping[str, Any]]:
    """The trained candidates that passed every rung: only their rewards compare."""
    steps = [record.get("steps") or 0 for record in run.trained]
    return [r for r, s in zip(run.trained, steps, strict=True) if s == max(steps)]
