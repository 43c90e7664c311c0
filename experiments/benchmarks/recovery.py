"""How many evaluations a proposer needs to find a loss again, when nothing but the loss is noisy.

    python experiments/benchmarks/recovery.py --out recovery.json

No model is trained. The reward of a candidate is the cosine between its gradient and that of a
hand-designed loss, the target, on fixed lists; the target is found when a candidate's gradient
points where its own does, and nearly found at the lower cosines of `LEVELS`. An evaluation is a
candidate that a search would train: not refused, and not equal to one before it, by its form or by
its gradient.

Every proposer, target and seed is one search of at most `--budget` evaluations; random search,
which learns nothing, is one for all targets. The table has the median evaluations of each target
over the seeds, with its interval (order statistics, at least 95 %), and for each pair of proposers
and each level a signed-rank test over the targets (Wilcoxon, 1945), which takes the geometric mean
over the seeds, for a median beyond the budget does not tell four found in ten from none. All
proposers draw their first round alike.
"""

import functools
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent import futures
from typing import Any, NamedTuple

import _timing
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table
from scipy import stats

from autoloss_jax.data import synthetic
from autoloss_jax.execution.programs import unfit
from autoloss_jax.files import write_json
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.grammar import depends_on_data, from_tokens
from autoloss_jax.language.simplification import simplify
from autoloss_jax.losses import HAND_DESIGNED, LOSSES
from autoloss_jax.proposers import PROPOSERS, make_proposer
from autoloss_jax.screening import SAME_DIRECTION, Directions, Probe, make_probe, screen

_PROPOSERS = flags.DEFINE_list("proposers", list(PROPOSERS), "By name.")
_TARGETS = flags.DEFINE_list("targets", list(HAND_DESIGNED), "Hand-designed losses to be found.")
_SEEDS = flags.DEFINE_integer("seeds", 10, "Searches of each proposer and target.", 1)
_BUDGET = flags.DEFINE_integer("budget", 600, "Evaluations after which a search gives up.", 1)
_PROPOSALS = flags.DEFINE_integer("proposals", 32, "Losses proposed a round.", 1)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 24, "Of the longest loss.", 4)
_JOBS = flags.DEFINE_integer("jobs", os.cpu_count(), "Searches at the same time.", 1)
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")

BARREN_ROUNDS = 100
"""A search that evaluates nothing in so many rounds gives up."""

LEVELS = (0.9, 0.99, SAME_DIRECTION)
"""Cosines to the target from which on it is half found, nearly found, and found."""


class Found(NamedTuple):
    """What became of one target in one search."""

    evaluations: list[int | None]  # until each of LEVELS was reached; None: it never was
    best: float  # cosine


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


def recover(name: str, targets: np.ndarray, seed: int, gradients: Gradients) -> list[Found]:
    """One search for the directions f32[targets, ...]; its reward is the mean of their cosines."""
    proposer = make_proposer(name, max_tokens=_MAX_TOKENS.value)
    state = proposer.init(seed)
    rewards: dict[Expression, float] = {}
    directions = Directions()
    reached = np.full((len(LEVELS), len(targets)), np.inf)  # after how many evaluations
    best = np.full(len(targets), -1.0)
    evaluations = barren = 0

    def done() -> bool:
        return evaluations == _BUDGET.value or bool(np.isfinite(reached).all())

    while not done() and barren < BARREN_ROUNDS:
        state, tokens = proposer.propose(state, _PROPOSALS.value)
        losses = [simplify(from_tokens(row)) for row in tokens]
        before = evaluations
        for loss, direction in gradients(losses).items():
            if loss in rewards or done():
                continue
            if direction is None:
                rewards[loss] = -np.inf
                continue
            cosines = targets @ direction
            rewards[loss] = float(cosines.mean())
            if directions.find(direction) is None:
                directions.add(str(loss), direction)
                evaluations += 1
            best = np.maximum(best, cosines)
            for level, row in zip(LEVELS, reached, strict=True):
                row[(cosines >= level) & np.isinf(row)] = evaluations
        barren = barren + 1 if evaluations == before else 0
        if not done():
            state, _ = proposer.observe(state, tokens, np.array([rewards[loss] for loss in losses]))
    return [
        Found([None if np.isinf(e) else int(e) for e in column], float(cosine))
        for column, cosine in zip(reached.T, best, strict=True)
    ]


def recover_all(name: str, wanted: list[str], seed: int) -> list[Found]:
    """One search for the named targets, in a process of its own."""
    gradients = _gradients()
    known = gradients([LOSSES[target] for target in wanted])
    directions = []
    for target in wanted:
        direction = known[LOSSES[target]]
        assert direction is not None, f"{target} is refused"
        directions.append(direction)
    return recover(name, np.stack(directions), seed, gradients)


