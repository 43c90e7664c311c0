"""LETOR / SVMlight text to arrays: `<label> qid:<id> <index>:<value> ... # comment`.

Two readers give the same result: `letor_blocks` takes whole blocks of lines, several at once, and
gives up on anything unusual; the strict reader here goes line by line and accepts a line or says
what is wrong and where. Numbers come out as Python's ``float`` reads them, rounded to 32 bits.
Features are kept for every document, given or not, so that their array has a limit: `MAX_VALUES`,
and what is in proportion to the file.
"""

from __future__ import annotations

import math
import os
import re
from array import array
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autoloss_jax.data.letor_blocks import NUMBER, Block, read_block
from autoloss_jax.data.letor_files import LineReader
from autoloss_jax.data.queries import MAX_LABEL, Queries
from autoloss_jax.errors import AutolossError

MAX_INDEX = 1_000_000
MAX_VALUES = 4_000_000_000
"""Documents times features, 16 GB: past this an index is a mistake."""

FREE_VALUES, VALUES_PER_BYTE = 1 << 28, 8
"""More values than the first, 1 GiB, are held only of a file of at least a byte for 8 values."""

_BLOCK_BYTES = 1 << 20  # what a block is taken apart into should stay in a processor's cache
_MOST_FAST = 2 << 20  # a block of one longer line is not worth 40 times the memory
_GROWTH = 1 << 26  # bytes that the array of features grows by, at most
_OFTEN = 8  # times that the array is widened by just what is needed
_BEYOND = 2.0**128 - 2.0**103  # the least number that a 32-bit float rounds to infinity
_PAIR = re.compile(rb"(\d+):(\S+)")
_BOM = b"\xef\xbb\xbf"


@dataclass
class LetorText:
    """One parsed file; features are in the columns of their index, from ``first_index`` on."""

    path: Path
    features: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    labels: Any = field(default_factory=list)  # list of floats, or an array
    starts: Any = field(default_factory=list)  # the first document of each query
    query_ids: dict[bytes, int] = field(default_factory=dict)  # and the line it begins at
    size: int = 0  # bytes of the file
    highest: int = -1  # highest feature index
    highest_line: int = 0  # and the line it is first given in
    zero_used: bool = False  # whether index 0 occurs
    repeats: int = 0  # lines that give a feature more than once
    first_repeat: int = 0
    sha256: str = ""
    _widened: int = 0  # how often there were more features than before

    @property
    def max_values(self) -> int:
        """How many values, documents times features, are held of the file."""
        return min(MAX_VALUES, max(FREE_VALUES, VALUES_PER_BYTE * self.size))

    @property
    def first_index(self) -> int:
        return 0 if self.zero_used else 1

    def num_features(self, zero_based: bool) -> int:
        return self.highest + 1 if zero_based else max(self.highest, 0)

    def to_queries(self, num_features: int, zero_based: bool) -> Queries:
        """Queries of ``num_features`` columns, the features not copied if they have as many."""
        features = self.features
        missing = self.first_index - (0 if zero_based else 1)  # index 0 of another file
        if missing or features.shape[1] != num_features:
            features = np.zeros((len(self.labels), num_features), np.float32)
            features[:, missing : missing + self.features.shape[1]] = self.features
        names = tuple(name.decode("utf-8", "backslashreplace") for name in self.query_ids)
        offsets = np.array([*self.starts, len(self.labels)], np.int64)
        labels = np.array(self.labels, np.float32)
        return Queries(features, labels, offsets, names, features_checked=True)


def parse_letor(path: Path) -> LetorText:
    """Parse one file.

    Raises:
        AutolossError: the file is missing, no ordinary file or damaged, has no documents, or has a
            line that is not as expected; the message names the file and the line.
    """
    with LineReader(path) as reader:
        text = LetorText(path, size=reader.size)
        try:
            for line, lines, block in _read_blocks(reader):
                if block is not None and _add(text, block, line):
                    continue
                added = _add(text, _read_strictly(text, lines, line), line)
                assert added, "the strict reader has accepted what cannot be added"
        except MemoryError as error:
            raise AutolossError(
                f"{path}:{reader.line}: no memory for {len(text.labels)} documents with "
                f"{text.highest} features, each of which takes 4 bytes"
            ) from error
        text.sha256 = reader.sha256
    if not text.labels:
        raise AutolossError(
            f"{path}: no documents, expected lines '<label> qid:<id> 1:<value> ...'"
        )
    if text.highest < 0:
        raise AutolossError(f"{path}: no features, expected lines '<label> qid:<id> 1:<value> ...'")
    text.features.resize((len(text.labels), text.features.shape[1]), refcheck=False)
    width = text.highest + 1 - text.first_index
    if text.features.shape[1] > width:
        text.features = np.ascontiguousarray(text.features[:, :width])
    return text


