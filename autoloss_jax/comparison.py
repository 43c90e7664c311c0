"""The comparison of tested losses: per-query figures to a table and a verdict."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from autoloss_jax.errors import AutolossError
from autoloss_jax.language.expressions import Expression
from autoloss_jax.statistics import (
    TIE_TOLERANCE,
    bootstrap_interval,
    bootstrap_intervals,
    effect_sizes,
    holm,
    randomisation_p_value,
    t_test_p_value,
    win_tie_loss,
)
from autoloss_jax.verdicts import found_verdict, reference_verdict

KINDS = ("found", "hand_designed", "reference")


class Contender(NamedTuple):
    """A loss under test, or the reference, which is trained by other means."""

    name: str
    expression: Expression | None  # None for the reference
    kind: str  # one of KINDS


class Tested(NamedTuple):
    """What one fold showed of one loss."""

    learning_rate: float
    steps: list[int]  # when each seed's model was best
    converged: bool  # whether patience ended all their trainings, and not the limit of steps
    validation: float  # mean of the metric over seeds and queries
    test: dict[str, np.ndarray]  # by metric: f64[queries], mean over seeds, NaN where undefined
    by_seed: np.ndarray | None = None  # f64[seeds, queries]: of the metric that is compared
    scores: np.ndarray | None = None  # f32[seeds, documents], where they are to be kept
    settings: Mapping[str, Any] | None = None  # of the reference, as validation chose them
    reason: str = ""  # why there is no figure, if there is none


def chosen_by_validation(
    losses: Sequence[Contender], folds: Sequence[Sequence[Tested]]
) -> tuple[int | None, int]:
    """The places of the found and of the hand-designed loss that a user would have taken.

    No found one if none could be trained on all folds. Raises AutolossError if no hand-designed one
    could be.
    """
    best: dict[str, int | None] = {
        kind: max(
            (k for k in _worked(folds, len(losses)) if losses[k].kind == kind),
            key=lambda k: _validation(folds, k),
            default=None,
        )
        for kind in KINDS
    }
    hand_designed = best["hand_designed"]
    if hand_designed is None:
        raise AutolossError("no hand-designed loss could be trained: every run turned non-finite")
    return best["found"], hand_designed


def _worked(folds: Sequence[Sequence[Tested]], count: int) -> list[int]:
    return [k for k in range(count) if all(fold[k].test for fold in folds)]


def _validation(folds: Sequence[Sequence[Tested]], place: int) -> float:
    return float(np.mean([fold[place].validation for fold in folds]))


def compare(
    losses: Sequence[Contender],
    folds: Sequence[Sequence[Tested]],
    *,
    metric: str,
    empty: str,
    seed: int,
    confirmed: Sequence[Sequence[Tested]] | None = None,
) -> dict[str, Any]:
    """What effectiveness.json holds of the comparison.

    Args:
      losses: at least one hand-designed.
      folds: by fold, what it showed of each loss.
      metric: the one the losses are compared by.
      empty: how queries count on which a metric is undefined: "skip", "zero" or "one".
      seed: of resampling.
      confirmed: by fold, what fresh seeds showed of the two losses of `chosen_by_validation`, if
        they were trained on such.
    """
    best_found, best_hand = chosen_by_validation(losses, folds)
    worked = _worked(folds, len(losses))
    figures = {k: _of_all_folds(folds, k) for k in worked}
    validation = {k: _validation(folds, k) for k in worked}
    values = {
        k: {name: counted(of_metric, empty) for name, of_metric in figures[k].items()}
        for k in worked
    }
    rows = _rows([values[k] for k in worked], worked.index(best_hand), metric, seed)
    best_by_seed = _by_seed(folds, best_hand, empty)
    for k, row in zip(worked, rows, strict=True):
        row["seed_share"] = _seed_share(_by_seed(folds, k, empty), best_by_seed)
        row |= _described(losses[k], [fold[k] for fold in folds]) | {"validation": validation[k]}
    best_name = losses[best_hand].name
    _correct(rows, best_name)
    failed = [c for k, c in enumerate(losses) if k not in worked]
    confirmation = None
    if confirmed is not None and best_found is not None:
        pair = (losses[best_found], losses[best_hand])
        confirmation = _confirmation(pair, confirmed, metric, empty, seed)
    found_failed = any(c.kind == "found" for c in failed)
    verdict = found_verdict(rows, best_name, metric, found_failed, confirmation)
    against = None
    for k in (k for k in worked if losses[k].kind == "reference"):
        own = max((x for x in worked if x != k), key=lambda x: validation[x])
        difference = values[own][metric] - values[k][metric]
        against = _against(losses[k].name, losses[own].name, difference, seed)
        verdict += f" {reference_verdict(against, metric)}"
    undefined = np.isnan(figures[best_hand][metric])
    return {
        "rows": sorted(rows, key=lambda row: -row["test"][metric]["mean"]),
        "verdict": verdict,
        "metric": metric,
        "best_hand_designed": best_name,
        "best_found": None if best_found is None else losses[best_found].name,
        "confirmation": confirmation,
        "against_reference": against,
        "empty": empty,
        "queries": len(undefined),
        "empty_queries": int(undefined.sum()),
        "tie_tolerance": TIE_TOLERANCE,
        "failed": [c.name for c in failed],
        "failure_reasons": {
            c.name: next((fold[k].reason for fold in folds if fold[k].reason), "")
            for k, c in enumerate(losses)
            if k not in worked
        },
    }


def _confirmation(
    pair: tuple[Contender, Contender],
    folds: Sequence[Sequence[Tested]],
    metric: str,
    empty: str,
    seed: int,
) -> dict[str, Any]:
    """How a found loss stands against a hand-designed one on fresh seeds, by what folds showed.

    One comparison, named before its figures were known: there is nothing to correct. Without
    `found` where one of the two could not be trained; then with the `failed` ones and why.
    """
    failed = {
        loss.name: next((f[k].reason for f in folds if f[k].reason), "")
        for k, loss in enumerate(pair)
        if not all(fold[k].test for fold in folds)
    }
    if failed:
        return {"seeds": None, "failed": failed, "found": None, "hand_designed": None}
    values = [
        {name: counted(of_metric, empty) for name, of_metric in _of_all_folds(folds, k).items()}
        for k in range(2)
    ]
    found, hand_designed = _rows(values, 1, metric, seed)
    by_seed = [_by_seed(folds, k, empty) for k in range(2)]
    found["seed_share"] = _seed_share(*by_seed)
    of_found, of_other = (_described(pair[k], [fold[k] for fold in folds]) for k in range(2))
    return {
        "seeds": None if by_seed[0] is None else len(by_seed[0]),
        "failed": {},
        "found": found | of_found,
        "hand_designed": {"test": hand_designed["test"]} | of_other,
    }


def confirmed_rows(confirmation: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The rows of a comparison's confirmation; [] without one, or if it failed."""
    rows = [(confirmation or {}).get(kind) for kind in ("found", "hand_designed")]
    return [row for row in rows if row]


