"""LETOR text: what is read, bit for bit, and what is refused, by file and line."""

import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoloss_jax.data import letor_text, load_letor, read_letor
from autoloss_jax.data.letor_blocks import read_block
from autoloss_jax.errors import AutolossError

PLAIN = "2 qid:1 1:0.5 2:1\n0 qid:1 1:3 2:-4e-06\n1 qid:2 1:7 2:8\n"


def read(tmp_path, text, **options):
    path = tmp_path / "file.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_letor(path, **options)


def test_a_plain_file(tmp_path):
    queries = read(tmp_path, PLAIN)
    np.testing.assert_array_equal(queries.labels, [2, 0, 1])
    np.testing.assert_array_equal(
        queries.features, np.array([[0.5, 1], [3, -4e-06], [7, 8]], np.float32)
    )
    np.testing.assert_array_equal(queries.offsets, [0, 2, 3])
    assert queries.query_ids == ("1", "2")


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.rstrip("\n"),
        PLAIN.replace("\n", "\r\n"),
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.replace("\n", " # doc:1 inc = 1 \xff\n", 1).encode("latin-1"),
        PLAIN.replace("\n", "#docid = GX1\n"),
        "# a comment\n\n" + PLAIN.replace("\n", "\n  \n#\n"),
        PLAIN.replace("1:3 2:-4e-06", "2:-4e-06 1:3"),
        PLAIN.replace(" ", "\t  ").replace("qid:2", "qid:2 "),
        PLAIN.replace("0 qid", "0.0 qid").replace("1:7", "01:+7.").replace("2:8", "2:8E0"),
        PLAIN.replace("1:3", "000000001:3"),
        PLAIN.replace("1:0.5", "1:.5"),
    ],
)
def test_harmless_variations_read_the_same(tmp_path, text):
    expected, queries = read(tmp_path, PLAIN), read(tmp_path, text)
    for name in ("features", "labels", "offsets"):
        np.testing.assert_array_equal(getattr(queries, name), getattr(expected, name))
    assert queries.query_ids == expected.query_ids


def test_sparse_lines(tmp_path):
    queries = read(tmp_path, "0 qid:a 3:1\n1 qid:a\n1 qid:b 1:2 # 9:9\n")
    np.testing.assert_array_equal(queries.features, [[0, 0, 1], [0, 0, 0], [2, 0, 0]])
    assert read(tmp_path, PLAIN, num_features=4).num_features == 4


def test_index_zero_makes_all_indices_start_at_zero(tmp_path):
    queries = read(tmp_path, "0 qid:a 0:5 1:6\n1 qid:a 1:7\n")
    np.testing.assert_array_equal(queries.features, [[5, 6], [0, 7]])


@pytest.mark.parametrize("odd", ["", "2 qid:9 01:3\n"])
def test_the_last_of_repeated_features_counts(tmp_path, caplog, odd):
    queries = read(tmp_path, "0 qid:a 1:1 2:2\n0 qid:b 2:5 1:6 2:7\n" + odd)
    np.testing.assert_array_equal(queries.features[:2], [[1, 2], [6, 7]])
    assert "1 lines give a feature more than once, the first is line 2" in caplog.text


NUMBERS = st.one_of(
    st.floats(-3e38, 3e38).map(repr),
    st.floats(-1, 1).map(lambda x: f"{x:.6f}"),
    st.integers(-(10**20), 10**20).map(str),
    st.from_regex(r"[+-]?[0-9]{1,25}\.?[0-9]{0,25}(e[+-]?[0-2]?[0-9])?", fullmatch=True).filter(
        lambda text: abs(float(text)) < 3e38
    ),
)


def strictly(text):
    """What the strict reader makes of some lines: a block, or its message."""
    try:
        return letor_text._read_strictly(letor_text.LetorText("file"), text, 1)
    except AutolossError as error:
        return str(error)


def full(block):
    """Everything in a block, however its indices are stored."""
    indices = np.tile(block.indices, len(block.counts)) if block.is_regular else block.indices
    documents = zip(block.lines.tolist(), block.labels, block.queries, block.counts.tolist(),
                    strict=True)  # fmt: skip
    return list(documents), indices.tolist(), block.values.tobytes()


