"""What a command sets up on the machine before JAX starts: devices and the compilation cache."""

import os
from pathlib import Path

import jax
from absl import logging

from autoloss_jax.errors import AutolossError

_HOST_DEVICES_FLAG = "xla_force_host_platform_device_count"


def set_devices(count: int | None) -> None:
    """Sets the number of CPU devices, by default one a core; accelerators are not concerned.

    Raises AutolossError if JAX has already started with another number than the one asked for.
    """
    if count is None:
        configured = getattr(jax.config, "jax_num_cpu_devices", -1) > 0
        if configured or _HOST_DEVICES_FLAG in os.environ.get("XLA_FLAGS", ""):
            return
    try:
        jax.config.update("jax_num_cpu_devices", count or _cores())
    except RuntimeError as error:
        if count is not None and count != jax.device_count("cpu"):
            raise AutolossError(
                f"--devices {count}: JAX has already started with {jax.device_count('cpu')}; "
                "expected to be asked before"
            ) from error


def _cores() -> int:
    """The cores this process may use, which a container may limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_compilation_cache(folder: str | None) -> None:
    """Keeps compiled programs in `folder`, by default one of the user's; "none" keeps nothing."""
    if folder == "none":
        return
    path = user_cache() if folder is None else Path(folder)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        if folder is not None:
            raise AutolossError(f"--compilation_cache {folder}: {error}") from error
        logging.warning("compiled programs are not kept: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    # All programs: JAX keeps those that took a second, and a search has many that took less.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def user_cache() -> Path:
    """The folder for what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "autoloss_jax"
