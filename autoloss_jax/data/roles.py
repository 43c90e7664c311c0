"""The three roles of a fold's queries, whatever they were read from."""

import logging

import numpy as np

from autoloss_jax.data.queries import Fold, Queries
from autoloss_jax.errors import AutolossError

VALIDATION_SHARE = 0.2

_log = logging.getLogger(__name__)


def make_fold(name: str, train: Queries, validation: Queries | None, test: Queries) -> Fold:
    """A fold; without validation queries, a fixed random fifth of the training ones become them.

    Warns of query ids that are in two roles, and keeps them in both.

    Raises:
        AutolossError: no validation queries and a single training query; parts that do not fit.
    """
    if validation is None:
        train, validation = _split_validation(name, train)
    parts = {"train": train, "validation": validation, "test": test}
    roles = list(parts)
    for i, first in enumerate(roles):
        for second in roles[i + 1 :]:
            shared = set(parts[first].query_ids) & set(parts[second].query_ids)
            if shared:
                _log.warning(
                    "%s: %d query ids are in both %s and %s, such as %r; they are kept in both",
                    name, len(shared), first, second, min(shared),
                )  # fmt: skip
    return Fold(name, train, validation, test)


def _split_validation(name: str, train: Queries) -> tuple[Queries, Queries]:
    if len(train) < 2:
        raise AutolossError(
            f"{name}: no validation queries and one training query, expected at least two to split"
        )
    count = max(1, round(VALIDATION_SHARE * len(train)))
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(train))
    _log.warning(
        "%s: no validation queries; %d of the %d training queries, chosen at random by a fixed "
        "seed, become them",
        name, count, len(train),
    )  # fmt: skip
    return train.select(np.sort(order[count:])), train.select(np.sort(order[:count]))
