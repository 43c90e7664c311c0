"""Searches and tests, one after the other for hours in one process: does anything grow?

    python experiments/soak.py --hours 2 --out soak

Small searches of all proposers, schedules and models, some of them stopped half-way and gone on
with, and small effectiveness tests, hostile losses among them. After each run one line of
`runs.jsonl` says what the process holds: memory, files, threads, child processes, arrays, compiled
programs, temporary and cached files; the folder of the run is checked, and removed. Every twelfth
run repeats the first one and must give the same ledger. Stopped at any time, what was written
stays; `python experiments/soak.py --out soak --hours 0` reports it.
"""

import contextlib
import gc
import json
import math
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from jax import monitoring
from rich.console import Console
from rich.table import Table

import autoloss_jax as al
from autoloss_jax.cli.machine import set_compilation_cache
from autoloss_jax.files import append_ledger, read_json, read_ledger, write_json
from autoloss_jax.runs import fingerprint
from autoloss_jax.search_rounds import Progress

_HOURS = flags.DEFINE_float("hours", 2.0, "how long; 0 only reports what is in --out", 0.0)
_RUNS = flags.DEFINE_integer("runs", 0, "ends after so many runs; 0: after --hours", 0)
_OUT = flags.DEFINE_string("out", None, "folder of runs.jsonl and report.json", required=True)
_DATA = flags.DEFINE_string("data", None, "LETOR text; by default synthetic queries")
_SEED = flags.DEFINE_integer("seed", 0, "of the first run; each takes the next", 0)
_REPEATED = flags.DEFINE_integer("repeated", 12, "every so many runs the first one again", 1)
_PROPOSERS = flags.DEFINE_list("proposers", ["random", "evolution", "controller"], "in turn")
_MODELS = flags.DEFINE_list("models", ["linear", "mlp"], "in turn")
_WARM_UP = flags.DEFINE_float("warm_up", 0.2, "share of the time that the slopes leave out", 0, 0.9)

TESTED = 4  # every so many runs a test
STATUSES = {"trained", "duplicate", "rejected", "failed"}
HOSTILE = (  # no value, a constant, exploding gradients, all documents alike
    "mean_i(log(s_i - s_i) / (s_i - s_i))",
    "mean_i(y_i)",
    "mean_i(exp(exp(square(s_i))) * 1e20)",
    "sum_ij(exp(square(s_i - s_j)) * 1e10)",
    "mean_i(square(s_i) * 1e30)",
)
CONSOLE = Console(width=160, highlight=False)
HELD = (
    "descriptors",
    "threads",
    "children",
    "temporary_files",
    "live_arrays",
    "programs",
    "compiled",
)


_compiled: list[str] = []  # one event for each program that was compiled, or read from the cache


class _Stop(Exception):
    """Ends a run half-way, as a signal would."""


