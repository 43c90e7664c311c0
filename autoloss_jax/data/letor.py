"""LETOR folders and files to data sets.

What is accepted: a folder of ``Fold1``, ``Fold2``, ... each with a training, validation and test
file; one such folder; or three files. Each file is plain or compressed by gzip, bzip2 or xz.
Choices made where the format leaves them open:

* Feature indices start at 1. If index 0 occurs anywhere in a data set, all its indices start at 0.
* Absent features are 0. A feature given twice in a line has its last value (as in TensorFlow
  Ranking), with a warning that names the first such line.
* The training files say how many features there are, unless ``num_features`` does.
* Without a validation file, a fixed random fifth of the training queries is for validation.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from autoloss_jax.data.letor_cache import read_cached
from autoloss_jax.data.letor_files import COMPRESSED_SUFFIXES
from autoloss_jax.data.letor_text import LetorText, parse_letor
from autoloss_jax.data.queries import Dataset, Queries
from autoloss_jax.data.roles import make_fold
from autoloss_jax.errors import AutolossError

TRAIN_NAMES = ("train.txt",)
VALIDATION_NAMES = ("vali.txt", "valid.txt", "validation.txt")
TEST_NAMES = ("test.txt",)

_FOLD = re.compile(r"fold[ _-]?(\d+)", re.IGNORECASE)
_log = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]
_Files = tuple[Path, Path | None, Path]  # train, validation, test


def read_letor(path: PathLike, *, num_features: int | None = None) -> Queries:
    """The queries of one file of LETOR text, `<label> qid:<id> <index>:<value> ... # comment`.

    Raises:
        AutolossError: the file or a line of it is not as expected, or has a feature index beyond
            ``num_features``; the message names the file and, where there is one, the line.
    """
    text = parse_letor(Path(path))
    _warn_of_repeats(text)
    zero_based = text.zero_used
    width = _check_count(num_features) or text.num_features(zero_based)
    _check_width(text, width, zero_based, "num_features")
    return text.to_queries(width, zero_based)


def load_letor(
    path: PathLike | Sequence[PathLike],
    *,
    num_features: int | None = None,
    cache: PathLike | None = None,
    verify: bool = False,
) -> Dataset:
    """A data set from LETOR text.

    Args:
        path: a folder of folds, the folder of one fold, three files (training, validation, test),
            or those three in one string separated by commas.
        num_features: features per document; None takes the highest index of the training files.
        cache: a folder that keeps what was parsed, to be memory-mapped the next time; None keeps
            nothing and reads everything into memory.
        verify: hash the files and what is cached of them, even if no time of modification differs.

    Returns:
        The data set, the same with and without a cache; its ``sha256`` is over the content of all
        files, as they are on the disk, and ``num_features``.

    Raises:
        AutolossError: files missing or not as expected, or a validation or test file with more
            features than the training files.
    """
    requested = _check_count(num_features)
    name, files = _find_files(path)
    texts: dict[str, list[LetorText | None]] = {}
    for fold, paths in files.items():
        texts[fold] = [_read(file, cache, verify) if file else None for file in paths]
    every = [text for parts in texts.values() for text in parts if text]
    for text in every:
        _warn_of_repeats(text)
    zero_based = any(text.zero_used for text in every)
    trains = [parts[0] for parts in texts.values() if parts[0]]
    width = requested or max(text.num_features(zero_based) for text in trains)
    source = "num_features" if requested else " and ".join(str(text.path) for text in trains)
    for text in every:
        _check_width(text, width, zero_based, source)
    digest = hashlib.sha256(repr(requested).encode())
    folds = []
    for place, (fold, parts) in enumerate(texts.items()):
        for role, part in zip(("train", "validation", "test"), parts, strict=True):
            digest.update(f"{place}/{role}: {part.sha256 if part else None}\n".encode())
        train, validation, test = (p.to_queries(width, zero_based) if p else None for p in parts)
        assert train is not None and test is not None
        folds.append(make_fold(fold, train, validation, test))
    return Dataset(name, tuple(folds), digest.hexdigest())


def _read(path: Path, cache: PathLike | None, verify: bool) -> LetorText:
    return parse_letor(path) if cache is None else read_cached(path, Path(cache), verify=verify)


def _find_files(path: PathLike | Sequence[PathLike]) -> tuple[str, dict[str, _Files]]:
    """The name of the data set, and the files of each fold."""
    try:
        return _locate_files(path)
    except AutolossError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL in a name
        reason = getattr(error, "strerror", None) or error
        raise AutolossError(f"{path}: cannot be read ({reason})") from error


def _locate_files(path: PathLike | Sequence[PathLike]) -> tuple[str, dict[str, _Files]]:
    if isinstance(path, str | os.PathLike):
        folder = Path(path)
        if os.path.isdir(folder):  # unlike Path's, False for what is too long for a name
            return _find_in_folder(folder)
        parts = [part.strip() for part in os.fspath(path).split(",")]
        if len(parts) == 1:
            raise AutolossError(
                f"{path}: expected a folder of folds, the folder of one fold, or three files "
                "(training, validation, test) separated by commas"
                + ("" if os.path.exists(folder) else "; there is no such file or folder")
            )
    else:
        parts = [os.fspath(part) for part in path]
    if len(parts) != 3:
        raise AutolossError(
            f"{len(parts)} files, expected three: training, validation, test; got {parts}"
        )
    train, validation, test = (Path(part) for part in parts)
    return train.resolve().parent.name, {"files": (train, validation, test)}


def _find_in_folder(folder: Path) -> tuple[str, dict[str, _Files]]:
    matches = ((_FOLD.fullmatch(child.name), child) for child in folder.iterdir())
    numbered = sorted(
        (int(match[1]), child) for match, child in matches if match and child.is_dir()
    )
    resolved = folder.resolve()
    if numbered:
        return resolved.name, {child.name: _find_roles(child) for _, child in numbered}
    is_fold = _FOLD.fullmatch(resolved.name)
    name = f"{resolved.parent.name}/{resolved.name}" if is_fold else resolved.name
    return name, {resolved.name: _find_roles(folder)}


def _find_roles(folder: Path) -> _Files:
    def find(names: tuple[str, ...]) -> Path | None:
        """What stands there, even if it is no file: reading it says so."""
        every = (name + suffix for suffix in ("", *COMPRESSED_SUFFIXES) for name in names)
        return next((folder / name for name in every if os.path.lexists(folder / name)), None)

    train, validation, test = find(TRAIN_NAMES), find(VALIDATION_NAMES), find(TEST_NAMES)
    if train is None or test is None:
        names = sorted(child.name + "/" * child.is_dir() for child in folder.iterdir())
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise AutolossError(
            f"{folder}: expected folders Fold1, Fold2, ... or the files train.txt, "
            f"{' or '.join(VALIDATION_NAMES)}, and test.txt; found {listed or 'nothing'}"
        )
    return train, validation, test


def _check_count(num_features: int | None) -> int | None:
    if num_features is not None and num_features < 1:
        raise AutolossError(f"num_features is {num_features}, expected at least 1")
    return num_features


def _check_width(text: LetorText, width: int, zero_based: bool, source: str) -> None:
    documents = len(text.labels)
    if documents * width > text.max_values:
        raise AutolossError(
            f"{text.path}: {documents} documents with the {width} features of {source}, expected "
            f"at most {text.max_values} values in all, absent ones included"
        )
    found = text.num_features(zero_based)
    if found > width:
        raise AutolossError(
            f"{text.path}: {found} features (highest index {text.highest}), expected at most the "
            f"{width} of {source}"
        )


def _warn_of_repeats(text: LetorText) -> None:
    if text.repeats:
        _log.warning(
            "%s: %d lines give a feature more than once, the first is line %d; the last value of "
            "each is kept",
            text.path, text.repeats, text.first_repeat,
        )  # fmt: skip
