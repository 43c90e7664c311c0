"""Checkpoints: states to go on from, each in one file that carries its hash.

A file that is damaged, in whatever way, is noticed, named and set aside, and an earlier one takes
its place.
"""

import base64
import errno
import hashlib
import re
from pathlib import Path
from typing import Any

from absl import logging
from flax import serialization

from autoloss_jax.errors import AutolossError
from autoloss_jax.files import sync_folder, write_atomic

KEPT = 3
"""Checkpoints of one kind of work that are kept, the latest ones."""

_NAME = re.compile(r"(\d+)\.msgpack")
_HEADER = "autoloss checkpoint 1 sha256 {}\n"


def _encode(state: Any) -> bytes:
    payload = serialization.msgpack_serialize(serialization.to_state_dict(state))
    return _HEADER.format(hashlib.sha256(payload).hexdigest()).encode() + payload


def _decode(content: bytes) -> Any:
    """The state in a checkpoint file's bytes. Raises ValueError if any byte of them changed."""
    header, _, payload = content.partition(b"\n")
    expected = _HEADER.format(hashlib.sha256(payload).hexdigest()).encode()
    if header + b"\n" != expected:
        raise ValueError("its sha256 does not match its content")
    return serialization.msgpack_restore(payload)


def encode_state(state: Any) -> str:
    """The state of a checkpoint as text, for other processes."""
    return base64.b64encode(_encode(state)).decode()


def decode_state(text: str, template: Any = None) -> Any:
    """The state in a text of `encode_state`, with the types of the template if there is one."""
    state = _decode(base64.b64decode(text))
    return state if template is None else serialization.from_state_dict(template, state)


class Checkpoints:
    """The checkpoints of one kind of work, in a folder of their own.

    Each has a number that counts how far the work has come. A state is a pytree of dicts with
    string keys, lists, tuples, NamedTuples and Flax dataclasses, whose leaves are arrays, numbers,
    strings, bytes, bools or None. Give a typed PRNG key as its `jax.random.key_data`.

    Read without a template it is nested dicts: lists and tuples come as {"0": ...}, arrays as
    read-only numpy arrays. With one, a pytree of the structure that was saved, it has the
    template's types.
    """

    def __init__(self, folder: Path, kept: int | None = KEPT) -> None:
        """kept: how many of the highest numbers are kept; None: all."""
        self._folder, self._kept = folder, kept

    def save(self, number: int, state: Any) -> None:
        """Saves a state; when it returns, the state is on the disk."""
        if number < 0:
            raise ValueError(f"number {number} of a checkpoint: expected 0 or more")
        if not self._folder.exists():
            self._folder.mkdir(parents=True)
            sync_folder(self._folder.parent)
            sync_folder(self._folder.parent.parent)
        write_atomic(self._path(number), _encode(state))
        if self._kept is not None:
            for old in self._numbers()[self._kept :]:
                logging.debug("removing checkpoint %d of %s", old, self._folder)
                self._path(old).unlink()

    def read(self, number: int, template: Any = None) -> Any:
        """The state of a number; None if it is not there or damaged.

        A damaged one is renamed to *.damaged, with a warning. Raises AutolossError if the state
        does not fit the template.
        """
        path = self._path(number)
        try:
            state = _decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EIO:
                raise
            aside = path.with_name(path.name + ".damaged")
            logging.warning("checkpoint %s is damaged (%s): set aside as %s", path, error, aside)
            path.replace(aside)
            return None
        if template is None:
            return state
        try:
            return serialization.from_state_dict(template, state)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AutolossError(
                f"checkpoint {path} does not fit this program, expected the state that this "
                f"version saves: {error}"
            ) from error

    def latest(self, template: Any = None) -> tuple[int, Any] | None:
        """The latest undamaged checkpoint as (number, state), or None if there is none."""
        numbers = self._numbers()
        for number in numbers:
            state = self.read(number, template)
            if state is not None:
                if number != numbers[0]:
                    logging.warning("going on from the one before, %s", self._path(number))
                return number, state
        if numbers:
            logging.warning(
                "no checkpoint in %s is left: what it knew is done again, from the beginning",
                self._folder,
            )
        return None

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.msgpack"

    def _numbers(self) -> list[int]:
        """Of the checkpoints there are, the highest first."""
        matches = (_NAME.fullmatch(path.name) for path in self._folder.glob("*.msgpack"))
        return sorted((int(match[1]) for match in matches if match), reverse=True)
