"""A run as one page to read, several runs as another, and tables for the terminal."""

import os
from pathlib import Path

from autoloss_jax.errors import AutolossError
from autoloss_jax.files import write_atomic
from autoloss_jax.report.page import page
from autoloss_jax.report.reading import RunFiles, read_run
from autoloss_jax.report.sections import (
    comparison,
    formula,
    parts,
    queries,
    reproduction,
    search,
    shapes,
    sizes,
    verdict,
)
from autoloss_jax.report.several import several_html
from autoloss_jax.report.tables import ablation_table, effectiveness_table, finalists_table

__all__ = [
    "COMPARISON_FILE",
    "REPORT_FILE",
    "ablation_table",
    "effectiveness_table",
    "finalists_table",
    "report_html",
    "several_html",
    "write_report",
]

REPORT_FILE, COMPARISON_FILE = "report.html", "comparison.html"


def write_report(
    *folders: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> Path:
    """Writes the page of a run, or one that compares several, and returns its path.

    The page is self-contained and made from the folders' files alone; the same files give the same
    page. A part whose file is not there yet says so.

    Args:
      folders: one run folder, or several runs of the same data.
      out: the file to write; by default report.html in the folder, or, for several,
        comparison.html in the current folder.

    Raises:
      AutolossError: no folder, or one without config.json or with a damaged file; runs of
        different data; `out` is a folder.
    """
    if not folders:
        raise AutolossError("expected at least one run folder, got none")
    if out is not None and Path(out).is_dir():
        raise AutolossError(f"{out} is a folder: expected a file to write the page to")
    if out is not None and not Path(out).parent.is_dir():
        raise AutolossError(f"{out}: there is no folder {Path(out).parent} to write the page to")
    runs = [read_run(folder) for folder in folders]
    if len(runs) == 1:
        path, html = Path(out or Path(folders[0]) / REPORT_FILE), report_html(runs[0])
    else:
        path, html = Path(out or COMPARISON_FILE), several_html(runs)
    write_atomic(path, html)
    return path


def report_html(run: RunFiles) -> str:
    """The page of a run. Of one that only tests given losses, the search's parts are left out."""
    searched = bool(run.ledger) or run.setting("losses", "finalists") is not False
    sections = [
        formula.best_loss,
        formula.use,
        comparison.comparison,
        queries.per_query,
        shapes.shapes,
        shapes.fields,
        *([parts.parts] if run.ablation else []),
        *([search.search_course, search.funnel] if searched else []),
        sizes.sizes,
        *([sizes.hall_of_fame] if searched else []),
        reproduction.cost,
        reproduction.reproduction,
    ]
    return page(
        f"autoloss_jax: {run.name}", verdict.verdict(run), [section(run) for section in sections]
    )
