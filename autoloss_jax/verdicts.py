"""The verdict of an effectiveness test, in words: what the figures show, and what they do not."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autoloss_jax.metrics import metric_title

SIGNIFICANT = 0.05
_SEEDS_MATTER = 0.2  # from this share of the variance on, a verdict tells of more seeds


def is_shown(p_value: float, ci_low: float, ci_high: float) -> bool:
    """Whether a difference is more than chance: by p, and not given against its interval.

    p is of the randomisation test, which assumes no distribution of the differences. A difference
    whose 95 % interval holds 0 is not shown, whatever p.
    """
    return p_value < SIGNIFICANT and (ci_low > 0 or ci_high < 0)


def found_verdict(
    rows: Sequence[Mapping[str, Any]],
    best_hand: str,
    metric: str,
    found_failed: bool,
    confirmation: Mapping[str, Any] | None = None,
) -> str:
    """One honest sentence on whether a found loss is better than the hand-designed ones.

    It rests on fresh seeds, if there are such, and else on the seeds that also chose the loss and
    its learning rate by validation queries, with p corrected for the number of found losses. The
    t-test stands beside them in the rows.
    """
    found = [row for row in rows if row["kind"] == "found"]
    against = f"{best_hand}, the hand-designed loss that validation chooses"
    if not found:
        outcome = "could be trained" if found_failed else "was tested"
        return f"No found loss {outcome}; of the hand-designed ones validation chooses {best_hand}."
    row, where = max(found, key=lambda row: row["validation"]), ""
    if confirmation and not confirmation["failed"]:
        row, where = confirmation["found"], f" on {confirmation['seeds']} fresh seeds"
    p_value = row.get("p_value_corrected", row["p_value"])
    corrected = f", corrected {p_value:.3g}" if "p_value_corrected" in row else ""
    figures = (
        f"{_figures(row['difference'], metric)}, randomisation test p = {row['p_value']:.3g}"
        f"{corrected}){where}"
    )
    unconfirmed = _unconfirmed(confirmation)
    mean, low, high = (row["difference"][key] for key in ("mean", "ci_low", "ci_high"))
    shown = is_shown(p_value, low, high)
    if shown and mean > 0:
        return f"The best found loss is better than {against}: {figures}.{unconfirmed}"
    if shown:
        return (
            f"The best found loss is worse than {against}: {figures}. Use {best_hand}.{unconfirmed}"
        )
    return (
        f"No found loss is shown to be better than {against}: the best found one differs by "
        f"{figures}, which is within what chance explains.{_more_seeds(row)}{unconfirmed}"
    )


def reference_verdict(against: Mapping[str, Any], metric: str) -> str:
    """One sentence on how the loss that validation chooses of all stands against the reference."""
    difference, p_value = against["difference"], against["p_value"]
    outcome = "is not shown to differ from"
    if is_shown(p_value, difference["ci_low"], difference["ci_high"]):
        outcome = "is better than" if difference["mean"] > 0 else "is worse than"
    return (
        f"The loss that validation chooses of all, {against['loss']}, {outcome} "
        f"{against['reference']}, the reference: {_figures(difference, metric)}, "
        f"p = {p_value:.3g})."
    )


def _unconfirmed(confirmation: Mapping[str, Any] | None) -> str:
    """What kept fresh seeds from being compared, if anything did."""
    if not confirmation or not confirmation["failed"]:
        return ""
    names = ", ".join(f"{name} ({why})" for name, why in confirmation["failed"].items())
    return f" On fresh seeds training broke down under {names}, so nothing is confirmed."


def _more_seeds(row: Mapping[str, Any]) -> str:
    """What four times as many seeds would make of an interval, where that is much."""
    share = row["seed_share"]
    if share is None or share < _SEEDS_MATTER:
        return ""
    half = (row["difference"]["ci_high"] - row["difference"]["ci_low"]) / 2
    return (
        f" Of this uncertainty about {100 * share:.0f} % comes from initial weights and batches: "
        f"with four times as many seeds the interval would reach about "
        f"{np.sqrt(1 - 0.75 * share) * half:.4f} to each side, not {half:.4f}."
    )


def _figures(difference: Mapping[str, float], metric: str) -> str:
    mean, low, high = (difference[key] for key in ("mean", "ci_low", "ci_high"))
    return f"test {metric_title(metric)} {mean:+.4f} (95 % interval {low:+.4f} to {high:+.4f}"
