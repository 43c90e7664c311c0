"""How the report words its numbers, on a page and in a terminal alike."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from autoloss_jax.report.reading import is_number

NOTHING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
KINDS = {"found": "found", "hand_designed": "hand-designed", "reference": "reference"}
STATUSES = {
    "duplicate": "the same loss as an earlier one",
    "rejected": "refused before training",
    "failed": "training broke down",
    "trained": "trained and rewarded",
}


def number(value: Any, digits: int = 4, *, signed: bool = False) -> str:
    """A number with that many decimals; a dash for what is none."""
    if not is_number(value) or not math.isfinite(value):
        return NOTHING
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", _MINUS)


def interval(estimate: Any, *, signed: bool = False) -> str:
    """`mean [low, high]` of an object with mean, ci_low, ci_high; a bare number stands alone."""
    if not isinstance(estimate, Mapping):
        return number(estimate, signed=signed)
    mean = number(estimate.get("mean"), signed=signed)
    low, high = (number(estimate.get(key), signed=signed) for key in ("ci_low", "ci_high"))
    return mean if NOTHING in (low, high) else f"{mean} [{low}, {high}]"


def mean_of(row: Mapping[str, Any], metric: str) -> float | None:
    """The mean of a row's test metric; None if it has none."""
    test = row.get("test")
    value = test.get(metric) if isinstance(test, Mapping) else None
    value = value.get("mean") if isinstance(value, Mapping) else value
    return float(value) if is_number(value) else None


def p_value(row: Mapping[str, Any]) -> str:
    """The corrected p-value if there is one, else the plain one."""
    value = row.get("p_value_corrected")
    value = row.get("p_value") if value is None else value
    if is_number(value) and value < 0.001:
        return "< 0.001"
    return number(value, 3)


def rates(value: Any) -> str:
    """A learning rate, or one for each fold."""
    values = value if isinstance(value, list) and value else [value]
    texts = [f"{v:g}" if is_number(v) else NOTHING for v in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def sorted_rows(rows: Iterable[Mapping[str, Any]], metric: str) -> list[Mapping[str, Any]]:
    """Rows by descending mean of the test metric; those without one last."""

    def order(row: Mapping[str, Any]) -> float:
        mean = mean_of(row, metric)
        return math.inf if mean is None else -mean

    return sorted(rows, key=order)


def empty_convention(content: Mapping[str, Any]) -> str:
    """A sentence: how queries without a relevant document count."""
    meanings = {"skip": "are left out", "zero": "count as 0", "one": "count as 1"}
    empty = content.get("empty")
    meaning = meanings.get(str(empty))
    if meaning is None:
        return "The convention for queries without a relevant document is not recorded."
    queries, without = content.get("queries"), content.get("empty_queries")
    counted = ""
    if is_number(queries) and is_number(without):
        counted = f": {without} of {queries} test queries"
    return (
        f"Queries without a relevant document {meaning} (convention \u201c{empty}\u201d){counted}."
    )


def status_counts(ledger: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many candidates have each status, those of STATUSES first and always."""
    counted = Counter(str(record.get("status")) for record in ledger)
    return {status: counted.pop(status, 0) for status in STATUSES} | dict(sorted(counted.items()))


def _general(reason: str) -> str:
    return reason.partition(": ")[0]


def reason_counts(ledger: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """Status, reason and count, most frequent first, of the candidates that were not trained.

    Of a reason the part before a colon counts; what follows are the figures of one candidate.
    """
    counted = Counter(
        (str(record.get("status")), _general(str(record.get("reason") or "no reason recorded")))
        for record in ledger
        if record.get("status") != "trained"
    )
    return [(*key, count) for key, count in sorted(counted.items(), key=lambda x: (-x[1], x[0]))]
