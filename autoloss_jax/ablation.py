"""Which part of a loss matters: it is trained whole and without each of its parts, and compared.

All get the chances of an effectiveness test: the same learning rates, seeds, batches and patience.
The test queries are read again for it, so it explains a loss that has been chosen and must choose
none: the better one of several ablations is better on these very queries by selection too. Every
difference is to the same models of the whole loss; where these were what the loss was chosen by,
take another seed, or their luck makes all parts seem to matter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autoloss_jax.comparison import counted
from autoloss_jax.convergence import EffectivenessConfig
from autoloss_jax.data import Dataset
from autoloss_jax.effectiveness import effectiveness_test
from autoloss_jax.errors import AutolossError
from autoloss_jax.explain import explain, gradient_direction
from autoloss_jax.files import read_arrays, write_json
from autoloss_jax.language.ablations import ablations
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.parsing import as_loss, parse
from autoloss_jax.language.simplification import simplify
from autoloss_jax.losses import LOSSES, resolve_loss
from autoloss_jax.metrics import MetricPerQuery, metric_title
from autoloss_jax.runs import ABLATION_FILE, PER_QUERY_FILE
from autoloss_jax.screening import Directions
from autoloss_jax.statistics import bootstrap_interval, holm, randomisation_p_value
from autoloss_jax.verdicts import is_shown

OUTCOMES = (
    "worse", "better", "not shown",  # what was trained
    "same", "as another", "nothing to learn", "failed",  # what was not, or in vain
)  # fmt: skip
_WHOLE = ""  # under which the direction of the whole loss is known
# Of what the verdict names: so many parts that are not shown to matter, so much of each.
_NAMED, _LONGEST = 3, 60


def ablation_test(
    dataset: Dataset,
    loss: Expression | str,
    config: EffectivenessConfig | None = None,
    *,
    metric: MetricPerQuery | None = None,
    out: str,
    on_progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Trains a loss, each of its ablations and the hand-designed loss that is nearest to it.

    An ablation is not trained, and `reason` says why, if it has no gradient, if its gradient
    ignores the labels, or if it points the same way as that of the whole loss or of an ablation
    before it: what comes of it is known.

    Args:
      dataset: its folds, as `effectiveness_test` takes them.
      loss: the loss, its text, or a name of LOSSES.
      config: the settings of the trainings; LambdaMART and fresh seeds are left out.
      metric: what is compared, instead of NDCG, as `effectiveness_test` takes it.
      out: the run folder of the test; ablation.json is written there.
      on_progress: called with a description and the share that is done.

    Returns:
      What ablation.json holds: `ablations`, one a removed part with its difference to the `whole`
      loss (paired over the test queries; p-values of the paired randomisation test, corrected by
      Holm's method for all that were trained) and its `outcome`, one of OUTCOMES; `nearest`, the
      hand-designed loss; and the `verdict`, a sentence.

    Raises:
      AutolossError: not a loss, or one that cannot be trained.
    """
    config = replace(config or EffectivenessConfig(), lambdamart=False, confirmation_seeds=0)
    whole = simplify(as_loss(resolve_loss(loss) if isinstance(loss, str) else loss))
    about = explain(whole)
    if not about.trains:
        raise AutolossError(f"'{whole}' has no gradient; expected a loss that trains")
    rows = _rows(whole)
    trained = [row for row in rows if row["outcome"] is None]
    nearest = about.nearest[0]
    result = effectiveness_test(
        dataset, [whole, *(parse(row["formula"]) for row in trained)], config,
        hand_designed=[nearest.name], metric=metric, out=out, on_progress=on_progress,
    )  # fmt: skip
    failed = result["failure_reasons"]
    if "found 1" in failed:
        raise AutolossError(f"'{whole}' could not be trained: {failed['found 1']}")
    measured = _measured(result, read_arrays(Path(out) / PER_QUERY_FILE), config.seed)
    for place, row in enumerate(trained, start=2):
        name = f"found {place}"
        if name in failed:
            row |= {"outcome": "failed", "reason": f"training failed: {failed[name]}"}
        else:
            row |= measured[name]
    _judge([row for row in trained if row["outcome"] is None])
    content: dict[str, Any] = {
        "formula": str(whole),
        "size": whole.size,
        "whole": {key: measured["found 1"][key] for key in ("test", "learning_rate")},
        "ablations": sorted(rows, key=_worst_first),
        "nearest": nearest._asdict()
        | {"formula": str(LOSSES[nearest.name])}
        | measured[nearest.name],
        **{key: result[key] for key in _CONDITIONS},
    }
    content["verdict"] = _verdict(content)
    write_json(Path(out) / ABLATION_FILE, content)
    return content