def _read_flags(argv: list[str]) -> None:
    flags.FLAGS(argv)


@functools.cache
def _gradients() -> Gradients:
    return Gradients(make_probe(synthetic().folds[0].train, seed=0))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    began, targets, searches = time.perf_counter(), _TARGETS.value, {}
    with futures.ProcessPoolExecutor(
        _JOBS.value, multiprocessing.get_context("spawn"), _read_flags, (sys.argv,)
    ) as pool:
        for name, seed in itertools.product(_PROPOSERS.value, range(_SEEDS.value)):
            for wanted in [targets] if name == "random" else [[target] for target in targets]:
                job = pool.submit(recover_all, name, wanted, seed)
                searches[job] = name, wanted
        found: dict[tuple[str, str], list[Found]] = defaultdict(list)
        for job, (name, wanted) in searches.items():
            for target, result in zip(wanted, job.result(), strict=True):
                found[name, target].append(result)
                print(json.dumps([name, target, *result]), flush=True)
    rows = [
        {"proposer": name, "target": target, "levels": _levels(results),
         "searches": [result._asdict() for result in results]}
        for (name, target), results in found.items()
    ]  # fmt: skip
    report = {
        "machine": _timing.machine(),
        "settings": {f.name: f.value for f in (_SEEDS, _BUDGET, _PROPOSALS, _MAX_TOKENS)},
        "seconds": time.perf_counter() - began,
        "rows": rows,
        "tests": [
            {"first": a, "second": b, "level": level, **_compare(rows, a, b, place)}
            for a, b in itertools.combinations(_PROPOSERS.value, 2)
            for place, level in enumerate(LEVELS)
        ],
    }
    show(report)
    if _OUT.value:
        write_json(_OUT.value, report)


def _levels(searches: Sequence[Found]) -> list[dict[str, Any]]:
    """For each level the median of the evaluations and its interval; None is beyond the budget."""
    count = len(searches)
    # The widest symmetric pair of order statistics leaves out at most 2.5 % on either side.
    out = max(0, int(stats.binom.ppf(0.025, count, 0.5)) - 1)
    levels = []
    for place in range(len(LEVELS)):
        evaluations = [search.evaluations[place] for search in searches]
        needed = np.sort([np.inf if e is None else e for e in evaluations])
        median = (needed[(count - 1) // 2] + needed[count // 2]) / 2
        figures = {"median": median, "low": needed[out], "high": needed[count - 1 - out]}
        levels.append(
            {"found": int(np.isfinite(needed).sum())}
            | {name: None if np.isinf(value) else float(value) for name, value in figures.items()}
        )
    return levels


def _compare(rows: list[dict[str, Any]], first: str, second: str, place: int) -> dict[str, Any]:
    """Signed ranks of the targets, each by the geometric mean of what its searches needed.

    A search that does not find its target counts the whole budget.
    """
    needed = {
        name: [
            np.mean([
                np.log(_BUDGET.value if (e := search["evaluations"][place]) is None else e)
                for search in row["searches"]
            ])
            for row in rows if row["proposer"] == name
        ]
        for name in (first, second)
    }  # fmt: skip
    differences = np.subtract(needed[first], needed[second])
    told = differences[np.abs(differences) > 1e-9]
    p_value = float(stats.wilcoxon(told).pvalue) if len(told) else 1.0
    return {
        "fewer": int(np.sum(told < 0)),
        "more": int(np.sum(told > 0)),
        "ratio": float(np.exp(differences.mean())),
        "p_value": p_value,
    }


def show(report: dict[str, Any]) -> None:
    console = Console(width=140)
    names = list(dict.fromkeys(row["proposer"] for row in report["rows"]))
    by = {(row["proposer"], row["target"]): row["levels"] for row in report["rows"]}
    for place, level in enumerate(LEVELS):
        table = Table(title=f"Evaluations until the cosine is {level}, at most {_BUDGET.value:,}")
        for heading in ("target", *names):
            table.add_column(heading)
        for target in dict.fromkeys(row["target"] for row in report["rows"]):
            table.add_row(target, *(_cell(by[name, target][place]) for name in names))
        console.print(table)
    for test in report["tests"]:
        console.print(
            f"{test['level']}: {test['first']} needs {test['ratio']:.2f} times the evaluations of "
            f"{test['second']}: fewer for {test['fewer']} targets, more for {test['more']}, "
            f"p = {test['p_value']:.4g}"
        )


def _cell(level: dict[str, Any]) -> str:
    found = f"{level['found']}/{_SEEDS.value}"
    if level["median"] is None:
        return f"not found ({found})"
    high = "never" if level["high"] is None else f"{level['high']:,.0f}"
    return f"{level['median']:,.0f} [{level['low']:,.0f}, {high}] ({found})"


if __name__ == "__main__":
    app.run(main)
