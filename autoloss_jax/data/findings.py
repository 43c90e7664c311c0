"""What a look at data finds, and how it is put."""

from collections.abc import Sequence
from typing import NamedTuple


class Finding(NamedTuple):
    """One thing to know about a data set.

    Attributes:
      code: its name, the same in every fold.
      kind: "problem", which spoils figures or training, or "note".
      where: the fold and role it is seen in.
      what: what is the matter.
      advice: what to do about it.
    """

    code: str
    kind: str
    where: str
    what: str
    advice: str


def listed(items: Sequence[object], most: int = 8) -> str:
    """`1, 2, 3 and 4 more`."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def counted(number: int, word: str, plural: str = "") -> str:
    """`1 query`, `2 queries`.

    >>> counted(1, "list"), counted(2, "list"), counted(0, "query", "queries")
    ('1 list', '2 lists', '0 queries')
    """
    return f"{number} {word if number == 1 else plural or word + 's'}"


def percent(share: float) -> str:
    """`12 %`, with a digit more for what is small.

    >>> percent(0.123), percent(0.0123), percent(0.0001)
    ('12 %', '1.2 %', 'under 0.1 %')
    """
    if 0 < share < 0.001:
        return "under 0.1 %"
    return f"{100 * share:.1f} %" if 0 < share < 0.095 else f"{100 * share:.0f} %"
