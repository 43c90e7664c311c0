"""Odd and hostile data: what docs/datasets.md says happens with each does happen."""

import bz2
import gzip
import lzma
import os
import random
import re
import socket
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest

from autoloss_jax.cli import main
from autoloss_jax.data import letor_blocks, letor_files, letor_text, load_letor, read_letor
from autoloss_jax.errors import AutolossError
from tests.faults.letor_oracle import time_limit

PLAIN = b"2 qid:1 1:0.5 2:1\n0 qid:1 1:3 2:-4e-06\n1 qid:2 1:7 2:8\n"
DOCS = Path(__file__).parents[2] / "docs" / "datasets.md"

SAME = None  # as PLAIN
POLICIES = {
    "CRLF": (PLAIN.replace(b"\n", b"\r\n"), SAME),
    "CR alone": (PLAIN.replace(b"\n", b"\r"), "file.txt:1: a carriage return inside a line"),
    "a byte order mark": (b"\xef\xbb\xbf" + PLAIN, SAME),
    "no newline at the end": (PLAIN.rstrip(), SAME),
    "blank lines and comments": (b"\n# 1 qid:9 1:1\n" + PLAIN.replace(b"\n", b" # x\n\n"), SAME),
    "UTF-16": (PLAIN.decode().encode("utf-16"), "file.txt: is UTF-16 .convert it: iconv"),
    "a NUL byte": (PLAIN + b"1 qid:3 1:1 # \0\0", "file.txt:4: a NUL byte, expected text"),
    "a binary file": (random.Random(0).randbytes(1000), "file.txt:1: label .*, expected a number"),
    "an empty file": (b"", "file.txt: no documents, expected lines"),
    "documents without any feature": (b"1 qid:1\n", "file.txt: no features, expected lines"),
    "a line of more than 16 MiB": (
        PLAIN + b"1 qid:3 1:1" + b" " * 2**24,
        "file.txt:4: a line of more than 16777216 bytes",
    ),
    "unordered indices": (PLAIN.replace(b"1:3 2:-4e-06", b"2:-4e-06 1:3"), SAME),
    "an index twice in a line": (PLAIN.replace(b"1:3", b"1:9 1:3"), SAME),
    "index 0": (b"1 qid:1 0:5 1:6\n", [[5, 6]]),
    "a negative index": (PLAIN + b"1 qid:3 -1:1\n", "file.txt:4: field '-1:1', expected <index>:"),
    "index 2^31": (
        PLAIN + b"1 qid:3 2147483648:1\n",
        "file.txt:4: feature index in '2147483648:1', expected at most 1000000",
    ),
    "an index too high for the documents": (
        b"0 qid:1 999999:1\n" * 300,
        r"file.txt:269: feature index 999999 .of line 1. with 269 documents, expected at most 268",
    ),
    "absent features": (b"1 qid:1 3:1\n0 qid:1\n", [[0, 0, 1], [0, 0, 0]]),
    "constant features": (b"1 qid:1 1:1 2:7\n0 qid:1 1:2 2:7\n", [[1, 7], [2, 7]]),
    "NaN or Inf": (PLAIN + b"1 qid:3 1:1 2:nan\n", "file.txt:4: value of feature 2 is 'nan'"),
    "`NULL`": (PLAIN + b"1 qid:3 1:NULL\n", "file.txt:4: value of feature 1 is 'NULL'"),
    "beyond a 32-bit float": (PLAIN + b"1 qid:3 1:1e39\n", "file.txt:4: value of .* is '1e39'"),
    "`1_000`, `0x1p3`, other digits": (
        PLAIN + "1 qid:3 1:١\n".encode(),
        "file.txt:4: value of feature 1 is '١', expected a finite number",
    ),
    "`+5`, `1.`, `.5`, `007`, `5E-1`": (
        b"1 qid:1 1:+5 2:1. 3:.5 4:007 5:5E-1\n",
        [[5, 1, 0.5, 7, 0.5]],
    ),
    "negative labels": (PLAIN + b"-1 qid:3 1:1\n", "file.txt:4: label '-1', expected a number"),
    "fractional labels": (b"0.5 qid:1 1:1\n", [[1]]),
    "labels over 31": (PLAIN + b"32 qid:3 1:1\n", "file.txt:4: label '32', expected a number"),
    "a query of one document": (b"0 qid:1 1:1 2:2\n1 qid:2 2:1\n", [[1, 2], [0, 1]]),
    "no query id": (PLAIN + b"1 qid: 1:1\n", "file.txt:4: 'qid:' after the label, expected qid:"),
    "the documents of a query apart": (
        PLAIN + b"1 qid:1 1:1\n",
        "file.txt:4: query '1' again, after its block from line 1; expected the lines of a query",
    ),
    "a document twice": (b"1 qid:1 1:7\n" * 2, [[7], [7]]),
    "gzip, bzip2, xz": (gzip.compress(PLAIN), SAME),
    "an archive that is damaged or cut short": (
        gzip.compress(PLAIN)[:-3],
        "file.txt:4: cut short, the file is compressed by gzip",
    ),
    "an archive that unpacks to very much": (
        lzma.compress((b"#" * 1023 + b"\n") * 2**11),
        r"file.txt:\d+: unpacks to more than 1000000 bytes from \d+, expected ranking data",
    ),
    "zstd, zip": (b"\x28\xb5\x2f\xfd1234", "file.txt: is compressed by zstd .unpack it"),
}  # fmt: skip


