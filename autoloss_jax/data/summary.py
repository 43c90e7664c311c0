"""What is in a data set: its counts, role by role, and what is worth knowing before training."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from autoloss_jax.data.batches import plan_buckets
from autoloss_jax.data.feature_checks import check_features, strongest_feature
from autoloss_jax.data.findings import Finding, counted, listed, percent
from autoloss_jax.data.queries import Dataset, Fold, Queries
from autoloss_jax.data.query_checks import check_queries, check_shared, document_hashes

ROLES = ("train", "validation", "test")
LENGTH_QUANTILES = (0.0, 0.5, 0.9, 1.0)

_MUCH_PADDING = 0.3
_FEW_TEST_QUERIES = 300
_SHIFT, _CHANCE, _SPLITS = 0.05, 0.01, 400


class RoleCounts(NamedTuple):
    """The queries of one role of one fold."""

    fold: str
    role: str
    queries: int
    empty_queries: int  # without a relevant document
    documents: int
    lengths: tuple[int, ...]  # of the lists, at LENGTH_QUANTILES
    labels: dict[float, int]  # documents by label
    padding: float  # the share of padded places, 0 to 1, in the buckets of training


class DataSummary(NamedTuple):
    """What `summarize` found.

    Attributes:
      name: of the data set.
      num_features: of every document.
      roles: counts, fold by fold, in the order of ROLES.
      strongest: the feature that alone orders the training documents of the first fold best,
        counted from 1, and the share of pairs it orders as the labels do; None without pairs.
      findings: problems first, then what is worth knowing.
    """

    name: str
    num_features: int
    roles: list[RoleCounts]
    strongest: tuple[int, float] | None
    findings: list[Finding]


def summarize(dataset: Dataset, *, max_buckets: int = 3) -> DataSummary:
    """Counts the data set and looks for what would spoil a result or a training.

    It looks for queries without a relevant document or without an order to learn; labels that do
    not start at 0, are not whole, are large or differ between roles; documents and queries that
    are there twice; queries shared between roles; features that are constant, copied, the same for
    a whole query, wild in scale, or that give the label away; long lists and costly padding.

    Args:
      dataset: its features unscaled, as they were read.
      max_buckets: length buckets that the cost of padding is for.
    """
    findings = [finding for fold in dataset.folds for finding in _check_fold(fold, max_buckets)]
    merged = _merge([*findings, *_check_size(dataset)])
    return DataSummary(
        dataset.name,
        dataset.num_features,
        [_count(fold, role, max_buckets) for fold in dataset.folds for role in ROLES],
        strongest_feature(dataset.folds[0].train),
        sorted(merged, key=lambda finding: finding.kind != "problem"),
    )


def _count(fold: Fold, role: str, max_buckets: int) -> RoleCounts:
    queries: Queries = getattr(fold, role)
    labels, counts = np.unique(queries.labels, return_counts=True)
    lengths = np.quantile(queries.lengths, LENGTH_QUANTILES, method="nearest")
    return RoleCounts(
        fold.name,
        role,
        len(queries),
        int((~queries.has_relevant()).sum()),
        queries.num_documents,
        tuple(int(length) for length in lengths),
        {float(label): int(count) for label, count in zip(labels, counts, strict=True)},
        _padding(queries.lengths, max_buckets),
    )


def _padding(lengths: np.ndarray, max_buckets: int) -> float:
    bounds = np.array(plan_buckets(lengths, max_buckets))
    places = bounds[np.searchsorted(bounds, lengths)].sum()
    return float(1 - lengths.sum() / places)


def _check_fold(fold: Fold, max_buckets: int) -> Iterable[Finding]:
    parts = {role: getattr(fold, role) for role in ROLES}
    hashes = {role: document_hashes(part) for role, part in parts.items()}
    for role in ROLES:
        for finding in check_queries(parts[role], hashes[role]):
            yield finding._replace(where=f"{fold.name} {role}")
    for finding in (
        *check_features(fold.train, (fold.validation, fold.test)),
        *_check_padding(fold.train.lengths, max_buckets),
    ):
        yield finding._replace(where=f"{fold.name} train")
    for finding in check_shared(parts, hashes):
        yield finding._replace(where=f"{fold.name} {finding.where}")
    yield from (f._replace(where=fold.name) for f in _check_label_shift(fold))


def _check_size(dataset: Dataset) -> Iterable[Finding]:
    relevant = sum(int(fold.test.has_relevant().sum()) for fold in dataset.folds)
    if 0 < relevant < _FEW_TEST_QUERIES:
        yield Finding(
            "few_test_queries", "note", "all folds",
            f"{relevant} test queries with a relevant document are few to compare losses on",
            "expect wide intervals and the verdict 'not shown'; give every fold there is",
        )  # fmt: skip


def _check_padding(lengths: np.ndarray, max_buckets: int) -> Iterable[Finding]:
    share = _padding(lengths, max_buckets)
    if share > _MUCH_PADDING:
        count = len(plan_buckets(lengths, max_buckets))
        more = _padding(lengths, 2 * count)
        yield Finding(
            "padding", "note", "",
            f"in {counted(count, 'length bucket')} {percent(share)} of all places are "
            "padding, which is computed for nothing",
            f"--max_buckets {2 * count} leaves {percent(more)}; each bucket is compiled once",
        )  # fmt: skip


def _check_label_shift(fold: Fold) -> Iterable[Finding]:
    for role in ROLES[1:]:
        shift, chance = _label_shift(fold.train, getattr(fold, role))
        if shift > _SHIFT and chance <= _CHANCE:
            yield Finding(
                f"label_shift_{role}", "note", "",
                f"the labels of {role} are distributed otherwise than those of train: "
                f"{percent(shift)} of the documents would have to change theirs, and hardly a "
                "random split of the queries differs so",
                "make sure that the roles come from one source; models and losses are chosen for "
                "queries that are not like those they are trained on",
            )  # fmt: skip


def _label_shift(first: Queries, second: Queries) -> tuple[float, float]:
    """The total variation distance of two label distributions, and how often chance exceeds it.

    Chance: random splits of the same queries into two sets of these sizes.
    """
    values = np.unique(np.concatenate([first.labels, second.labels]))
    counts = np.concatenate(
        [
            np.stack([np.add.reduceat(part.labels == v, part.offsets[:-1], dtype=np.int64)
                      for v in values], axis=1)
            for part in (first, second)
        ]
    )  # fmt: skip

    def distance(chosen: np.ndarray) -> np.ndarray:
        inside = chosen.astype(np.float64) @ counts
        outside = counts.sum(axis=0) - inside
        shares = [side / side.sum(axis=-1, keepdims=True) for side in (inside, outside)]
        halves: np.ndarray = np.abs(shares[0] - shares[1]).sum(axis=-1) / 2
        return halves

    split = np.arange(len(counts)) < len(first)
    observed = float(distance(split))
    generator = np.random.Generator(np.random.PCG64(0))
    others = [float(distance(generator.permutation(split))) for _ in range(_SPLITS)]
    return observed, float(np.mean(np.array(others) >= observed))


def _merge(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for what several folds and roles share, in the words of the first.

    Official folds are rotations of the same parts, and would say everything several times.
    """
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.code, []).append(finding)
    merged = []
    for first, *others in groups.values():
        if others:
            places = listed([finding.where for finding in others], most=3)
            first = first._replace(where=f"{first.where}; also {places}")
        merged.append(first)
    return merged
