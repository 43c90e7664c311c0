"""Many losses at once, against what people do today: one training after the other.

    python experiments/benchmarks/sequential.py --devices 2 --out sequential.json

The same MLPs (46-64-32-1, Adam, the same batch at every step) are trained under the same losses

* by the batched path: all candidates in one compiled program,
* by PyTorch, one candidate after the other, each loss written by hand, eager, on all cores or on
  the GPU if there is one,
* by JAX, one candidate after the other, each loss jit-compiled by itself; compilation counts, since
  every new loss needs one.

The batched path compiles once for all losses there will ever be; its compilation is printed beside.
Before anything is timed, the losses and gradients of PyTorch are compared with this package's.
Needs PyTorch: pip install -e '.[torch]'.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _timing
from absl import app, flags
from rich.console import Console
from rich.table import Table

_CANDIDATES = flags.DEFINE_integer("candidates", 32, "Models trained at once by the batched path.")
_QUERIES = flags.DEFINE_integer("queries", 32, "Queries a step.")
_LIST_LENGTH = flags.DEFINE_integer("list_length", 40, "Documents a query.")
_STEPS = flags.DEFINE_integer("steps", 60, "Steps of each training, a proxy run's.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Turns of the interleaved measurement.")
_DEVICES = flags.DEFINE_integer("devices", 2, "CPU devices that share the batched candidates.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")

LOSSES = (
    "mse", "pointwise_sigmoid", "softmax", "listnet", "ranknet", "pairwise_hinge", "approx_ndcg",
    "lambdarank",
)  # fmt: skip


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    # Before jax is imported, which reads it once.
    count = f"--xla_force_host_platform_device_count={_DEVICES.value}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
    result = measure()
    show(result)
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure() -> dict[str, Any]:
    import _torch_ranker
    import _workload
    import jax

    from autoloss_jax.losses import LOSSES as FORMULAS

    queries = _workload.Queries.random(_QUERIES.value, _LIST_LENGTH.value)
    steps, size = _STEPS.value, _CANDIDATES.value
    expressions = [FORMULAS[name] for name in LOSSES]
    _torch_ranker.check_equal(dict(zip(LOSSES, expressions, strict=True)), queries)

    many = [expressions[k % len(LOSSES)] for k in range(size)]
    batched = _workload.batched(many, queries, steps)
    start = time.perf_counter()
    jax.block_until_ready(batched())
    first_call = time.perf_counter() - start
    torch_runs = [_torch_ranker.training(name, queries, steps) for name in LOSSES]

    def pytorch() -> None:
        for run in torch_runs:
            run()

    def jit_each() -> None:
        for expression in expressions:
            jax.block_until_ready(compile_and_train(expression, queries, steps))

    work: dict[str, Callable[[], Any]] = {
        "batched path": batched, "PyTorch, one by one": pytorch, "JAX, one jit each": jit_each,
    }  # fmt: skip
    timings = _timing.interleaved(work, _REPETITIONS.value)
    trained = {"batched path": size} | dict.fromkeys(list(work)[1:], len(LOSSES))
    rows = []
    for name, timing in timings.items():
        seconds = {"best": timing.best / trained[name], "median": timing.median / trained[name]}
        rows.append({
            "way": name,
            "seconds_per_candidate": seconds,
            "candidates_per_hour": 3600 / seconds["median"],
            "times_slower_than_batched": {
                key: seconds[key] / (getattr(timings["batched path"], key) / size)
                for key in seconds
            },
            "seconds": timing.seconds,
        })  # fmt: skip
    settings = {flag.name: flag.value for flag in
                (_CANDIDATES, _QUERIES, _LIST_LENGTH, _STEPS, _REPETITIONS, _DEVICES)}  # fmt: skip
    return {
        "machine": _timing.machine() | _torch_ranker.versions(),
        "settings": settings | {"losses": LOSSES},
        "batched_compile_seconds": first_call - timings["batched path"].best,
        "rows": rows,
    }


def compile_and_train(loss: Any, queries: Any, steps: int) -> Any:
    """One candidate in plain JAX: a function of its own, compiled, then trained."""
    import jax
    import jax.numpy as jnp
    import optax

    from autoloss_jax.execution.exact import compile_loss
    from autoloss_jax.models import MLP

    model, adam, loss_fn = MLP(), optax.adam(1e-3), compile_loss(loss)

    def mean_loss(params: Any, features: Any, labels: Any, mask: Any) -> Any:
        return loss_fn(model.apply(params, features, mask), labels, where=mask)

    @jax.jit
    def train(params: Any, *batch: Any) -> Any:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            updates, state = adam.update(jax.grad(mean_loss)(params, *batch), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, adam.init(params)), None, length=steps)[0][0]

    params = model.init(jax.random.key(0), queries.features[:1], queries.mask[:1])
    return train(params, *(jnp.asarray(x) for x in queries))


def show(result: dict[str, Any]) -> None:
    console = Console()
    for title in ("machine", "settings"):
        console.print(", ".join(f"{key} {value}" for key, value in result[title].items()))
    console.print(
        f"compilation of the batched path, once: {result['batched_compile_seconds']:.1f} s"
    )
    table = Table(title="Training under many losses; best (median) of the repetitions")
    for column in ("way", "ms per candidate", "candidates per hour", "times slower than batched"):
        table.add_column(column)
    for row in result["rows"]:
        seconds, slower = row["seconds_per_candidate"], row["times_slower_than_batched"]
        table.add_row(
            row["way"],
            f"{1e3 * seconds['best']:.1f} ({1e3 * seconds['median']:.1f})",
            f"{row['candidates_per_hour']:,.0f}",
            f"{slower['best']:.1f} ({slower['median']:.1f})",
        )
    console.print(table)


if __name__ == "__main__":
    app.run(main)
