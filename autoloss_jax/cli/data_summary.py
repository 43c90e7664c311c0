"""What `autoloss data` prints."""

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autoloss_jax.data import DataSummary
from autoloss_jax.data.findings import counted, percent
from autoloss_jax.files import printable

_MOST_LABELS = 6  # that have a column each
_KINDS = {"problem": ("PROBLEM", "bold red"), "note": ("note", "bold")}


def print_summary(summary: DataSummary, console: Console) -> None:
    """The counts as a table, then every finding with what to do about it."""
    console.print(Text(f"{printable(summary.name)}: {counted(summary.num_features, 'feature')}"))
    console.print(_counts_table(summary))
    if summary.strongest is not None:
        feature, share = summary.strongest
        line = f"Strongest single feature: {feature}, which orders {percent(share)} of the training"
        console.print(Text(f"{line} pairs as the labels do (50 % is chance)."))
    problems = sum(finding.kind == "problem" for finding in summary.findings)
    notes = len(summary.findings) - problems
    console.print(Text(f"{counted(problems, 'problem')}, {counted(notes, 'note')}."))
    for finding in summary.findings:
        word, style = _KINDS[finding.kind]
        console.print(Text.assemble("\n", (word, style), f"  {printable(finding.where)}"))
        console.print(Padding(Text(printable(finding.what)), (0, 0, 0, 2)))
        console.print(Padding(Text(f"What to do: {finding.advice}."), (0, 0, 0, 2)))


def _counts_table(summary: DataSummary) -> Table:
    """One row for every role of every fold."""
    every = sorted({label for counts in summary.roles for label in counts.labels})
    shown = every if len(every) <= _MOST_LABELS else []
    caption = (
        "Empty: queries without a document of positive label. List length: the shortest, the\n"
        "median, that of 90 %, the longest. Padding: the share of places that hold no document\n"
        "when lists are padded to as many lengths as --max_buckets says."
    )
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=Text(caption), caption_justify="left"
    )
    for heading in ("fold", "role"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "queries", "empty", "documents", "list length",
        *(f"label {label:g}" for label in shown), *(() if shown else ("labels",)), "padding",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=heading.startswith("list"))
    for place, counts in enumerate(summary.roles):
        labels = [percent(counts.labels.get(label, 0) / counts.documents) for label in shown]
        values = list(counts.labels)
        table.add_row(
            Text(printable(counts.fold)), counts.role, str(counts.queries),
            str(counts.empty_queries), str(counts.documents), "/".join(map(str, counts.lengths)),
            *(labels or [f"{len(values)} from {values[0]:g} to {values[-1]:g}"]),
            percent(counts.padding), end_section=place % 3 == 2,
        )  # fmt: skip
    return table
