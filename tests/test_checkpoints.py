"""Checkpoints: what is saved comes back, and no damage goes unnoticed."""

import errno
import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from autoloss_jax.checkpoints import Checkpoints, _decode, _encode
from autoloss_jax.errors import AutolossError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints" / "work"


@pytest.fixture
def checkpoints(folder):
    return Checkpoints(folder)


class _State(NamedTuple):
    weights: jax.Array  # f32[3]
    optimizer: optax.OptState
    rounds: int


def _state(value):
    weights = jnp.full(3, value, jnp.float32)
    return _State(weights, optax.adam(0.1).init({"w": weights}), 7)


def test_a_checkpoint_returns_as_nested_dicts_of_numpy_arrays(checkpoints):
    state = {
        "key": np.asarray(jax.random.key_data(jax.random.key(3))),
        "half": jnp.array([1.5, np.nan], jnp.bfloat16),
        "text": "s_i",
        "none": None,
        "pair": (1, 2.5),
        "run": _state(2.0),
    }
    checkpoints.save(4, state)
    step, found = checkpoints.latest()
    assert step == 4
    np.testing.assert_array_equal(found["key"], state["key"])
    assert found["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["half"].astype(np.float32), [1.5, np.nan])
    assert (found["text"], found["none"], found["pair"]) == ("s_i", None, {"0": 1, "1": 2.5})
    np.testing.assert_array_equal(found["run"]["weights"], np.full(3, 2, np.float32))


def test_a_checkpoint_returns_in_the_types_of_a_template(checkpoints):
    checkpoints.save(0, _state(2.0))
    step, found = checkpoints.latest(_state(0.0))
    assert step == 0
    assert jax.tree.structure(found) == jax.tree.structure(_state(2.0))
    jax.tree.map(np.testing.assert_array_equal, found, _state(2.0))


def test_a_checkpoint_of_another_structure_is_refused(checkpoints):
    checkpoints.save(0, {"a": 1})
    with pytest.raises(AutolossError, match="does not fit this program"):
        checkpoints.latest({"b": 1})
    assert checkpoints.latest() == (0, {"a": 1})


def test_the_three_latest_checkpoints_are_kept(checkpoints, folder):
    for step in (0, 1, 9, 10, 11):
        checkpoints.save(step, {"step": step})
    assert checkpoints.latest() == (11, {"step": 11})
    names = sorted(os.listdir(folder))
    assert names == ["00000009.msgpack", "00000010.msgpack", "00000011.msgpack"]


def _flip_bit(content, position):
    changed = bytearray(content)
    changed[position] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda content, at=at: _flip_bit(content, at) for at in (0, 30, 95, -1)),
        lambda content: content[: len(content) // 2],
        lambda content: b"",
    ],
)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(checkpoints, folder, caplog, damage):
    for step in range(2):
        checkpoints.save(step, _state(float(step)))
    newest = folder / "00000001.msgpack"
    newest.write_bytes(damage(newest.read_bytes()))
    step, found = checkpoints.latest(_state(9.0))
    assert step == 0
    np.testing.assert_array_equal(found.weights, np.zeros(3))
    assert "00000001.msgpack is damaged" in caplog.text
    assert f"going on from the one before, {folder / '00000000.msgpack'}" in caplog.text
    assert newest.with_name("00000001.msgpack.damaged").exists()
    checkpoints.save(1, _state(1.0))
    assert checkpoints.latest()[0] == 1


def test_with_every_checkpoint_damaged_there_is_none(checkpoints, folder, caplog):
    assert checkpoints.latest() is None
    assert caplog.text == ""
    for number in range(3):
        checkpoints.save(number, {"a": 1})
        (folder / f"0000000{number}.msgpack").write_bytes(b"")
    assert checkpoints.latest() is None
    assert f"no checkpoint in {folder} is left" in caplog.text
    assert len(list(folder.glob("*.damaged"))) == 3


def test_a_checkpoint_that_the_disk_cannot_read_is_damaged_and_one_out_of_reach_is_not(
    checkpoints, folder, monkeypatch
):
    for number in range(2):
        checkpoints.save(number, {"a": number})
    newest, whole = folder / "00000001.msgpack", Path.read_bytes

    def failing(code):
        def read(path):
            if path == newest:
                raise OSError(code, os.strerror(code))
            return whole(path)

        return read

    monkeypatch.setattr(Path, "read_bytes", failing(errno.EACCES))
    with pytest.raises(PermissionError):
        checkpoints.latest()
    assert newest.exists()
    monkeypatch.setattr(Path, "read_bytes", failing(errno.EIO))
    assert checkpoints.latest() == (0, {"a": 0})
    assert not newest.exists()


def test_all_may_be_kept_and_read_by_number(checkpoints, folder):
    every = Checkpoints(folder, kept=None)
    for number in range(5):
        every.save(number, {"a": number})
    assert [every.read(number) for number in range(6)] == [*({"a": k} for k in range(5)), None]


def test_every_flipped_bit_of_a_checkpoint_is_noticed():
    content = _encode({"a": np.arange(3)})
    for position in range(len(content)):
        with pytest.raises(ValueError, match="sha256 does not match"):
            _decode(_flip_bit(content, position))


def test_a_checkpoint_interrupted_leaves_the_ones_before(checkpoints, monkeypatch):
    checkpoints.save(0, {"a": 1})

    def fail(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("autoloss_jax.files.os.replace", fail)
        with pytest.raises(OSError, match="disk is full"):
            checkpoints.save(1, {"a": 2})
    assert checkpoints.latest() == (0, {"a": 1})


def test_a_negative_number_is_refused(checkpoints):
    with pytest.raises(ValueError, match="number -1 of a"):
        checkpoints.save(-1, {})


def test_objects_are_not_stored(checkpoints):
    with pytest.raises(ValueError, match="Object"):
        checkpoints.save(0, {"a": np.array([object()])})
    assert checkpoints.latest() is None
