"""How fast the GPU kernel runs many losses: against the XLA path, and against the device's floor.

    python experiments/benchmarks/gpu_kernel.py --out gpu_kernel.json

Times the loss of every query and its gradient by the scores, for as many candidates as asked for,
by both interpreters in turns; compilation is not counted. The floor is the time that the device
needs at its peak rates at least: for the bytes that must be moved (scores in, gradients and losses
out, labels and programs once), or for the operations that must be executed on the real pairs and
documents (the flops and transcendentals that XLA counts in each operator's value and tangent, one
operation each), whichever is longer. A peak is rarely reached by anything but matrix products of
fused multiply-adds, so a share of it is low even for good code.

Exit status: 0 measured, 3 no GPU at hand. With --interpret the kernel is interpreted on whatever
there is, to try this program: such times say nothing of a GPU.
"""

import json
import sys
from pathlib import Path

import _timing
from absl import app, flags
from rich.console import Console
from rich.table import Table

_CANDIDATES = flags.DEFINE_integer("candidates", 256, "Losses evaluated in one call.")
_PROGRAMS = flags.DEFINE_integer("programs", 16, "Different ones among them, of each kind.")
_QUERIES = flags.DEFINE_integer("queries", 64, "Queries a call.")
_LIST_LENGTH = flags.DEFINE_integer("list_length", 40, "Documents a query.")
_TILE_WIDTH = flags.DEFINE_integer("tile_width", None, "Another than the kernel's choice.")
_WARPS = flags.DEFINE_integer("warps", None, "Another number than the kernel's choice.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 20, "Turns of the interleaved measurement.")
_PEAK_TFLOPS = flags.DEFINE_float("peak_tflops", None, "float32 peak; by default by device name.")
_PEAK_GBPS = flags.DEFINE_float("peak_gbps", None, "Memory bandwidth; by default by device name.")
_INTERPRET = flags.DEFINE_bool("interpret", False, "Try this program without a GPU.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")

NO_GPU = 3

PEAKS = {
    "B200": (75.0, 8000.0),
    "H200": (67.0, 4800.0),
    "H100": (67.0, 3350.0),
    "A100": (19.5, 2039.0),
    "V100": (15.7, 900.0),
    "L40": (90.5, 864.0),
    "L4": (30.3, 300.0),
    "A10": (31.2, 600.0),
    "T4": (8.1, 320.0),
    "RTX 4090": (82.6, 1008.0),
}
"""TFLOP/s of float32 outside tensor cores and GB/s, from the makers' data sheets (SXM, largest
memory), by part of JAX's name of the device; longer names first."""


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    import jax

    if jax.default_backend() != "gpu" and not _INTERPRET.value:
        print(
            f"no GPU is at hand: JAX found only '{jax.default_backend()}'. Nothing was measured; "
            "--interpret tries this program without one",
            file=sys.stderr,
        )
        sys.exit(NO_GPU)
    result = measure()
    show(result)
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def peaks(device: str) -> tuple[float | None, float | None]:
    """float32 operations and bytes a second; None where neither given nor known."""
    known = next((peak for name, peak in PEAKS.items() if name in device), (None, None))
    given = (_PEAK_TFLOPS.value, _PEAK_GBPS.value)
    tflops, gbps = (g if g is not None else k for g, k in zip(given, known, strict=True))
    return tflops and tflops * 1e12, gbps and gbps * 1e9


def measure() -> dict:
    import _workload
    import jax
    import jax.numpy as jnp
    import numpy as np

    from autoloss_jax.execution import interpreter, kernel
    from autoloss_jax.execution.programs import encode

    candidates, length = _CANDIDATES.value, _LIST_LENGTH.value
    queries = _workload.Queries.random(_QUERIES.value, length)
    shape = (candidates, *queries.labels.shape)
    scores = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
    if _TILE_WIDTH.value:
        kernel.tile_width = lambda length: _TILE_WIDTH.value
    if _WARPS.value:
        kernel.warps = lambda length: _WARPS.value
    kernel_fn = jax.jit(kernel.losses_and_gradients)
    xla_fn = jax.jit(interpreter.losses_and_gradients)
    operations_of = _Operations()
    peak_operations, peak_bytes = peaks(jax.devices()[0].device_kind)
    rows = []
    for kind, sample in _workload.samples(_PROGRAMS.value).items():
        losses = (sample.losses * -(-candidates // len(sample.losses)))[:candidates]
        programs = encode(losses)
        args = (programs, scores, queries.labels, queries.mask)
        timings = _timing.interleaved(
            {"kernel": lambda args=args: kernel_fn(*args), "xla": lambda args=args: xla_fn(*args)},
            _REPETITIONS.value,
        )
        operations = sum(map(operations_of.loss, programs_on_host(programs))) * len(queries.labels)
        moved = bytes_moved(programs, queries.labels.size, len(queries.labels))
        floors = [
            amount / peak if peak else None
            for amount, peak in ((operations, peak_operations), (moved, peak_bytes))
        ]
        floor = None if None in floors else max(floors)
        rows.append({
            "losses": kind,
            "operators": sample.operators,
            "operations": operations,
            "bytes": moved,
            "floor_seconds": floor,
            "floor_is_of": None if floor is None else ("operations", "bytes")[floors.index(floor)],
            "gradients_that_agree": agreement(kernel_fn(*args), xla_fn(*args)),
            **{
                name: {
                    "candidates_per_second": {
                        "best": candidates / timing.best, "median": candidates / timing.median,
                    },
                    "share_of_floor": floor and floor / timing.best,
                    "seconds": timing.seconds,
                }
                for name, timing in timings.items()
            },
            "speedup": {
                "best": timings["xla"].best / timings["kernel"].best,
                "median": timings["xla"].median / timings["kernel"].median,
            },
        })  # fmt: skip
    settings = {flag.name: flag.value for flag in
                (_CANDIDATES, _PROGRAMS, _QUERIES, _LIST_LENGTH, _REPETITIONS)}  # fmt: skip
    settings |= {"tile_width": kernel.tile_width(length), "warps": kernel.warps(length)}
    return {
        "machine": _timing.machine(),
        "interpreted": jax.default_backend() != "gpu",
        "peak": {"operations_per_second": peak_operations, "bytes_per_second": peak_bytes},
        "settings": settings,
        "rows": rows,
    }


def programs_on_host(programs) -> list:
    import jax

    host = jax.device_get(programs)
    return [jax.tree.map(lambda x, c=c: x[c], host) for c in range(programs.count)]


def bytes_moved(programs, documents: int, queries: int) -> int:
    """What one call must read and write, all candidates."""
    import jax

    read_once = sum(x.nbytes for x in jax.tree.leaves(programs)) + documents * (4 + 1)
    return read_once + programs.count * (2 * 4 * documents + 4 * queries)


def agreement(kernel, xla) -> float:
    """The share of candidates whose gradients agree within 1 in 1,000."""
    import numpy as np

    ours, theirs = (np.asarray(x[1], np.float64).reshape(len(x[1]), -1) for x in (kernel, xla))
    deviation = np.linalg.norm(ours - theirs, axis=1)
    return float(np.mean(deviation <= 1e-3 * np.linalg.norm(theirs, axis=1) + 1e-6))


class _Operations:
    """Counts the operations of a loss on one query, value and gradient."""

    _SELECT_AND_SUM, _PULL_AND_SUM = 2, 4
    """A reduction's least, forwards and backwards: multiply and add; multiply by the weight and by
    the cotangent, and add to the row and to the column."""

    def __init__(self) -> None:
        from autoloss_jax.execution.programs import OPCODES
        from autoloss_jax.language.operators import OPERATORS

        costs = {name: self._operator(name) for name in OPERATORS}
        costs |= dict.fromkeys(("s_i - s_j", "s_j - s_i"), (1.0, 1.0))
        self._of_value, self._of_dual = (
            [costs.get(name, (0.0, 0.0))[k] for name in OPCODES] for k in range(2)
        )

    @staticmethod
    def _operator(name: str) -> tuple[float, float]:
        """Operations of the value alone, and of value and tangent, for one element."""
        import jax
        import jax.numpy as jnp

        from autoloss_jax.execution.segments import linearize
        from autoloss_jax.language.operators import OPERATORS

        def value(*values):
            return OPERATORS[name].value(*values)

        def dual(values, tangents):
            result, tangent = linearize(name, values)
            return result, tangent(*tangents)

        size = 1024
        x = tuple(jnp.linspace(0.5, 2.0, size) for _ in range(OPERATORS[name].arity))

        def count(function, *args) -> float:
            with jax.default_device(jax.devices("cpu")[0]):
                cost = jax.jit(function).lower(*args).compile().cost_analysis()
            return (cost.get("flops", 0.0) + cost.get("transcendentals", 0.0)) / size

        return count(value, *x), count(dual, x, x)

    def loss(self, program) -> float:
        length = _LIST_LENGTH.value
        total = 0.0
        for segments, elements in ((program.pair, length**2), (program.document, length)):
            for stage, steps in enumerate(segments.length):
                codes = segments.code[stage, :steps, 0]
                each = sum(self._of_dual[code] for code in codes)
                if segments.reduction[stage]:
                    each += self._SELECT_AND_SUM + self._PULL_AND_SUM
                if segments is program.pair:  # computed once more, without tangents
                    each += sum(self._of_value[code] for code in codes)
                total += each * elements
        return total


def show(result: dict) -> None:
    console = Console()
    for title in ("machine", "settings", "peak"):
        console.print(", ".join(f"{key} {value}" for key, value in result[title].items()))
    if result["interpreted"]:
        console.print("The kernel was interpreted: these times say nothing of a GPU.")
    table = Table(title="Losses with gradients; candidates a second: best (median)")
    for column in ("losses", "operators", "kernel", "xla", "speedup", "kernel's share of the floor",
                   "gradients that agree"):  # fmt: skip
        table.add_column(column)
    for row in result["rows"]:
        rates = [row[name]["candidates_per_second"] for name in ("kernel", "xla")]
        share = row["kernel"]["share_of_floor"]
        table.add_row(
            row["losses"],
            f"{row['operators']:.1f}",
            *(f"{rate['best']:,.0f} ({rate['median']:,.0f})" for rate in rates),
            f"{row['speedup']['best']:.1f} ({row['speedup']['median']:.1f})",
            "peak unknown" if share is None else f"{share:.1%} of {row['floor_is_of']}",
            f"{row['gradients_that_agree']:.0%}",
        )
    console.print(table)


if __name__ == "__main__":
    app.run(main)
