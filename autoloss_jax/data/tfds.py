"""Ranking data from TensorFlow Datasets: `mslr_web`, `istella`, `yahoo_ltrc`, and any like them.

An example is a query: `float_features` [documents, features] and `label` [documents], in most
versions a `query_id` as well; the first versions have one [documents] entry for every feature
instead. Splits are `train`, `vali` and `test`; `istella/main` comes without `vali`.
"""

from __future__ import annotations

import importlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from autoloss_jax.data.queries import Dataset, Fold, Queries, as_numbers, make_dataset
from autoloss_jax.data.roles import make_fold
from autoloss_jax.errors import AutolossError

TFDS_PREFIX = "tfds:"

_VALIDATION_SPLITS = ("vali", "valid", "validation")
_BUNDLED, _LABEL, _QUERY = "float_features", "label", "query_id"
_NOT_FEATURES = (_LABEL, _QUERY, "doc_id")
_INSTALL = "install it by pip install 'autoloss_jax[tfds]'"
_log = logging.getLogger(__name__)

_Examples = Iterable[Mapping[str, Any]]


def load_tfds(name: str, *, data_dir: str | None = None) -> Dataset:
    """A data set from TensorFlow Datasets, prepared on the first call and read from then on.

    Args:
        name: builder and configuration, such as ``mslr_web/10k_fold1``; several joined by commas
            become the folds of one data set.
        data_dir: where TensorFlow Datasets keeps its files; its own default if None.

    Returns:
        The data set, a fold for each name. Without a validation split, a fixed random fifth of the
        training queries is for validation. A value beyond the range of a 32-bit float is taken as
        absent, which is 0, with a warning: Istella has such values.

    Raises:
        AutolossError: the library is not installed, knows no such data set or cannot prepare it;
            a split or an entry is missing or not of the form above.
    """
    names = [part.strip() for part in name.split(",")]
    if not all(names):
        raise AutolossError(
            f"{TFDS_PREFIX}{name}: expected names of TensorFlow Datasets, such as "
            "mslr_web/10k_fold1, joined by commas"
        )
    return make_dataset(name, [_load_fold(part, data_dir) for part in names])


def _load_fold(name: str, data_dir: str | None) -> Fold:
    library = _import_library()
    splits = _open_splits(library, name, data_dir)
    validation = next((split for split in _VALIDATION_SPLITS if split in splits), None)
    missing = [split for split in ("train", "test") if split not in splits]
    if missing:
        raise AutolossError(
            f"{TFDS_PREFIX}{name}: expected the splits train, vali and test, got "
            f"{', '.join(splits) or 'none'}"
        )
    train, test = (_read_split(name, split, splits[split]) for split in ("train", "test"))
    chosen = None if validation is None else _read_split(name, validation, splits[validation])
    return make_fold(name.rpartition("/")[2], train, chosen, test)


def _import_library() -> Any:
    try:
        library: Any = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise AutolossError(
            f"{TFDS_PREFIX}... needs TensorFlow Datasets, which cannot be imported ({error}); "
            f"{_INSTALL}"
        ) from error
    if not hasattr(library, "builder"):  # it logs what it cannot import, and goes on
        raise AutolossError(
            f"{TFDS_PREFIX}... needs TensorFlow Datasets, whose import is incomplete; its log says "
            f"what is missing, and {_INSTALL}"
        )
    try:
        # The library finds these itself only where TensorFlow is installed, which reading data
        # that are prepared already does not need.
        importlib.import_module("tensorflow_datasets.ranking")
    except ImportError:
        _log.debug("tensorflow_datasets.ranking cannot be imported", exc_info=True)
    return library


def _open_splits(library: Any, name: str, data_dir: str | None) -> dict[str, _Examples]:
    """The examples of every split, prepared if need be."""
    try:
        builder = library.builder(name, data_dir=data_dir)
        builder.download_and_prepare(file_format="array_record")
        try:
            return dict(builder.as_data_source())
        except NotImplementedError:  # prepared earlier, in a format without random access
            return {
                split: library.as_numpy(builder.as_dataset(split=split))
                for split in builder.info.splits
            }
    except ImportError as error:
        raise AutolossError(
            f"{TFDS_PREFIX}{name}: a library is missing ({error}); preparing data for the first "
            "time takes TensorFlow as well: pip install 'autoloss_jax[tfds]' tensorflow"
        ) from error
    except (ValueError, AssertionError, OSError, RuntimeError) as error:
        # Its messages list all data sets it knows: the first lines say what is wrong.
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= 300 else reason[:297] + "..."
        raise AutolossError(
            f"{TFDS_PREFIX}{name}: TensorFlow Datasets cannot provide it: {reason}; expected a "
            "ranking data set, such as mslr_web/10k_fold1, istella/s or yahoo_ltrc/set1"
        ) from error


