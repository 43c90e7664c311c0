"""The comparison of tested losses: per-query figures to a table and an honest verdict."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from autoloss_jax.errors import AutolossError
from autoloss_jax.language.expressions import Expression
from autoloss_jax.statistics import bootstrap_intervals, effect_size, holm, randomisation_p_value

SIGNIFICANT = 0.05


class Contender(NamedTuple):
    """A loss under test."""

    name: str
    expression: Expression
    kind: str  # "found" or "hand_designed"


class Tested(NamedTuple):
    """What one fold showed of one loss."""

    learning_rate: float
    steps: list[int]  # when each seed's model was best
    validation: float  # mean of the metric over seeds and queries
    test: dict[str, np.ndarray]  # by metric: f64[queries], mean over seeds


def compare(
    losses: Sequence[Contender],
    folds: Sequence[Sequence[Tested]],
    defined: Sequence[dict[str, np.ndarray]],
    *,
    metric: str,
    empty: str,
    seed: int,
) -> dict[str, Any]:
    """What effectiveness.json holds of the comparison.

    Args:
      losses: at least one hand-designed.
      folds: by fold, what it showed of each loss.
      defined: by fold and metric bool[queries]: where the metric is defined.
      metric: the one the losses are compared by.
      empty: how the other queries count: "skip", "zero" or "one".
      seed: of resampling.
    """
    worked = [k for k in range(len(losses)) if all(fold[k].test for fold in folds)]
    values = {
        k: {name: np.concatenate([
                _counted(fold[k].test[name], flags[name], empty)
                for fold, flags in zip(folds, defined, strict=True)])
            for name in folds[0][k].test}
        for k in worked
    }  # fmt: skip
    validation = {k: float(np.mean([fold[k].validation for fold in folds])) for k in worked}
    hand = [k for k in worked if losses[k].kind == "hand_designed"]
    if not hand:
        raise AutolossError("no hand-designed loss could be trained: every run turned non-finite")
    # The hand-designed loss that validation queries choose is the one a user would have taken.
    best_hand = max(hand, key=lambda k: validation[k])
    rows = _rows([values[k] for k in worked], worked.index(best_hand), metric, seed)
    for k, row in zip(worked, rows, strict=True):
        row |= {
            "name": losses[k].name,
            "formula": str(losses[k].expression),
            "kind": losses[k].kind,
            "learning_rate": [fold[k].learning_rate for fold in folds],
            "steps": [fold[k].steps for fold in folds],
            "validation": validation[k],
        }
    best_name = losses[best_hand].name
    found = [k for k in worked if losses[k].kind == "found"]
    best_found = max(found, key=lambda k: validation[k]) if found else None
    _correct(rows, best_name)
    failed = [c for k, c in enumerate(losses) if k not in worked]
    return {
        "rows": sorted(rows, key=lambda row: -row["test"][metric]["mean"]),
        "verdict": _verdict(rows, best_name, metric, any(c.kind == "found" for c in failed)),
        "metric": metric,
        "best_hand_designed": best_name,
        "best_found": None if best_found is None else losses[best_found].name,
        "empty": empty,
        "queries": sum(len(flags[metric]) for flags in defined),
        "empty_queries": sum(int((~flags[metric]).sum()) for flags in defined),
        "failed": [c.name for c in failed],
    }


def _counted(values: np.ndarray, defined: np.ndarray, empty: str) -> np.ndarray:
    """The values that count under a convention for queries without a relevant document."""
    if empty == "skip":
        return values[defined]
    return np.where(defined, values, 1.0 if empty == "one" else 0.0)


def _rows(
    values: Sequence[dict[str, np.ndarray]], best: int, metric: str, seed: int
) -> list[dict[str, Any]]:
    """The figures of each loss, by metric f64[queries] each, and their comparison with the best."""
    rows: list[dict[str, Any]] = [{"test": {}} for _ in values]
    for name in values[0]:
        figures = np.stack([of_loss[name] for of_loss in values])
        for row, interval in zip(rows, bootstrap_intervals(figures, seed), strict=True):
            row["test"][name] = interval._asdict()
    figures = np.stack([of_loss[metric] for of_loss in values])
    differences = figures - figures[best]
    for k, interval in enumerate(bootstrap_intervals(differences, seed)):
        rows[k] |= {
            "difference": interval._asdict(),
            "effect_size": effect_size(differences[k]),
            "p_value": 1.0 if k == best else randomisation_p_value(differences[k], seed),
        }
    return rows


def _correct(rows: list[dict[str, Any]], best_hand: str) -> None:
    """Corrects the p-values of either kind for their number, the best's with itself not counted."""
    for kind in ("found", "hand_designed"):
        group = [row for row in rows if row["kind"] == kind and row["name"] != best_hand]
        corrected = holm(np.array([row["p_value"] for row in group]))
        for row, p_value in zip(group, corrected, strict=True):
            row["p_value_corrected"] = float(p_value)
    for row in rows:
        row.setdefault("p_value_corrected", 1.0)


def _verdict(rows: list[dict[str, Any]], best_hand: str, metric: str, found_failed: bool) -> str:
    """One honest sentence on whether a found loss is better than the hand-designed ones."""
    found = [row for row in rows if row["kind"] == "found"]
    against = f"{best_hand}, the hand-designed loss that validation chooses"
    if not found:
        outcome = "could be trained" if found_failed else "was tested"
        return f"No found loss {outcome}; of the hand-designed ones validation chooses {best_hand}."
    chosen = max(found, key=lambda row: row["validation"])
    mean, low, high = (chosen["difference"][key] for key in ("mean", "ci_low", "ci_high"))
    figures = (
        f"test {metric.upper()} {mean:+.4f} (95 % interval {low:+.4f} to {high:+.4f}, "
        f"p = {chosen['p_value']:.3g}, corrected {chosen['p_value_corrected']:.3g})"
    )
    significant = chosen["p_value_corrected"] < SIGNIFICANT
    if significant and mean > 0:
        return f"The best found loss is better than {against}: {figures}."
    if significant:
        return f"The best found loss is worse than {against}: {figures}. Use {best_hand}."
    return (
        f"No found loss is shown to be better than {against}: the best found one differs by "
        f"{figures}, which is within what chance explains."
    )
