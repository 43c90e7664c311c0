"""How many evaluations a proposer needs to find a loss again, when nothing but the loss is noisy.

    python experiments/benchmarks/recovery.py --out recovery.json

No model is trained. The reward of a candidate is the cosine between its gradient and that of a
hand-designed loss, the target, on fixed lists; the target is found when a candidate's gradient
points where its own does. An evaluation is a candidate that a search would train: not refused, and
not equal to one before it, by its form or by its gradient.

Every proposer, target and seed is one search of at most `--budget` evaluations. The table has the
median evaluations of each target over the seeds, with its interval (order statistics, at least
95 %), and for each pair of proposers a signed-rank test over the targets (Wilcoxon, 1945).
"""

import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _timing
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table
from scipy import stats

from autoloss_jax.data import synthetic
from autoloss_jax.execution.programs import unfit
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.grammar import depends_on_data, from_tokens
from autoloss_jax.language.simplification import simplify
from autoloss_jax.losses import HAND_DESIGNED, LOSSES
from autoloss_jax.proposers import PROPOSERS, make_proposer
from autoloss_jax.screening import SAME_DIRECTION, Directions, Probe, make_probe, screen

_PROPOSERS = flags.DEFINE_list("proposers", list(PROPOSERS), "By name.")
_TARGETS = flags.DEFINE_list("targets", list(HAND_DESIGNED), "Hand-designed losses to be found.")
_SEEDS = flags.DEFINE_integer("seeds", 10, "Searches of each proposer and target.", 1)
_BUDGET = flags.DEFINE_integer("budget", 2_000, "Evaluations after which a search gives up.", 1)
_PROPOSALS = flags.DEFINE_integer("proposals", 128, "Losses proposed a round.", 1)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 24, "Of the longest loss.", 4)
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")

BARREN_ROUNDS = 100
"""A search that evaluates nothing in so many rounds gives up."""


class Found(NamedTuple):
    """What became of one search."""

    evaluations: int  # until the target was found, or all
    found: bool
    proposals: int
    best: float  # cosine
    seconds: float


