"""Mutated LETOR files: what is accepted equals the reference, what is refused names its line.

Repeat one file by its seed and number: `random.Random(f"{seed}-{number}")`.
"""

import logging
import os
import random
import shutil

import pytest

from tests.faults import letor_reference
from tests.faults.letor_mutations import compress, make_files, mutate
from tests.faults.letor_oracle import LIMITS, check, expect, set_limits, time_limit

SECONDS = 20  # for one file; they take some milliseconds


def test_mutated_files(request, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.ERROR, "autoloss_jax.data.roles")  # of one file in three roles
    monkeypatch.setattr(os, "fsync", lambda file: None)
    count = request.config.getoption("--fuzz-files")
    seed = request.config.getoption("--fault-seed")
    bases = make_files()
    accepted = refused = 0
    cache = tmp_path / "cache"
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        content = mutate(rng, rng.choice(bases))
        set_limits(monkeypatch, rng.choice((1, 7, 30, 100, 1000, LIMITS.line_bytes)))
        path = tmp_path / "file.txt"
        expected, packed = expect(content), content
        if rng.random() < 0.1:
            packed = compress(rng, content)
        path.write_bytes(packed)
        try:
            with time_limit(SECONDS):  # damage to what is compressed may change nothing
                good = check(path, cache, expected, may_be_refused=packed is not content)
        except BaseException as error:
            error.add_note(f"seed {seed}, file {number}: {packed!r}")
            raise
        accepted, refused = accepted + good, refused + (not good)
        if number % 100 == 99:
            shutil.rmtree(cache, ignore_errors=True)
    print(f"{count} files of seed {seed}: {accepted} accepted, {refused} refused by file and line")
    if count >= 100:
        assert min(accepted, refused) > 0.15 * count  # or it would show nothing


@pytest.mark.parametrize("content", make_files())
def test_the_made_up_files_are_accepted(content):
    assert isinstance(expect(content), letor_reference.Parsed)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", 0),
        (b"\xff\xfe1\0", 0),
        (b"1 qid:1\n", 0),
        (b"\n1 qid:1 1:nan\n", 2),
        (b"1 qid:1 1:1_0\n", 1),
        (b"1 qid:1 1:1 # a\r1 qid:1 1:1\n", 1),
        (b"1 qid:1 1:1\n" * 3 + b"1 qid:2 1:1\n1 qid:1 1:1\n", 5),
        (b"1 qid:1 1:1 999999:1\n", 1),
        (b"1 qid:1 1:1 # " + b"x" * 4000, 1),
        (b"1 qid:1 1:1 \0", 1),
        (b"1 qid:1 1:3.5e38", 1),
    ],
)
def test_the_reference_refuses(content, line):
    assert expect(content) == letor_reference.Refused(line)
