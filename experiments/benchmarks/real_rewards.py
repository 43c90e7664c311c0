"""How well rewards foretell Phase II on real data, by tests that are there already.

    python experiments/benchmarks/real_data.py --data MQ2008 --models attention --out runs/attention
    python experiments/benchmarks/real_rewards.py --data MQ2008 --models attention \
        --runs runs/attention --out real_rewards.json

The losses that `real_data.py` tested in each fold, found and hand-designed, are rewarded anew on
the fold's training queries, on fresh seeds, by proxy runs of several learning rates and lengths.
The table has the rank correlation of these rewards with the test metric and with the validation
metric of Phase II, the mean of the folds; intervals are bootstraps over the losses of each fold.
`Phase II's own validation` is its correlation with the test: what a look at as many queries and
a full training foretell. `found` is how much the found losses gain over the hand-designed ones, by
the reward in question and in the mean: they were selected by such rewards, at the search's setting.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import _timing
import numpy as np
from _rewards import RESAMPLES, rank_correlation, setting_name
from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

import autoloss_jax as al
from autoloss_jax.data import fit_scaling
from autoloss_jax.execution.programs import unfit
from autoloss_jax.files import read_json, write_json
from autoloss_jax.language.expressions import Expression
from autoloss_jax.losses import resolve_loss
from autoloss_jax.models import MODELS, make_model
from autoloss_jax.proxy import ProxyConfig, ProxyTraining
from autoloss_jax.runs import EFFECTIVENESS_FILE

_DATA = flags.DEFINE_list("data", None, "As real_data.py had it.")
_MODELS = flags.DEFINE_list("models", ["mlp", "attention"], f"Of {', '.join(MODELS)}.")
_RUNS = flags.DEFINE_string("runs", None, "The --out of real_data.py.")
_RATES = flags.DEFINE_list("learning_rates", ["0.01", "0.03", "0.1"], "Of proxy runs.")
_BLOCKS = flags.DEFINE_list("blocks", ["3", "9"], "Lengths of proxy runs, in blocks of rung_steps.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Fresh seeds, of which a reward is the mean.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of real_data.py, and of resampling.", 0)
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")
flags.mark_flags_as_required(["data", "runs"])

SETTINGS = (_MODELS, _RATES, _BLOCKS, _SEEDS, _SEED)


class FoldRewards(NamedTuple):
    """What Phase II said of the losses of a fold, and what each setting's rewards say."""

    found: np.ndarray  # bool[losses]
    test: np.ndarray  # f64[losses]
    validation: np.ndarray  # f64[losses]
    rewards: dict[str, np.ndarray]  # by setting: f64[losses], -inf for a loss that failed


def fold_rewards(data: Path, fold: Path, model: str) -> FoldRewards:
    """Rewards the losses that were tested in a fold."""
    content = read_json(
        Path(_RUNS.value) / f"{data.name}-{fold.name}-{model}/test" / EFFECTIVENESS_FILE
    )
    tested = [(_loss(row), row) for row in content["rows"]]
    losses, rows = zip(*[pair for pair in tested if not unfit(pair[0])], strict=True)
    train = al.load_dataset(str(fold)).folds[0].train
    queries = fit_scaling(train).apply(train)
    rewards = {}
    for rate, blocks in itertools.product(map(float, _RATES.value), map(int, _BLOCKS.value)):
        config = dataclasses.replace(ProxyConfig(), learning_rate=rate, rungs=(blocks,))
        proxy = ProxyTraining(
            queries, make_model(model), resolve_loss("softmax"), config, len(losses), _SEED.value
        )
        of_seeds = [
            [o.reward for o in proxy.run(losses, 2_000_003 + k, halving=False).outcomes]
            for k in range(_SEEDS.value)
        ]
        rewards[setting_name(rate, blocks)] = np.mean(of_seeds, axis=0)
    return FoldRewards(
        np.array([row["kind"] == "found" for row in rows]),
        np.array([row["test"][content["metric"]]["mean"] for row in rows]),
        np.array([row["validation"] for row in rows]),
        rewards,
    )


def _loss(row: dict[str, Any]) -> Expression:
    return al.parse(row["formula"]) if row["kind"] == "found" else resolve_loss(row["name"])


def study(folds: list[FoldRewards]) -> dict[str, dict[str, Any]]:
    """By what foretells: its correlations with Phase II in the mean of the folds."""
    generator = np.random.default_rng([_SEED.value, 7])
    draws = [generator.integers(0, len(f.test), (RESAMPLES, len(f.test))) for f in folds]
    study = {}
    for name in folds[0].rewards:
        rewards = [fold.rewards[name] for fold in folds]
        study[name] = {
            "test": _correlation(rewards, [fold.test for fold in folds], draws),
            "validation": _correlation(rewards, [fold.validation for fold in folds], draws),
            "found": float(
                np.mean([_gain(r, f.found) for r, f in zip(rewards, folds, strict=True)])
            ),
        }
    validation = [fold.validation for fold in folds]
    study["Phase II's own validation"] = {
        "test": _correlation(validation, [fold.test for fold in folds], draws),
        "found": float(np.mean([_gain(fold.validation, fold.found) for fold in folds])),
    }
    gains = [_gain(fold.test, fold.found) for fold in folds]
    study["Phase II's test"] = {"found": float(np.mean(gains))}
    return study


def _gain(values: np.ndarray, found: np.ndarray) -> float:
    """How much the found losses that did not fail gain over the hand-designed ones."""
    finite = np.isfinite(values)
    return float(values[found & finite].mean() - values[~found & finite].mean())


def _correlation(
    rewards: list[np.ndarray], truths: list[np.ndarray], draws: list[np.ndarray]
) -> dict[str, float]:
    """Of each fold f64[losses]; the mean of the folds, and its 95 % interval by the draws."""
    parts = list(zip(rewards, truths, draws, strict=True))
    resampled = np.mean(
        [[rank_correlation(r[draw], t[draw]) for draw in of_fold] for r, t, of_fold in parts],
        axis=0,
    )
    low, high = np.percentile(resampled, [2.5, 97.5])
    mean = np.mean([rank_correlation(r, t) for r, t, _ in parts])
    return {"mean": float(mean), "ci_low": float(low), "ci_high": float(high)}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    studies = []
    for model, data in itertools.product(_MODELS.value, map(Path, _DATA.value)):
        folds = []
        for fold in sorted(data.glob("Fold*")):
            folds.append(fold_rewards(data, fold, model))
            logging.info("rewarded: %s %s %s", data.name, fold.name, model)
        if not folds:
            raise app.UsageError(f"--data: no folder Fold1, Fold2, ... in {data}")
        studies.append({"data": data.name, "model": model, "rows": study(folds)})
        show(studies[-1])
    settings = {"data": [Path(data).name for data in _DATA.value]}
    settings |= {flag.name: flag.value for flag in SETTINGS}
    if _OUT.value:
        report = {"machine": _timing.machine(), "settings": settings, "studies": studies}
        write_json(_OUT.value, report)


def show(study: dict[str, Any]) -> None:
    table = Table(title=f"Rewards against Phase II, {study['data']}, {study['model']}")
    for heading in ("what foretells", "test", "validation", "found less hand-designed"):
        table.add_column(heading)
    for name, row in study["rows"].items():
        cells = [
            f"{row[key]['mean']:.2f} ({row[key]['ci_low']:.2f} to {row[key]['ci_high']:.2f})"
            if key in row
            else ""
            for key in ("test", "validation")
        ]
        table.add_row(name, *cells, f"{row['found']:+.4f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    app.run(main)
