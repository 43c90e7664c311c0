"""Checks of labels, documents and queries."""

from collections.abc import Iterable, Mapping

import numpy as np

from autoloss_jax.data.findings import Finding, counted, listed, percent
from autoloss_jax.data.queries import Queries

_LARGE_LABEL = 4  # of web search; the gain 2**y - 1 of one more is twice as large
_LONG_LIST = 1000
_SORTED_SHARE = 0.9
_CONFLICTS = 0.01  # of the documents
_ROWS = 1 << 13  # documents hashed at a time


def check_queries(queries: Queries, hashes: np.ndarray) -> Iterable[Finding]:
    """What one role's queries show by themselves; `where` is left to the caller.

    hashes: their `document_hashes`, which are not quick.
    """
    yield from _check_labels(queries)
    yield from _check_orders(queries)
    yield from _check_duplicates(queries, hashes)
    lengths = queries.lengths
    longest, median = int(lengths.max()), int(np.median(lengths))
    if longest > _LONG_LIST:
        yield Finding(
            "long_lists", "note", "",
            f"{counted(int((lengths > _LONG_LIST).sum()), 'list')} of more than {_LONG_LIST} "
            f"documents (the longest {longest}, the median {median}); the cost of a pair loss "
            "grows with the square",
            "cut such lists to the documents a first stage would pass on",
        )  # fmt: skip


def check_shared(
    roles: Mapping[str, Queries], hashes: Mapping[str, np.ndarray]
) -> Iterable[Finding]:
    """Queries that two roles share, by id or by content; `where` names the two roles."""
    names = list(roles)
    contents = {name: _query_hashes(roles[name], hashes[name]) for name in names}
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            place = f"{first} and {second}"
            ids = sorted(set(roles[first].query_ids) & set(roles[second].query_ids))
            if ids:
                yield Finding(
                    f"shared_ids_{place}", "problem", place,
                    f"{counted(len(ids), 'query id')} in both: {listed(ids, 3)}",
                    "keep each query in one role; otherwise what is tested was trained on",
                )  # fmt: skip
            both = np.isin(contents[second], contents[first]) & (roles[second].lengths > 1)
            known = np.isin(np.array(roles[second].query_ids), np.array(ids))
            hidden = np.flatnonzero(both & ~known)
            if hidden.size:
                shown = listed([roles[second].query_ids[q] for q in hidden], 3)
                yield Finding(
                    f"shared_content_{place}", "problem", place,
                    f"{counted(hidden.size, 'query', 'queries')} of {second} with the documents "
                    f"and labels of one of {first}, under another id: {shown}",
                    "keep each query in one role; otherwise what is tested was trained on",
                )  # fmt: skip


def _check_labels(queries: Queries) -> Iterable[Finding]:
    labels = np.unique(queries.labels)
    if len(labels) == 1:
        yield Finding(
            "one_label", "problem", "",
            f"every document has label {labels[0]:g}: there is nothing to rank",
            "look at how the first column of the files was written",
        )  # fmt: skip
    elif labels[0] > 0:
        yield Finding(
            "no_zero_label", "problem", "",
            f"no document has label 0, the smallest is {labels[0]:g}: NDCG counts all as relevant",
            "let the labels start at 0; or were irrelevant documents left out?",
        )  # fmt: skip
    broken = labels[labels != np.round(labels)]
    if broken.size:
        yield Finding(
            "fractional_labels", "note", "",
            f"{broken.size} of {labels.size} labels are not whole, such as {broken[0]:g}",
            "losses and metrics take them as they are: a gain is 2**label - 1",
        )  # fmt: skip
    if labels[-1] > _LARGE_LABEL:
        yield Finding(
            "large_labels", "note", "",
            f"the largest label is {labels[-1]:g}, whose gain is {2.0 ** labels[-1] - 1:g}: few "
            "documents decide every NDCG",
            f"labels from 0 to {_LARGE_LABEL} are usual; map others to grades",
        )  # fmt: skip


