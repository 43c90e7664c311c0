"""One file through every public way of reading LETOR text, against the reference."""

import faulthandler
import io
import logging
import re
import signal
import struct
from contextlib import contextmanager

import numpy as np

from autoloss_jax.data import letor_text, load_letor, read_letor
from autoloss_jax.errors import AutolossError
from tests.faults import letor_reference
from tests.faults.letor_reference import Limits, Parsed, Refused

# Small enough for mutated files to reach them, large enough for many not to.
LIMITS = Limits(line_bytes=4_000, free_values=200_000)


def expect(content, limits=LIMITS):
    """What the reference makes of it: Parsed or Refused."""
    try:
        return letor_reference.parse(content, limits)
    except Refused as refused:
        return refused


def check(path, cache, expected, may_be_refused=False):
    """Reads a file, makes its entry in the cache, if there is one, and opens that again.

    Raises AssertionError where a way differs from what is expected; whatever else a reader raises
    passes through. With `may_be_refused` a message without a line is as good.
    """
    read, logs = [], []
    for how in ((read_letor, path), *([(read_cached, path, cache)] * 2 if cache else ())):
        with warned() as messages:
            read.append(outcome(*how))
        logs.append(messages.getvalue())
    for found in read:
        if isinstance(found, AutolossError):
            if not may_be_refused:
                assert isinstance(expected, Refused), f"refused ({found}), expected acceptance"
                assert line_of(path, found) == expected.line, f"{found}: {expected}"
            assert str(found).startswith(str(path)), found
            assert str(found) == str(read[0])
        else:
            assert isinstance(expected, Parsed), f"accepted, expected {expected}"
            assert_same(found, expected)
    if isinstance(read[0], AutolossError):
        return False
    lines = expected.repeated_lines
    warning = f"{len(lines)} lines give a feature more than once, the first is line {lines[:1]}"
    for log in logs:
        assert (warning.replace("[", "").replace("]", ";") in log) if lines else not log
    return True


def outcome(read, *arguments):
    try:
        return read(*arguments)
    except AutolossError as error:
        return error


def read_cached(path, cache):
    (fold,) = load_letor([path, path, path], cache=cache).folds
    return fold.train


def line_of(path, error):
    """The line that a message names behind the path; 0 for none."""
    found = re.match(r":(\d+): ", str(error)[len(str(path)) :])
    return int(found[1]) if found else 0


def assert_same(queries, parsed):
    """Bit for bit."""
    names = tuple(name.decode("utf-8", "backslashreplace") for name in parsed.query_ids)
    assert queries.query_ids == names
    assert queries.offsets.tolist() == parsed.offsets
    assert queries.labels.tobytes() == b"".join(parsed.labels)
    features = np.zeros((len(parsed.rows), parsed.num_features), np.float32)
    for number, row in enumerate(parsed.rows):
        for index, value in row.items():
            (features[number, index - (not parsed.has_zero)],) = struct.unpack("<f", value)
    assert queries.features.shape == features.shape
    assert np.asarray(queries.features).tobytes() == features.tobytes()


@contextmanager
def warned():
    """What is logged in the meantime."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("autoloss_jax.data.letor")
    logger.addHandler(handler)
    try:
        yield stream
    finally:
        logger.removeHandler(handler)


def set_limits(patch, block_bytes):
    """Blocks that end anywhere, and the limits of the reference."""
    patch.setattr(letor_text, "_BLOCK_BYTES", block_bytes)
    patch.setattr(letor_text, "FREE_VALUES", LIMITS.free_values)
    patch.setattr("autoloss_jax.data.letor_files.MAX_LINE_BYTES", LIMITS.line_bytes)


@contextmanager
def time_limit(seconds):
    """TimeoutError in the main thread for what takes longer, which hangs."""

    def ring(*_):
        faulthandler.dump_traceback()
        raise TimeoutError(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
