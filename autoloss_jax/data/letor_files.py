"""The lines of a text file: plain or compressed, hashed as they are read, and refused if torn.

Only regular files are opened, so that nothing here waits for a FIFO or reads a device for ever.
What a file is compressed by is told by its first bytes, whatever its name. The memory that reading
takes does not depend on what a file holds: lines and what is unpacked have limits.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from autoloss_jax.errors import AutolossError

MAX_LINE_BYTES = 1 << 24
"""A line of a million features has about so many."""

MAX_UNPACKED, MAX_RATIO = 1 << 26, 100
"""A file that unpacks to more bytes than the first, and to more than so many times its size, is
none of ranking data, which shrink by a factor of 5 to 20."""

COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
"""Looked for in a folder; the last only to say that it is not read."""

_RAW_BYTES = 1 << 16  # compressed bytes read at once; copied for each of many short streams
_MAX_LZMA_MEMORY = 1 << 28  # `xz -9` takes 65 MB
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
_UNREAD = {
    b"\x28\xb5\x2f\xfd": "compressed by zstd (unpack it, or use gzip, bzip2 or xz)",
    b"PK\3\4": "a zip archive (unpack it)",
    b"\xff\xfe": "UTF-16 (convert it: iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16 (convert it: iconv -f UTF-16 -t UTF-8)",
}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_EXPECTED = "expected a file of LETOR text"


def stat_file(path: Path) -> os.stat_result:
    """Of a regular file. Raises AutolossError for anything else, and for what cannot be reached."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # a NUL in a name is a ValueError
        raise _unreadable(path, error) from error
    _check_kind(path, found)
    return found


class LineReader:
    """The lines of a file, many at a time.

    Raises:
        AutolossError: on opening or reading; the message names the file and, where there is one,
            the line: no regular file, not to be read, damaged or cut short, a line or a whole that
            is too long, a change of the file since it was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = stat_file(path).st_size
        self.line = 1  # the number of the next line
        self._rest = b""
        self._digest = hashlib.sha256()
        try:
            # Should a FIFO take its place just now, opening it must not wait for a writer.
            self._file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _unreadable(path, error) from error
        try:
            self._opened = os.fstat(self._file.fileno())
            _check_kind(path, self._opened)
            self._unpacker = _find_unpacker(self)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> LineReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._file.close()

    @property
    def sha256(self) -> str:
        """Of the file as it is on the disk, when all of it was read."""
        return self._digest.hexdigest()

    def read_lines(self, size: int) -> bytes:
        """Whole lines of about `size` bytes, or one longer line; nothing at the end."""
        parts: list[bytes | memoryview] = [self._rest]
        length = len(self._rest)
        self._rest = b""
        while part := self._read(size):
            first = part.find(b"\n")
            if length + (len(part) if first < 0 else first) > MAX_LINE_BYTES:
                raise AutolossError(
                    f"{self.path}:{self.line}: a line of more than {MAX_LINE_BYTES} bytes, "
                    "expected lines '<label> qid:<id> 1:<value> ...'"
                )
            if first >= 0:
                end = part.rfind(b"\n") + 1
                parts.append(memoryview(part)[:end])
                self._rest = part[end:]
                break
            length += len(part)
            parts.append(part)
        lines = b"".join(parts)
        self.line += lines.count(b"\n")
        return lines

    def _read(self, size: int) -> bytes:
        return self._unpacker.read(size) if self._unpacker else self.read_raw(size)

    def read_raw(self, size: int) -> bytes:
        """Bytes as they are on the disk; nothing at the end."""
        try:
            found: bytes = self._file.read(size) or b""
            now = os.fstat(self._file.fileno()) if not found else self._opened
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if (now.st_size, now.st_mtime_ns) != (self._opened.st_size, self._opened.st_mtime_ns):
            raise AutolossError(
                f"{self.path}: changed while it was read, expected a file that stays as it is"
            )
        self._digest.update(found)
        return found

    def peek(self, size: int) -> bytes:
        """The first bytes, before anything was read."""
        try:
            return os.pread(self._file.fileno(), size, 0)
        except OSError as error:
            raise _unreadable(self.path, error) from error


class _Unpacker:
    """Unpacks one compressed stream after the other, and checks how each ends.

    The standard library's file objects are not used: those of bzip2 and xz take damage between two
    streams for the end of the file.
    """

    def __init__(self, reader: LineReader, kind: str) -> None:
        self._reader, self._kind = reader, kind
        self._limit = max(MAX_UNPACKED, MAX_RATIO * reader.size)
        self._unpacked = 0
        self._stream = _STREAMS[kind]()

    def read(self, size: int) -> bytes:
        """At most `size` bytes; nothing at the end."""
        while True:
            data = b""
            if self._stream.eof:
                data = self._next_stream()
                if not data:
                    return b""
                self._stream = _STREAMS[self._kind]()
            elif self._stream.needs_input:
                data = self._reader.read_raw(_RAW_BYTES)
            waits = self._stream.needs_input and not data
            try:
                found: bytes = self._stream.decompress(data, size)
            except (OSError, ValueError, lzma.LZMAError, zlib.error) as error:
                raise self._error(f"damaged ({error})") from error
            if found:
                self._count(found)
                return found
            if waits and not self._stream.eof:
                raise self._error("cut short")

    def _next_stream(self) -> bytes:
        """The first bytes behind a stream and what pads it; nothing at the end."""
        data: bytes = self._stream.unused_data.lstrip(b"\0")
        while not data and (part := self._reader.read_raw(_RAW_BYTES)):
            data = part.lstrip(b"\0")
        return data

    def _count(self, found: bytes) -> None:
        self._unpacked += len(found)
        if self._unpacked > self._limit:
            raise self._error(
                f"unpacks to more than {self._limit} bytes from {self._reader.size}, expected "
                "ranking data"
            )

    def _error(self, what: str) -> AutolossError:
        return AutolossError(
            f"{self._reader.path}:{self._reader.line}: {what}, the file is compressed by "
            f"{self._kind}"
        )


class _GzipStream:
    """zlib's decompressor behind the interface that those of bzip2 and xz have."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)  # a gzip header, and its check at the end

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._stream.decompress(self._stream.unconsumed_tail + data, max_length)

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data


_STREAMS: dict[str, Callable[[], Any]] = {
    "gzip": _GzipStream,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _MAX_LZMA_MEMORY),
}


def _find_unpacker(reader: LineReader) -> _Unpacker | None:
    """What the first bytes of a file ask for; None for text."""
    head = reader.peek(max(map(len, [*_MAGIC, *_UNREAD])))
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return _Unpacker(reader, kind)
    for magic, what in _UNREAD.items():
        if head.startswith(magic):
            raise AutolossError(f"{reader.path}: is {what}, {_EXPECTED}")
    return None


def _check_kind(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in _KINDS if test(found.st_mode)), "no ordinary file")
        raise AutolossError(f"{path}: is {kind}, {_EXPECTED}")


def _unreadable(path: Path, error: OSError | ValueError) -> AutolossError:
    if isinstance(error, FileNotFoundError):
        return AutolossError(f"{path}: no such file, {_EXPECTED}")
    reason = getattr(error, "strerror", None) or error
    return AutolossError(f"{path}: cannot be read ({reason}), {_EXPECTED}")
