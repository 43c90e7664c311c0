"""Whatever stands in a run's files, the page has the template's elements, and no others."""

import ast
import io
import json
import re
import tokenize
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from autoloss_jax.errors import AutolossError
from autoloss_jax.export import export_latex, export_mathml, export_source, write_best_loss
from autoloss_jax.files import printable
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import LOSSES
from autoloss_jax.report import (
    effectiveness_table,
    finalists_table,
    report_html,
    several_html,
    write_report,
)
from autoloss_jax.report.reading import read_run

MARK = "qzx"  # in every hostile text, in nothing else
HOSTILE = {
    "script": "<script>alert('{}')</script>",
    "image": '"><img src=x onerror="{}"><b x="',
    "attribute": "' onmouseover='{}' style='x:expression({})",
    "ends of elements": "</style></title></svg></code></pre></section>{}<style>*{{display:none}}",
    "address": "javascript:alert('{}')",
    "references": "&lt;{}&#60;script&#62;&amp;&nosuch;&",
    "comment": "<!--{}--><![CDATA[<a href='//{}'>]]>-->",
    "control characters": "\x00{}\x0b\x1b[31m\x7f\x85\r\n\t",
    "directions": "\u202e{}\u2066\u200f",
    "surrogates": "\ud800{}\udfff",
    "templates": "{{{{7*7}}}}{}${{x}}%s%n\\",
    "markup of rich": "[red]{}[/red][link=file:///etc]x[/link]",
}


class Page(HTMLParser):
    """What a page consists of: elements with their attributes, addresses, and where MARK stands."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: set[tuple[str, tuple[str, ...]]] = set()
        self.addresses: set[str] = set()
        self.styles: list[str] = []
        self.marked = 0
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = tuple(sorted(name for name, _ in attrs))
        self.elements.add((tag, names))
        for name, value in attrs:
            if name in ("href", "src", "action", "xlink:href", "data", "formaction"):
                self.addresses.add(str(value))
            # Only what is read out or shown may hold what a file says.
            if name not in ("aria-label", "data-label", "title"):
                assert MARK not in str(value), (tag, name, value)
            self.marked += MARK in str(value)
        if tag == "style":
            self._open.append(tag)
        assert MARK not in tag

    def handle_endtag(self, tag: str) -> None:
        if tag == "style":
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self.styles.append(data)
            assert MARK not in data
        self.marked += data.count(MARK)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data}")


def changed(value: Any, change: Callable[[str], str], keep: tuple[str, ...]) -> Any:
    """Nested JSON with every text changed, but for those of the keys `keep`."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [changed(item, change, keep) for item in value]
    if isinstance(value, dict):
        return {k: v if k in keep else changed(v, change, keep) for k, v in value.items()}
    return value


def run_files(example: Any, change: Callable[[str], str], keep: tuple[str, ...]) -> dict[str, Any]:
    tested = example.effectiveness()
    figures = example.per_query([row["name"] for row in tested["rows"]])
    files = {
        "config": example.config(), "ledger": example.ledger(120), "effectiveness": tested,
        "finalists": {"finalists": example.finalists(), "reference": "softmax", "empty": "skip",
                      "rediscovered": ["ranknet"]},
        "ablation": example.ablation(),
    }  # fmt: skip
    files = changed(files, change, keep)
    for name in ("names", "query_ids"):
        # Arrays of text hold no zeros at their ends and no surrogates.
        texts = [change(str(x)).encode("utf-8", "replace").decode() for x in figures[name]]
        figures[name] = np.array(texts)
    return files | {
        "per_query": figures,
        "log": change(example.LOG).encode("utf-8", "replace").decode(),
    }


def variants(payload: str) -> Iterator[tuple[str, Callable[[str], str], tuple[str, ...]]]:
    """How texts are changed, and which are not, so that the report goes on to other parts."""
    hostile = payload.format(MARK, MARK)
    yield "all", lambda text: hostile, ()
    yield "appended", lambda text: text + hostile, ("formula", "kind", "status", "metric")
    yield "before", lambda text: hostile + text, ("formula", "empty", "best_found")


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_text_of_a_file_becomes_markup(example, tmp_path, kind):
    ordinary = Page(report_html(read_run(example.write_full(tmp_path / "ordinary"))))
    for name, change, keep in variants(HOSTILE[kind]):
        folder = tmp_path / f"{name}-{MARK}<b onclick='x'>&amp;"
        example.write_folder(folder, **run_files(example, change, keep))
        path = write_report(folder)
        html = path.read_text(encoding="utf-8")
        assert not re.search("[\x00\x1b\x7f\u202e\u2066\u200f\ud800]", html)
        page = Page(html)
        # A page of nonsense may have fewer elements, and none that the template does not have.
        assert page.marked > 20
        assert page.elements <= ordinary.elements | FURTHER
        assert {a for a in page.addresses if not a.startswith("#")} == set()
        assert page.styles == ordinary.styles


