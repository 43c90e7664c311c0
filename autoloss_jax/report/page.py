"""The page around the sections."""

import re
from collections.abc import Sequence
from html import escape
from importlib import resources

from autoloss_jax.report.markup import Html, Section, text

# What no page may hold, or what would turn the writing direction of what follows.
_UNFIT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def page(title: str, opening: Html, sections: Sequence[Section]) -> str:
    """A self-contained HTML page: what it opens with, links to its sections, the sections."""
    style = resources.files("autoloss_jax.report").joinpath("style.css").read_text(encoding="utf-8")
    links = "".join(
        f'<li><a href="#{escape(section.anchor)}">{escape(section.title)}</a></li>'
        for section in sections
    )
    content = "\n".join(section.html for section in sections)
    return _UNFIT.sub(
        "\ufffd",
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n{text(opening)}\n</header>\n"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n'
        f"<main>\n{content}\n</main>\n</body>\n</html>\n",
    )
