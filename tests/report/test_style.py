"""The style sheet: contrasts, measured as WCAG 2 defines them."""

import re
from importlib import resources

import pytest

STYLE = resources.files("autoloss_jax.report").joinpath("style.css").read_text(encoding="utf-8")
TEXT, GRAPHICS = 4.5, 3.0  # the least contrasts of level AA


def palettes():
    """The colours of each `:root` block, by name: light, dark and paper."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    return dict(zip(("light", "dark", "paper"),
                    (dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in blocks),
                    strict=True))  # fmt: skip


def luminance(colour):
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_known_colours():
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark", "paper"])
def test_text_and_lines_stand_out(scheme):
    colours = palettes()[scheme]
    for ground in ("paper", "panel", "chosen"):
        for ink in ("ink", "muted", "found", "other"):
            assert contrast(colours[ink], colours[ground]) >= TEXT, (ink, ground)
    for line in ("found", "other", "third", "fourth"):
        assert contrast(colours[line], colours["paper"]) >= GRAPHICS, line


def test_every_colour_that_is_used_is_defined_everywhere():
    used = set(re.findall(r"var\(--(\w+)\)", STYLE))
    for scheme, colours in palettes().items():
        assert used <= set(colours), scheme


def test_paper_is_light_whatever_the_screen_is():
    assert palettes()["paper"] == palettes()["light"]