def _read_blocks(reader: LineReader) -> Iterator[tuple[int, bytes, Block | None]]:
    """Blocks of whole lines, the number of their first, and what the fast reader makes of each.

    Threads read ahead, one a core: numpy works without Python's lock most of the time. A fault of
    the file is raised when all lines before it were seen, which may have one of their own.
    """
    workers = min(os.cpu_count() or 1, 8)
    waiting: deque[tuple[int, bytes, Future[Block | None]]] = deque()
    fault: AutolossError | None = None
    with ThreadPoolExecutor(workers, "letor") as pool:
        while True:
            line = reader.line
            try:
                lines = reader.read_lines(_BLOCK_BYTES)
            except AutolossError as error:
                lines, fault = b"", error
            if not lines:
                break
            if line == 1:
                lines = lines.removeprefix(_BOM)
            waiting.append((line, lines, pool.submit(_read_fast, lines)))
            if len(waiting) > workers:
                line, lines, block = waiting.popleft()
                yield line, lines, block.result()
        while waiting:
            line, lines, block = waiting.popleft()
            yield line, lines, block.result()
    if fault:
        raise fault


def _read_fast(lines: bytes) -> Block | None:
    return read_block(lines) if len(lines) <= _MOST_FAST else None


def _add(text: LetorText, block: Block, first_line: int) -> bool:
    """Adds the documents of a block; nothing, and False, if a label or a query is not as it should,
    or there would be too many values.
    """
    known = {}
    for name in set(block.labels):
        label = _label_of(name)
        if label is None:
            return False
        known[name] = label
    last = next(reversed(text.query_ids), None)
    begun: dict[bytes, int] = {}  # queries, and the document they begin with
    for document, name in enumerate(block.queries):
        if name != last:
            if name in begun or name in text.query_ids:
                return False
            begun[name], last = document, name
    count = len(text.labels)
    highest = int(block.indices.max(initial=text.highest))
    if (count + len(block.labels)) * (highest + 1) > text.max_values:
        return False
    text.labels += [known[name] for name in block.labels]
    text.starts += [count + document for document in begun.values()]
    text.query_ids |= {name: first_line + int(block.lines[d]) for name, d in begun.items()}
    if len(block.values):
        _note_indices(text, block, first_line)
    _add_features(text, block, count)
    return True


