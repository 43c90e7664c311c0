"""How much memory a compiled program needs, and how much its devices have left."""

import os
from pathlib import Path
from typing import Any

import jax

_EXHAUSTED = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")
_CGROUPS = (  # version 2 and version 1: the limit of a container, and what it uses
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory left."""
    if isinstance(error, MemoryError):
        return True
    exhausted = any(word in str(error) for word in _EXHAUSTED)
    return isinstance(error, jax.errors.JaxRuntimeError) and exhausted


def needed_memory(compiled: Any) -> int | None:
    """Bytes a compiled program takes on each device beside its arguments; None if unknown."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    produced = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return int(analysis.temp_size_in_bytes + produced)


def free_memory(device: jax.Device) -> int | None:
    """Bytes that are free on a device; None if unknown.

    The CPU devices of a process share the free memory of the host, or of its container.
    """
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if device.platform != "cpu":
        return None
    host = free_host_memory()
    return None if host is None else host // jax.local_device_count()


def free_host_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory the host, and the container this runs in, can still give; None if unknown."""
    found = [_available(root), *(_left_in_container(root, *names) for names in _CGROUPS)]
    known = [size for size in found if size is not None]
    return min(known, default=None)


def _available(root: Path) -> int | None:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:  # no Linux: what there is in all
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _left_in_container(root: Path, limit: str, used: str) -> int | None:
    try:
        numbers = [int((root / "sys/fs/cgroup" / name).read_text()) for name in (limit, used)]
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return max(0, numbers[0] - numbers[1])
