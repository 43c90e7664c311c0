"""Data at the size of MSLR-WEB30K: reading it, keeping it, padding it, and feeding it to training.

    python experiments/benchmarks/data.py --out data.json

Synthetic queries in that shape (31,531 queries, 3.77 million documents, 136 features, lists of 1 to
1,251 documents; `--scale` takes a share of the queries) are written as LETOR text, about 5 GB, and
read by one process after the other, so that the peak of each one's memory is its own. Every figure
of memory is a multiple of the features as one array of 32-bit floats. Compilation is not counted.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import _timing
from absl import app, flags
from rich.console import Console
from rich.table import Table

_SCALE = flags.DEFINE_float("scale", 1.0, "Share of MSLR-WEB30K's queries.", 0.001, 1.0)
_FOLDER = flags.DEFINE_string("folder", None, "Keeps the text and the cache; a temporary one else.")
_CANDIDATES = flags.DEFINE_integer("candidates", 15, "Losses in training, a reference not counted.")
_BLOCKS = flags.DEFINE_integer("blocks", 4, "Blocks of 20 training steps that are timed.")
_DEVICES = flags.DEFINE_integer("devices", 2, "CPU devices that share the candidates.")
_TASKS = flags.DEFINE_list(
    "tasks", "padding,write,parse,store,reopen,feed,streamed,resident", "What is measured."
)
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")
_TASK = flags.DEFINE_string("task", None, "What a process of its own does; set by this program.")

QUERIES, FEATURES, LIST_LENGTH, MEAN_LENGTH = 31_531, 136, (1, 1_251), 119.6
PARTS = 20  # the text is generated in so many pieces, each from a seed of its own
FILES = {"train": "train.txt", "validation": "vali.txt", "test": "test.txt"}
STRICT_BYTES = 4_000_000  # for the speed of the strict reader
QUERIES_PER_STEP = (32, 128)
LOSSES = ("mse", "pointwise_sigmoid")  # the quickest, which wait for data most


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _TASK.value:
        own = PeakOfOwnMemory()
        result = TASKS[_TASK.value](Path(_FOLDER.value))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(result | {"peak_bytes": peak, "peak_own_bytes": own.bytes}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(_FOLDER.value or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = {task: run_task(task, folder) for task in TASKS if task in _TASKS.value}
    settings = {flag.name: flag.value for flag in (_SCALE, _CANDIDATES, _BLOCKS, _DEVICES)}
    report = {"machine": _timing.machine(), "settings": settings, "rows": results}
    show(report)
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


class PeakOfOwnMemory:
    """The most memory of this process that is no page of a file, looked at 50 times a second.

    `ru_maxrss` counts the pages of memory-mapped features that were read. The system takes those
    back when it needs them, and so they are no memory that a process must have.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None  # where there is no /proc
        self._status = Path("/proc/self/status")
        if self._status.exists():
            self.bytes = 0
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            lines = self._status.read_text().splitlines()
            kilobytes = next(line.split()[1] for line in lines if line.startswith("RssAnon:"))
            self.bytes = max(self.bytes or 0, int(kilobytes) * 1024)
            time.sleep(0.02)


