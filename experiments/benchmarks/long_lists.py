"""Memory and time of a pair loss against the length of the list: batched path and exact path.

    python experiments/benchmarks/long_lists.py --out long_lists.json

One query, one loss, value and gradient. Temporary memory is what the compiled program asks for
(`memory_analysis`); the exact path lays out every pair, the batched path some rows at a time.
"""

import json
import time
from pathlib import Path

import _timing
from absl import app, flags
from rich.console import Console
from rich.table import Table

_LENGTHS = flags.DEFINE_list("lengths", ["100", "300", "1000", "2000", "5000"], "Documents.")
_LOSSES = flags.DEFINE_list("losses", ["ranknet", "softmax", "lambdarank"], "Names of losses.")
_EXACT_UP_TO = flags.DEFINE_integer("exact_up_to", 5000, "The longest list of the exact path.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 3, "The best of how many is shown.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    rows = [
        measure(name, int(length), path)
        for length in _LENGTHS.value
        for path in ("batched", "exact")
        if path == "batched" or int(length) <= _EXACT_UP_TO.value
        for name in _LOSSES.value
    ]
    result = {"machine": _timing.machine(), "rows": rows}
    show(result)
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(name: str, length: int, path: str) -> dict:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from autoloss_jax.execution.batched import losses_and_gradients
    from autoloss_jax.execution.exact import compile_loss
    from autoloss_jax.execution.programs import encode
    from autoloss_jax.losses import LOSSES

    generator = np.random.default_rng(0)
    scores = jnp.asarray(generator.normal(size=(1, length)), jnp.float32)
    labels = jnp.asarray(generator.integers(0, 5, (1, length)), jnp.float32)
    mask = jnp.ones((1, length), bool)
    if path == "batched":
        function, arguments = losses_and_gradients, (encode([LOSSES[name]]), scores[None])
    else:
        loss_fn = compile_loss(LOSSES[name])
        function = jax.value_and_grad(lambda s, y, m: loss_fn(s, y, where=m))
        arguments = (scores,)
    compiled = jax.jit(function).lower(*arguments, labels, mask).compile()
    memory = compiled.memory_analysis()
    gradient = jax.block_until_ready(compiled(*arguments, labels, mask))[1]
    seconds = []
    for _ in range(_REPETITIONS.value):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments, labels, mask))
        seconds.append(time.perf_counter() - start)
    return {
        "loss": name,
        "length": length,
        "path": path,
        "temporary_mebibytes": memory.temp_size_in_bytes / 2**20 if memory else None,
        "milliseconds": 1e3 * min(seconds),
        "nanoseconds_per_pair": 1e9 * min(seconds) / length**2,
        "gradient_norm": float(np.linalg.norm(np.asarray(gradient, np.float64))),
    }


def show(result: dict) -> None:
    console = Console()
    console.print(", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    table = Table(title="Value and gradient of one list")
    for column in ("loss", "documents", "path", "memory, MiB", "time, ms", "ns a pair", "gradient"):
        table.add_column(column)
    for row in sorted(result["rows"], key=lambda r: (r["loss"], r["length"], r["path"])):
        memory = row["temporary_mebibytes"]
        table.add_row(
            row["loss"],
            f"{row['length']:,}",
            row["path"],
            "unknown" if memory is None else f"{memory:.1f}",
            f"{row['milliseconds']:.1f}",
            f"{row['nanoseconds_per_pair']:.1f}",
            f"{row['gradient_norm']:.5g}",
        )
    console.print(table)


if __name__ == "__main__":
    app.run(main)