def line_of(query, row):
    return f"1 qid:{query} " + " ".join(f"{k}:{v}" for k, v in row.items()) + "\n"


ROWS = st.lists(
    st.dictionaries(st.integers(0, 1200), NUMBERS, max_size=5), min_size=1, max_size=5
).filter(lambda rows: any(rows))


@pytest.mark.parametrize(
    "number",
    ["90071992.54740993", "90071992.54740991", "90071992.54740992", "99999999.99999999", "-0",
     "-0.0", "0.00000001", "00000000.00000000", "123456789", "1.123456789", "+7.", ".5", "-.5",
     "1e-5", "9e37"],
)  # fmt: skip
def test_numbers_at_the_limits_of_the_fast_reader(number):
    fast = read_block(f"1 qid:1 1:{number} 2:3\n".encode())
    assert fast.values.tobytes() == np.array([float(number), 3]).astype(np.float32).tobytes()


@settings(max_examples=100, deadline=None)
@given(rows=ROWS)
def test_both_readers_read_numbers_as_float_does(rows):
    text = "".join(line_of(q, row) for q, row in enumerate(rows)).encode()
    fast = read_block(text)
    assert full(fast) == full(strictly(text))
    expected = np.array([float(v) for row in rows for v in row.values()]).astype(np.float32)
    assert fast.values.tobytes() == expected.tobytes()
    assert fast.counts.tolist() == [len(row) for row in rows]
    assert fast.indices.tolist() == [k for row in rows for k in row] or fast.is_regular


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=2, max_size=4),
       indices=st.permutations([1, 7, 136]))  # fmt: skip
def test_documents_of_the_same_features(values, indices):
    text = "".join(line_of("q", dict(zip(indices, row, strict=True))) for row in values).encode()
    fast = read_block(text)
    assert full(fast) == full(strictly(text))
    assert fast.is_regular == (indices == [1, 7, 136])


@settings(max_examples=600, deadline=None)
@given(data=st.data(), rows=ROWS)
def test_the_fast_reader_accepts_nothing_that_the_strict_one_refuses(data, rows):
    """Some bytes of good lines are replaced by others: it gives up, or reads the same."""
    text = bytearray("".join(line_of(q % 2, row) for q, row in enumerate(rows)).encode())
    for place in data.draw(st.lists(st.integers(0, len(text) - 1), min_size=1, max_size=3)):
        text[place : place + 1] = data.draw(st.sampled_from(
            [b":", b".", b" ", b"\n", b"\r", b"#", b"-", b"+", b"e", b"0", b"9", b"x", b"\t", b"\0",
             b"\x1c", b"\xff", b"", b" 3:4", b"qid:", b"123456789", b"\x85"]))  # fmt: skip
    fast, strict = read_block(bytes(text)), strictly(bytes(text))
    if fast is not None and not isinstance(strict, str):
        assert full(fast) == full(strict)
    elif fast is not None:  # labels and the order of queries are judged by both alike
        assert "label '" in strict or "again, after its block" in strict
        assert not letor_text._add(letor_text.LetorText("file"), fast, 1)


def test_the_message_does_not_depend_on_the_reader(tmp_path, monkeypatch):
    """The first bad line is named, whatever is wrong with later ones."""
    text = PLAIN + "1 qid:3 1:x 2:1\n77 qid:3 1:1 2:1\n"
    with pytest.raises(AutolossError, match="file.txt:4: value of feature 1 is 'x'"):
        read(tmp_path, text)
    monkeypatch.setattr(letor_text, "read_block", lambda lines: None)
    with pytest.raises(AutolossError, match="file.txt:4: value of feature 1 is 'x'"):
        read(tmp_path, text)


