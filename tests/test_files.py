"""Atomic writes, strict JSON and the ledger, with the faults that a crash or a disk may cause."""

import dataclasses
import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoloss_jax import files
from autoloss_jax.errors import AutolossError


@pytest.mark.parametrize(
    ("data", "content"), [("größe\n", "größe\n".encode()), (b"\0\xff", b"\0\xff")]
)
def test_write_atomic_replaces_the_content(tmp_path, data, content):
    path = tmp_path / "file"
    files.write_atomic(path, "old")
    files.write_atomic(str(path), data)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, fault):
    path = tmp_path / "file"
    files.write_atomic(path, "old")

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(files.os, fault, fail)
    with pytest.raises(OSError, match="disk is full"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_write_atomic_syncs_the_content_before_the_rename_and_the_folder_after(
    tmp_path, monkeypatch
):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda d: (calls.append("fsync"), fsync(d)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    files.write_atomic(tmp_path / "file", "new")
    assert calls == ["fsync", "replace", "fsync"]


@dataclasses.dataclass(frozen=True)
class _Config:
    rate: float
    grid: tuple[float, ...]


def test_every_kind_of_value_becomes_strict_json(tmp_path):
    path = tmp_path / "file.json"
    value = {
        "nan": float("nan"),
        "inf": np.float32("-inf"),
        "array": np.array([1.0, np.nan]),
        "jax": jnp.arange(2),
        "scalar": np.int64(3),
        "config": _Config(0.5, (1.0, float("inf"))),
        "path": Path("a") / "b",
        1: [True, None, "text"],
    }
    files.write_json(path, value)
    assert files.read_json(path) == {
        "nan": None,
        "inf": None,
        "array": [1.0, None],
        "jax": [0, 1],
        "scalar": 3,
        "config": {"rate": 0.5, "grid": [1.0, None]},
        "path": "a/b",
        "1": [True, None, "text"],
    }
    assert "NaN" not in path.read_text()
    assert "Infinity" not in path.read_text()


def test_a_value_without_json_form_is_named(tmp_path):
    with pytest.raises(TypeError, match="object has no JSON form"):
        files.write_json(tmp_path / "file.json", {"a": object()})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["", '{"a": 1', '{"a": NaN}', "[Infinity]", "\0\0"])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(AutolossError, match=r"file\.json is damaged: expected JSON, but"):
        files.read_json(path)


def test_json_that_is_not_text_is_damaged(tmp_path):
    (tmp_path / "file.json").write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(AutolossError, match=r"file\.json is damaged"):
        files.read_json(tmp_path / "file.json")


def test_missing_json_is_named(tmp_path):
    with pytest.raises(AutolossError, match=r"cannot read .*file\.json: No such file"):
        files.read_json(tmp_path / "file.json")


def test_arrays_come_back_and_the_same_ones_are_the_same_bytes(tmp_path):
    arrays = {
        "names": np.array(["mse", "größe"]),
        "values": np.array([[0.5, np.nan]]),
        "defined": np.array([True, False]),
    }
    files.write_arrays(tmp_path / "a.npz", arrays)
    files.write_arrays(tmp_path / "b.npz", arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    stored = files.read_arrays(tmp_path / "a.npz")
    assert list(stored) == list(arrays)
    for name, array in arrays.items():
        assert stored[name].dtype == array.dtype
        np.testing.assert_array_equal(stored[name], array)
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "b.npz"]


def test_arrays_of_objects_are_neither_written_nor_read(tmp_path):
    path = tmp_path / "file.npz"
    with pytest.raises(TypeError, match="array a holds objects, expected numbers"):
        files.write_arrays(path, {"a": np.array([None])})
    assert os.listdir(tmp_path) == []
    np.savez(path, a=np.array([None]))
    with pytest.raises(AutolossError, match=r"file\.npz is damaged"):
        files.read_arrays(path)


@pytest.mark.parametrize("damage", [b"", b"no archive", "cut", "flip"])
def test_damaged_or_missing_arrays_are_named(tmp_path, damage):
    path = tmp_path / "file.npz"
    with pytest.raises(AutolossError, match=r"cannot read .*file\.npz: No such file"):
        files.read_arrays(path)
    files.write_arrays(path, {"values": np.arange(100.0)})
    content = path.read_bytes()
    if damage == "cut":
        damage = content[:200]
    elif damage == "flip":
        damage = content[:400] + bytes([content[400] ^ 1]) + content[401:]
    path.write_bytes(damage)
    with pytest.raises(AutolossError, match=r"file\.npz is damaged: expected arrays, but"):
        files.read_arrays(path)


def _ledger(tmp_path, count=3):
    path = tmp_path / "ledger.jsonl"
    files.append_ledger(path, [{"index": i, "formula": f"s_i * {i}"} for i in range(count)])
    return path


def test_a_ledger_returns_what_was_appended(tmp_path):
    path = tmp_path / "ledger.jsonl"
    assert files.read_ledger(path) == []
    files.append_ledger(path, [{"index": 0}, {"index": 1, "reward": float("nan")}])
    files.append_ledger(path, [])
    files.append_ledger(path, [{"index": 2, "reason": "two\nlines"}])
    assert files.read_ledger(path) == [
        {"index": 0},
        {"index": 1, "reward": None},
        {"index": 2, "reason": "two\nlines"},
    ]
    assert len(path.read_text().splitlines()) == 3


def test_a_record_without_json_form_appends_nothing(tmp_path):
    path = _ledger(tmp_path)
    with pytest.raises(TypeError, match="no JSON form"):
        files.append_ledger(path, [{"index": 3}, {"index": object()}])
    assert len(files.read_ledger(path)) == 3


def test_a_ledger_cut_at_any_byte_keeps_every_whole_record(tmp_path):
    path = _ledger(tmp_path)
    content = path.read_bytes()
    records = files.read_ledger(path)
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        # A record is whole once its closing brace is there, with or without the line's end.
        whole = content[:size].count(b"}")
        assert files.read_ledger(path) == records[:whole]
        assert path.stat().st_size == size  # reading repairs nothing
        files.repair_ledger(path)
        files.append_ledger(path, [{"index": 9}])
        assert files.read_ledger(path) == [*records[:whole], {"index": 9}]


@pytest.mark.parametrize("tail", [b"\0\0\0\0", b'{"index": \n', b"\xff\xfe\n", b"[1]\n"])
def test_an_unreadable_last_line_is_cut_off_and_reported(tmp_path, caplog, tail):
    path = _ledger(tmp_path)
    with path.open("ab") as file:
        file.write(tail)
    assert len(files.read_ledger(path)) == 3
    assert "left out a torn last line" in caplog.text
    files.repair_ledger(path)
    assert "cut off a torn last line" in caplog.text
    caplog.clear()
    assert len(files.read_ledger(path)) == 3
    assert caplog.text == ""


@pytest.mark.parametrize("line", ["{", '{"index": NaN}', "[1]", ""])
def test_a_damaged_line_before_the_last_is_named(tmp_path, line):
    path = _ledger(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[2]]) + "\n")
    before = path.read_bytes()
    for read in (files.read_ledger, files.repair_ledger):
        with pytest.raises(AutolossError, match="line 2 is damaged: expected one JSON object"):
            read(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("count", [0, 1, 3])
def test_truncate_ledger_keeps_the_first_records(tmp_path, count):
    path = _ledger(tmp_path)
    records = files.read_ledger(path)
    files.truncate_ledger(path, count)
    assert files.read_ledger(path) == records[:count]


def test_an_absent_ledger_truncates_to_nothing(tmp_path):
    files.truncate_ledger(tmp_path / "ledger.jsonl", 0)
    assert files.read_ledger(tmp_path / "ledger.jsonl") == []


@pytest.mark.parametrize("count", [4, -1])
def test_truncate_ledger_refuses_more_records_than_there_are(tmp_path, count):
    with pytest.raises(AutolossError, match=f"holds 3 records: expected at least {count}"):
        files.truncate_ledger(_ledger(tmp_path), count)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_JSON)
def test_to_jsonable_is_strict_json_and_changes_nothing_the_second_time(value):
    once = files.to_jsonable(value)
    text = json.dumps(once, allow_nan=False)
    assert json.loads(text) == once
    assert files.to_jsonable(once) == once
