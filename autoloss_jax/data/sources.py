"""Where data come from: the one place that reads what `--data` says."""

import os
from collections.abc import Sequence

from autoloss_jax.data.letor import load_letor
from autoloss_jax.data.queries import Dataset
from autoloss_jax.data.tfds import TFDS_PREFIX, load_tfds

PathLike = str | os.PathLike[str]


def load_dataset(
    source: PathLike | Sequence[PathLike], *, cache: PathLike | None = None, verify: bool = False
) -> Dataset:
    """The data set that `--data` names.

    Args:
        source: ``tfds:`` and a name for `load_tfds`, such as ``tfds:mslr_web/10k_fold1``; anything
            else is LETOR text for `load_letor`: a folder of folds, one such folder, or three files.
        cache, verify: of parsed text, as for `load_letor`.

    Raises:
        AutolossError: as the loader does.
    """
    if isinstance(source, str) and source.startswith(TFDS_PREFIX):
        return load_tfds(source.removeprefix(TFDS_PREFIX))
    return load_letor(source, cache=cache, verify=verify)
