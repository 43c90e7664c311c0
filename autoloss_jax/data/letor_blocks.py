"""The fast reader of LETOR text: whole blocks of lines by numpy, or not at all.

It takes lines of `<label> qid:<id> <index>:<value> ...` apart at the bytes that separate (blanks,
colons, dots) and reads up to eight digits at once, as one 64-bit word. Whatever is unusual, right
or wrong, makes it give up on the block: the strict reader of `letor_text` then has the word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
"""How a number may be written."""

_COLON, _DOT, _MINUS, _PLUS, _NEWLINE = b":.-+\n"
_LEAST_BLANK, _MOST_CONTROL = 9, 14  # blanks are bytes 9 to 13 and 32
_MOST_INDEX_DIGITS = 6
_WORD = 8  # digits read at once
_JOINS = [
    (np.uint64((10**digits << bits) + 1), np.uint64(bits), np.uint64(kept))
    for digits, bits, kept in (
        (1, 8, 0x00FF00FF00FF00FF), (2, 16, 0x0000FFFF0000FFFF), (4, 32, 0x00000000FFFFFFFF),
    )
]  # fmt: skip
_TENS = 10.0 ** np.arange(_WORD + 1)
_EXACT = 2.0**53  # whole numbers below are 64-bit floats


@dataclass(frozen=True)
class Block:
    """The documents of some lines. Where an index occurs twice in one, the later value counts."""

    lines: np.ndarray  # i64[documents]: the line of each, the first line being 0
    labels: list[bytes]
    queries: list[bytes]
    counts: np.ndarray  # i64[documents]: values of each
    indices: np.ndarray  # i64[values]; or i64[counts[0]], if the same for all documents
    values: np.ndarray  # f32[values]

    @property
    def is_regular(self) -> bool:
        """Whether all documents have the same increasing indices, which are given once."""
        return len(self.indices) != len(self.values)


class _Odd(Exception):
    """Something the fast reader leaves to the strict one."""


def read_block(text: bytes) -> Block | None:
    """The documents of whole lines; None where anything is unusual, however slightly.

    Numbers come out as Python's `float` reads them, then rounded to 32 bits.
    """
    try:
        return _read_block(text)
    except _Odd:
        return None


def _read_block(text: bytes) -> Block:
    if b"\r" in text and text.count(b"\r") != text.count(b"\r\n"):
        raise _Odd
    # A word is read backwards from the end of a number, hence room before the first.
    text = b"\n" * _WORD + text + b"\n"
    data = np.frombuffer(text, np.uint8)
    if b"#" in text:
        if b"\0" in text:
            raise _Odd
        text, data = _without_comments(data)
    _refuse((data < _LEAST_BLANK) | (data - np.uint8(_MOST_CONTROL) < 32 - _MOST_CONTROL))
    cuts = np.flatnonzero((data <= 32) | (data == _COLON) | (data == _DOT))
    kinds = data[cuts]
    is_blank = kinds <= 32
    blanks = cuts[is_blank]
    before = np.flatnonzero(np.diff(blanks) > 1)  # the blank before each token, among the blanks
    starts = blanks[before] + 1
    newlines = np.flatnonzero(data[_WORD - 1 :] == _NEWLINE) + _WORD - 1
    first = np.searchsorted(starts, newlines)  # token of each line, and of the one behind the last
    tokens = np.diff(first)
    lines = np.flatnonzero(tokens)
    counts = tokens[lines] - 2  # of features, all but the label and the query
    if not lines.size or counts.min() < 0 or not counts.any():
        raise _Odd
    label, query = first[lines], first[lines] + 1
    labels, queries = (_texts(text, starts[t], blanks[before[t] + 1]) for t in (label, query))
    if not all(name.startswith(b"qid:") and len(name) > 4 for name in queries):
        raise _Odd
    colons = np.flatnonzero(kinds == _COLON)
    if len(colons) != len(starts) - len(lines):  # one in every token but the labels
        raise _Odd
    own = np.append(0, np.cumsum(counts + 1)[:-1])  # the query's colon, among the colons
    _refuse(cuts[colons[own]] != starts[query] + 3)
    fields = np.delete(colons, own)
    _refuse(~is_blank[colons - 1])  # so no token has two
    words = np.ndarray(len(text) - _WORD + 1, "<u8", text, strides=(1,))
    indices = _read_indices(words, cuts[fields - 1] + 1, cuts[fields], counts)
    values = _read_values(text, data, words, cuts, kinds, fields)
    return Block(lines, labels, [name[4:] for name in queries], counts, indices, values)


def _texts(text: bytes, starts: np.ndarray, ends: np.ndarray) -> list[bytes]:
    return [text[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


def _refuse(odd: np.ndarray) -> None:
    if odd.any():
        raise _Odd


def _without_comments(data: np.ndarray) -> tuple[bytes, np.ndarray]:
    """The text with blanks from the first `#` of a line to its end."""
    data = data.copy()
    hashes = np.flatnonzero(data == ord("#"))
    ends = np.flatnonzero(data == _NEWLINE)
    line = np.searchsorted(ends, hashes)
    first = np.diff(line, prepend=-1) > 0  # of a line of its own, or this costs their square
    for start, end in zip(hashes[first].tolist(), ends[line[first]].tolist(), strict=True):
        data[start:end] = 32
    return data.tobytes(), data


def _read_indices(
    words: np.ndarray, starts: np.ndarray, ends: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Feature indices; if the texts are the same for all documents, and increase, those of one."""
    digits = ends - starts
    if digits.min() < 1 or digits.max() > _MOST_INDEX_DIGITS:
        raise _Odd
    size = counts[0]
    if (counts == size).all():
        texts = _last_bytes(words, ends, digits).reshape(len(counts), size)
        if (texts == texts[0]).all():
            indices, wrong = _read_digits(words, ends[:size], digits[:size])
            _refuse(wrong)
            return indices if (np.diff(indices) > 0).all() else np.tile(indices, len(counts))
    numbers, wrong = _read_digits(words, ends, digits)
    _refuse(wrong)
    return numbers


