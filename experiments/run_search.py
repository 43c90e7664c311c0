"""Searches with several proposers and seeds, each in a run folder of its own.

    python experiments/run_search.py --data MQ2008/Fold1 --out runs/proposers --budget 500 \\
        --proposers random,hybrid --seeds 0,1,2

Interrupted, the same command goes on. Prints the confirmed reward of each search's best finalist.
"""

from pathlib import Path

from absl import app, flags, logging

import autoloss_jax as al
from autoloss_jax.proposers import PROPOSERS

_DATA = flags.DEFINE_string("data", None, "LETOR text; by default synthetic queries")
_OUT = flags.DEFINE_string("out", None, "folder of the run folders", required=True)
_BUDGET = flags.DEFINE_integer("budget", 500, "candidates of each search", lower_bound=1)
_MODEL = flags.DEFINE_string("model", "mlp", "linear, mlp or attention")
_PROPOSERS = flags.DEFINE_list("proposers", list(PROPOSERS), "by name")
_SCHEDULE = flags.DEFINE_string("schedule", "from_scratch", "from_scratch or alternating")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "of the searches")


def _search_once(dataset: al.Dataset, proposer: str, seed: int) -> str:
    """One line on one search."""
    config = al.SearchConfig(
        budget=_BUDGET.value,
        proposer=proposer,
        schedule=_SCHEDULE.value,
        model=_MODEL.value,
        seed=seed,
    )
    out = Path(_OUT.value) / f"{proposer}-seed{seed}"
    result = al.search(
        dataset, config, out=str(out), on_round=lambda progress: logging.info("%s", progress)
    )
    if not result.finalists:
        return f"{proposer}\t{seed}\tno finalist"
    best = result.finalists[0]
    return f"{proposer}\t{seed}\t{best.reward:+.4f}\t{best.reward_se:.4f}\t{best.expression}"


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    dataset = al.load_dataset(_DATA.value) if _DATA.value else al.synthetic()
    lines = [
        _search_once(dataset, proposer, int(seed))
        for proposer in _PROPOSERS.value
        for seed in _SEEDS.value
    ]
    print("\n".join(["proposer\tseed\treward\tstandard error\tloss", *lines]))


if __name__ == "__main__":
    app.run(main)
