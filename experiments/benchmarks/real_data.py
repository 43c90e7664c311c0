"""Phase I and Phase II on real data: five folds, several data sets, several models.

    python experiments/benchmarks/real_data.py --data MQ2008,MQ2007,OHSUMED --out runs/real

Every fold is a search on its training queries and a test of the finalists and all hand-designed
losses on its test queries, with the settings that `autoloss run` has by default; what the program
itself says of the fold is its verdict. Then the folds of a data set are taken together: the found
loss that validation chose in each against every hand-designed one, by a paired randomisation test
over the test queries of all folds with Holm's correction (`against`), and, on the fresh seeds of
the confirmation, against the hand-designed loss that validation chose in each fold
(`by_validation`), which is what a user would have had.

Interrupted, the same command goes on: every search and test has a run folder below `--out`.
"""

import json
from pathlib import Path
from typing import Any

import _timing
import numpy as np
from _contest import SIGNIFICANT, against_hand_designed, confirmed_values, per_query_values
from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

import autoloss_jax as al
from autoloss_jax.files import write_json
from autoloss_jax.losses import HAND_DESIGNED
from autoloss_jax.models import MODELS
from autoloss_jax.proxy import ProxyConfig
from autoloss_jax.statistics import bootstrap_interval, randomisation_p_value

_DATA = flags.DEFINE_list("data", None, "Folders with the folders of folds in LETOR text.")
_OUT = flags.DEFINE_string("out", None, "Folder of the run folders and of real_data.json.")
_MODELS = flags.DEFINE_list("models", ["mlp", "attention"], f"Of {', '.join(MODELS)}.")
_BUDGET = flags.DEFINE_integer("budget", al.SearchConfig().budget, "Of each search.", 1)
_PROPOSER = flags.DEFINE_string("proposer", al.SearchConfig().proposer, "Of each search.")
_WARM_START = flags.DEFINE_bool("warm_start", False, "Of each search.")
_TEST_SEEDS = flags.DEFINE_integer("test_seeds", al.EffectivenessConfig().seeds, "Of each test.", 1)
_QUERIES = flags.DEFINE_integer(
    "queries_per_step", al.EffectivenessConfig().queries_per_step, "Of each training.", 1
)
_SEED = flags.DEFINE_integer("seed", 0, "Of every search and test.", 0)
flags.mark_flags_as_required(["data", "out"])


def run_fold(data: Path, fold: Path, model: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One search and its test: what came out, and the figures of each loss by test query.

    Of the figures, those of the found loss that validation chooses are under "found"; what fresh
    seeds show of it and of the hand-designed one is under "confirmed" and "by_validation".
    """
    dataset = al.load_dataset(str(fold))
    folder = Path(_OUT.value) / f"{data.name}-{fold.name}-{model}"
    search = al.SearchConfig(
        budget=_BUDGET.value, proposer=_PROPOSER.value, warm_start=_WARM_START.value, model=model,
        seed=_SEED.value, proxy=ProxyConfig(queries_per_step=_QUERIES.value),
    )  # fmt: skip
    result = al.search(dataset, search, out=str(folder / "search"))
    test = al.EffectivenessConfig(
        model=model, seed=_SEED.value, seeds=_TEST_SEEDS.value, queries_per_step=_QUERIES.value
    )
    finalists = [finalist.expression for finalist in result.finalists]
    content = al.effectiveness_test(dataset, finalists, test, out=str(folder / "test"))
    every = per_query_values(folder / "test")
    rows = {row["name"]: row for row in content["rows"]}
    found, confirmation = content["best_found"], content["confirmation"]
    confirmed, by_validation = confirmed_values(folder / "test")
    values = {name: every[name] for name in every if name in HAND_DESIGNED} | {
        "found": every[found],
        "confirmed": confirmed,
        "by_validation": by_validation,
    }
    row = {
        "data": data.name,
        "fold": fold.name,
        "model": model,
        "seed": _SEED.value,
        "formula": rows[found]["formula"],
        "best_hand_designed": content["best_hand_designed"],
        "test": rows[found]["difference"],
        "confirmed": {k: confirmation["found"][k] for k in ("difference", "p_value", "seed_share")},
        "verdict": content["verdict"],
    }
    return row, values


def pooled(values: list[dict[str, np.ndarray]], seed: int) -> dict[str, Any]:
    """The test queries of all folds together."""
    together = {name: np.concatenate([v[name] for v in values]) for name in values[0]}
    difference = together["confirmed"] - together["by_validation"]
    difference = difference[np.isfinite(difference)]
    return {
        "queries": len(difference),
        "against": against_hand_designed(together, "found", seed),
        "by_validation": {
            **bootstrap_interval(difference, seed)._asdict(),
            "p_value": randomisation_p_value(difference, seed),
        },
        "means": {name: float(np.nanmean(v)) for name, v in together.items()},
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    rows, sets = [], []
    for model in _MODELS.value:
        for data in map(Path, _DATA.value):
            values = []
            for fold in sorted(data.glob("Fold*")):
                row, of_fold = run_fold(data, fold, model)
                logging.info("%s", json.dumps(row))
                rows.append(row)
                values.append(of_fold)
            if not values:
                raise app.UsageError(f"--data: no folder Fold1, Fold2, ... in {data}")
            sets.append({"data": data.name, "model": model, **pooled(values, _SEED.value)})
            logging.info("%s", json.dumps(sets[-1]))
    kept = (_MODELS, _BUDGET, _PROPOSER, _WARM_START, _TEST_SEEDS, _QUERIES, _SEED)
    settings = {"data": [Path(data).name for data in _DATA.value]}
    settings |= {flag.name: flag.value for flag in kept}
    report = {"machine": _timing.machine(), "settings": settings, "sets": sets, "folds": rows}
    show(report)
    write_json(Path(_OUT.value) / "real_data.json", report)


def show(report: dict[str, Any]) -> None:
    console = Console(width=140)
    table = Table(title="The found losses that validation chooses, on test queries of all folds")
    for heading in (
        "data", "model", "queries", "found", "less the best hand-designed loss",
        f"better or worse (p < {SIGNIFICANT})", "less what validation chooses",
    ):  # fmt: skip
        table.add_column(heading)
    for row in report["sets"]:
        against, chosen = row["against"], row["by_validation"]
        outcome = "better" if against["better"] else "worse" if against["worse"] else "not shown"
        table.add_row(
            row["data"], row["model"], f"{row['queries']}", f"{against['mean']:.4f}",
            f"{against['difference']:+.4f} ({against['ci_low']:+.4f} to {against['ci_high']:+.4f}),"
            f" {against['best_hand_designed']}",
            f"{outcome}, p = {against['p_value']:.3g}",
            f"{chosen['mean']:+.4f} ({chosen['ci_low']:+.4f} to {chosen['ci_high']:+.4f}), "
            f"p = {chosen['p_value']:.3g}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    app.run(main)
