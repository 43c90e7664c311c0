"""What the winners of the planted benchmark do, and which of their parts matter.

    python experiments/benchmarks/planted.py --seeds 1 --out runs/planted
    python experiments/benchmarks/winners.py --planted runs/planted/planted.json --out runs/winners

Of each task, the loss that was found with the first seed: how its gradient behaves and which
hand-designed loss is nearest (`autoloss explain`), and the loss trained whole and without each of
its parts, on the task's queries under its metric, with models of another seed than it was chosen
by (`experiments/ablation.py`).
"""

import json
from pathlib import Path
from typing import Any

import _timing
from _tasks import LEARNING_RATES, TASKS
from absl import app, flags, logging
from rich.console import Console

import autoloss_jax as al
from autoloss_jax.files import write_json
from autoloss_jax.report import ablation_table

_PLANTED = flags.DEFINE_string("planted", None, "The planted.json whose losses they are.")
_OUT = flags.DEFINE_string("out", None, "Folder of the run folders and of winners.json.")
flags.mark_flags_as_required(["planted", "out"])


def parts(row: dict[str, Any], model: str) -> dict[str, Any]:
    """The ablation of the loss that a search found."""
    task = TASKS[row["task"]]
    return al.ablation_test(
        task.dataset(row["task"], row["seed"]), row["formula"],
        al.EffectivenessConfig(model=model, seed=row["seed"] + 1, learning_rates=LEARNING_RATES),
        metric=task.metric, out=str(Path(_OUT.value) / row["task"]),
        on_progress=lambda text, share: logging.info("%s, %.0f %%", text, 100 * share),
    )  # fmt: skip


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    planted = json.loads(Path(_PLANTED.value).read_text(encoding="utf-8"))
    first = {row["task"]: row for row in reversed(planted["rows"])}
    console, winners = Console(width=140), []
    for name in sorted(first):
        about = al.explain(first[name]["formula"])
        content = parts(first[name], planted["settings"]["model"])
        console.print(f"\n{name}\n{about}\n", markup=False)
        console.print(ablation_table(content))
        console.print(content["verdict"], markup=False)
        winners.append({"task": name, "seed": first[name]["seed"], **content})
    report = {"machine": _timing.machine(), "planted": planted["settings"], "winners": winners}
    write_json(Path(_OUT.value) / "winners.json", report)


if __name__ == "__main__":
    app.run(main)
