"""Whether the search finds the loss that a task was made to need.

    python experiments/benchmarks/planted.py --out runs/planted

Each task of `_tasks.py` is drawn anew for every seed and searched with the default budget; then the
finalists and all hand-designed losses are tested on fresh queries. A search succeeds if the found
loss that validation chooses is better there than every hand-designed one, each by a paired
randomisation test with p < 0.01 after Holm's correction for their number. `known` is the same for
the loss that the task was made with, which a search never sees: what there is to be found.

`--against FILE`, the planted.json of other settings, compares the two search by search: what the
found losses are worth on the test queries, and how high the best reward is after so many trained
losses. Rewards of one task and seed compare, whatever proposed the losses: all start from the same
weights and see the same batches.

Interrupted, the same command goes on: every search and test has a run folder below `--out`.
"""

import json
from pathlib import Path
from typing import Any

import _timing
import numpy as np
from _contest import against_hand_designed, per_query_values
from _tasks import LEARNING_RATES, TASKS, Task
from absl import app, flags, logging
from rich.console import Console
from rich.table import Table
from scipy import stats

import autoloss_jax as al
from autoloss_jax.files import write_json
from autoloss_jax.search_rounds import SCHEDULES

_OUT = flags.DEFINE_string("out", None, "Folder of the run folders and of planted.json.")
_TASKS = flags.DEFINE_list("tasks", list(TASKS), "By name.")
_SEEDS = flags.DEFINE_integer("seeds", 10, "Of each task.", 1)
_BUDGET = flags.DEFINE_integer("budget", al.SearchConfig().budget, "Of each search.", 1)
_PROPOSER = flags.DEFINE_string("proposer", al.SearchConfig().proposer, "Of each search.")
_SCHEDULE = flags.DEFINE_enum("schedule", SCHEDULES[0], SCHEDULES, "Of each search.")
_MODEL = flags.DEFINE_string("model", "linear", "Of searches and tests.")
_WARM_START = flags.DEFINE_bool("warm_start", False, "Whether hand-designed losses come first.")
_TUNING_ROUNDS = flags.DEFINE_integer("tuning_rounds", 0, "Rounds that tune numbers.", 0)
_AGAINST = flags.DEFINE_string("against", None, "A planted.json to compare this one with.")
flags.mark_flag_as_required("out")

_SETTINGS = (_SEEDS, _BUDGET, _PROPOSER, _SCHEDULE, _MODEL, _WARM_START, _TUNING_ROUNDS)

TRAINED = (50, 100, 200, 400, 800)
"""After how many trained losses the best reward so far is noted."""


def attempt(name: str, task: Task, seed: int) -> dict[str, Any]:
    """One search and its test."""
    dataset = task.dataset(name, seed)
    folder = Path(_OUT.value) / f"{name}-seed{seed}"
    search = al.SearchConfig(
        budget=_BUDGET.value, proposer=_PROPOSER.value, schedule=_SCHEDULE.value,
        model=_MODEL.value, seed=seed,
        warm_start=_WARM_START.value, tuning_rounds=_TUNING_ROUNDS.value,
    )  # fmt: skip
    result = al.search(dataset, search, metric=task.metric, out=str(folder / "search"))
    found = [finalist.expression for finalist in result.finalists]
    test = al.EffectivenessConfig(
        model=_MODEL.value, seed=seed, learning_rates=LEARNING_RATES, confirmation_seeds=0
    )
    content = al.effectiveness_test(
        dataset, [*found, al.parse(task.truth)], test, metric=task.metric,
        out=str(folder / "test"),
    )  # fmt: skip
    values = per_query_values(folder / "test")
    rows = {row["name"]: row for row in content["rows"]}
    known = f"found {len(found) + 1}"
    chosen = max(
        (n for n, row in rows.items() if row["kind"] == "found" and n != known),
        key=lambda n: rows[n]["validation"],
    )
    return {
        "task": name,
        "seed": seed,
        "formula": rows[chosen]["formula"],
        "best_reward": best_rewards(result.records),
        "found": against_hand_designed(values, chosen, seed),
        "known": against_hand_designed(values, known, seed),
    }