def _read_values(
    text: bytes, data: np.ndarray, words: np.ndarray, cuts: np.ndarray, kinds: np.ndarray,
    fields: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """f32[fields]: the numbers behind the colons `cuts[fields]`.

    A number of at most 8 digits before the dot and behind it, and of less than 2**53 without the
    dot, is a quotient of two whole numbers that 64-bit floats hold exactly. So one division rounds
    it as `float` does.
    """
    starts, middles = cuts[fields] + 1, cuts[fields + 1]
    signs = data[starts]
    negative = signs == _MINUS
    signed = negative | (signs == _PLUS)
    has_dot = kinds[fields + 1] == _DOT
    ends = cuts[fields + 1 + has_dot]  # where a dot is not followed by a blank, it is odd below
    digits, places = middles - starts - signed, ends - middles - has_dot
    whole, hard = _read_digits(words, middles, digits)
    fraction, odd = _read_digits(words, ends, places)
    tens = _TENS[np.minimum(places, _WORD)]
    number = whole.astype(np.float64) * tens + fraction
    hard |= odd | (digits == 0) | (number >= _EXACT) | (kinds[fields + 1 + has_dot] > 32)
    values = (number / tens) * np.where(negative, -1.0, 1.0)
    hard_places = np.flatnonzero(hard)
    if hard_places.size:
        blanks = cuts[kinds <= 32]
        stops = blanks[np.searchsorted(blanks, starts[hard_places])]
        values[hard_places] = _read_any(_texts(text, starts[hard_places], stops))
    return values.astype(np.float32)


def _last_bytes(words: np.ndarray, ends: np.ndarray, count: np.ndarray) -> np.ndarray:
    """u64: the `count` bytes before each end."""
    return words[ends - _WORD] >> _unused_bits(count)


def _unused_bits(count: np.ndarray) -> np.ndarray:
    """u64: of a word of which the last `count` bytes, at most 8, are used."""
    return ((_WORD - np.minimum(count, _WORD)) * 8).view(np.uint64)


def _read_digits(
    words: np.ndarray, ends: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """i64: the numbers of `count` digits before each end, and whether they are not 0 to 8 digits.

    The first digit is the lowest byte of a word, and missing ones are 0. Digits become pairs, pairs
    become fours, and fours the number, each time by one multiplication.
    """
    unused = _unused_bits(count)
    word = words[ends - _WORD] ^ np.uint64(0x3030303030303030)
    word >>= unused
    word <<= unused
    wrong = ((word + np.uint64(0x7676767676767676)) | word) & np.uint64(0x8080808080808080) != 0
    wrong |= count > _WORD
    for factor, shift, kept in _JOINS:
        word *= factor
        word >>= shift
        word &= kept
    return word.view(np.int64), wrong


def _read_any(texts: list[bytes]) -> np.ndarray:
    """f64: numbers with exponents or many digits."""
    if b"".join(texts).translate(None, b"0123456789.+-eE"):
        raise _Odd  # float would take more than NUMBER does
    try:
        values = np.array([float(text) for text in texts])
    except ValueError:
        raise _Odd from None
    with np.errstate(over="ignore"):
        if not np.isfinite(values.astype(np.float32)).all():
            raise _Odd
    return values