class Gradients:
    """The directions of losses on one probe, each measured once in this process."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._known: dict[Expression, np.ndarray | None] = {}

    def __call__(self, losses: Sequence[Expression]) -> dict[Expression, np.ndarray | None]:
        """By loss; None for one that a search would refuse."""
        new = [loss for loss in dict.fromkeys(losses) if loss not in self._known]
        self._known |= dict.fromkeys(new)
        fitting = [loss for loss in new if depends_on_data(loss) and not unfit(loss)]
        for loss, verdict in zip(fitting, screen(fitting, self._probe), strict=True):
            self._known[loss] = None if verdict.reason else verdict.direction
        return {loss: self._known[loss] for loss in losses}


def recover(name: str, target: np.ndarray, seed: int, gradients: Gradients) -> Found:
    """One search for a target's direction."""
    began = time.perf_counter()
    proposer = make_proposer(name, max_tokens=_MAX_TOKENS.value)
    state = proposer.init(seed)
    seen: dict[Expression, float] = {}
    directions = Directions()
    evaluations = rounds = barren = 0
    best = -1.0
    while evaluations < _BUDGET.value and barren < BARREN_ROUNDS:
        state, tokens = proposer.propose(state, _PROPOSALS.value)
        rounds += 1
        losses = [simplify(from_tokens(row)) for row in tokens]
        before = evaluations
        for loss, direction in gradients(losses).items():
            if loss in seen:
                continue
            if direction is None:
                seen[loss] = -np.inf
                continue
            seen[loss] = float(direction @ target)
            if directions.find(direction) is None:
                directions.add(str(loss), direction)
                evaluations += 1
            best = max(best, seen[loss])
            if best >= SAME_DIRECTION or evaluations == _BUDGET.value:
                break
        if best >= SAME_DIRECTION or evaluations == _BUDGET.value:
            break
        barren = barren + 1 if evaluations == before else 0
        state, _ = proposer.observe(state, tokens, np.array([seen[loss] for loss in losses]))
    seconds = time.perf_counter() - began
    return Found(evaluations, best >= SAME_DIRECTION, rounds * _PROPOSALS.value, best, seconds)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    gradients = Gradients(make_probe(synthetic().folds[0].train, seed=0))
    targets = gradients([LOSSES[name] for name in _TARGETS.value])
    rows = []
    for proposer, target in itertools.product(_PROPOSERS.value, _TARGETS.value):
        direction = targets[LOSSES[target]]
        assert direction is not None, f"{target} is refused"
        found = [recover(proposer, direction, seed, gradients) for seed in range(_SEEDS.value)]
        rows.append({"proposer": proposer, "target": target, **_summary(found)})
        print(json.dumps({k: v for k, v in rows[-1].items() if k != "searches"}), flush=True)
    report = {
        "machine": _timing.machine(),
        "settings": {f.name: f.value for f in (_SEEDS, _BUDGET, _PROPOSALS, _MAX_TOKENS)},
        "rows": rows,
        "tests": [
            {"first": a, "second": b, **_compare(rows, a, b)}
            for a, b in itertools.combinations(_PROPOSERS.value, 2)
        ],
    }
    show(report)
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _summary(searches: Sequence[Found]) -> dict[str, Any]:
    """The median of the evaluations and its interval; a search that gave up counts as the most."""
    needed = np.sort([f.evaluations if f.found else np.inf for f in searches])
    count = len(needed)
    # The widest symmetric pair of order statistics leaves out at most 2.5 % on either side.
    out = max(0, int(stats.binom.ppf(0.025, count, 0.5)) - 1)
    low, high = needed[out], needed[count - 1 - out]
    median = (needed[(count - 1) // 2] + needed[count // 2]) / 2
    return {
        "found": int(sum(f.found for f in searches)),
        **{
            name: None if np.isinf(value) else float(value)
            for name, value in (("median", median), ("low", low), ("high", high))
        },
        "seconds": sum(f.seconds for f in searches),
        "searches": [f._asdict() for f in searches],
    }


def _compare(rows: list[dict[str, Any]], first: str, second: str) -> dict[str, Any]:
    """Signed ranks of the targets' medians, on a logarithmic scale; None counts as the budget."""
    medians = {
        name: [
            np.log(_BUDGET.value if r["median"] is None else r["median"])
            for r in rows if r["proposer"] == name
        ]
        for name in (first, second)
    }  # fmt: skip
    differences = np.subtract(medians[first], medians[second])
    told = differences[np.abs(differences) > 1e-9]
    p_value = float(stats.wilcoxon(told).pvalue) if len(told) else 1.0
    return {
        "fewer": int(np.sum(told < 0)),
        "more": int(np.sum(told > 0)),
        "ratio": float(np.exp(differences.mean())),
        "p_value": p_value,
    }


def show(report: dict[str, Any]) -> None:
    console = Console(width=120)
    names = list(dict.fromkeys(row["proposer"] for row in report["rows"]))
    table = Table(title=f"Evaluations to find a loss again, at most {_BUDGET.value:,}")
    for heading in ("target", *names):
        table.add_column(heading)
    by = {(row["proposer"], row["target"]): row for row in report["rows"]}
    for target in dict.fromkeys(row["target"] for row in report["rows"]):
        table.add_row(target, *(_cell(by[name, target]) for name in names))
    console.print(table)
    for test in report["tests"]:
        console.print(
            f"{test['first']} needs {test['ratio']:.2f} times the evaluations of {test['second']}: "
            f"fewer for {test['fewer']} targets, more for {test['more']}, p = {test['p_value']:.4g}"
        )


def _cell(row: dict[str, Any]) -> str:
    found = f"{row['found']}/{len(row['searches'])}"
    if row["median"] is None:
        return f"not found ({found})"
    high = "never" if row["high"] is None else f"{row['high']:,.0f}"
    return f"{row['median']:,.0f} [{row['low']:,.0f}, {high}] ({found})"


if __name__ == "__main__":
    app.run(main)