def _config(run: int) -> al.SearchConfig:
    """A small search, of every kind in turn."""
    return al.SearchConfig(
        budget=24,
        proposer=_PROPOSERS.value[run % len(_PROPOSERS.value)],
        schedule=("from_scratch", "alternating")[run // 3 % 2],
        model=_MODELS.value[run // 6 % len(_MODELS.value)],
        seed=_SEED.value + run,
        proposals=16,
        hall_of_fame=4,
        fresh_seeds=1,
        finalists=2,
        proxy=al.ProxyConfig(folds=2, rung_steps=4, rungs=(1, 1), max_buckets=1),
    )


def _stop_search(progress: Progress) -> None:
    if progress.trained >= progress.budget / 2:
        raise _Stop


def _stop_test(_: str, share: float) -> None:
    if share >= 0.5:
        raise _Stop


def _search(dataset: al.Dataset, run: int, folder: Path) -> int:
    """Searches, every other time with a stop half-way. Returns how many candidates it trained."""
    config = _config(run)
    if run % 2:
        with contextlib.suppress(_Stop):
            al.search(dataset, config, out=str(folder), on_round=_stop_search)
    al.search(dataset, config, out=str(folder))
    return _check_ledger(folder, config)


def _test(dataset: al.Dataset, run: int, folder: Path) -> int:
    """Tests a hostile loss and a drawn one. Returns how many models it trained."""
    config = al.EffectivenessConfig(
        model="linear", seed=_SEED.value + run, seeds=1, learning_rates=(0.01, 0.1), block_steps=4,
        patience=2, max_steps=24, max_buckets=1, confirmation_seeds=2,
    )  # fmt: skip
    found = [al.parse(HOSTILE[run // TESTED % len(HOSTILE)])]
    found += al.random_expressions(jax.random.key(run), 1)
    test = partial(
        al.effectiveness_test, dataset, found, config, hand_designed=["mse", "softmax"],
        out=str(folder),
    )  # fmt: skip
    if run // TESTED % 2:
        with contextlib.suppress(_Stop):
            test(on_progress=_stop_test)
    result = test()
    if read_json(folder / "effectiveness.json") != json.loads(json.dumps(result)):
        raise AssertionError("effectiveness.json is not what was returned")
    return len(result["rows"]) * len(config.learning_rates)


def _check_ledger(folder: Path, config: al.SearchConfig) -> int:
    """Raises AssertionError unless the folder is whole. Returns how many candidates it trained."""
    records = read_ledger(folder / "ledger.jsonl")
    trained = [r for r in records if r["status"] in ("trained", "failed")]
    checks = {
        "indices count up": [r["index"] for r in records] == list(range(len(records))),
        "rounds are whole": [r["round"] for r in records]
        == [k // config.proposals for k in range(len(records))],
        "statuses are known": {r["status"] for r in records} <= STATUSES,
        "formulas are canonical": all(str(al.parse(r["formula"])) == r["formula"] for r in records),
        "what was trained has a reward": all(
            (r["reward"] is None) == (r["status"] == "failed") and r["steps"] > 0 for r in trained
        ),
        "counts agree": len(trained) == read_json(folder / "finalists.json")["candidates_trained"],
        "the budget was used": len(trained) >= config.budget,
        "no write was left half": not list(folder.rglob("*.tmp")),
        "nothing is damaged": not list(folder.rglob("*.damaged")),
        "the lock is free": not (folder / "lock").read_bytes(),
        "three checkpoints": len(list((folder / "checkpoints").iterdir())) <= 3,
    }
    broken = [what for what, holds in checks.items() if not holds]
    if broken:
        raise AssertionError(f"{folder}: not true: {'; '.join(broken)}")
    return len(trained)


def _ledger(folder: Path) -> list[dict[str, Any]]:
    """The ledger without what the clock says."""
    return [{**r, "seconds": None} for r in read_ledger(folder / "ledger.jsonl")]


# --- what the process holds ---


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def _held(temporary: Path, cache: Path) -> dict[str, Any]:
    """What the process holds, and what it has left in folders. Linux only."""
    gc.collect()
    children = Path("/proc/self/task").glob("*/children")
    arrays = jax.live_arrays()
    cached = [path.stat().st_size for path in cache.rglob("*") if path.is_file()]
    return {
        "rss": _status("VmRSS") / 1024,  # MB
        "peak_rss": _status("VmHWM") / 1024,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": _status("Threads"),
        "children": sum(len(path.read_text().split()) for path in children),
        "temporary_files": sum(1 for _ in temporary.rglob("*")),
        "cached_files": len(cached),
        "cached_megabytes": sum(cached) / 2**20,
        "live_arrays": len(arrays),
        "live_megabytes": sum(array.nbytes for array in arrays) / 2**20,
        "programs": len(jax.local_devices()[0].client.live_executables()),
        "compiled": len(_compiled),
    }


def _note_compilation(event: str, duration: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(event)


# --- what that says ---


def _slope(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The least-squares slope and its standard error."""
    if len(x) < 3:
        return {"slope": math.nan, "standard_error": math.nan}
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    residuals = y - y.mean() - slope * x
    error = math.sqrt(float(residuals @ residuals) / (len(x) - 2) / float(x @ x))
    return {"slope": slope, "standard_error": error}


def _report(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Slopes of memory after the warm-up; first, last and greatest of everything else."""
    end = lines[-1]["hours"]
    warm = [line for line in lines if line["hours"] >= _WARM_UP.value * end]
    rss = np.array([line["rss"] for line in warm])
    hours = _slope(np.array([line["hours"] for line in warm]), rss)
    trained = _slope(np.array([line["trained"] for line in warm]) / 1000, rss)
    growth = hours["slope"] / rss.mean()
    flat = abs(growth) < 0.01
    return {
        "hours": end,
        "runs": len(lines),
        "tests": sum(line["kind"] == "test" for line in lines),
        "models_trained": lines[-1]["trained"],
        "warm_up_hours": _WARM_UP.value * end,
        "rss_mean_megabytes": float(rss.mean()),
        "rss_megabytes_an_hour": hours,
        "rss_megabytes_a_thousand_models": trained,
        "growth_an_hour": growth,
        "verdict": f"memory is {'flat' if flat else 'not flat'}: {growth:+.2%} an hour",
        "held": {
            name: {"warm": warm[0][name], "last": lines[-1][name],
                   "greatest": max(line[name] for line in warm)}
            for name in (*HELD, "rss", "peak_rss", "live_megabytes", "cached_files",
                         "cached_megabytes")
        },
    }  # fmt: skip


def _print(report: dict[str, Any]) -> None:
    table = Table("what", "after the warm-up", "greatest since", "at the end")
    for name, values in report["held"].items():
        table.add_row(name, *(f"{values[key]:,.0f}" for key in ("warm", "greatest", "last")))
    CONSOLE.print(table)
    for name in ("rss_megabytes_an_hour", "rss_megabytes_a_thousand_models"):
        slope, error = report[name].values()
        CONSOLE.print(f"{name}: {slope:+.2f}, standard error {error:.2f}")
    CONSOLE.print(
        f"{report['runs']} runs, {report['tests']} of them tests, {report['models_trained']} "
        f"models in {report['hours']:.2f} hours; {report['verdict']}"
    )


def _soak(out: Path, temporary: Path) -> None:
    dataset = (
        al.load_dataset(_DATA.value, cache=out / "cache" / "data")
        if _DATA.value
        else al.synthetic(num_queries=100, num_features=8, list_length=(4, 12))
    )
    set_compilation_cache(str(out / "cache"))
    monitoring.register_event_duration_secs_listener(_note_compilation)
    logging.set_verbosity(logging.WARNING)
    begun_as = {"seed": _SEED.value, "data": dataset.name, "environment": fingerprint()}
    write_json(out / "begun.json", begun_as)
    begun, trained, run = time.monotonic(), 0, 0
    first: list[dict[str, Any]] = []
    while time.monotonic() - begun < 3600 * _HOURS.value and not 0 < _RUNS.value <= run:
        started = time.monotonic()
        repeats = run % _REPEATED.value == 0
        kind = "search" if repeats or run % TESTED else "test"
        with tempfile.TemporaryDirectory(dir=temporary) as folder:
            path = Path(folder) / "run"
            if kind == "test":
                trained += _test(dataset, run, path)
            else:
                trained += _search(dataset, 0 if repeats else run, path)
                if repeats:
                    first = first or _ledger(path)
                    if _ledger(path) != first:
                        raise AssertionError(f"run {run} repeats the first, but its ledger differs")
        line = {
            "run": run,
            "kind": kind,
            "hours": (time.monotonic() - begun) / 3600,
            "seconds": time.monotonic() - started,
            "trained": trained,
        } | _held(temporary, out / "cache")
        append_ledger(out / "runs.jsonl", [line])
        CONSOLE.print(
            f"run {run} ({kind}, {line['seconds']:.1f} s): {trained} models, {line['rss']:.0f} MB, "
            + ", ".join(f"{line[name]} {name}" for name in HELD)
        )
        run += 1


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    out = Path(_OUT.value)
    if _HOURS.value:
        (out / "temporary").mkdir(parents=True)
        tempfile.tempdir = str(out / "temporary")  # also of whatever else makes temporary files
        _soak(out, out / "temporary")
    report = _report(read_ledger(out / "runs.jsonl"))
    write_json(out / "report.json", report)
    _print(report)


if __name__ == "__main__":
    app.run(main)