FURTHER = {
    ("p", ("class",)), ("details", ("class",)), ("pre", ()), ("code", ()), ("code", ("class",)),
    ("dl", ("class",)), ("div", ()), ("dt", ()), ("dd", ()), ("span", ("class",)), ("p", ()),
    ("summary", ()), ("section", ("id",)),
}  # fmt: skip
"""What stands on pages of other results, such as notes of what is missing."""


@pytest.mark.parametrize("kind", ["script", "image", "ends of elements", "surrogates"])
def test_no_text_of_several_runs_becomes_markup(example, tmp_path, kind):
    plain = [read_run(example.write_full(tmp_path / name)) for name in ("a", "b")]
    ordinary = Page(several_html(plain))
    runs = []
    for k in range(2):
        hostile = HOSTILE[kind].format(MARK, MARK)
        files = run_files(example, lambda text, h=hostile: text + h, ("formula", "kind", "metric"))
        runs.append(read_run(example.write_folder(tmp_path / f"{MARK}{k}<i>", **files)))
    page = Page(several_html(runs))
    assert page.marked > 20
    assert page.elements <= ordinary.elements | FURTHER
    assert page.styles == ordinary.styles


@pytest.mark.parametrize("kind", HOSTILE)
def test_tables_of_the_terminal_show_texts_as_they_are(example, kind):
    hostile = HOSTILE[kind].format(MARK, MARK)
    tested = changed(example.effectiveness(), lambda text: text + hostile, ("kind",))
    finalists = changed(example.finalists(), lambda text: hostile, ())
    for table in (effectiveness_table(tested), finalists_table({"finalists": finalists})):
        output = io.StringIO()
        Console(file=output, width=400, force_terminal=True, color_system=None).print(table)
        shown = output.getvalue()
        assert MARK in shown
        # Styles of the tables themselves, such as bold, and no others.
        assert set(re.findall("\x1b[^m]*m", shown)) <= {"\x1b[1m", "\x1b[0m", "\x1b[2m", "\x1b[3m"}
        rest = re.sub("\x1b\\[[0123]m", "", shown).replace("\n", "")
        assert rest.isprintable()
        if kind == "markup of rich":
            assert f"[red]{MARK}[/red]" in shown


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize(
    "extra", ["", "coding: utf-7 +AAo-import os+AAo-", '"""', "\n\n\nimport os"]
)
def test_a_comment_of_the_best_loss_stays_a_comment(tmp_path, kind, extra):
    path = tmp_path / "best_loss.py"
    hostile = HOSTILE[kind].format(MARK, MARK)
    write_best_loss(path, LOSSES["ranknet"], [f"{extra}{hostile}", f"{hostile}{extra}\r{extra}"])
    content = path.read_bytes()
    assert tokenize.detect_encoding(io.BytesIO(content).readline)[0] == "utf-8"
    expected = ast.parse(export_source(LOSSES["ranknet"], "jax"))
    assert ast.dump(ast.parse(content)) == ast.dump(expected)


def test_what_is_exported_of_a_formula_holds_no_text_of_its_own():
    # A formula has no quotes, brackets or other alphabets to break out with.
    for kind, hostile in HOSTILE.items():
        for text in (hostile.format(MARK, MARK), f"sum_i(s_i) {hostile}", f"sum_i({hostile})"):
            for export in (export_latex, export_mathml):
                with pytest.raises(AutolossError, match="formula, column"):
                    export(parse(text))
            with pytest.raises(AutolossError, match=r"formula, column|unknown loss"):
                export_source(text, "jax")
            assert kind


def test_printable_keeps_lines_and_letters():
    assert printable("a\nb \u00e9 \U0001f600 \x1b[1m\u202e\ud800\x00") == (
        "a\nb \u00e9 \U0001f600 \ufffd[1m\ufffd\ufffd\ufffd"
    )


def test_json_that_is_no_json_is_named(example, tmp_path):
    folder = example.write_full(tmp_path / "run")
    for name in ("config", "finalists", "effectiveness"):
        path = folder / f"{name}.json"
        good = path.read_text()
        for bad in (good[:-2], "[" * 100_000, '{"rows": NaN}', "\x00", "9" * 5000, "1e999", "[]"):
            path.write_text(bad)
            try:
                write_report(folder)
            except AutolossError as error:
                assert name in str(error)  # noqa: PT017
        path.write_text(good)
    json.loads(good)