def _read_split(name: str, split: str, examples: _Examples) -> Queries:
    """The queries of a split, in its order."""
    where = f"{TFDS_PREFIX}{name}, {split}"
    features: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    query_ids: list[str] = []
    for number, example in enumerate(_read_examples(where, examples), start=1):
        block, label = _read_example(f"{where}, query {number}", example)
        features.append(block)
        labels.append(label)
        query_id = example.get(_QUERY, f"{split}-{number}")
        known = isinstance(query_id, bytes)
        query_ids.append(query_id.decode("utf-8", "backslashreplace") if known else str(query_id))
    if not features:
        raise AutolossError(f"{where}: no queries, expected at least one")
    widths = {block.shape[1] for block in features}
    if len(widths) > 1:
        raise AutolossError(f"{where}: queries of {sorted(widths)} features, expected one number")
    offsets = np.append(0, np.cumsum([len(label) for label in labels]))
    return Queries(
        _narrow(where, np.concatenate(features)), np.concatenate(labels), offsets, tuple(query_ids)
    )


def _read_examples(where: str, examples: _Examples) -> Iterator[Mapping[str, Any]]:
    """The examples; what the library raises for damaged files is of no kind that can be named."""
    rest = iter(examples)
    for number in itertools.count(1):
        try:
            example = next(rest)
        except StopIteration:
            return
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise AutolossError(
                f"{where}, query {number}: TensorFlow Datasets cannot read it: {reason}"
            ) from error
        yield example


def _read_example(where: str, example: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Features [documents, features] and labels [documents] of a query."""
    if _LABEL not in example:
        raise AutolossError(f"{where}: no {_LABEL!r}, expected it; got {', '.join(example)}")
    labels = as_numbers(example[_LABEL], f"{where}, {_LABEL}")
    if _BUNDLED in example:
        features = as_numbers(example[_BUNDLED], f"{where}, {_BUNDLED}")
    else:
        columns = sorted((k for k in example if k not in _NOT_FEATURES), key=_feature_order)
        if not columns:
            raise AutolossError(
                f"{where}: no {_BUNDLED!r}, expected it or one entry for every feature"
            )
        every = [as_numbers(example[k], f"{where}, {k}") for k in columns]
        if any(column.shape != labels.shape for column in every):
            raise AutolossError(
                f"{where}: entries of shapes {sorted({column.shape for column in every})}, "
                f"expected {labels.shape} as of {_LABEL}"
            )
        features = np.stack(every, axis=-1)
    if labels.ndim != 1 or features.ndim != 2 or len(features) != len(labels):
        raise AutolossError(
            f"{where}: {_BUNDLED} of shape {features.shape} and {_LABEL} of shape {labels.shape}, "
            "expected (documents, features) and (documents,)"
        )
    return features, labels


def _feature_order(name: str) -> tuple[int, str]:
    """`feature_2` before `feature_10`; names without a number by the alphabet."""
    number = name.rpartition("_")[2]
    return (int(number) if number.isdecimal() else 0, name)


def _narrow(where: str, features: np.ndarray) -> np.ndarray:
    """As 32-bit floats, 0 where one cannot hold the value."""
    try:
        features = features if features.dtype.kind != "O" else features.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise AutolossError(
            f"{where}: {_BUNDLED} that are no numbers, expected such: {error}"
        ) from error
    beyond = np.isfinite(features) & (np.abs(features) > np.finfo(np.float32).max)
    if beyond.any():
        _log.warning(
            "%s: %d of %d values are beyond the range of a 32-bit float, such as %g; they count "
            "as absent, which is 0",
            where, int(beyond.sum()), beyond.size, features[beyond][0],
        )  # fmt: skip
        features = np.where(beyond, 0.0, features)
    return features.astype(np.float32)
