"""What a reader wants first: the verdict, what to do, and the figures it stands on."""

from autoloss_jax.report import markup, wording
from autoloss_jax.report.markup import Html
from autoloss_jax.report.reading import RunFiles, is_number
from autoloss_jax.report.sections.queries import best_tally
from autoloss_jax.report.wording import Outcome, number

HEADINGS = {
    Outcome.BETTER: "A better loss was found",
    Outcome.NOT_SHOWN: "No better loss is shown",
    Outcome.WORSE: "The found loss is worse",
    Outcome.NOTHING_FOUND: "No found loss was compared",
    Outcome.UNKNOWN: "No verdict",
}


def verdict(run: RunFiles) -> Html:
    """The verdict's sentence, what follows from it, and the main figures."""
    result = wording.outcome(run)
    parts = [
        Html(f'<p class="outcome">{HEADINGS[result]}</p>'),
        markup.paragraph(verdict_sentence(run)),
    ]
    advice = _advice(run, result)
    if advice:
        parts.append(markup.paragraph(advice, "advice"))
    box = f'<div class="verdict {result.value}">{"".join(parts)}</div>'
    return Html(box + markup.facts(_glance(run), "glance"))


def verdict_sentence(run: RunFiles) -> str:
    """The sentence of the effectiveness test, or why there is none."""
    if run.effectiveness and run.effectiveness.get("verdict"):
        return wording.with_minus(str(run.effectiveness["verdict"]))
    if run.effectiveness:
        return "The effectiveness test recorded no verdict."
    if run.best:
        return (
            "No verdict yet: the losses found have not been tested against the hand-designed ones."
        )
    return "No verdict yet: the search has not trained a loss."


def _advice(run: RunFiles, result: Outcome) -> str:
    """What to train with."""
    best = run.best_hand_designed
    if result is Outcome.BETTER:
        return "What to do: train with the found loss; the code is below."
    if best is None or result is Outcome.UNKNOWN:
        return ""
    advice = f"What to do: train with {best}."
    difference = (run.verdict_row or {}).get("difference")
    if result is Outcome.NOT_SHOWN and isinstance(difference, dict):
        low, high = difference.get("ci_low"), difference.get("ci_high")
        if is_number(low) and is_number(high):
            advice += (
                f" With these test queries a difference is known to about \u00b1\u00a0"
                f"{number((high - low) / 2, 3)} {run.metric_title}; more queries would tell more."
            )
    return advice


def _glance(run: RunFiles) -> list[tuple[str, str, str]]:
    """Name, figure and remark of what matters most, as far as it is recorded."""
    facts = []
    best, content = run.best_hand_designed, run.effectiveness or {}
    row = run.verdict_row
    if row and best:
        mean = row.get("difference")
        mean = mean.get("mean") if isinstance(mean, dict) else mean
        to = f"best found loss to {best}"
        facts.append((f"{run.metric_title} difference", number(mean, signed=True), to))
        counts = best_tally(run)
        if counts:
            facts.append(
                ("queries better / same / worse", " / ".join(f"{c:,}" for c in counts), to)
            )
    queries, without = content.get("queries"), content.get("empty_queries")
    if is_number(queries):
        remark = f"{without:,} without a relevant document" if is_number(without) else ""
        facts.append(("test queries", f"{queries:,}", remark))
    if run.ledger:
        remark = f"of {len(run.ledger):,} sampled in the search"
        facts.append(("losses trained", f"{len(run.trained):,}", remark))
    if run.seconds:
        facts.append(("time", wording.duration(run.seconds), wording.device(run.config)))
    model, data = run.setting("search", "model"), run.config.get("data_name")
    if model and data:
        facts.append(("model", str(model), f"on {data}"))
    return facts
