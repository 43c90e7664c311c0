"""The command line as one process or as two, for tests that begin, stop and kill whole runs."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from autoloss_jax.files import read_json, read_ledger

ROOT = Path(__file__).parents[1]
SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a,b",
         "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}  # fmt: skip
SMALL = [
    "--budget=8", "--proposals=8", "--model=linear", "--hall_of_fame=4", "--fresh_seeds=1",
    "--finalists=2", "--proxy_rung_steps=4", "--proxy_rungs=1,1", "--max_buckets=1",
    "--test_seeds=1", "--test_learning_rates=0.01", "--test_max_steps=40",
    "--test_confirmation_seeds=2", "--hand_designed=mse,softmax",
]  # fmt: skip


class Commands:
    """Begins the command line in processes of their own; their output goes to files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def begin(self, arguments: Sequence[str], devices: int, name: str) -> subprocess.Popen[bytes]:
        """One process with so many CPU devices, which writes to a file of the given name."""
        command = [sys.executable, "-m", "autoloss_jax", *arguments]
        with (self.folder / name).open("w") as log:
            process = subprocess.Popen(
                command, env=environment(devices), stdout=log, stderr=subprocess.STDOUT
            )
        self._running.append(process)
        return process

    def begin_two(
        self, arguments: Sequence[str], more: Sequence[Sequence[str]] = ((), ())
    ) -> list[subprocess.Popen[bytes]]:
        """Two processes with a device each, which write to 0.log and 1.log."""
        join = [f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2"]
        return [
            self.begin([*arguments, *join, f"--process_id={k}", *more[k]], 1, f"{k}.log")
            for k in (0, 1)
        ]

    def log(self, name: str) -> str:
        return (self.folder / name).read_text()

    def end(self) -> None:
        """Kills what is still running."""
        for process in self._running:
            process.kill()
            process.wait()


def environment(devices: int = 1) -> dict[str, str]:
    """Of a process with so many CPU devices, which no launcher has started."""
    kept = {k: v for k, v in os.environ.items() if k not in SLURM}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }


def free_port() -> int:
    with taken_port() as port:
        return port


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    """A port that another program listens at."""
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        yield other.getsockname()[1]


def read_run_folder(folder: Path) -> tuple[list[dict[str, Any]], Any, Any]:
    """Ledger, finalists and effectiveness of a finished run, without what the clock says."""
    records = read_ledger(folder / "ledger.jsonl")
    assert records
    for record in records:
        del record["seconds"]
    return records, read_json(folder / "finalists.json"), read_json(folder / "effectiveness.json")
