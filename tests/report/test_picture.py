"""Charts for notebooks."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from autoloss_jax.errors import AutolossError
from autoloss_jax.report.picture import picture


def test_every_curve_has_a_line_a_colour_of_its_own_and_a_key():
    curves = {name: [(0.0, 0.0), (1.0, float(k))] for k, name in enumerate("abcd")}
    html = picture("t", "x", "y", curves, dots=[(0.5, 1.0)])._repr_html_()
    ElementTree.fromstring(html)  # well-formed
    styles = re.findall(r'class="curve (\w+)"', html)
    assert len(set(styles)) == 4
    colours = [re.search(rf"\.{style} {{ stroke: (#\w+)", html)[1] for style in styles]
    assert len(set(colours)) == 4
    assert re.findall(r"</svg>(\w)</span>", html) == list("abcd")
    assert html.count('class="dot"') == 1


def test_its_style_touches_nothing_else_on_the_page():
    html = picture("t", "x", "y", {"a": [(0.0, 0.0), (1.0, 1.0)]}).html
    rules = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    selectors = [s.strip() for part in re.findall(r"([^{}]+){", rules) for s in part.split(",")]
    assert selectors
    assert all(selector.startswith(".autoloss-picture") for selector in selectors)


def test_names_are_escaped():
    html = picture("<t>", "x", "y", {"a < b": [(0.0, 0.0), (1.0, 1.0)]}).html
    assert "a &lt; b" in html
    ElementTree.fromstring(html)


@pytest.mark.parametrize("count", [0, 5])
def test_too_few_or_too_many_curves_are_refused(count):
    curves = {str(k): [(0.0, 0.0), (1.0, 1.0)] for k in range(count)}
    with pytest.raises(AutolossError, match=f"{count} curves, expected 1 to 4"):
        picture("t", "x", "y", curves)
