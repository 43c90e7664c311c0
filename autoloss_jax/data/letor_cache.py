"""Parsed LETOR text, kept in files that are memory-mapped when the same text is read again.

    FOLDER/letor-2/<size>-<sha256 of the text>/   features.npy labels.npy starts.npy about.json
    FOLDER/letor-2/<sha256 of a path>.json        the content that was last seen at that path

An entry belongs to the content of a text, wherever that lies. To open it at once, no text of many
gigabytes is hashed again whose size, times of modification and change, and inode are those it had
when it was hashed. The time of change is the system's own and cannot be set back, so that an edit
goes unnoticed only if the clock does; `verify` hashes everything. The arrays of an entry are
guarded in the same way by size and time of modification: what differs is hashed, and what is
damaged is parsed again. No pickle: arrays are `.npy`, all else is JSON with a hash of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from autoloss_jax.data.letor_files import stat_file
from autoloss_jax.data.letor_text import LetorText, parse_letor
from autoloss_jax.errors import AutolossError
from autoloss_jax.files import read_json, sync_folder, write_json

FORMAT = 2
"""Of the entries; another one is kept apart and never read."""

_ARRAYS = {"features": "<f4", "labels": "<f4", "starts": "<i8"}
_FACTS = ("size", "highest", "zero_used", "repeats", "first_repeat")
_CHUNK_BYTES = 1 << 24
_ABANDONED_SECONDS = 86_400.0
_SETTLED_SECONDS = 2.0  # file systems' clocks tick at least so often


class _DamagedError(Exception):
    """An entry that cannot be used, and why."""


def read_cached(path: Path, cache: Path, *, verify: bool = False) -> LetorText:
    """What `parse_letor` gives, from the cache folder if it has it, else put there.

    Features are then memory-mapped. A cache that cannot be written to is only warned of.

    Args:
        path: the text.
        cache: the folder, made where missing.
        verify: hash the text and the arrays whatever their times say.

    Raises:
        AutolossError: as `parse_letor`.
    """
    state, seen = _state(path), time.time()
    folder = cache / f"letor-{FORMAT}"
    stamp = folder / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json"
    content = None if verify else _stamped(stamp, state)
    try:
        if content is None and any(folder.glob(f"{state['size']}-*")):
            content = _hash(path)
    except OSError:
        pass  # parsing says what is wrong
    if content is not None:
        entry = folder / f"{state['size']}-{content}"
        try:
            text = _open(entry, path, content, verify)
            _write_stamp(stamp, state, seen, content)
            return text
        except _DamagedError as error:
            logging.warning("%s: the cached arrays %s; the text is parsed again", path, error)
            shutil.rmtree(entry, ignore_errors=True)
        except FileNotFoundError:
            pass  # not parsed yet, or removed
    text = parse_letor(path)
    entry = folder / f"{state['size']}-{text.sha256}"
    try:
        _store(entry, text)
        _write_stamp(stamp, state, seen, text.sha256)
        return _open(entry, path, text.sha256, verify=False)
    except (OSError, AutolossError, _DamagedError) as error:
        logging.warning("%s: the parsed arrays are not cached: %s", path, error)
        return text


def _state(path: Path) -> dict[str, int]:
    """What changes whenever the content of a file does. Raises AutolossError as `stat_file`."""
    found = stat_file(path)
    return {
        "size": found.st_size,
        "modified": found.st_mtime_ns,
        "changed": found.st_ctime_ns,
        "inode": found.st_ino,
    }


def _stamped(stamp: Path, state: dict[str, int]) -> str | None:
    """The content of a file that is as it was when it was stamped."""
    try:
        found = _read_sealed(stamp)
        return str(found["content"]) if found["state"] == state else None
    except (FileNotFoundError, KeyError, _DamagedError):
        return None


def _write_stamp(stamp: Path, state: dict[str, int], seen: float, content: str) -> None:
    """Unless it was modified so shortly before that another change could bear the same time."""
    if seen - max(state["modified"], state["changed"]) / 1e9 > _SETTLED_SECONDS:
        found = {"state": state, "content": content}
        if not stamp.exists() or _stamped(stamp, state) != content:
            _write_sealed(stamp, found)


def _open(entry: Path, path: Path, content: str, verify: bool) -> LetorText:
    """The arrays of an entry, mapped. Raises FileNotFoundError if there is no such entry."""
    if not entry.is_dir():
        raise FileNotFoundError(entry)
    try:
        about = _read_sealed(entry / "about.json")
        arrays: dict[str, Any] = {
            name: _map(entry, name, about["arrays"][name], verify) for name in _ARRAYS
        }
        facts: dict[str, Any] = {name: about[name] for name in _FACTS}
        names = {name.encode("latin-1"): 0 for name in about["query_ids"]}
    except (OSError, KeyError, TypeError, ValueError, UnicodeError) as error:
        raise _DamagedError(f"are damaged ({error})") from error
    if len(arrays["features"]) != len(arrays["labels"]) or len(arrays["starts"]) != len(names):
        raise _DamagedError("are damaged (their sizes do not fit)")
    return LetorText(path, query_ids=names, sha256=content, **facts, **arrays)


def _map(entry: Path, name: str, guard: dict[str, Any], verify: bool) -> np.ndarray:
    file = entry / f"{name}.npy"
    found = file.stat()
    if found.st_size != guard["size"]:
        raise _DamagedError(
            f"are damaged ({file.name} has {found.st_size} bytes, expected {guard['size']})"
        )
    if (verify or found.st_mtime_ns != guard["modified"]) and _hash(file) != guard["sha256"]:
        raise _DamagedError(f"are damaged ({file.name} has another hash than when it was written)")
    return np.load(file, mmap_mode="r", allow_pickle=False)


def _store(entry: Path, text: LetorText) -> None:
    """Writes an entry: under another name, to be renamed when all of it is on the disk."""
    if entry.is_dir():  # another process was faster
        return
    entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in entry.parent.glob(".*.tmp"):  # of a process that was killed
        if time.time() - old.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    temporary = entry.with_name(f".{entry.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        guards = {}
        for name, dtype in _ARRAYS.items():
            file = temporary / f"{name}.npy"
            digest = _save(file, np.asarray(getattr(text, name), dtype))
            found = file.stat()
            guards[name] = {
                "size": found.st_size, "modified": found.st_mtime_ns, "sha256": digest,
            }  # fmt: skip
        about = {name: getattr(text, name) for name in _FACTS}
        about |= {"arrays": guards, "query_ids": [q.decode("latin-1") for q in text.query_ids]}
        _write_sealed(temporary / "about.json", about)
        sync_folder(temporary)
        temporary.rename(entry)
        sync_folder(entry.parent)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not entry.is_dir():
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _save(path: Path, array: np.ndarray) -> str:
    """Writes a `.npy` file, a part at a time, and returns its hash."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    digest = hashlib.sha256(header.getvalue())
    with path.open("xb") as file:
        file.write(header.getvalue())
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        for start in range(0, len(content), _CHUNK_BYTES):
            part = content[start : start + _CHUNK_BYTES]
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_sealed(path: Path, content: dict[str, Any]) -> None:
    write_json(path, {"sha256": _seal(content), "content": content})


def _read_sealed(path: Path) -> dict[str, Any]:
    """Raises FileNotFoundError, or _DamagedError if it is not what was written."""
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        found = read_json(path)
        if found["sha256"] == _seal(found["content"]):
            content: dict[str, Any] = found["content"]
            return content
    except (AutolossError, KeyError, TypeError):
        pass
    raise _DamagedError(f"are damaged ({path.name} is not what was written)")


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