def best_rewards(records: list[dict[str, Any]]) -> dict[str, float]:
    """The best reward among as many of the first trained losses as TRAINED says."""
    rewards = [r["reward"] for r in records if r["status"] == "trained" and r["reward"] is not None]
    return {str(n): max(rewards[:n]) for n in TRAINED if n <= len(rewards)}


def quantities(row: dict[str, Any]) -> dict[str, float]:
    """What is compared of two searches."""
    rewards = {f"best reward of {n}": reward for n, reward in row["best_reward"].items()}
    return {"test": row["found"]["mean"]} | rewards


def compare(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """These searches less the other ones of the same tasks and seeds, one row for each quantity.

    The mean of the differences with its 95 % interval (Student's t), and signed ranks over the
    searches (Wilcoxon, 1945).
    """
    other = {(row["task"], row["seed"]): row for row in others}
    pairs = [(row, other[key]) for row in rows if (key := (row["task"], row["seed"])) in other]
    differences_of: dict[str, list[float]] = {}
    for row, rival in pairs:
        theirs = quantities(rival)
        for name, value in quantities(row).items():
            if name in theirs:
                differences_of.setdefault(name, []).append(value - theirs[name])
    table = []
    for name, values in differences_of.items():
        differences = np.array(values)
        if len(differences) < 2:
            continue
        mean, error = differences.mean(), stats.sem(differences)
        half = error * stats.t.ppf(0.975, len(differences) - 1)
        table.append({
            "quantity": name, "searches": len(differences), "mean": float(mean),
            "ci_low": float(mean - half), "ci_high": float(mean + half),
            "higher": int((differences > 0).sum()), "lower": int((differences < 0).sum()),
            "p_value": float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0,
        })  # fmt: skip
    return table


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    rows = []
    for seed in range(_SEEDS.value):
        for name in _TASKS.value:
            rows.append(attempt(name, TASKS[name], seed))
            logging.info("%s", json.dumps(rows[-1]))
    settings = {f.name: f.value for f in _SETTINGS}
    report = {"machine": _timing.machine(), "settings": settings, "rows": rows}
    if _AGAINST.value:
        other = json.loads(Path(_AGAINST.value).read_text(encoding="utf-8"))
        report["against"] = {
            "settings": other["settings"], "differences": compare(rows, other["rows"])
        }  # fmt: skip
    show(report)
    write_json(Path(_OUT.value) / "planted.json", report)


def show(report: dict[str, Any]) -> None:
    console = Console(width=120)
    table = Table(title="The found loss against every hand-designed one, on fresh queries")
    for heading in ("task", "succeeded", "known", "difference to the best", "a found loss"):
        table.add_column(heading)
    for name in dict.fromkeys(row["task"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["task"] == name]
        cells = [f"{sum(r[k]['better'] for r in rows)}/{len(rows)}" for k in ("found", "known")]
        differences = [r["found"]["difference"] for r in rows]
        spread = (
            f"{np.median(differences):+.3f} ({min(differences):+.3f} to {max(differences):+.3f})"
        )
        table.add_row(name, *cells, spread, rows[0]["formula"])
    console.print(table)
    if "against" in report:
        show_against(report["against"], console)


def show_against(against: dict[str, Any], console: Console) -> None:
    settings = ", ".join(f"{name} {value}" for name, value in against["settings"].items())
    table = Table(title=f"These searches less those of {settings}")
    for heading in ("of each search", "difference", "higher", "lower", "p"):
        table.add_column(heading)
    for row in against["differences"]:
        table.add_row(
            row["quantity"], f"{row['mean']:+.4f} ({row['ci_low']:+.4f} to {row['ci_high']:+.4f})",
            f"{row['higher']}", f"{row['lower']}", f"{row['p_value']:.2g}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    app.run(main)