def _note_indices(text: LetorText, block: Block, first_line: int) -> None:
    """The highest index so far, whether there is a 0, and repeated ones."""
    highest = int(block.indices.max())
    if highest > text.highest:
        place = int(block.indices.argmax())  # of regular blocks in the first document
        document = np.searchsorted(np.cumsum(block.counts), place, side="right")
        text.highest = highest
        text.highest_line = first_line + int(block.lines[document])
    if not text.zero_used and (block.indices == 0).any():
        text.zero_used = True
        if text.features.size:  # room for index 0, before all others
            text.features = np.insert(text.features, 0, 0, axis=1)
    if block.is_regular:
        return
    documents = np.repeat(np.arange(len(block.counts)), block.counts)
    keys = documents * (highest + 1) + block.indices
    if (np.diff(keys) <= 0).any():
        keys = np.sort(keys)
        repeated = np.unique(keys[1:][np.diff(keys) == 0] // (highest + 1))
        if repeated.size:
            text.first_repeat = text.first_repeat or first_line + int(block.lines[repeated[0]])
            text.repeats += len(repeated)


def _add_features(text: LetorText, block: Block, start: int) -> None:
    """Writes the features of a block into the rows from ``start`` on."""
    rows, columns = text.features.shape
    width = max(text.highest + 1 - text.first_index, 0)
    if width > columns:
        text._widened += 1
        # Not a copy of all for every block, should each have more features than the one before.
        spare = columns // 4 if text._widened > _OFTEN else 0
        wider = np.zeros((rows, width + spare), np.float32)
        wider[:, :columns] = text.features
        text.features = wider
    stop = start + len(block.counts)
    if stop > rows:
        # Growing in place, where the system can, by no more than is likely to be needed.
        step = max(stop - rows, min(rows, _GROWTH // (4 * max(width, 1))))
        text.features.resize((rows + step, text.features.shape[1]), refcheck=False)
    columns_of = block.indices - text.first_index
    if block.is_regular:
        chosen: slice | np.ndarray = columns_of
        if columns_of[-1] - columns_of[0] == len(columns_of) - 1:  # none left out
            chosen = slice(columns_of[0], columns_of[-1] + 1)
        text.features[start:stop, chosen] = block.values.reshape(len(block.counts), -1)
    else:  # where an index occurs twice in a line, numpy keeps the later value
        documents = np.repeat(np.arange(start, stop), block.counts)
        text.features[documents, columns_of] = block.values


def _read_strictly(text: LetorText, lines: bytes, first_line: int) -> Block:
    """The documents of whole lines, read one by one. Raises AutolossError for the first bad one."""
    places, labels, queries, counts = [], [], [], []
    indices, values = array("q"), array("d")  # not lists, which take 4 times the memory
    begun: dict[bytes, int] = {}  # queries, and the line they begin at
    last = next(reversed(text.query_ids), None)
    highest, highest_line, most = text.highest, text.highest_line, text.max_values
    for place, line in enumerate(lines.split(b"\n")):
        if not line:
            continue
        where = f"{text.path}:{first_line + place}"
        _check_bytes(line, where)
        parts = line.partition(b"#")[0].split()
        if not parts:
            continue
        _check_label(parts[0], where)
        if len(parts) < 2 or not parts[1].startswith(b"qid:") or len(parts[1]) == 4:
            found = f"{_show(parts[1])} after the label" if len(parts) > 1 else "a label alone"
            raise AutolossError(f"{where}: {found}, expected qid:<id>")
        name = parts[1][4:]
        if name != last:
            earlier = begun.get(name) or text.query_ids.get(name)
            if earlier:
                raise AutolossError(
                    f"{where}: query {_show(name)} again, after its block from line {earlier}; "
                    "expected the lines of a query together"
                )
            begun[name], last = first_line + place, name
        places.append(place)
        labels.append(parts[0])
        queries.append(name)
        counts.append(len(parts) - 2)
        for part in parts[2:]:
            index, value = _read_field(part, where)
            indices.append(index)
            values.append(value)
            if index > highest:
                highest, highest_line = index, first_line + place
        documents = len(text.labels) + len(labels)
        if documents * (highest + 1) > most:
            raise AutolossError(
                f"{where}: feature index {highest} (of line {highest_line}) with {documents} "
                f"documents, expected at most {most} values in all, absent ones included"
            )
    return Block(
        np.array(places, np.int64), labels, queries, np.array(counts, np.int64),
        np.array(indices, np.int64), np.array(values, np.float32),
    )  # fmt: skip


def _check_bytes(line: bytes, where: str) -> None:
    """Bytes that no text has, or that hide lines: behind a `#`, they would be lost silently."""
    if b"\0" in line:
        raise AutolossError(f"{where}: a NUL byte, expected text; is it a binary file, or damaged?")
    if b"\r" in line.rstrip():
        raise AutolossError(
            f"{where}: a carriage return inside a line, expected lines that end in LF or CRLF"
        )


def _read_field(text: bytes, where: str) -> tuple[int, float]:
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
    value = float(pair[2]) if NUMBER.fullmatch(pair[2]) else math.nan
    if not abs(value) < _BEYOND:
        raise AutolossError(
            f"{where}: value of feature {index} is {_show(pair[2])}, expected a finite number"
        )
    return index, value


def _label_of(text: bytes) -> float | None:
    label = float(text) if NUMBER.fullmatch(text) else math.nan
    return label + 0.0 if 0 <= label <= MAX_LABEL else None  # -0 becomes 0


def _check_label(text: bytes, where: str) -> None:
    if _label_of(text) is None:
        raise AutolossError(
            f"{where}: label {_show(text)}, expected a number from 0 to {MAX_LABEL} first in a line"
        )


def _show(text: bytes) -> str:
    shown = text.decode("utf-8", "backslashreplace")
    return repr(shown if len(shown) <= 40 else shown[:37] + "...")
