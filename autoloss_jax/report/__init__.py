"""A run as one page to read, and as tables for the terminal."""

import os
from html import escape
from importlib import resources
from pathlib import Path

from autoloss_jax.files import write_atomic
from autoloss_jax.report import sections
from autoloss_jax.report.reading import RunFiles, read_run
from autoloss_jax.report.tables import effectiveness_table, finalists_table

__all__ = ["REPORT_FILE", "effectiveness_table", "finalists_table", "report_html", "write_report"]

REPORT_FILE = "report.html"


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Writes report.html into a run folder, from the folder's files alone, and returns its path.

    The page is self-contained, and the same files give the same page. A part whose file is not
    there yet says so. Raises AutolossError if config.json is missing or a file is damaged.
    """
    path = Path(folder) / REPORT_FILE
    write_atomic(path, report_html(read_run(folder)))
    return path


def report_html(run: RunFiles) -> str:
    """The page of a run."""
    style = resources.files(__name__).joinpath("style.css").read_text(encoding="utf-8")
    title = f"autoloss_jax: {escape(run.name)}"
    content = "\n".join(
        section(run)
        for section in (
            sections.verdict,
            sections.best_loss,
            sections.comparison,
            sections.shapes,
            sections.search_course,
            sections.funnel,
            sections.hall_of_fame,
            sections.reproduction,
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<h1>{title}</h1>\n{content}\n</body>\n</html>\n"
    )