def run_task(task: str, folder: Path) -> dict[str, Any]:
    """What a task prints, in a process of its own."""
    settings = [f"--{flag.name}={flag.value}" for flag in (_SCALE, _CANDIDATES, _BLOCKS, _DEVICES)]
    command = [sys.executable, __file__, f"--task={task}", f"--folder={folder}", *settings]
    count = f"--xla_force_host_platform_device_count={_DEVICES.value}"
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()}
    print(f"{task} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def padding(folder: Path) -> dict[str, Any]:
    """Of the whole set, and of its training steps at several numbers of queries a step."""
    from autoloss_jax.data import bucket_queries, draw_batches, padding_waste, synthetic

    del folder
    queries = synthetic(  # their lengths; as few features as can be
        num_queries=round(_SCALE.value * QUERIES), num_features=6, list_length=LIST_LENGTH,
        mean_length=MEAN_LENGTH, seed=0,
    ).folds[0].train  # fmt: skip
    buckets = bucket_queries(queries)
    steps = {
        queries_per_step: step_waste(
            buckets, [draw_batches(0, buckets, None, 1, 1_000, queries_per_step)], queries_per_step
        )
        for queries_per_step in QUERIES_PER_STEP
    }
    return {"buckets": list(buckets.sizes), "padding_waste": padding_waste(buckets), "steps": steps}


def write(folder: Path) -> dict[str, Any]:
    """The text, unless it is there already."""
    from autoloss_jax.data import synthetic

    if not all((folder / name).exists() for name in FILES.values()):
        line = "%d qid:%d " + " ".join(f"{k}:%.6g" for k in range(1, FEATURES + 1)) + "\n"
        query = 0
        streams = {role: (folder / name).open("w") for role, name in FILES.items()}
        for part in range(PARTS):
            fold = synthetic(
                num_queries=max(10, round(_SCALE.value * QUERIES / PARTS)),
                num_features=FEATURES, list_length=LIST_LENGTH, mean_length=MEAN_LENGTH, seed=part,
            ).folds[0]  # fmt: skip
            for role, stream in streams.items():
                queries = getattr(fold, role)
                for own, length in enumerate(queries.lengths):
                    start = queries.offsets[own]
                    for row in range(start, start + length):
                        values = queries.features[row].tolist()
                        stream.write(line % (queries.labels[row], query, *values))
                    query += 1
        for stream in streams.values():
            stream.close()
    return {"bytes": sum((folder / name).stat().st_size for name in FILES.values())}


def parse(folder: Path) -> dict[str, Any]:
    """Megabytes a second of both readers, the file in the page cache as far as it fits."""
    from autoloss_jax.data.letor_text import LetorText, _read_strictly, parse_letor

    path = folder / FILES["train"]
    start = time.perf_counter()
    text = parse_letor(path)
    seconds = time.perf_counter() - start
    with path.open("rb") as stream:
        lines = stream.read(STRICT_BYTES) + stream.readline()
    start = time.perf_counter()
    _read_strictly(LetorText(path), lines, 1)
    strict = time.perf_counter() - start
    return {
        "megabytes_per_second": path.stat().st_size / 1e6 / seconds,
        "strict_megabytes_per_second": len(lines) / 1e6 / strict,
        "seconds": seconds,
        "array_bytes": text.features.nbytes,
    }


def store(folder: Path) -> dict[str, Any]:
    """The first opening: parsing all files and writing the cache, or finding them there."""
    return reopen(folder)


def reopen(folder: Path) -> dict[str, Any]:
    from autoloss_jax.data import load_letor

    start = time.perf_counter()
    dataset = load_letor(folder, cache=folder / "cache")
    seconds = time.perf_counter() - start
    fold = dataset.folds[0]
    parts = [fold.train, fold.validation, fold.test]
    documents = sum(part.num_documents for part in parts)
    return {
        "seconds": seconds,
        "documents": documents,
        "queries": sum(map(len, parts)),
        "array_bytes": documents * dataset.num_features * 4,
    }


def feed(folder: Path) -> dict[str, Any]:
    """The way of the data alone: opened, scaled, bucketed, and every query streamed once."""
    import jax

    from autoloss_jax.data import all_rows, bucket_queries, load_letor, scale_fold
    from autoloss_jax.feed import Feed
    from autoloss_jax.training import candidates_mesh

    dataset = load_letor(folder, cache=folder / "cache")
    start = time.perf_counter()
    fold = scale_fold(dataset.folds[0])
    scaled = time.perf_counter() - start
    documents = 0
    start = time.perf_counter()
    for role in FILES:
        queries = getattr(fold, role)
        stream = Feed(bucket_queries(queries), candidates_mesh(), "streamed")
        plan = all_rows(stream.buckets)
        steps = plan.rows[0].shape[1]
        for block in stream.blocks(plan.part(k, k + 1) for k in range(steps)):
            jax.block_until_ready(block)
        documents += queries.num_documents
    seconds = time.perf_counter() - start
    return {
        "seconds_to_scale": scaled,
        "documents_per_second": documents / seconds,
        "gigabytes_per_second": 4 * FEATURES * documents / seconds / 1e9,
        "array_bytes": 4 * FEATURES * documents,
    }


def train(folder: Path, placement: str) -> dict[str, Any]:
    """Proxy training as a search does it, from the cache to the values of all queries."""
    import jax
    import numpy as np

    from autoloss_jax.data import load_letor, padding_waste, scale_fold
    from autoloss_jax.execution.programs import encode
    from autoloss_jax.losses import LOSSES as FORMULAS
    from autoloss_jax.models import MLP
    from autoloss_jax.proxy import ProxyConfig, ProxyTraining

    began = time.perf_counter()
    dataset = load_letor(folder, cache=folder / "cache")
    queries = scale_fold(dataset.folds[0]).train
    scaled = time.perf_counter() - began
    config = ProxyConfig(rungs=(_BLOCKS.value + 1,))
    proxy = ProxyTraining(
        queries, MLP(), FORMULAS[LOSSES[0]], config, _CANDIDATES.value, 0, placement
    )
    placed = time.perf_counter() - began - scaled
    trainer = proxy.trainer
    losses = [FORMULAS[LOSSES[k % len(LOSSES)]] for k in range(trainer.slots)]
    occupied, active = proxy._occupy(losses, {k: k for k in range(trainer.slots)})
    each = (encode(occupied), proxy._rates(trainer.slots), active)
    placed_runs = trainer._place(each, slice(None))
    (states,) = trainer.spread(proxy.fresh(0))
    waits, marks, end = [], [], time.perf_counter()
    for block in proxy.feed.blocks(proxy._plan(0)):
        waits.append(time.perf_counter() - end)  # for the data
        states = jax.block_until_ready(trainer._train(states, *placed_runs, *block))
        end = time.perf_counter()
        marks.append(end)
    seconds = marks[-1] - marks[0]  # the first block compiles
    proxy.feed.evaluate(trainer._evaluate, states, placed_runs[2], proxy._held_out.part(0, 1))
    start = time.perf_counter()
    values = proxy.feed.evaluate(trainer._evaluate, states, placed_runs[2], proxy._held_out)
    evaluation = time.perf_counter() - start
    documents = dataset.folds[0]
    return {
        "model_steps_per_second": trainer.slots * config.rung_steps * _BLOCKS.value / seconds,
        "share_of_time_waiting_for_data": sum(waits[1:]) / seconds,
        "evaluated_documents_per_second": trainer.slots * queries.num_documents / evaluation,
        "seconds_to_scale": scaled,
        "seconds_to_place": placed,
        "padding_waste": padding_waste(proxy.buckets),
        "steps": {
            config.queries_per_step: step_waste(
                proxy.buckets, proxy._plan(0), config.queries_per_step
            )
        },
        "buckets": list(proxy.buckets.sizes),
        "mean_value": float(np.nanmean(values)),
        "array_bytes": 4 * queries.num_features * sum(
            getattr(documents, role).num_documents for role in FILES
        ),
    }  # fmt: skip


def step_waste(buckets: Any, plans: Any, queries_per_step: int) -> dict[str, float]:
    """The shares of places that hold no document: of all slots of training steps, and of those that
    are computed, which leaves out slots of rare buckets that a step has no query for.
    """
    import numpy as np

    from autoloss_jax.data import rare_buckets

    rare = rare_buckets(buckets.rows, queries_per_step)
    places = computed = documents = 0
    for plan in plans:
        for bucket, (members, size) in enumerate(zip(buckets.members, buckets.sizes, strict=True)):
            rows, valid = plan.rows[bucket], plan.valid[bucket]
            documents += np.sum(buckets.queries.lengths[members][rows] * valid)
            places += valid.size * size
            computed += (np.sum(valid) if bucket in rare else valid.size) * size
    return {
        "of_slots": float(1 - documents / places),
        "of_computed": float(1 - documents / computed),
    }


TASKS = {
    "padding": padding,
    "write": write,
    "parse": parse,
    "store": store,
    "reopen": reopen,
    "feed": feed,
    "streamed": lambda folder: train(folder, "streamed"),
    "resident": lambda folder: train(folder, "resident"),
}


def show(report: dict[str, Any]) -> None:
    console = Console(width=100)
    for title in ("machine", "settings"):
        console.print(", ".join(f"{key} {value}" for key, value in report[title].items()))
    table = Table(title=f"Data in the shape of MSLR-WEB30K, {FEATURES} features")
    table.add_column("what")
    table.add_column("measured")
    for task, row in report["rows"].items():
        for what, measured in described(task, row).items():
            table.add_row(what, measured)
        if "array_bytes" in row:
            for what, key in (
                ("peak memory, file pages read included", "peak_bytes"),
                ("peak memory of its own", "peak_own_bytes"),
            ):
                if row[key] is not None:
                    multiple = row[key] / row["array_bytes"]
                    size = f"{row[key] / 1e9:.2f} GB, {multiple:.2f} x the array"
                    table.add_row(f"{task}: {what}", size)
    console.print(table)


def described(task: str, row: dict[str, Any]) -> dict[str, str]:
    """The figures of a task in words."""
    if task == "padding":
        return {
            "padding: buckets": ", ".join(map(str, row["buckets"])),
            "padding: waste of all lists": f"{row['padding_waste']:.1%}",
            **described_steps(task, row),
        }
    if task == "write":
        return {"LETOR text": f"{row['bytes'] / 1e9:.2f} GB"}
    if task == "parse":
        return {
            "parse: whole blocks by numpy": f"{row['megabytes_per_second']:.0f} MB/s",
            "parse: line by line": f"{row['strict_megabytes_per_second']:.1f} MB/s",
        }
    if task == "store":
        return {"store: parsed and written to the cache": f"{row['seconds']:.1f} s"}
    if task == "reopen":
        return {
            "reopen: documents": f"{row['documents']:,}",
            "reopen: opened from the cache": f"{row['seconds']:.3f} s",
        }
    if task == "feed":
        return {
            "feed: statistics for scaling": f"{row['seconds_to_scale']:.1f} s",
            "feed: gathered, scaled, transferred": f"{row['gigabytes_per_second']:.2f} GB/s",
        }
    return {
        f"{task}: buckets": ", ".join(map(str, row["buckets"])),
        f"{task}: padding waste of all lists": f"{row['padding_waste']:.1%}",
        **described_steps(task, row),
        f"{task}: training": f"{row['model_steps_per_second']:.1f} model steps/s",
        f"{task}: waiting for data": f"{row['share_of_time_waiting_for_data']:.1%} of the time",
        f"{task}: evaluation": f"{row['evaluated_documents_per_second'] / 1e6:.2f} M documents/s",
    }


def described_steps(task: str, row: dict[str, Any]) -> dict[str, str]:
    return {
        f"{task}: padding of a training step of {queries_per_step} queries": (
            f"{waste['of_computed']:.1%} ({waste['of_slots']:.1%} if no bucket were skipped)"
        )
        for queries_per_step, waste in row["steps"].items()
    }


if __name__ == "__main__":
    app.run(main)