def test_ordinary_files_are_read_fast(tmp_path, monkeypatch):
    """What MSLR-WEB30K, MQ2008 and their like hold never falls back to the strict reader."""
    monkeypatch.setattr(letor_text, "_read_strictly", None)
    for text in (PLAIN, PLAIN.replace("\n", " #docid = GX0 inc = 1 prob = 0.1\n"),
                 PLAIN.replace("\n", "\r\n"), PLAIN.replace("2:1\n", "\n"),
                 b"\xef\xbb\xbf" + PLAIN.encode(), PLAIN.rstrip("\n")):  # fmt: skip
        assert read(tmp_path, text).num_documents == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1:0.5 2:1", "label '1:0.5', expected a number from 0 to 31 first in a line"),
        ("-1 qid:1 1:1", "label '-1', expected a number from 0"),
        ("nan qid:1 1:1", "label 'nan', expected"),
        ("99 qid:1 1:1", "label '99', expected"),
        ("1", "a label alone, expected qid:<id>"),
        ("1 1:0.5 2:1", "'1:0.5' after the label, expected qid:<id>"),
        ("1 qid: 1:0.5", "'qid:' after the label, expected qid:<id>"),
        ("1 qid:2 0.5 1:2", "field '0.5', expected <index>:<value>"),
        ("1 qid:2 1: 0.5", "field '1:', expected <index>:<value>"),
        ("1 qid:2 1:2:3", "value of feature 1 is '2:3', expected a finite number"),
        ("1 qid:2 -1:2", "field '-1:2', expected <index>:<value> with an index from 1"),
        ("1 qid:2 1.0:2", "field '1.0:2', expected"),
        ("1 qid:2 1:NULL", "value of feature 1 is 'NULL', expected a finite number"),
        ("1 qid:2 1:nan", "value of feature 1 is 'nan'"),
        ("1 qid:2 1:inf", "value of feature 1 is 'inf'"),
        ("1 qid:2 1:1e39", "value of feature 1 is '1e39'"),
        ("1 qid:2 1:1_0", "value of feature 1 is '1_0'"),
        ("1 qid:2 1:1.2.3", "value of feature 1 is '1.2.3'"),
        ("1 qid:2 1:1e", "value of feature 1 is '1e'"),
        ("1 qid:2 1000001:1", "feature index in '1000001:1', expected at most 1000000"),
        ("1 qid:2 " + "9" * 5000 + ":1", r"feature index in '9+\.\.\.', expected at most"),
        ("1 qid:0 1:1", "query '0' again, after its block from line 1; expected the lines"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    text = f"0 qid:0 1:1\n0 qid:x 1:1 # fine\n\n{line}\n0 qid:y 1:1\n"
    with pytest.raises(AutolossError, match=rf"file\.txt:4: {message}"):
        read(tmp_path, text)


def test_line_numbers_and_queries_span_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(letor_text, "_BLOCK_BYTES", 20)
    queries = read(tmp_path, PLAIN)
    np.testing.assert_array_equal(queries.offsets, [0, 2, 3])
    assert queries.features[2].tolist() == [7, 8]
    with pytest.raises(AutolossError, match="file.txt:4: query '1' again, after its block from"):
        read(tmp_path, PLAIN + "1 qid:1 1:1\n")


def test_bad_files(tmp_path, monkeypatch):
    with pytest.raises(AutolossError, match="missing.txt: no such file"):
        read_letor(tmp_path / "missing.txt")
    with pytest.raises(AutolossError, match="is a folder, expected a file of LETOR text"):
        read_letor(tmp_path)
    for text in ("", "\n# nothing\n"):
        with pytest.raises(AutolossError, match="file.txt: no documents"):
            read(tmp_path, text)
    with pytest.raises(AutolossError, match="file.txt: no features"):
        read(tmp_path, "1 qid:1\n")
    with pytest.raises(AutolossError, match=r"file.txt: 2 features .*at most the 1 of num_f"):
        read(tmp_path, PLAIN, num_features=1)
    with pytest.raises(AutolossError, match="num_features is 0, expected at least 1"):
        read(tmp_path, PLAIN, num_features=0)
    monkeypatch.setattr(letor_text, "MAX_VALUES", 5)
    with pytest.raises(
        AutolossError, match=r"file.txt:2: feature index 2 \(of line 1\) with 2 doc"
    ):
        read(tmp_path, PLAIN)


def write_fold(folder, train=PLAIN, validation=PLAIN, test=PLAIN, validation_name="vali.txt"):
    folder.mkdir(parents=True)
    for name, text in (("train.txt", train), (validation_name, validation), ("test.txt", test)):
        if text is not None:
            (folder / name).write_text(text)


def renamed(text, prefix):
    return text.replace("qid:", f"qid:{prefix}")


def test_a_folder_of_folds(tmp_path):
    for number in (10, 2):
        write_fold(tmp_path / "set" / f"Fold{number}")
    dataset = load_letor(tmp_path / "set")
    assert dataset.name == "set" and [fold.name for fold in dataset.folds] == ["Fold2", "Fold10"]
    assert load_letor(str(tmp_path / "set" / "Fold2")).name == "set/Fold2"


@pytest.mark.parametrize("name", ["vali.txt", "valid.txt", "validation.txt"])
def test_one_folder_and_three_files_are_the_same(tmp_path, name):
    folder = tmp_path / "set"
    write_fold(folder, PLAIN, renamed(PLAIN, "v"), renamed(PLAIN, "t"), validation_name=name)
    (fold,) = load_letor(folder).folds
    assert fold.validation.query_ids == ("v1", "v2") and fold.test.query_ids == ("t1", "t2")
    files = [str(folder / file) for file in ("train.txt", name, "test.txt")]
    for path in (files, ",".join(files)):
        (same,) = load_letor(path).folds
        assert same.test.query_ids == fold.test.query_ids


def test_the_hash_follows_the_content_not_the_place(tmp_path):
    write_fold(tmp_path / "a" / "Fold1")
    write_fold(tmp_path / "b" / "somewhere else")
    write_fold(tmp_path / "c" / "Fold1", test=PLAIN.replace("0.5", "0.6"))
    a, b, c = (load_letor(tmp_path / name).sha256 for name in ("a", "b/somewhere else", "c"))
    assert a == b != c
    assert load_letor(tmp_path / "a", num_features=3).sha256 != a


def test_without_a_validation_file_training_queries_are_set_aside(tmp_path, caplog):
    train = "".join(f"1 qid:{q} 1:{q}\n0 qid:{q} 1:0\n" for q in range(20))
    write_fold(tmp_path / "set", train, None, renamed(PLAIN.replace(" 2:", " 1:"), "t"))
    with caplog.at_level(logging.WARNING):
        (fold,) = load_letor(tmp_path / "set").folds
    assert "no validation queries; 4 of the 20 training queries" in caplog.text
    assert len(fold.train) == 16 and len(fold.validation) == 4
    assert len({*fold.train.query_ids, *fold.validation.query_ids}) == 20
    (again,) = load_letor(tmp_path / "set").folds
    assert again.validation.query_ids == fold.validation.query_ids
    (tmp_path / "set" / "train.txt").write_text("1 qid:1 1:1\n")
    with pytest.raises(AutolossError, match="no validation queries and one training query"):
        load_letor(tmp_path / "set")


def test_a_query_in_two_parts_is_kept_with_a_warning(tmp_path, caplog):
    write_fold(tmp_path / "set", test=renamed(PLAIN, "t"))
    (fold,) = load_letor(tmp_path / "set").folds
    assert "2 query ids are in both train and validation, such as '1'" in caplog.text
    assert len(fold.train) == len(fold.validation) == 2


def test_the_training_files_say_how_many_features(tmp_path):
    write_fold(tmp_path / "less", test="0 qid:t 1:1\n")
    assert load_letor(tmp_path / "less").folds[0].test.num_features == 2
    write_fold(tmp_path / "more", test="0 qid:t 3:1\n")
    with pytest.raises(AutolossError, match=r"test.txt: 3 features .* at most the 2 of .*train"):
        load_letor(tmp_path / "more")
    assert load_letor(tmp_path / "more", num_features=3).num_features == 3


def test_paths_that_do_not_fit(tmp_path):
    with pytest.raises(AutolossError, match="nowhere: expected .* there is no such file or folder"):
        load_letor(tmp_path / "nowhere")
    with pytest.raises(AutolossError, match="2 files, expected three: training, validation, test"):
        load_letor("a.txt,b.txt")
    (tmp_path / "Original").mkdir()
    with pytest.raises(AutolossError, match="the files train.txt, .* found Original/"):
        load_letor(tmp_path)
    with pytest.raises(AutolossError, match="train.txt: no such file"):
        load_letor(["train.txt", "b", "c"])


def test_labels_may_be_fractions(tmp_path):
    assert math.isclose(read(tmp_path, "0.25 qid:1 1:1\n").labels[0], 0.25)
