"""Synthetic queries that behave like web search: skewed grades, ragged lists, nonlinear relevance.

The default data of the command line, so that everything runs without a download.
"""

from __future__ import annotations

import numpy as np

from autoloss_jax.data.queries import Dataset, Fold, Queries, make_dataset
from autoloss_jax.errors import AutolossError

GRADE_SHARES = (0.55, 0.25, 0.13, 0.05, 0.02)  # of labels 0 to 4, about those of web search
SPLIT = (0.6, 0.2, 0.2)  # training, validation, test

_LATENT = 6
_LENGTH_SPREAD = 0.6  # standard deviation of the logarithm of list lengths


def synthetic(
    *,
    num_queries: int = 600,
    num_features: int = 24,
    list_length: tuple[int, int] = (6, 40),
    mean_length: float | None = None,
    label_noise: float = 0.7,
    query_shift: float = 1.0,
    seed: int = 0,
    folds: int = 1,
) -> Dataset:
    """A data set drawn from a known generator.

    Every document has six latent qualities, standard normal. Its utility is a nonlinear function
    of them (a product, a bump, thresholds: no linear ranker finds the order), plus a shift of its
    query (some queries have many relevant documents, a few none), plus label noise, whose size
    differs between queries. Labels 0 to 4 cut the utility at global quantiles: about 55, 25, 13, 5
    and 2 % of the documents. Features are noisy monotone views of the qualities: the first six
    reliable, the later ones moved far by an offset of their query, so that they mean something
    only next to the other documents of the list; every fourth has the heavy tails of raw counts,
    and every sixth after the first six is pure noise. List lengths are skewed: most lists are
    short, a few are almost as long as ``list_length`` allows.

    Roughly, at the defaults: a random order has a test NDCG@10 a little under one half, a trained
    linear model around seven tenths and a trained mlp around four fifths.

    Args:
        num_queries: at least 10; split into training, validation and test queries 60/20/20.
        num_features: at least 6.
        list_length: the shortest and the longest list.
        mean_length: of the lists, which are then log-normal with the spread of web search, most of
            them within a factor of two; the shape of MSLR-WEB30K is 31,531 queries, 136 features,
            lists of 1 to 1,251 documents, 120 on average.
        label_noise: standard deviation of the noise on the utility, whose own is about 1.
        query_shift: standard deviation of the feature offsets of a query; the shift of its utility
            is half of it.
        seed: the same arguments give the same data.
        folds: the number of splits of the same queries; with five, every query is tested once.

    Raises:
        AutolossError: an argument outside its range.
    """
    _check(num_queries, num_features, list_length, mean_length, label_noise, query_shift, folds)
    generator = np.random.Generator(np.random.PCG64(seed))
    lengths = synthetic_lengths(num_queries, list_length, mean_length, generator)
    query = np.repeat(np.arange(num_queries), lengths)
    latent = generator.normal(size=(len(query), _LATENT))
    utility = _utility(latent) + query_shift / 2 * generator.normal(size=num_queries)[query]
    noise = label_noise * generator.gamma(4.0, 1 / 4, num_queries)[query]
    utility = utility + noise * generator.normal(size=len(query))
    cuts = np.quantile(utility, np.cumsum(GRADE_SHARES)[:-1])
    labels = np.searchsorted(cuts, utility, side="right").astype(np.float32)
    features = _observe(generator, latent, query, num_features, query_shift)
    offsets = np.append(0, np.cumsum(lengths))
    queries = Queries(features, labels, offsets, tuple(str(q + 1) for q in range(num_queries)))
    name = f"synthetic-{num_queries}x{num_features}-seed{seed}"
    return make_dataset(name, _split(generator, queries, folds))


def synthetic_lengths(
    count: int,
    list_length: tuple[int, int],
    mean_length: float | None,
    generator: np.random.Generator,
) -> np.ndarray:
    """i64[count]: list lengths, see `synthetic`."""
    shortest, longest = list_length
    if mean_length is None:
        drawn = shortest + (longest - shortest + 1) * generator.beta(1.3, 2.4, count)
    else:
        # The mean of a log-normal is exp(mu + sigma**2 / 2).
        drawn = generator.lognormal(
            np.log(mean_length) - _LENGTH_SPREAD**2 / 2, _LENGTH_SPREAD, count
        )
    return np.clip(drawn.astype(np.int64), shortest, longest)


def _utility(latent: np.ndarray) -> np.ndarray:
    """f64[documents] of standard deviation about 1."""
    a, b, c, d, e, f = latent.T
    value = 0.4 * a + 0.8 * b * c + 0.8 * np.exp(-(d**2)) * (1 + a) + 0.4 * np.maximum(e, 0.0)
    value = value + 0.5 * (f > 0.8) * (b > -0.5) - 0.5 * np.abs(f)
    return value / 1.2


def _observe(
    generator: np.random.Generator,
    latent: np.ndarray,
    query: np.ndarray,
    num_features: int,
    query_shift: float,
) -> np.ndarray:
    """f32[documents, features]: noisy views of the latent qualities, moved query by query."""
    column = np.arange(num_features)
    source = column % latent.shape[1]
    views = latent[:, source] + 0.35 * generator.normal(size=(len(query), num_features))
    useless = (column % 6 == 5) & (column >= latent.shape[1])
    views[:, useless] = generator.normal(size=(len(query), int(useless.sum())))
    # A reliable view of every quality comes first; only later ones move much with the query.
    reach = np.where(column < latent.shape[1], 0.15, 1.0) * query_shift
    moved = views + (reach * generator.normal(size=(query[-1] + 1, num_features)))[query]
    heavy = column % 4 == 3
    moved[:, heavy] = np.expm1(np.abs(moved[:, heavy])) * np.sign(moved[:, heavy])
    return moved.astype(np.float32)


def _split(generator: np.random.Generator, queries: Queries, folds: int) -> list[Fold]:
    order = generator.permutation(len(queries))
    cut = np.cumsum([round(share * len(queries)) for share in SPLIT[:2]])
    made = []
    for fold in range(folds):
        turned = np.roll(order, -round(fold * len(queries) / folds))
        parts = [queries.select(np.sort(part)) for part in np.split(turned, cut)]
        made.append(Fold(f"Fold{fold + 1}", *parts))
    return made


def _check(
    num_queries: int,
    num_features: int,
    list_length: tuple[int, int],
    mean_length: float | None,
    label_noise: float,
    query_shift: float,
    folds: int,
) -> None:
    if num_queries < 10:
        raise AutolossError(f"num_queries is {num_queries}, expected at least 10")
    if num_features < _LATENT:
        raise AutolossError(f"num_features is {num_features}, expected at least {_LATENT}")
    if not 1 <= list_length[0] <= list_length[1]:
        raise AutolossError(f"list_length is {list_length}, expected 1 <= shortest <= longest")
    if mean_length is not None and not list_length[0] <= mean_length <= list_length[1]:
        raise AutolossError(f"mean_length is {mean_length}, expected within {list_length}")
    for name, value in (("label_noise", label_noise), ("query_shift", query_shift)):
        if not 0 <= value < 100:
            raise AutolossError(f"{name} is {value}, expected 0 up to 100")
    if not 1 <= folds <= num_queries:
        raise AutolossError(f"folds is {folds}, expected 1 to {num_queries}")
