"""Files that survive a crash: atomic writes, strict JSON, and the ledger.

A kill or a power cut leaves the old content of a file or the new one, never half of one. The ledger
is the exception, since it grows line by line: there the last line may be torn, and is repaired.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import secrets
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from absl import logging

from autoloss_jax.errors import AutolossError


def sync_folder(folder: Path) -> None:
    """Makes renames and new names in `folder` survive a power cut."""
    with _naming(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Writes `data` (text as UTF-8) to `path`: a crash leaves the old content or the new one.

    Raises OSError as `open` does, naming `path`; the old file is then untouched.
    """
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    # The same folder, because a rename is atomic only inside one file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with _naming(path):
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Makes an OSError name the file: that of a full disk names none by itself."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def to_jsonable(value: Any) -> Any:
    """The JSON form of nested dicts, sequences, dataclasses, paths, arrays and numbers.

    Floats that are not finite become None, for strict JSON has no NaN. Raises TypeError naming
    the type of anything else.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return to_jsonable(np.asarray(value).tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def printable(text: str) -> str:
    """A text from elsewhere, fit for a terminal: what is no character to see becomes U+FFFD.

    Line ends stay. Escape sequences, overrides of the writing direction and halves of surrogate
    pairs could otherwise change what stands around them, or fail to be written.

    >>> printable("red \\x1b[31m")
    'red \\ufffd[31m'
    """
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `to_jsonable(value)` to `path` as indented strict JSON, atomically."""
    write_atomic(path, json.dumps(to_jsonable(value), indent=2, allow_nan=False) + "\n")


def _parse_json(text: str | bytes) -> Any:
    """Strict JSON: the NaN and Infinity that Python's parser lets through raise ValueError."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file. Raises AutolossError, naming it, if it is missing or damaged."""
    try:
        return _parse_json(Path(path).read_bytes())
    except OSError as error:
        raise AutolossError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise AutolossError(f"{path} is damaged: expected JSON, but {error}") from error


def differences(one: Any, other: Any, words: tuple[str, str]) -> list[str]:
    """One line per dotted key whose value differs between two JSON values.

    words: what the values are called, as in ("stored", "given").
    """
    old, new = _flatten(one), _flatten(other)

    def show(side: dict[str, Any], key: str) -> str:
        return json.dumps(side[key]) if key in side else "absent"

    return [
        f"{key or 'all'}: {words[0]} {show(old, key)}, {words[1]} {show(new, key)}"
        for key in dict.fromkeys([*old, *new])
        if show(old, key) != show(new, key)
    ]


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}.{key}" if prefix else key)
    return flat


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays of numbers, booleans or text as an `.npz` file, atomically.

    Raises TypeError for an array of objects: such a file could not be read without pickle.
    """
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"array {name} holds objects, expected numbers, booleans or text")
    content = io.BytesIO()
    np.savez(
        content, **cast(Any, arrays)
    )  # the same arrays give the same bytes: no time is recorded
    write_atomic(path, content.getvalue())


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file. Raises AutolossError, naming it, if missing or damaged."""
    try:
        # Opened here, because numpy leaves a damaged file open.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError as error:
        raise AutolossError(f"cannot read {path}: {error.strerror or error}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise AutolossError(f"{path} is damaged: expected arrays, but {error}") from error


class _Ledger(NamedTuple):
    records: list[dict[str, Any]]
    ends: list[int]  # the byte after each record's line
    torn: bytes  # what follows the last of them


def _load_ledger(path: Path) -> _Ledger:
    """Reads a ledger. Only its last line may be unreadable, for a crash tears nothing else."""
    if not path.exists():
        return _Ledger([], [], b"")
    with path.open("rb") as file:
        lines = file.readlines()
    records: list[dict[str, Any]] = []
    ends: list[int] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = _parse_json(line)
            if not isinstance(record, dict):
                raise ValueError(f"it holds {type(record).__name__}")
        except ValueError as error:
            if number == len(lines):
                return _Ledger(records, ends, line)
            raise AutolossError(
                f"{path}, line {number} is damaged: expected one JSON object, but {error}"
            ) from error
        records.append(record)
        ends.append((ends[-1] if ends else 0) + len(line))
    return _Ledger(records, ends, b"")


def read_ledger(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a ledger file; [] if there is none yet.

    Changes nothing, so it may read while a run appends: a torn last line is left out with a
    warning. Raises AutolossError, naming the line, if any other line is damaged.
    """
    path = Path(path)
    ledger = _load_ledger(path)
    if ledger.torn:
        logging.warning("%s: left out a torn last line: %r", path, ledger.torn[:80])
    return ledger.records


def _cut_file(path: Path, size: int) -> None:
    with _naming(path), path.open("rb+") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def _append_bytes(path: Path, data: bytes) -> None:
    is_new = not path.exists()
    with _naming(path), path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def repair_ledger(path: Path) -> None:
    """Makes the ledger end with a whole line again, so that the next record starts a new one."""
    ledger = _load_ledger(path)
    if ledger.torn:
        logging.warning("%s: cut off a torn last line: %r", path, ledger.torn[:80])
        _cut_file(path, ledger.ends[-1] if ledger.ends else 0)
    elif ledger.records and not path.read_bytes().endswith(b"\n"):
        _append_bytes(path, b"\n")  # torn between the record and its line's end


def append_ledger(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Appends one line of JSON for each record; when it returns they are on the disk."""
    lines = [json.dumps(to_jsonable(record), allow_nan=False) + "\n" for record in records]
    if lines:
        _append_bytes(Path(path), "".join(lines).encode())


def truncate_ledger(path: str | os.PathLike[str], count: int) -> None:
    """Keeps the first `count` records. Raises AutolossError if there are fewer."""
    path = Path(path)
    ends = [0, *_load_ledger(path).ends]
    if not 0 <= count < len(ends):
        raise AutolossError(
            f"{path} holds {len(ends) - 1} records: expected at least {count}, the number "
            "its checkpoint knows; records were lost or removed"
        )
    if count < len(ends) - 1:
        _cut_file(path, ends[count])