@pytest.mark.parametrize("name", POLICIES)
def test_the_policy(tmp_path, monkeypatch, name):
    content, expected = POLICIES[name]
    assert letor_files.MAX_UNPACKED == 64 << 20  # as documented; a test need not unpack as much
    monkeypatch.setattr(letor_files, "MAX_UNPACKED", 1_000_000)
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with time_limit(60):
        if isinstance(expected, str):
            for cache in (None, tmp_path / "cache"):
                with pytest.raises(AutolossError, match=re.escape(f"{tmp_path}/") + expected):
                    read_letor(path) if cache is None else load_letor([path] * 3, cache=cache)
            return
        queries = read_letor(path)
    if expected is SAME:
        plain = tmp_path / "plain.txt"
        plain.write_bytes(PLAIN)
        same = read_letor(plain)
        for part in ("features", "labels", "offsets"):
            np.testing.assert_array_equal(getattr(queries, part), getattr(same, part))
        assert queries.query_ids == same.query_ids
    else:
        np.testing.assert_array_equal(queries.features, np.array(expected, np.float32))


def test_the_page_has_every_policy():
    """And the files below, which are no content."""
    section = DOCS.read_text().partition("## What is read, and what is refused")[2]
    section = section.partition("\n## ")[0]
    rows = {line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")}
    rows -= {"input", "---"}
    assert rows == {*POLICIES, *FILES, *ELSEWHERE}


ELSEWHERE = {
    "a file that is changed while it is read": "test_a_file_that_is_changed_while_it_is_read",
    "a file of a fold is missing": "tests/data/test_letor.py",
    "validation or test with more features": "tests/data/test_letor.py",
    "a query of 100,000 documents": "test_a_query_of_100_000_documents",
    "an id that is not UTF-8": "test_ids_are_told_apart_by_their_bytes",
}


def make_socket(path):
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


FILES = {
    "a folder in place of a file": (Path.mkdir, "is a folder, expected a file of LETOR text"),
    "a FIFO": (os.mkfifo, "is a FIFO, expected a file of LETOR text"),
    "a socket": (make_socket, "is a socket, expected a file of LETOR text"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device, expected a file"),
    "links in a circle": (lambda path: path.symlink_to(path), "cannot be read .*[Ss]y?m?.*links?"),
    "no permission to read": (Path.touch, "cannot be read .Permission denied., expected a file"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["train.txt", "vali.txt", "test.txt"])
def test_what_is_no_ordinary_file(tmp_path, monkeypatch, name, place):
    make, message = FILES[name]
    for other in {"train.txt", "vali.txt", "test.txt"} - {place}:
        (tmp_path / other).write_bytes(PLAIN)
    path = tmp_path / place
    make(path)
    if name == "no permission to read":  # root may read everything, so the system is made to refuse
        original = os.open

        def refuse(asked, *arguments, **options):
            if Path(asked) == path:
                raise PermissionError(13, "Permission denied", str(asked))
            return original(asked, *arguments, **options)

        monkeypatch.setattr(os, "open", refuse)
    expected = re.escape(str(path)) + ".*" + message
    with time_limit(20):
        with pytest.raises(AutolossError, match=expected):
            read_letor(path)
        for source in (
            tmp_path,
            [tmp_path / name for name in ("train.txt", "vali.txt", "test.txt")],
        ):
            for cache in (None, tmp_path / "cache"):
                with pytest.raises(AutolossError, match=expected):
                    load_letor(source, cache=cache)


def test_the_command_says_so(tmp_path, capsys):
    for name in ("vali.txt", "test.txt"):
        (tmp_path / name).write_bytes(PLAIN)
    os.mkfifo(tmp_path / "train.txt")
    with time_limit(20):
        assert main(["autoloss", "data", str(tmp_path), "--data_cache=none"]) == 2
    assert "train.txt: is a FIFO, expected a file of LETOR text" in capsys.readouterr().err


def test_a_fifo_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "file.txt")
    monkeypatch.setattr(letor_files, "stat_file", lambda path: DOCS.stat())
    with time_limit(20), pytest.raises(AutolossError, match="file.txt: is a FIFO"):
        read_letor(tmp_path / "file.txt")


@pytest.mark.parametrize(
    ("name", "message"),
    [("a" * 300, "cannot be read .File name too long"), ("a\0b", "cannot be read .*null")],
)
def test_names_that_no_file_can_have(name, message):
    with pytest.raises(AutolossError, match=message):
        read_letor(name)
    with pytest.raises(AutolossError, match=message):
        load_letor([name, name, name])
    with pytest.raises(AutolossError, match="cannot be read|no such file or folder"):
        load_letor(name)


def test_three_names_together_may_be_too_long_for_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [letter * 100 for letter in "abc"]
    for name in names:
        Path(name).write_bytes(PLAIN)
    assert len(load_letor(",".join(names)).folds[0].test) == 2


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
class TestCompressed:
    """Every one of the three, by its first bytes and whatever its name."""

    def test_it_reads_the_same(self, tmp_path, pack, monkeypatch):
        monkeypatch.setattr(letor_text, "_BLOCK_BYTES", 16)
        path = tmp_path / "file.txt"
        for packed in (
            pack(PLAIN),
            pack(PLAIN[:20]) + pack(PLAIN[20:]),  # as by `cat`, or by parallel packers
            pack(PLAIN) + b"\0" * 512,  # as from a tape
            pack(b"\xef\xbb\xbf" + PLAIN),
        ):
            path.write_bytes(packed)
            queries = read_letor(path)
            assert (
                queries.features.tolist() == np.array([[0.5, 1], [3, -4e-6], [7, 8]], "f").tolist()
            )

    def test_lines_are_named(self, tmp_path, pack):
        (tmp_path / "file.txt").write_bytes(pack(PLAIN + b"1 qid:3 1:x\n"))
        with pytest.raises(AutolossError, match="file.txt:4: value of feature 1 is 'x'"):
            read_letor(tmp_path / "file.txt")

    def test_damage_is_found_wherever_it_is(self, tmp_path, pack):
        """A flipped bit is refused, or was in a field that says nothing of the content."""
        path = tmp_path / "file.txt"
        path.write_bytes(PLAIN)
        plain = read_letor(path).features.tolist()
        one = pack(PLAIN)
        messages = []
        for content in (one, one + one):
            expected = plain if content == one else None  # its queries would come twice
            for place in range(0, len(content), 3):
                damaged = bytearray(content)
                damaged[place] ^= 4
                path.write_bytes(damaged)
                try:
                    assert read_letor(path).features.tolist() == expected
                except AutolossError as error:
                    messages.append(str(error))
        assert len(messages) > len(one) / 4
        assert all(message.startswith(f"{path}:") for message in messages)

    def test_every_cut_is_found(self, tmp_path, pack):
        path = tmp_path / "file.txt"
        content = pack(PLAIN)
        for size in range(7, len(content)):
            path.write_bytes(content[:size])
            with pytest.raises(AutolossError, match="cut short|damaged"):
                read_letor(path)

    def test_what_follows_the_end_is_not_ignored(self, tmp_path, pack):
        """Python's own bz2 and lzma files take it for the end: queries would be missing."""
        second = bytearray(pack(b"1 qid:3 1:1 2:1\n"))
        second[1] ^= 255
        (tmp_path / "file.txt").write_bytes(pack(PLAIN) + second)
        with pytest.raises(AutolossError, match=r"file.txt:4: (damaged|cut short)"):
            read_letor(tmp_path / "file.txt")


def test_a_folder_may_have_compressed_files(tmp_path):
    for name, pack in (("train.txt.gz", gzip), ("valid.txt.bz2", bz2), ("test.txt.xz", lzma)):
        (tmp_path / name).write_bytes(pack.compress(PLAIN))
    packed = load_letor(tmp_path, cache=tmp_path / "cache").folds[0]
    again = load_letor(tmp_path, cache=tmp_path / "cache").folds[0]
    for fold in (packed, again):
        assert fold.train.features.tolist() == fold.test.features.tolist()
        assert len(fold.train) == len(fold.validation) == len(fold.test) == 2
    (tmp_path / "train.txt").write_bytes(b"1 qid:only 1:1 2:2\n")  # what is unpacked comes first
    assert load_letor(tmp_path).folds[0].train.query_ids == ("only",)
    (tmp_path / "test.txt.xz").rename(tmp_path / "test.txt.zst")
    (tmp_path / "test.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(AutolossError, match="test.txt.zst: is compressed by zstd"):
        load_letor(tmp_path)


@pytest.mark.parametrize("change", ["append", "cut", "rewrite"])
def test_a_file_that_is_changed_while_it_is_read(tmp_path, monkeypatch, change):
    monkeypatch.setattr(letor_text, "_BLOCK_BYTES", 16)
    path = tmp_path / "file.txt"
    original = letor_text._add
    changes = {
        "append": lambda: path.write_bytes(PLAIN + b"1 qid:2 1:1 2:1\n"),
        "cut": lambda: path.write_bytes(PLAIN[:40]),
        "rewrite": lambda: (path.write_bytes(PLAIN), os.utime(path, ns=(1, 1))),
    }

    def add(*arguments):
        changes[change]()
        return original(*arguments)

    monkeypatch.setattr(letor_text, "_add", add)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # read ahead by one block only
    for read in (read_letor, lambda path: load_letor([path] * 3, cache=tmp_path / "cache")):
        path.write_bytes(PLAIN)
        with pytest.raises(AutolossError, match="file.txt: changed while it was read, expected a"):
            read(path)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_file_that_cannot_be_read_to_its_end(tmp_path, monkeypatch):
    """A disk that fails: the system's error becomes a message about the file."""
    path = tmp_path / "file.txt"
    path.write_bytes(PLAIN)
    original = letor_files.LineReader.read_raw

    class Failing:
        """A file whose second read finds a bad sector."""

        def __init__(self, file):
            self.file, self.reads = file, 0

        def read(self, size):
            self.reads += 1
            if self.reads == 2:
                raise OSError(5, "Input/output error")
            return self.file.read(size)

        def __getattr__(self, name):
            return getattr(self.file, name)

    def read_raw(reader, size):
        if not isinstance(reader._file, Failing):
            reader._file = Failing(reader._file)
        return original(reader, size)

    monkeypatch.setattr(letor_files.LineReader, "read_raw", read_raw)
    with pytest.raises(AutolossError, match="file.txt: cannot be read .Input/output error"):
        read_letor(path)


def test_ids_are_told_apart_by_their_bytes(tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(b"1 qid:\xff 1:1\n0 qid:\xfe 1:2\n0 qid:01 1:2\n1 qid:1 1:2\n")
    assert read_letor(path).query_ids == ("\\xff", "\\xfe", "01", "1")


def test_a_line_of_hashes_costs_what_other_lines_do(tmp_path):
    """It was blanked from each of them to its end: minutes for a megabyte."""
    path = tmp_path / "file.txt"
    path.write_bytes(PLAIN + b"#" * (1 << 20) + b"\n")
    with time_limit(20):
        assert read_letor(path).num_documents == 3


def test_reading_leaves_the_filters_of_warnings_alone(monkeypatch):
    """They are the process's, and several threads read: one would restore another's."""
    monkeypatch.setattr(warnings, "catch_warnings", None)
    assert letor_blocks.read_block(b"1 qid:1 1:1e-5 2:123456789.5\n").values[1] == 123456789.5
    assert letor_blocks.read_block(b"1 qid:1 1:1e-5 2:1e\n") is None


def test_the_first_fault_is_named_though_a_later_one_was_read_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(letor_text, "_BLOCK_BYTES", 8)
    monkeypatch.setattr(letor_files, "MAX_LINE_BYTES", 100)
    path = tmp_path / "file.txt"
    path.write_bytes(PLAIN + b"1 qid:2 1:x\n1 qid:2 1:1" + b" " * 100)
    with pytest.raises(AutolossError, match="file.txt:4: value of feature 1 is 'x'"):
        read_letor(path)


def test_values_are_limited_whichever_lines_bring_them(tmp_path, monkeypatch):
    """A wide line first and many short ones then, in other blocks; or the other way round."""
    monkeypatch.setattr(letor_text, "FREE_VALUES", 1000)
    path = tmp_path / "file.txt"
    wide, short = b"1 qid:1 199:1\n", b"0 qid:1 1:1\n"
    for block in (1, 1 << 20):
        monkeypatch.setattr(letor_text, "_BLOCK_BYTES", block)
        path.write_bytes(wide + short * 4)
        assert read_letor(path).features.shape == (5, 199)
        path.write_bytes(wide + short * 5)
        with pytest.raises(AutolossError, match=r"txt:6: feature index 199 .of line 1. with 6 doc"):
            read_letor(path)
        path.write_bytes(short * 5 + wide)
        with pytest.raises(AutolossError, match=r"txt:6: feature index 199 .of line 6. with 6 doc"):
            read_letor(path)
        path.write_bytes(wide + (b"0 qid:1 1:1 # " + b"x" * 86 + b"\n") * 5)  # 8 values a byte
        assert read_letor(path).features.shape == (6, 199)


def test_values_are_limited_when_another_file_has_more_features(tmp_path, monkeypatch):
    monkeypatch.setattr(letor_text, "FREE_VALUES", 1000)
    (tmp_path / "train.txt").write_bytes(b"1 qid:1 199:1\n0 qid:1 1:1\n1 qid:2 1:1\n")
    (tmp_path / "test.txt").write_bytes(b"1 qid:3 1:1\n" * 6)
    message = "test.txt: 6 documents with the 199 features of .*train.txt, expected at most 1000 v"
    with pytest.raises(AutolossError, match=message):
        load_letor(tmp_path)
    with pytest.raises(AutolossError, match="6 documents with the 1000 features of num_features"):
        read_letor(tmp_path / "test.txt", num_features=1000)


def test_memory_that_is_not_there(tmp_path, monkeypatch):
    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr(letor_text, "_add_features", refuse)
    (tmp_path / "file.txt").write_bytes(PLAIN)
    with pytest.raises(AutolossError, match="file.txt:4: no memory for 3 documents with 2 featur"):
        read_letor(tmp_path / "file.txt")


def test_features_that_widen_again_and_again(tmp_path, monkeypatch):
    """A higher index in every block: the columns kept ahead are gone in the end."""
    monkeypatch.setattr(letor_text, "_BLOCK_BYTES", 1)
    path = tmp_path / "file.txt"
    path.write_bytes(b"".join(b"1 qid:1 %d:%d\n" % (k, k) for k in range(1, 40)))
    np.testing.assert_array_equal(read_letor(path).features, np.diag(np.arange(1, 40)))


@pytest.mark.parametrize(
    ("content", "most"),
    [
        (b"0 qid:1 999999:1\n" * 400, 4 << 20),  # refused; its features would take 1.6 GB
        (b"1 qid:1 1:0." + b"1" * (1 << 22), 64 << 20),
        (PLAIN + b"#" * (1 << 20), 96 << 20),
    ],
)
def test_memory_is_in_proportion_to_the_file(tmp_path, content, most):
    """numpy's arrays included."""
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    del content
    tracemalloc.start()
    try:
        read_letor(path)
    except AutolossError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < most


LONG = 100_000
"""Documents of one query."""

STEP = """
import resource, sys
import jax, numpy as np
import autoloss_jax as al
from autoloss_jax.data import read_letor, bucket_queries
from autoloss_jax.execution.batched import program_gradient

queries = read_letor(sys.argv[1])
assert queries.lengths.tolist() == [100_000]
batch = bucket_queries(queries, max_buckets=1).batch(0)
step = jax.jit(lambda p, w, x, y, m: program_gradient(p, x @ w, y, m))
for name, length in (("mse", 100_000), ("ranknet", int(sys.argv[2]))):
    program = jax.tree.map(lambda x: x[0], al.encode([al.LOSSES[name]]))
    weights = np.ones(queries.num_features, np.float32)
    part = [x[:, :100_000] for x in batch]
    whole = step.lower(program, weights, *part).compile()
    print(name, "temporary MB", whole.memory_analysis().temp_size_in_bytes >> 20)
    gradient = step(program, weights, *(x[:, :length] for x in batch))
    assert np.isfinite(gradient).all() and np.any(gradient)
print("peak MB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


@pytest.mark.slow
def test_a_query_of_100_000_documents(tmp_path):
    """It is loaded, and a step on it takes memory for its documents, not for its 10^10 pairs."""
    rng = np.random.default_rng(0)
    path = tmp_path / "file.txt"
    values = rng.normal(size=(LONG, 3)).round(4)
    path.write_text(
        "".join(f"{k % 3} qid:1 1:{a} 2:{b} 3:{c}\n" for k, (a, b, c) in enumerate(values))
    )
    result = subprocess.run(
        [sys.executable, "-c", STEP, str(path), "4000"],
        capture_output=True, text=True, cwd=DOCS.parents[1], check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    sizes = dict(re.findall(r"(\w+) (?:temporary )?MB (\d+)", result.stdout))
    assert {"mse", "ranknet", "peak"} == set(sizes)
    # Every pair as one 32-bit float would be 40 GB.
    assert int(sizes["mse"]) < 200 and int(sizes["ranknet"]) < 500 and int(sizes["peak"]) < 3000
