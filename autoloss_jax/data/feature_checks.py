"""Checks of the features of training documents; features are counted from 1, as in LETOR text."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from autoloss_jax.data.findings import Finding, listed, percent
from autoloss_jax.data.queries import Queries
from autoloss_jax.data.scaling import CLIP, signed_log1p

_COLUMNS = 16  # looked at together: one line of the processor's cache
_LEAK = 0.97
_SCALES = 1e3
_WILD = 0.1
_SPARSE = 0.9
_PAIR_QUERIES, _PAIRS = 400, 400  # sampled for the order that a feature alone gives


class _Statistics(NamedTuple):
    """By feature, over all training documents."""

    constant: np.ndarray  # bool[features]
    within: np.ndarray  # bool[features]: constant inside each query
    deviation: np.ndarray  # f64[features]
    reach: np.ndarray  # f64[features]: the furthest value from the mean, in deviations
    log_reach: np.ndarray  # f64[features]: the same after log1p
    zeros: np.ndarray  # f64[features]: the share of zeros


def check_features(train: Queries, others: Sequence[Queries]) -> Iterable[Finding]:
    """What the training features show; `where` is left to the caller.

    others: the parts that are not trained on, whose features may vary where training's do not.
    """
    statistics = _statistics(train)
    yield from _check_constant(statistics, others)
    yield from _check_copies(train, statistics.constant)
    yield from _check_leaks(train)
    yield from _check_scales(statistics)


def strongest_feature(train: Queries) -> tuple[int, float] | None:
    """The feature that alone orders the documents best, and the share of pairs it orders right."""
    shares = _ordered_shares(train)
    if shares is None:
        return None
    best = int(np.abs(shares - 0.5).argmax())
    return best + 1, float(max(shares[best], 1 - shares[best]))


def _blocks(queries: Queries) -> Iterator[np.ndarray]:
    features = np.asarray(queries.features)
    for start in range(0, queries.num_features, _COLUMNS):
        yield features[:, start : start + _COLUMNS]


def _statistics(train: Queries) -> _Statistics:
    starts = train.offsets[:-1]
    parts = []
    for block in _blocks(train):
        top = np.maximum.reduceat(block, starts)
        bottom = np.minimum.reduceat(block, starts)
        constant = top.max(axis=0) == bottom.min(axis=0)
        values = block.astype(np.float64)
        deviation, reach = _reach(values)
        _, log_reach = _reach(signed_log1p(values))
        zeros = (block == 0).mean(axis=0)
        within = (top == bottom).all(axis=0)
        parts.append(
            (constant, within, np.where(constant, 0.0, deviation), reach, log_reach, zeros)
        )
    return _Statistics(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _reach(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations, and how many of them the furthest value is from the mean."""
    centred = values - values.mean(axis=0)
    deviation = np.sqrt(np.square(centred).mean(axis=0))
    furthest = np.maximum(centred.max(axis=0), -centred.min(axis=0))
    usable = deviation > 0
    return deviation, np.divide(furthest, deviation, out=np.zeros_like(deviation), where=usable)


def _names(chosen: np.ndarray) -> str:
    return listed([int(k) + 1 for k in np.flatnonzero(chosen)])


def _check_constant(statistics: _Statistics, others: Sequence[Queries]) -> Iterable[Finding]:
    constant, count = statistics.constant, len(statistics.constant)
    if constant.any():
        varies = np.zeros_like(constant)
        for part in others:
            features = np.asarray(part.features)
            varies |= features.max(axis=0) > features.min(axis=0)
        elsewhere = int((constant & varies).sum())
        yield Finding(
            "constant_features", "note", "",
            f"{int(constant.sum())} of {count} features are constant: {_names(constant)}"
            + (f"; {elsewhere} of them vary in validation or test" if elsewhere else ""),
            "standardize and log1p make them 0 everywhere, so they cost time only",
        )  # fmt: skip
    whole = statistics.within & ~constant
    if whole.any():
        yield Finding(
            "query_features", "note", "",
            f"{int(whole.sum())} features are the same for all documents of a query: "
            f"{_names(whole)}",
            "they describe the query; alone they order nothing, and linear models gain nothing",
        )  # fmt: skip
    sparse = (statistics.zeros > _SPARSE) & ~constant
    if sparse.mean() > 0.5:
        yield Finding(
            "sparse_features", "note", "",
            f"{int(sparse.sum())} of {count} features are 0 for more than {percent(_SPARSE)} of "
            "the documents",
            "absent features count as 0: if 0 is a value of its own, write absent ones otherwise",
        )  # fmt: skip


