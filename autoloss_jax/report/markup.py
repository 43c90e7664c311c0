"""Pieces of HTML. Whatever comes from a file goes through `text` here, or through `escape`."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: Any) -> Html:
    """A value as text on the page; markup stays as it is."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


class Column(NamedTuple):
    """A table's column. style: classes of its cells. label: its heading, which cards repeat."""

    label: str
    style: str = ""


class Row(NamedTuple):
    """A table's row: its cells and its classes."""

    cells: Sequence[Any]
    style: str = ""


def table(columns: Sequence[Column], rows: Iterable[Row], style: str = "") -> Html:
    """A table; of style "cards", each row becomes a card on narrow screens."""

    def cell(column: Column, value: Any) -> str:
        return (
            f'<td class="{escape(column.style)}" data-label="{escape(column.label)}">'
            f"{text(value)}</td>"
        )

    head = "".join(
        f'<th scope="col" class="{escape(c.style)}">{escape(c.label)}</th>' for c in columns
    )
    body = "".join(
        f'<tr class="{escape(row.style)}">'
        + "".join(cell(c, value) for c, value in zip(columns, row.cells, strict=True))
        + "</tr>\n"
        for row in rows
    )
    return Html(
        f'<div class="scroll"><table class="{escape(style)}"><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def paragraph(content: Any, style: str = "") -> Html:
    return Html(
        f'<p class="{escape(style)}">{text(content)}</p>' if style else f"<p>{text(content)}</p>"
    )


def missing(content: str) -> Html:
    """What a section says instead of its content."""
    return paragraph(content, "missing")


def preformatted(content: str) -> Html:
    return Html(f"<pre><code>{escape(content)}</code></pre>")


def code(content: Any) -> Html:
    return Html(f'<code class="formula">{escape(str(content))}</code>')


def badge(content: str) -> Html:
    return Html(f'<span class="badge">{escape(content)}</span>')


def details(summary: str, content: Any, style: str = "") -> Html:
    """Content that unfolds; of style "listing" it stays folded on paper."""
    return Html(
        f'<details class="{escape(style)}"><summary>{escape(summary)}</summary>'
        f"{text(content)}</details>"
    )


def facts(entries: Iterable[tuple[str, str, str]], style: str) -> Html:
    """Name, value and remark of each fact: tiles of style "glance", or a "list"."""
    items = []
    for name, value, remark in entries:
        note = f'<span class="remark">{escape(remark)}</span>' if remark else ""
        items.append(
            f'<div><dt>{escape(name)}</dt><dd><span class="value">{escape(value)}</span>{note}'
            "</dd></div>"
        )
    return Html(f'<dl class="{escape(style)}">{"".join(items)}</dl>' if items else "")


class Section:
    """A part of the page. title: its heading. anchor: its id, for links. html: all of it."""

    def __init__(self, title: str, anchor: str, *contents: Html) -> None:
        self.title, self.anchor = title, anchor
        self.html = Html(
            f'<section id="{escape(anchor)}">\n<h2>{escape(title)}</h2>\n'
            + "\n".join(contents)
            + "\n</section>"
        )


def figure(content: Html, caption: str, heading: str = "") -> Html:
    top = f"<h3>{escape(heading)}</h3>" if heading else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Html(f"<figure>{top}{content}{below}</figure>")


def legend(entries: Iterable[tuple[str, str]]) -> Html:
    """Style class and label of each line, dot or mark of a chart."""
    items = []
    for style, label in entries:
        path = "M16 6h0" if style == "dot" or style.endswith("mark") else "M0 6H32"
        line = f'<path class="{escape(style)}" d="{path}"/>'
        line = f'<svg viewBox="0 0 32 12" aria-hidden="true">{line}</svg>'
        items.append(f"<span>{line}{escape(label)}</span>")
    return Html(f'<div class="legend">{"".join(items)}</div>')