def per_query(
    content: Mapping[str, Any],
    losses: Sequence[Contender],
    folds: Sequence[Sequence[Tested]],
    query_ids: Sequence[str],
    confirmed: Sequence[Sequence[Tested]] | None = None,
) -> dict[str, np.ndarray]:
    """The figures behind a comparison: what per_query.npz holds.

    Args:
      content: the comparison, as `compare` returned it for the same losses and folds.
      query_ids: of the test queries of all folds, "<fold>/<query>".
      confirmed: as `compare` had it.

    Returns:
      `names` of the losses in the order of the comparison's rows, `query_ids`, `values`
      f64[losses, queries] of the metric they are compared by, the mean over seeds, NaN where the
      metric is undefined, and `defined` bool[queries]; and, of the two losses that were trained on
      fresh seeds, `confirmed_names` and `confirmed_values`.
    """
    places = _places(content, losses)
    values = np.stack([_of_all_folds(folds, k)[content["metric"]] for k in places])
    arrays = {
        "names": np.array([losses[k].name for k in places]),
        "query_ids": np.array(query_ids),
        "values": values,
        "defined": ~np.isnan(values[0]),
    }
    confirmation = content["confirmation"]
    if confirmed is not None and confirmation is not None and not confirmation["failed"]:
        arrays["confirmed_names"] = np.array(
            [confirmation[kind]["name"] for kind in ("found", "hand_designed")]
        )
        arrays["confirmed_values"] = np.stack(
            [_of_all_folds(confirmed, k)[content["metric"]] for k in range(2)]
        )
    return arrays


def dumped_scores(
    content: Mapping[str, Any],
    losses: Sequence[Contender],
    folds: Sequence[Sequence[Tested]],
) -> dict[str, np.ndarray]:
    """`names` as `per_query` has them, and `scores` f32[losses, seeds, documents] of all folds."""
    places = _places(content, losses)
    scores = [np.concatenate([_kept(fold[k]) for fold in folds], axis=1) for k in places]
    return {"names": np.array([losses[k].name for k in places]), "scores": np.stack(scores)}


