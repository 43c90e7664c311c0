"""A run is a folder: its configuration, lock, ledger and checkpoints, safe against any crash.

One process writes a run folder, and holds its lock meanwhile; of several it is the first one.
Killed at any instant, it leaves a folder that the same configuration opens again and goes on from.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging as std_logging
import os
import platform
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
from absl import logging

from autoloss_jax import processes
from autoloss_jax.checkpoints import KEPT, Checkpoints
from autoloss_jax.errors import AutolossError
from autoloss_jax.files import (
    append_ledger,
    differences,
    read_json,
    read_ledger,
    repair_ledger,
    sync_folder,
    to_jsonable,
    truncate_ledger,
    write_json,
)

Result = TypeVar("Result")

CONFIG_FILE, LEDGER_FILE, LOCK_FILE, LOG_FILE = "config.json", "ledger.jsonl", "lock", "run.log"
FINALISTS_FILE = "finalists.json"
EFFECTIVENESS_FILE, PER_QUERY_FILE = "effectiveness.json", "per_query.npz"
TEST_SCORES_FILE = "test_scores.npz"
ABLATION_FOLDER, ABLATION_FILE = "ablation", "ablation.json"
CHECKPOINTS_FOLDER = "checkpoints"

# What to do about a file that is damaged.
_RESULT_AGAIN = "remove it and give the command again: what is finished is not trained again"
_CONFIG_AGAIN = "put back a copy of it, or begin in another folder"
_LEDGER_AGAIN = (
    "put back a copy of it; or remove it, finalists.json and checkpoints/search, and give the "
    "command again: the search is done again, to the same result"
)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)

_PACKAGES = ("autoloss_jax", "jax", "jaxlib", "flax", "optax", "numpy")
# The instructions that vectorised arithmetic is compiled to; results depend on these in the last
# bits. The other flags of a CPU change with the kernel and mean nothing here.
_VECTOR_FLAGS = re.compile(r"(sse|ssse|avx|fma|amx|f16c|neon|asimd|sve|bf16|fphp).*|sme[\d_].*|sme")


def _cpu() -> dict[str, Any]:
    """Model name and vector instruction sets of this machine's CPU."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):  # Linux only
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, text = line.partition(":")
            fields.setdefault(name.strip(), text.strip())
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "model": fields.get("model name") or platform.processor() or "unknown",
        "architecture": platform.machine(),
        "instructions": sorted(flag for flag in flags if _VECTOR_FLAGS.fullmatch(flag)),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a source tree that was never installed
        return "unknown"


def fingerprint() -> dict[str, Any]:
    """What the last bits of a result depend on: versions, devices, the CPU's instructions.

    How many devices and processes there are changes no bit on CPUs. Elsewhere nobody has shown it.
    """
    backend = jax.default_backend()
    count = {} if backend == "cpu" else {"devices": jax.device_count()}
    return {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
        "platform": backend,
        "device": jax.local_devices()[0].device_kind,
        **count,
        "cpu": _cpu(),
    }


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


