"""How the report words its numbers, on a page and in a terminal alike."""

import enum
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from autoloss_jax.report.reading import RunFiles, is_number
from autoloss_jax.verdicts import is_shown

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


def with_minus(sentence: str) -> str:
    """A sentence whose negative numbers have a true minus sign.

    >>> with_minus("from -0.5 to lambda-rank")
    'from \N{MINUS SIGN}0.5 to lambda-rank'
    """
    return re.sub(r"(?<![\w.-])-(?=\d)", _MINUS, sentence)


def interval(estimate: Any, *, signed: bool = False) -> str:
    """`mean [low, high]` of an object with mean, ci_low, ci_high; a bare number stands alone."""
    if not isinstance(estimate, Mapping):
        return number(estimate, signed=signed)
    mean = number(estimate.get("mean"), signed=signed)
    low, high = (number(estimate.get(key), signed=signed) for key in ("ci_low", "ci_high"))
    return mean if NOTHING in (low, high) else f"{mean} [{low}, {high}]"


def as_estimate(value: Any) -> tuple[float, float, float] | None:
    """Mean, low and high of a recorded estimate; the interval is the mean where none is recorded.

    None without a mean.
    """
    if isinstance(value, Mapping):
        mean, low, high = (value.get(key) for key in ("mean", "ci_low", "ci_high"))
    else:
        mean, low, high = value, None, None
    if not is_number(mean):
        return None
    return (mean, low, high) if is_number(low) and is_number(high) else (mean, mean, mean)


def mean_of(row: Mapping[str, Any], metric: str) -> float | None:
    """The mean of a row's test metric; None if it has none."""
    test = row.get("test")
    value = test.get(metric) if isinstance(test, Mapping) else None
    value = value.get("mean") if isinstance(value, Mapping) else value
    return float(value) if is_number(value) else None


def probability(value: Any) -> str:
    """A p-value."""
    if is_number(value) and value < 0.001:
        return "< 0.001"
    return number(value, 3)


def p_value(row: Mapping[str, Any]) -> str:
    """The corrected p-value if there is one, else the plain one."""
    return probability(_p_value(row))


def _p_value(row: Mapping[str, Any]) -> Any:
    value = row.get("p_value_corrected")
    return row.get("p_value") if value is None else value


class Outcome(enum.Enum):
    """What the effectiveness test says of the best found loss."""

    BETTER = "better"
    NOT_SHOWN = "not-shown"
    WORSE = "worse"
    NOTHING_FOUND = "nothing-found"
    UNKNOWN = "unknown"


def outcome(run: RunFiles) -> Outcome:
    """The verdict in a word, from the row that it rests on."""
    row = run.verdict_row
    if row is None:
        return Outcome.NOTHING_FOUND if run.best_hand_designed else Outcome.UNKNOWN
    p, difference = _p_value(row), as_estimate(row.get("difference"))
    if not is_number(p) or difference is None:
        return Outcome.UNKNOWN
    mean, low, high = difference
    if not is_shown(p, low, high):
        return Outcome.NOT_SHOWN
    return Outcome.BETTER if mean > 0 else Outcome.WORSE


def style(row: Mapping[str, Any]) -> str:
    """The class of a row in the style sheet: its kind, or none that a file made up."""
    kind = str(row.get("kind"))
    return kind if kind in KINDS else ""


def wins_ties_losses(row: Mapping[str, Any]) -> str:
    """On how many queries a loss is better, the same and worse."""
    counts = [row.get(key) for key in ("wins", "ties", "losses")]
    if not any(map(is_number, counts)):
        return NOTHING
    return " / ".join(f"{c:,}" if is_number(c) else NOTHING for c in counts)


def duration(seconds: float) -> str:
    """A time in the two units that say most.

    >>> duration(59.6), duration(372.0), duration(8000.0)
    ('1 min 0 s', '6 min 12 s', '2 h 13 min')
    """
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def device(config: Mapping[str, Any]) -> str:
    """What a run worked on: the number and kind of its devices, and the CPU."""
    fingerprint = config.get("fingerprint")
    if not isinstance(fingerprint, Mapping):
        return ""
    count, kind = fingerprint.get("local_devices"), fingerprint.get("device")
    cpu = fingerprint.get("cpu")
    model = cpu.get("model") if isinstance(cpu, Mapping) else None
    kinds = f"{count} \u00d7 {kind}" if is_number(count) and count > 1 else kind
    return ", ".join(str(part) for part in (kinds, model) if part)


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


def truncation(content: Mapping[str, Any]) -> str:
    """A sentence: which pairs the losses were trained on; "" if on all that their formulas name."""
    level = content.get("truncation_level")
    if not is_number(level) or not level:
        return ""
    return (
        f"All losses were trained truncated: of pairs, those only of which a document is among the "
        f"first {level} by current scores."
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