def _kept(tested: Tested) -> np.ndarray:
    assert tested.scores is not None
    return tested.scores


def _places(content: Mapping[str, Any], losses: Sequence[Contender]) -> list[int]:
    """The places of the losses in the order of the comparison's rows."""
    place = {loss.name: k for k, loss in enumerate(losses)}
    return [place[row["name"]] for row in content["rows"]]


def _of_all_folds(folds: Sequence[Sequence[Tested]], place: int) -> dict[str, np.ndarray]:
    """A loss's figures f64[queries] by metric, one fold's queries after the other's."""
    parts = [fold[place].test for fold in folds]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _by_seed(folds: Sequence[Sequence[Tested]], place: int, empty: str) -> np.ndarray | None:
    """A loss's figures f64[seeds, counted queries] of the metric that is compared, if known."""
    parts = [fold[place].by_seed for fold in folds]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return np.stack([counted(of_seed, empty) for of_seed in np.concatenate(known, axis=1)])


def _seed_share(figures: np.ndarray | None, others: np.ndarray | None) -> float | None:
    """Which share of what is unknown about a mean difference more seeds would settle.

    The difference of a query is a mean over seeds, so a part of its variance over queries comes
    from the trainings: the variance over seeds, in the mean of the queries, by their number.

    Args:
      figures, others: f64[seeds, queries] of two losses.

    Returns:
      From 0 to 1; None with one seed or query, or where no difference varies.
    """
    if figures is None or others is None:
        return None
    differences = figures - others
    seeds, queries = differences.shape
    if min(seeds, queries) < 2 or np.ptp(differences.mean(0)) == 0:
        return None
    of_seeds = differences.var(0, ddof=1).mean() / seeds
    return float(min(1.0, of_seeds / differences.mean(0).var(ddof=1)))


def counted(figures: np.ndarray, empty: str) -> np.ndarray:
    """The values that count under a convention for queries on which the metric is undefined."""
    defined = ~np.isnan(figures)
    if empty == "skip":
        return figures[defined]
    return np.where(defined, figures, 1.0 if empty == "one" else 0.0)


def _described(loss: Contender, folds: Sequence[Tested]) -> dict[str, Any]:
    """What a row says of a loss besides its figures."""
    described: dict[str, Any] = {
        "name": loss.name,
        "formula": None if loss.expression is None else str(loss.expression),
        "kind": loss.kind,
        "learning_rate": [fold.learning_rate for fold in folds],
        "steps": [fold.steps for fold in folds],
        "converged": all(fold.converged for fold in folds),
    }
    if any(fold.settings for fold in folds):
        described["settings"] = [fold.settings for fold in folds]
    return described


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
    intervals = bootstrap_intervals(differences, seed), effect_sizes(differences, seed)
    for k, (interval, effect) in enumerate(zip(*intervals, strict=True)):
        rows[k] |= {
            "difference": interval._asdict(),
            "effect_size": effect.mean,
            "effect_size_interval": {"ci_low": effect.ci_low, "ci_high": effect.ci_high},
            "p_value": randomisation_p_value(differences[k], seed),
            "t_p_value": t_test_p_value(differences[k]),
            **win_tie_loss(differences[k])._asdict(),
        }
    return rows


def _correct(rows: list[dict[str, Any]], best_hand: str) -> None:
    """Corrects the p-values of each kind for their number, the best's with itself not counted."""
    for kind in KINDS:
        group = [row for row in rows if row["kind"] == kind and row["name"] != best_hand]
        for name in ("p_value", "t_p_value"):
            corrected = holm(np.array([row[name] for row in group]))
            for row, p_value in zip(group, corrected, strict=True):
                row[f"{name}_corrected"] = float(p_value)
    for row in rows:
        row.setdefault("p_value_corrected", 1.0)
        row.setdefault("t_p_value_corrected", 1.0)


def _against(reference: str, loss: str, difference: np.ndarray, seed: int) -> dict[str, Any]:
    """How a loss stands against the reference: one comparison, so there is nothing to correct."""
    return {
        "reference": reference,
        "loss": loss,
        "difference": bootstrap_interval(difference, seed)._asdict(),
        "p_value": randomisation_p_value(difference, seed),
        "t_p_value": t_test_p_value(difference),
        **win_tie_loss(difference)._asdict(),
    }
