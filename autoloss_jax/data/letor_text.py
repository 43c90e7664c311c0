"""LETOR / SVMlight text to arrays: `<label> qid:<id> <index>:<value> ... # comment`.

Two parsers give the same result: one reads a block of lines with numpy over its bytes, the other
reads line by line. The first gives up on anything unusual, the second then accepts it or says what
is wrong and where. Numbers come out as Python's ``float`` reads them, then rounded to 32 bits.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from autoloss_jax.data.queries import MAX_LABEL, Queries
from autoloss_jax.errors import AutolossError

MAX_INDEX = 1_000_000
MAX_VALUES = 4_000_000_000  # documents times features, 16 GB: past this an index is a mistake

_BLOCK_BYTES = 1 << 24
_PLAIN_BYTES = b"0123456789.+-eE: \t\r\n\v\f"
_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_PAIR = re.compile(rb"(\d+):(\S+)")
_BOM = b"\xef\xbb\xbf"


@dataclass
class LetorText:
    """One parsed file; columns are the indices of the text until `to_queries` numbers them."""

    path: Path
    blocks: list[np.ndarray] = field(default_factory=list)  # f32[lines, highest index + 1]
    labels: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # the first document of each query
    query_ids: dict[bytes, int] = field(default_factory=dict)  # and the line it begins at
    highest: int = -1  # highest feature index
    zero_used: bool = False  # whether index 0 occurs
    repeats: int = 0  # lines that give a feature more than once
    first_repeat: int = 0
    sha256: str = ""

    def num_features(self, zero_based: bool) -> int:
        return self.highest + 1 if zero_based else max(self.highest, 0)

    def to_queries(self, num_features: int, zero_based: bool) -> Queries:
        """Queries of ``num_features`` columns; the parsed blocks are released on the way."""
        features = np.zeros((len(self.labels), num_features), np.float32)
        row, first = 0, 0 if zero_based else 1
        while self.blocks:
            block = self.blocks.pop(0)[:, first:]
            features[row : row + len(block), : block.shape[1]] = block[:, :num_features]
            row += len(block)
        names = tuple(name.decode("utf-8", "backslashreplace") for name in self.query_ids)
        offsets = np.array([*self.starts, len(self.labels)], np.int64)
        return Queries(features, np.array(self.labels, np.float32), offsets, names)


@dataclass(frozen=True)
class _Rows:
    """The features of a block of lines as (line, index, value), in the order of the text."""

    counts: np.ndarray  # i64[lines]
    indices: np.ndarray  # i64[values]
    values: np.ndarray  # f32[values]


def parse_letor(path: Path) -> LetorText:
    """Parse one file.

    Raises:
        AutolossError: the file is missing, is a folder, has no documents, or has a line that is
            not as expected; the message names the file and the line.
    """
    if path.is_dir():
        raise AutolossError(f"{path}: is a folder, expected a file of LETOR text")
    if not path.is_file():
        raise AutolossError(f"{path}: no such file, expected a file of LETOR text")
    text, digest, line = LetorText(path), hashlib.sha256(), 1
    with path.open("rb") as stream:
        while lines := stream.readlines(_BLOCK_BYTES):
            digest.update(b"".join(lines))
            if line == 1:
                lines[0] = lines[0].removeprefix(_BOM)
            _add_block(text, lines, line)
            line += len(lines)
    if not text.labels:
        raise AutolossError(
            f"{path}: no documents, expected lines '<label> qid:<id> 1:<value> ...'"
        )
    if text.highest < 0:
        raise AutolossError(f"{path}: no features, expected lines '<label> qid:<id> 1:<value> ...'")
    text.sha256 = digest.hexdigest()
    return text


def _add_block(text: LetorText, lines: list[bytes], first_line: int) -> None:
    numbers, rests = [], []
    labels: dict[bytes, float] = {}
    last = next(reversed(text.query_ids), None)
    for number, line in enumerate(lines, start=first_line):
        parts = (line if b"#" not in line else line.partition(b"#")[0]).split(None, 2)
        if not parts:
            continue
        where = f"{text.path}:{number}"
        if parts[0] not in labels:
            labels[parts[0]] = _read_label(parts[0], where)
        if len(parts) < 2 or not parts[1].startswith(b"qid:") or len(parts[1]) == 4:
            found = f"{_show(parts[1])} after the label" if len(parts) > 1 else "a label alone"
            raise AutolossError(f"{where}: {found}, expected qid:<id>")
        name = parts[1][4:]
        if name != last:
            if name in text.query_ids:
                raise AutolossError(
                    f"{where}: query {_show(name)} again, after its block from line "
                    f"{text.query_ids[name]}; expected the lines of a query together"
                )
            text.query_ids[name] = number
            text.starts.append(len(text.labels))
            last = name
        text.labels.append(labels[parts[0]])
        numbers.append(number)
        rests.append(parts[2] if len(parts) > 2 else b"")
    if rests:
        rows = _parse_plain(rests) or _parse_line_by_line(rests, numbers, text.path)
        _add_rows(text, rows, numbers)


def _add_rows(text: LetorText, rows: _Rows, numbers: list[int]) -> None:
    lines = np.repeat(np.arange(len(numbers)), rows.counts)
    highest = int(rows.indices.max(initial=-1))
    if highest > text.highest:
        if len(text.labels) * (highest + 1) > MAX_VALUES:
            line = numbers[lines[rows.indices.argmax()]]
            raise AutolossError(
                f"{text.path}:{line}: feature index {highest} with {len(text.labels)} documents, "
                f"expected at most {MAX_VALUES} values in all"
            )
        text.highest = highest
    text.zero_used = text.zero_used or bool((rows.indices == 0).any())
    # Where an index occurs twice in a line, numpy keeps the later value.
    block = np.zeros((len(numbers), highest + 1), np.float32)
    block[lines, rows.indices] = rows.values
    text.blocks.append(block)
    keys = lines * (highest + 1) + rows.indices
    if (np.diff(keys) <= 0).any():
        keys = np.sort(keys)
        repeated = np.unique(keys[1:][np.diff(keys) == 0] // (highest + 1))
        if repeated.size:
            text.first_repeat = text.first_repeat or numbers[repeated[0]]
            text.repeats += len(repeated)


def _parse_plain(rests: list[bytes]) -> _Rows | None:
    """Blocks of plain `index:value` fields; None for anything else, however slightly odd."""
    joined = b" " + b" ".join(rests) + b" "
    if joined.translate(None, _PLAIN_BYTES):
        return None
    data = np.frombuffer(bytearray(joined), np.uint8)
    blank = data <= 32
    starts = np.flatnonzero(blank[:-1] & ~blank[1:]) + 1
    colons = np.flatnonzero(data == ord(":"))
    if len(starts) != len(colons) or not len(colons):
        return None
    widths = colons - starts
    if widths.min() < 1 or widths.max() > 6 or (colons[:-1] >= starts[1:]).any():
        return None
    if blank[colons + 1].any():
        return None
    indices = np.zeros(len(colons), np.int64)
    for place in range(int(widths.max())):
        at = (colons if place == 0 else colons[widths > place]) - 1 - place
        digits = data[at] - np.uint8(ord("0"))  # wraps, so that a dot or sign is above 9 too
        if (digits > 9).any():
            return None
        if place == 0:
            indices += digits
        else:
            indices[widths > place] += digits.astype(np.int64) * 10**place
        data[at] = 32
    data[colons] = 32
    values = _read_numbers(data.tobytes())
    if values is None or len(values) != len(colons):
        return None
    counts = np.array([rest.count(b":") for rest in rests], np.int64)
    return _Rows(counts, indices, values)


def _read_numbers(text: bytes) -> np.ndarray | None:
    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("error")  # numpy warns where the text stops being numbers
        try:
            # The numpy stubs want str; ASCII either way.
            values = np.fromstring(text.decode("ascii"), dtype=np.float64, sep=" ")
        except (DeprecationWarning, ValueError):
            return None
        narrow = values.astype(np.float32)
    return narrow if np.isfinite(narrow).all() else None


def _parse_line_by_line(rests: list[bytes], numbers: list[int], path: Path) -> _Rows:
    counts, indices, values = [], [], []
    for rest, number in zip(rests, numbers, strict=True):
        fields = rest.split()
        counts.append(len(fields))
        for text in fields:
            index, value = _read_field(text, f"{path}:{number}")
            indices.append(index)
            values.append(value)
    return _Rows(
        np.array(counts, np.int64), np.array(indices, np.int64), np.array(values, np.float32)
    )


def _read_field(text: bytes, where: str) -> tuple[int, np.float32]:
    pair = _PAIR.fullmatch(text)
    if pair is None:
        raise AutolossError(
            f"{where}: field {_show(text)}, expected <index>:<value> with an index from 1"
        )
    index = int(pair[1]) if len(pair[1]) < 20 else MAX_INDEX + 1
    if index > MAX_INDEX:
        raise AutolossError(
            f"{where}: feature index in {_show(text)}, expected at most {MAX_INDEX}"
        )
    number = float(pair[2]) if _NUMBER.fullmatch(pair[2]) else math.nan
    with np.errstate(over="ignore"):
        value = np.float32(number)
    if not np.isfinite(value):
        raise AutolossError(
            f"{where}: value of feature {index} is {_show(pair[2])}, expected a finite number"
        )
    return index, value


def _read_label(text: bytes, where: str) -> float:
    label = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not 0 <= label <= MAX_LABEL:
        raise AutolossError(
            f"{where}: label {_show(text)}, expected a number from 0 to {MAX_LABEL} first in a line"
        )
    return label + 0.0  # -0 becomes 0


def _show(text: bytes) -> str:
    shown = text.decode("utf-8", "backslashreplace")
    return repr(shown if len(shown) <= 40 else shown[:37] + "...")