def _check_orders(queries: Queries) -> Iterable[Finding]:
    starts = queries.offsets[:-1]
    top = np.maximum.reduceat(queries.labels, starts)
    bottom = np.minimum.reduceat(queries.labels, starts)
    empty = int((top == 0).sum())
    if empty == len(queries):
        yield Finding(
            "all_empty", "problem", "", "no query has a relevant document",
            "nothing can be learned from it or measured on it",
        )  # fmt: skip
    elif empty:
        yield Finding(
            "empty_queries", "note", "",
            f"{empty} of {len(queries)} queries ({percent(empty / len(queries))}) have no relevant "
            "document, and so no NDCG",
            "they are dropped by default; --empty zero or one counts them as others do. Published "
            "figures differ by this alone",
        )  # fmt: skip
    flat = int(((top == bottom) & (top > 0)).sum())
    if flat and len(np.unique(queries.labels)) > 1:
        yield Finding(
            "flat_queries", "note", "",
            f"{counted(flat, 'query', 'queries')} with one and the same positive label everywhere: "
            "every order of them is ideal",
            "harmless; they only make all losses look more alike",
        )  # fmt: skip
    falls = np.diff(queries.labels) <= 0
    falls[starts[1:] - 1] = True  # from one query to the next
    whole = np.logical_and.reduceat(np.append(falls, True), starts)
    varied = top > bottom
    if varied.sum() >= 10 and (whole & varied).sum() >= _SORTED_SHARE * varied.sum():
        yield Finding(
            "sorted_by_label", "note", "",
            f"in {percent((whole & varied).sum() / varied.sum())} of the queries the documents "
            "stand in the order of their labels",
            "harmless here, where ties count by expectation; tools that break ties by position "
            "reward a constant score for it",
        )  # fmt: skip


def _check_duplicates(queries: Queries, documents: np.ndarray) -> Iterable[Finding]:
    query = np.repeat(np.arange(len(queries)), queries.lengths)
    order = np.lexsort((documents, query))
    same = (np.diff(documents[order]) == 0) & (np.diff(query[order]) == 0)
    if same.any():
        unlike = int((same & (np.diff(queries.labels[order]) != 0)).sum())
        many = unlike > _CONFLICTS * queries.num_documents
        of_query = query[order][1:][same]
        share = same.sum() / queries.num_documents
        yield Finding(
            "duplicate_documents", "problem" if many else "note", "",
            f"{int(same.sum())} documents ({percent(share)}) have all features of another of "
            f"their query, in {counted(len(np.unique(of_query)), 'query', 'queries')}"
            + (f"; {unlike} of them under another label" if unlike else ""),
            "no ranker can tell them apart, so their scores are tied: unlike labels limit the NDCG "
            "that can be reached; remove one of each if they are the same document",
        )  # fmt: skip
    hashes = _query_hashes(queries, documents)
    lists = queries.lengths > 1
    copies = int(lists.sum()) - len(np.unique(hashes[lists]))
    if copies:
        yield Finding(
            "duplicate_queries", "problem", "",
            f"{counted(copies, 'query', 'queries')} with the documents and labels of another, "
            "under another id",
            "they count double, and their figures are not independent: remove them",
        )  # fmt: skip


def document_hashes(queries: Queries) -> np.ndarray:
    """u64[documents]: the same for documents of the same features, and hardly for others."""
    pairs = -(-queries.num_features // 2)  # two features are hashed as one 64-bit number
    generator = np.random.Generator(np.random.PCG64(0))
    odd = generator.integers(0, 2**63, pairs, np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.empty(queries.num_documents, np.uint64)
    block = np.zeros((min(_ROWS, queries.num_documents), 2 * pairs), np.float32)
    for start in range(0, queries.num_documents, _ROWS):
        rows = queries.features[start : start + _ROWS]
        block[: len(rows), : rows.shape[1]] = rows
        block += np.float32(0)  # -0 is 0
        mixed = _mix(block[: len(rows)].view(np.uint64) * odd)
        hashes[start : start + _ROWS] = mixed.sum(axis=1, dtype=np.uint64)
    return hashes


def _query_hashes(queries: Queries, documents: np.ndarray) -> np.ndarray:
    """u64[queries]: the same for queries of the same documents and labels, in any order."""
    labels = queries.labels.view(np.uint32).astype(np.uint64)
    mixed = _mix(documents + labels * np.uint64(0x9E3779B97F4A7C15))
    return np.add.reduceat(mixed, queries.offsets[:-1])


def _mix(values: np.ndarray) -> np.ndarray:
    """Scrambles 64-bit numbers, so that sums of them are not equal by chance."""
    values = values ^ (values >> np.uint64(29))
    return values * np.uint64(0xBF58476D1CE4E5B9) ^ (values >> np.uint64(32))