def _check_copies(train: Queries, constant: np.ndarray) -> Iterable[Finding]:
    first: dict[bytes, int] = {}
    copies = []
    features = np.asarray(train.features)
    for feature in np.flatnonzero(~constant):
        column = np.ascontiguousarray(features[:, feature]) + np.float32(0)  # -0 is 0
        digest = hashlib.sha256(column.tobytes()).digest()
        if digest in first:
            copies.append(f"{feature + 1} of {first[digest] + 1}")
        first.setdefault(digest, int(feature))
    if copies:
        yield Finding(
            "copied_features", "note", "",
            f"{len(copies)} features are copies of others: {listed(copies, 5)}",
            "remove them: they only weigh the same information double",
        )  # fmt: skip


def _check_leaks(train: Queries) -> Iterable[Finding]:
    shares = _ordered_shares(train)
    if shares is None:
        return
    leaks = np.maximum(shares, 1 - shares) >= _LEAK
    if leaks.any():
        best = float(np.maximum(shares, 1 - shares).max())
        yield Finding(
            "label_leak", "problem", "",
            f"features that alone order up to {percent(best)} of the pairs as the label does: "
            f"{_names(leaks)}",
            "they look like the label, or like something known only after judging: remove them",
        )  # fmt: skip


def _ordered_shares(train: Queries) -> np.ndarray | None:
    """f64[features]: of pairs of unequal label, the share that ascends with the feature.

    Ties count half. A fixed sample of queries and pairs; None if there is no pair.
    """
    starts = train.offsets[:-1]
    varied = np.flatnonzero(
        np.maximum.reduceat(train.labels, starts) > np.minimum.reduceat(train.labels, starts)
    )
    if not varied.size:
        return None
    chosen = varied[np.unique(np.linspace(0, len(varied) - 1, _PAIR_QUERIES).astype(int))]
    generator = np.random.Generator(np.random.PCG64(0))
    ascending = np.zeros(train.num_features)
    pairs = 0
    for query in chosen:
        first, last = train.offsets[query], train.offsets[query + 1]
        sides = generator.integers(first, last, (2, _PAIRS))
        better, worse = sides[:, train.labels[sides[0]] > train.labels[sides[1]]]
        change = train.features[better] - train.features[worse]
        ascending += (change > 0).sum(axis=0) + 0.5 * (change == 0).sum(axis=0)
        pairs += len(better)
    return ascending / pairs if pairs else None


def _check_scales(statistics: _Statistics) -> Iterable[Finding]:
    varied = ~statistics.constant & (statistics.deviation > 0)
    if not varied.any():
        return
    deviations = statistics.deviation[varied]
    if deviations.max() > _SCALES * deviations.min():
        yield Finding(
            "scales", "note", "",
            "features are on very different scales: standard deviations from "
            f"{deviations.min():.2g} to {deviations.max():.2g}",
            "keep --features standardize (the default) or log1p; with none the largest would rule",
        )  # fmt: skip
    wild, still = (reach[varied] > CLIP for reach in (statistics.reach, statistics.log_reach))
    if wild.mean() > _WILD and still.sum() < 0.5 * wild.sum():
        yield Finding(
            "heavy_tails", "note", "",
            f"{int(wild.sum())} of {len(wild)} features have values further than {CLIP:g} standard "
            f"deviations from their mean, which are clipped; after log1p {int(still.sum())} have",
            "try --features log1p: they look like raw counts and lengths",
        )  # fmt: skip