_CONDITIONS = (
    "metric", "folds", "seeds", "truncation_level", "empty", "queries", "empty_queries",
)  # fmt: skip


def _rows(whole: Expression) -> list[dict[str, Any]]:
    """What is known of each ablation without training; the outcome of what to train is None."""
    direction = gradient_direction(whole)
    known = Directions()
    known.add(_WHOLE, direction)
    rows = []
    for removed, loss in ablations(whole):
        about, own = explain(loss), gradient_direction(loss)
        same = known.find(own)
        outcome, reason = None, ""
        if not about.trains:
            outcome, reason = "nothing to learn", "no gradient"
        elif about.label_use == "none":
            outcome, reason = "nothing to learn", "its gradient ignores the labels"
        elif same == _WHOLE:
            outcome, reason = "same", "the gradient points the same way"
        elif same is not None:
            outcome, reason = "as another", f"the gradient points as without {same}"
        else:
            known.add(removed, own)
        rows.append({
            "removed": removed,
            "formula": str(loss),
            "size": loss.size,
            "cosine": float(own @ direction),
            "outcome": outcome,
            "reason": reason,
            **dict.fromkeys(
                ("test", "learning_rate", "difference", "p_value", "p_value_corrected")
            ),
        })  # fmt: skip
    return rows


def _measured(
    result: Mapping[str, Any], per_query: Mapping[str, np.ndarray], seed: int
) -> dict[str, dict[str, Any]]:
    """By its name in the test, what was measured of a loss, and its difference to the first one."""
    values = {
        name: counted(of_loss, result["empty"])
        for name, of_loss in zip(per_query["names"].tolist(), per_query["values"], strict=True)
    }
    measured = {}
    for row in result["rows"]:
        difference = values[row["name"]] - values["found 1"]
        measured[row["name"]] = {
            "test": row["test"][result["metric"]],
            "learning_rate": row["learning_rate"],
            "difference": bootstrap_interval(difference, seed)._asdict(),
            "p_value": randomisation_p_value(difference, seed),
        }
    return measured


def _judge(rows: Sequence[dict[str, Any]]) -> None:
    """Corrects the p-values for their number, and says what each difference shows."""
    corrected = holm(np.array([row["p_value"] for row in rows]))
    for row, p_value in zip(rows, corrected, strict=True):
        mean, low, high = (row["difference"][key] for key in ("mean", "ci_low", "ci_high"))
        shown = is_shown(p_value, low, high)
        outcome = ("better" if mean > 0 else "worse") if shown else "not shown"
        row |= {"p_value_corrected": float(p_value), "outcome": outcome}


def _worst_first(row: Mapping[str, Any]) -> tuple[bool, float]:
    """What was trained before what was not."""
    difference = row["difference"]
    return difference is None, 0.0 if difference is None else difference["mean"]


def _verdict(content: Mapping[str, Any]) -> str:
    """What the differences show of the parts, and no more than that."""
    by = {
        outcome: [row for row in content["ablations"] if row["outcome"] == outcome]
        for outcome in OUTCOMES
    }
    texts = {
        "worse": "worse without {}",
        "better": "better without {}",
        "same": "the same without {}, for the gradient points the same way",
        "nothing to learn": "without {} no loss that could learn from labels",
        "failed": "without {} one whose training fails",
    }
    said = [text.format(", ".join(map(_named, by[o]))) for o, text in texts.items() if by[o]]
    if by["not shown"]:
        said.append(_not_shown(by["not shown"]))
    queries = content["queries"] - content["empty_queries"] * (content["empty"] == "skip")
    where = (
        f"By {metric_title(content['metric'])} on {queries} test queries of "
        f"{', '.join(content['folds'])}, {content['seeds']} models a loss"
    )
    return f"{where}, the loss is {'; '.join(said) or 'without parts that could be removed'}."


def _not_shown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of the parts that may matter or not: those that may least come first, some by name."""
    rows = sorted(rows, key=lambda row: -row["difference"]["ci_low"])
    ends = dict.fromkeys(f"{row['difference']['ci_low']:+.4f}" for row in (rows[0], rows[-1]))
    named = ", ".join(map(_named, rows[:_NAMED]))
    parts = named if len(rows) <= _NAMED else f"{len(rows)} parts, among them {named}"
    return (
        f"not shown to be better or worse without any one of {parts}: a shorter formula may do, "
        f"but the intervals begin at {' to '.join(ends)}"
    )


def _named(row: Mapping[str, Any]) -> str:
    """The removed part, with the difference if there is one."""
    removed, difference = row["removed"], row["difference"]
    shown = removed if len(removed) <= _LONGEST else removed[: _LONGEST - 3] + "..."
    return f"`{shown}`" + ("" if difference is None else f" ({difference['mean']:+.4f})")
