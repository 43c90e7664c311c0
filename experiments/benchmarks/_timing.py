"""What benchmarks share: interleaved timing, and what machine the figures are from."""

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Seconds of every repetition of one piece of work."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """The shortest: least disturbed by what else runs on the machine."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleaved(work: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, Timing]:
    """Times pieces of work in turns, so that a slow spell of the machine falls on all of them.

    Args:
      work: by name, functions that return JAX arrays; each is called once before, to compile.
      repetitions: how many turns.
    """
    import jax

    for run in work.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repetitions):
        for name, run in work.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def machine() -> dict[str, str | int]:
    """What a figure depends on besides the code."""
    import jax

    device = jax.devices()[0]
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else -1,
        "device": device.device_kind if device.platform != "cpu" else "cpu",
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
