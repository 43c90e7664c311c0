"""How fast models train under many different losses, against one fixed hand-written loss.

    python experiments/benchmarks/batched_loss.py --out batched_loss.json

The same MLPs (46-64-32-1, Adam) are trained on the same queries. The share is the time under a
fixed loss (plain `jax.grad` of its compiled function) over the time under as many different losses
through the batched path: random ones, and those that the controller proposed in a search on the
synthetic queries. Compilation is not counted: the batched path compiles once.
"""

import json
import os
from pathlib import Path

import _timing
from absl import app, flags
from rich.console import Console
from rich.table import Table

_CANDIDATES = flags.DEFINE_integer("candidates", 16, "Models, each under a loss of its own.")
_QUERIES = flags.DEFINE_integer("queries", 64, "Queries a step.")
_LIST_LENGTH = flags.DEFINE_integer("list_length", 40, "Documents a query.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps of training timed at once.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 7, "Turns of the interleaved measurement.")
_DEVICES = flags.DEFINE_integer("devices", 1, "CPU devices that share the candidates.")
_SEARCH = flags.DEFINE_integer(
    "search_budget", 400, "Candidates of the search whose losses are timed, too; 0: no search."
)
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")

PER_DOCUMENT = ("mse", "pointwise_sigmoid")
PAIR = ("ranknet", "lambdarank")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    # Before jax is imported, which reads it once.
    count = f"--xla_force_host_platform_device_count={_DEVICES.value}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
    import _workload

    chunks = _DEVICES.value * _workload.CHUNK
    if _CANDIDATES.value % chunks:
        raise app.UsageError(
            f"--candidates must be a multiple of {chunks}, got {_CANDIDATES.value}"
        )
    result = measure(_workload)
    show(result)
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(workload) -> dict:
    from autoloss_jax.losses import LOSSES

    size, steps = _CANDIDATES.value, _STEPS.value
    queries = workload.Queries.random(_QUERIES.value, _LIST_LENGTH.value)
    samples = workload.samples(size)
    if _SEARCH.value:
        samples |= workload.searched(size, _SEARCH.value)
    work = {name: workload.fixed(LOSSES[name], queries, size, steps)
            for name in (*PER_DOCUMENT, *PAIR)}  # fmt: skip
    work |= {kind: workload.batched(s.losses, queries, steps) for kind, s in samples.items()}
    for name in ("mse", "ranknet"):
        work[f"{name}, batched path"] = workload.batched([LOSSES[name]] * size, queries, steps)
    timings = _timing.interleaved(work, _REPETITIONS.value)
    rows = []
    for name, timing in timings.items():
        fixed_losses = PAIR if name.startswith(("pair", "ranknet")) else PER_DOCUMENT
        rows.append({
            "losses": name,
            "operators": samples[name].operators if name in samples else None,
            "milliseconds_per_model_step": {
                "best": 1e3 * timing.best / (steps * size),
                "median": 1e3 * timing.median / (steps * size),
            },
            "share_of_fixed_loss_speed": {} if name in (*PER_DOCUMENT, *PAIR) else {
                fixed: {
                    "best": timings[fixed].best / timing.best,
                    "median": timings[fixed].median / timing.median,
                }
                for fixed in fixed_losses
            },
            "seconds": timing.seconds,
        })  # fmt: skip
    used = (_CANDIDATES, _QUERIES, _LIST_LENGTH, _STEPS, _REPETITIONS, _DEVICES, _SEARCH)
    settings = {flag.name: flag.value for flag in used}
    return {"machine": _timing.machine(), "settings": settings, "rows": rows}


def show(result: dict) -> None:
    console = Console()
    for title in ("machine", "settings"):
        console.print(", ".join(f"{key} {value}" for key, value in result[title].items()))
    table = Table(title="Training speed; shares and times: best (median) of the repetitions")
    for column in ("losses", "operators", "ms per model and step", "share of fixed-loss speed"):
        table.add_column(column)
    for row in result["rows"]:
        time, shares = row["milliseconds_per_model_step"], row["share_of_fixed_loss_speed"]
        table.add_row(
            row["losses"],
            f"{row['operators']:.1f}" if row["operators"] is not None else "fixed",
            f"{time['best']:.3f} ({time['median']:.3f})",
            "\n".join(
                f"{share['best']:.2f} ({share['median']:.2f}) of {fixed}"
                for fixed, share in shares.items()
            ),
        )
    console.print(table)


if __name__ == "__main__":
    app.run(main)
