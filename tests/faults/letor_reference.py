"""LETOR text read slowly: one byte string, one line, one token at a time, in pure Python.

Written from the policy in docs/datasets.md and from nothing else; no code is shared with the
package, and no library reads a number or a line. It says what a file holds, or in which line it is
wrong. It does not say what is wrong there: two faults in a line are no fault of the order they are
found in.
"""

import struct
from dataclasses import dataclass, field

DIGITS = b"0123456789"
BLANKS = b" \t\r\v\f"


@dataclass
class Refused(Exception):
    """The line at fault, or 0 where it is the file as a whole."""

    line: int


@dataclass
class Limits:
    line_bytes: int = 16 * 1024 * 1024
    index: int = 1_000_000
    label: int = 31
    values: int = 4_000_000_000  # documents times (highest index + 1)
    free_values: int = 2**28  # ... of which so many always are held,
    values_per_byte: int = 8  # and others in proportion to the file


@dataclass
class Parsed:
    labels: list[bytes] = field(default_factory=list)  # each a 32-bit float, little-endian
    rows: list[dict[int, bytes]] = field(default_factory=list)  # the same, by index
    query_ids: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    repeated_lines: list[int] = field(default_factory=list)  # that give a feature twice
    highest: int = -1
    has_zero: bool = False

    @property
    def num_features(self):
        return self.highest + 1 if self.has_zero else self.highest


def parse(content, limits):
    """What the bytes of a file hold. Raises Refused."""
    parsed = Parsed()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise Refused(0)
    held = min(limits.values, max(limits.free_values, limits.values_per_byte * len(content)))
    for number, line in enumerate(content.split(b"\n"), start=1):
        if len(line) > limits.line_bytes:
            raise Refused(number)
        if number == 1 and line[:3] == b"\xef\xbb\xbf":
            line = line[3:]
        try:
            read_line(line, parsed, number, limits)
        except ValueError:
            raise Refused(number) from None
        if len(parsed.rows) * (parsed.highest + 1) > held:
            raise Refused(number)
    if not parsed.rows or parsed.highest == -1:
        raise Refused(0)
    parsed.offsets.append(len(parsed.rows))
    return parsed


def read_line(line, parsed, number, limits):
    """Adds the document of a line, if there is one. Raises ValueError."""
    if 0 in line:
        raise ValueError("a NUL byte")
    body = line
    while body and body[-1] in BLANKS:
        body = body[:-1]
    if b"\r" in body:
        raise ValueError("a carriage return that ends no line")
    tokens = split(body)
    if not tokens:
        return
    label = read_number(tokens[0])
    if not 0 <= label <= limits.label:
        raise ValueError("a label out of range")
    if len(tokens) < 2 or tokens[1][:4] != b"qid:" or tokens[1] == b"qid:":
        raise ValueError("no query")
    query_id = tokens[1][4:]
    if not parsed.query_ids or parsed.query_ids[-1] != query_id:
        if query_id in parsed.query_ids:
            raise ValueError("a query again")
        parsed.query_ids.append(query_id)
        parsed.offsets.append(len(parsed.rows))
    row = {}
    for token in tokens[2:]:
        index, value = read_field(token, limits)
        if index in row and number not in parsed.repeated_lines:
            parsed.repeated_lines.append(number)
        row[index] = value
        parsed.highest = max(parsed.highest, index)
        parsed.has_zero = parsed.has_zero or index == 0
    parsed.labels.append(struct.pack("<f", abs(label)))  # -0 is 0
    parsed.rows.append(row)


def split(line):
    """The tokens of a line up to its comment."""
    tokens, token = [], b""
    for byte in line:
        if byte == ord("#"):
            break
        if byte in BLANKS:
            tokens.append(token)
            token = b""
        else:
            token += bytes([byte])
    return [token for token in [*tokens, token] if token]


def read_field(token, limits):
    """The index, and the value as a 32-bit float. Raises ValueError."""
    index, colon, value = token.partition(b":")
    if not colon or not index or any(byte not in DIGITS for byte in index):
        raise ValueError("no field")
    while index[:1] == b"0" and len(index) > 1:
        index = index[1:]
    if len(index) > 9 or int(index) > limits.index:
        raise ValueError("an index that is too high")
    try:
        return int(index), struct.pack("<f", read_number(value))
    except OverflowError:
        raise ValueError("a value that 32 bits do not hold") from None


def read_number(token):
    """A decimal number, finite in 64 bits: sign, digits with or without a dot, exponent."""
    rest = token[1:] if token[:1] in (b"+", b"-") else token
    whole, rest = leading_digits(rest)
    fraction = b""
    if rest[:1] == b".":
        fraction, rest = leading_digits(rest[1:])
    if not whole and not fraction:
        raise ValueError("no digits")
    if rest[:1] in (b"e", b"E"):
        rest = rest[1:]
        rest = rest[1:] if rest[:1] in (b"+", b"-") else rest
        exponent, rest = leading_digits(rest)
        if not exponent:
            raise ValueError("no exponent")
    if rest:
        raise ValueError("more than a number")
    number = float(token)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a value that 64 bits do not hold")
    return number


def leading_digits(text):
    count = 0
    while count < len(text) and text[count] in DIGITS:
        count += 1
    return text[:count], text[count:]