class _LogFile(std_logging.FileHandler):
    """A log that stops nothing: what a full disk does not take is left out, which is said once."""

    _said = False

    def emit(self, record: std_logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # of opening the file
            self.handleError(record)

    def handleError(self, record: std_logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._said:
            self._said = True
            print(f"{self.baseFilename} is not complete: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def attach_log(path: str | os.PathLike[str]) -> Iterator[None]:
    """Appends what absl logs to the file `path` for as long as the context lasts."""
    handler = _LogFile(path, encoding="utf-8", delay=True)
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.get_absl_logger()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def _holder(content: bytes) -> str:
    """Who holds a lock, from the lock file's content."""
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # locked, and about to be written
        return "a process that began this moment"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock. The system frees it when the process ends, however it ends."""
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AutolossError(
                f"{folder} is in use by another run ({_holder(os.pread(descriptor, 4096, 0))}): "
                "expected a folder that no run is writing; wait for it, stop it or give another"
            ) from None
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        try:
            yield
        finally:
            # The file stays: were it removed, two runs could each hold a lock of this name.
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _or_else(work: Callable[[], Result], advice: str) -> Result:
    """What `work` returns; an AutolossError that it raises says what to do besides."""
    try:
        return work()
    except AutolossError as error:
        raise AutolossError(f"{error}; {advice}") from error


def read_config(folder: Path) -> Any:
    """The JSON of config.json. Raises AutolossError, saying what to do, if it is damaged."""
    return _or_else(lambda: read_json(folder / CONFIG_FILE), _CONFIG_AGAIN)


def read_result(path: Path) -> Any:
    """The JSON that a phase has ended with. Raises AutolossError, naming it, if it is damaged."""
    return _or_else(lambda: read_json(path), _RESULT_AGAIN)


def _stored_config(folder: Path) -> dict[str, Any] | None:
    """The content of config.json, or None in a folder that is new. Refuses a foreign folder."""
    if not (folder / CONFIG_FILE).exists():
        ours = re.compile(rf"{LOCK_FILE}|\.{re.escape(CONFIG_FILE)}\..*\.tmp")
        foreign = sorted(p.name for p in folder.iterdir() if not ours.fullmatch(p.name))
        if foreign:
            raise AutolossError(
                f"{folder} is not a run folder: it has no {CONFIG_FILE} but holds {foreign[0]!r}; "
                "expected a new or empty folder, or that of an earlier run"
            )
        return None
    stored = read_config(folder)
    if not isinstance(stored, dict) or not {"config", "fingerprint", "created"} <= set(stored):
        raise AutolossError(
            f"{folder} is not a run folder: its {CONFIG_FILE} is no run's; "
            "expected the keys config, fingerprint and created"
        )
    return stored


def _check_config(folder: Path, stored: dict[str, Any], config: Any) -> None:
    found = differences(stored["config"], config, ("stored", "given"))
    if found:
        raise AutolossError(
            f"{folder} holds a run of another configuration; expected the same settings or "
            "another folder. They differ in\n  " + "\n  ".join(found)
        )


def _note_fingerprint(folder: Path, stored: dict[str, Any], current: dict[str, Any]) -> None:
    """Warns if this run went on somewhere else, and records where, once for each change."""
    found = differences(stored["fingerprint"], current, ("stored", "now"))
    if found:
        logging.warning(
            "%s was begun in another environment, so its last digits may differ:\n  %s",
            folder,
            "\n  ".join(found),
        )
    resumed_with = stored.get("resumed_with", [])
    last = resumed_with[-1]["fingerprint"] if resumed_with else stored["fingerprint"]
    if current != last:
        resumed_with = [*resumed_with, {"fingerprint": current, "at": _now()}]
        write_json(folder / CONFIG_FILE, stored | {"resumed_with": resumed_with})


class RunFolder:
    """The folder of one run, locked and open for writing. Use it as a context manager.

        with RunFolder.open("out", {"seed": 0}) as run:
            found = run.checkpoints("search").latest()
            run.append([{"index": 0, "status": "trained"}])
            run.checkpoints("search").save(1, {"weights": weights})

    path: the folder. resumed: whether an earlier run of the same configuration began it.
    """

    def __init__(self, path: Path, resumed: bool, resources: contextlib.ExitStack) -> None:
        """Not for callers: `open` makes these."""
        self.path = path
        self.resumed = resumed
        self._resources = resources

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        config: Any,
        *,
        about: Mapping[str, Any] | None = None,
        environment: Mapping[str, Any] | None = None,
    ) -> Self:
        """Creates the folder, or opens that of an earlier run with the same configuration.

        config: the complete configuration, defaults and data hashes included, as a dict or a
        dataclass; lists are compared as wholes. Meanwhile absl's log goes to run.log as well.
        about: what a new folder's config.json says besides, such as the command that began it;
        never compared.
        environment: what else last digits depend on; it joins the fingerprint.

        Raises AutolossError, having changed nothing, if `path` is a file, cannot be written, is a
        foreign folder, is in use, or holds a run of another configuration; the message names the
        settings that differ.
        """
        folder = Path(path)
        given = to_jsonable(config)
        current = to_jsonable(fingerprint() | dict(environment or {}))
        if folder.exists() and not folder.is_dir():
            raise AutolossError(f"{folder} is a file: expected a folder, or a path to create one")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _stored_config(folder)  # refuse a foreign folder before putting a lock in it
            with contextlib.ExitStack() as resources:
                resources.enter_context(_locked(folder))
                stored = _stored_config(folder)
                if stored is None:
                    begun = {"config": given, "fingerprint": current, "created": _now()}
                    begun = dict(about or {}) | begun
                    write_json(folder / CONFIG_FILE, begun)
                    sync_folder(folder.parent)
                else:
                    _check_config(folder, stored, given)
                resources.enter_context(attach_log(folder / LOG_FILE))
                if stored is not None:
                    _note_fingerprint(folder, stored, current)
                _or_else(lambda: repair_ledger(folder / LEDGER_FILE), _LEDGER_AGAIN)
                for leftover in folder.rglob(".*.*.tmp"):  # of a write that was killed
                    leftover.unlink(missing_ok=True)
                return cls(folder, stored is not None, resources.pop_all())
        except OSError as error:
            if error.errno in _DISK:  # the folder is as it should be
                raise
            raise AutolossError(f"cannot write the run folder {folder}: {error}") from error

    def close(self) -> None:
        """Ends the log and frees the lock. Closing twice does nothing."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends records to ledger.jsonl; when it returns they are on the disk."""
        append_ledger(self.path / LEDGER_FILE, records)

    def read_ledger(self) -> list[dict[str, Any]]:
        """The records appended so far, those of earlier runs of this folder included."""
        return read_ledger(self.path / LEDGER_FILE)

    def truncate_ledger(self, count: int) -> None:
        """Keeps the first `count` records: what came after the last checkpoint is done again.

        Raises AutolossError if there are fewer.
        """
        _or_else(lambda: truncate_ledger(self.path / LEDGER_FILE, count), _LEDGER_AGAIN)

    def checkpoints(self, work: str, kept: int | None = KEPT) -> Checkpoints:
        """The checkpoints of one kind of work, such as "search"; `kept` as in `Checkpoints`."""
        return Checkpoints(self.path / CHECKPOINTS_FOLDER / work, kept)


@contextlib.contextmanager
def open_run(
    path: str | os.PathLike[str],
    config: Any,
    *,
    about: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> Iterator[RunFolder | None]:
    """`RunFolder.open` in the first process, None in the others.

    Raises AutolossError in every process if the first one cannot open the folder.
    """
    with contextlib.ExitStack() as resources:
        opened: list[RunFolder] = []

        def open_first() -> None:
            folder = RunFolder.open(path, config, about=about, environment=environment)
            opened.append(resources.enter_context(folder))

        processes.from_first(open_first)
        yield opened[0] if opened else None
