"""The pages in a real browser: desktop, phone and paper, light and dark."""

import shutil

import pytest

from autoloss_jax.report import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and CHROMEDRIVER), reason="Chromium or chromedriver is not installed"
    ),
]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTHS = {"desktop": 1280, "phone": 390, "paper": 688}  # paper: A4 less its margins, in CSS pixels
# By section, how many figures it must show.
FIGURES = {
    "run": {"comparison": 8, "queries": 1, "shape": 2, "field": 2, "search": 1, "size": 2},
    "several": {"found": 2, "curves": 1},
    "bare": {},
}

# Returns what a reader could not see, a sentence each.
CHECK = """
const problems = [];
const root = document.documentElement;
const near = 1.0;  // pixels, for rounding
if (root.scrollWidth > root.clientWidth) {
  problems.push(`the page is ${root.scrollWidth} wide in a window of ${root.clientWidth}`);
}
document.querySelectorAll("details").forEach(e => { e.open = true; });
function scroller(element) {
  for (let e = element; e && e !== document.body; e = e.parentElement) {
    if (["auto", "scroll"].includes(getComputedStyle(e).overflowX)) return e;
  }
  return null;
}
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const parent = node.parentElement;
  if (!node.data.trim() || parent.closest("svg, math, style, title")) continue;
  if (!parent.checkVisibility()) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  for (const box of range.getClientRects()) {
    if (!scroller(parent) && (box.left < -near || box.right > root.clientWidth + near)) {
      problems.push(`text beyond the page: ${node.data.slice(0, 40)}`);
    }
  }
  for (let e = parent; e && e !== document.body; e = e.parentElement) {
    const style = getComputedStyle(e);
    if (style.display === "inline" || ["auto", "scroll"].includes(style.overflowX)) continue;
    const reachable = style.overflowX === "visible" && scroller(e);
    if (e.scrollWidth > e.clientWidth + near && !reachable) {
      problems.push(`text cut off in ${e.tagName}.${e.className}: ${node.data.slice(0, 40)}`);
      break;
    }
  }
}
for (const table of document.querySelectorAll("table.cards")) {
  const frame = table.parentElement;
  if (root.clientWidth < 640 && frame.scrollWidth > frame.clientWidth + near) {
    problems.push(`cards that must be scrolled: ${table.textContent.slice(0, 40)}`);
  }
}
for (const svg of document.querySelectorAll("svg[role=img]")) {
  const frame = svg.getBoundingClientRect();
  const name = svg.getAttribute("aria-label");
  if (!name) problems.push("a figure without a name");
  if (!svg.checkVisibility() || frame.width < 20 || frame.height < 5) {
    problems.push(`not visible: ${name}`);
  }
  if (!svg.querySelector("path, circle, polygon")) problems.push(`empty: ${name}`);
}
for (const svg of document.querySelectorAll("svg[viewBox]")) {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")];
  const placed = texts.map(e => [e.textContent, e.getBoundingClientRect()]);
  placed.forEach(([text, box], k) => {
    if (box.left < frame.left - near || box.right > frame.right + near
        || box.top < frame.top - near || box.bottom > frame.bottom + near) {
      problems.push(`outside its figure: ${text}`);
    }
    for (const [other, its] of placed.slice(k + 1)) {
      if (box.left < its.right - near && its.left < box.right - near
          && box.top < its.bottom - near && its.top < box.bottom - near) {
        problems.push(`two labels overlap: ${text}, ${other}`);
      }
    }
  });
}
return [...new Set(problems)];
"""
COUNT = """
const found = {};
for (const [id, _] of Object.entries(arguments[0])) {
  found[id] = document.querySelectorAll(`#${id} svg[role=img]`).length;
}
return found;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory, example):
    folder = tmp_path_factory.mktemp("pages")
    first = example.write_full(folder / "mlp")
    second = example.write_full(folder / "linear", shift=-0.02, model="linear")
    bare = example.write_folder(folder / "bare")
    return {
        "run": write_report(first),
        "several": write_report(first, second, out=folder / "comparison.html"),
        "bare": write_report(bare),
    }


def show(browser, path, view, scheme):
    width = WIDTHS[view]
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": view == "phone"},
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    media = "print" if view == "paper" else "screen"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    browser.get(path.as_uri())


def background(browser):
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    return tuple(int(part) for part in colour[4:-1].split(","))


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("view", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_missing_cut_off_or_complained_about(browser, pages, name, view, scheme):
    show(browser, pages[name], view, scheme)
    assert browser.execute_script(CHECK) == []
    assert browser.execute_script(COUNT, FIGURES[name]) == FIGURES[name]
    assert browser.get_log("browser") == []
    is_dark = sum(background(browser)) < 3 * 64
    assert is_dark == (scheme == "dark" and view != "paper")


@pytest.mark.parametrize(
    "style, problem",
    [
        ("h2 { width: 3000px }", "the page is"),
        ("h2 { position: relative; left: -200px }", "text beyond the page"),
        ("td.name { max-width: 30px; overflow: hidden; white-space: nowrap }", "text cut off"),
        ("#queries .chart { display: none }", "not visible"),
        ("#size .chart { width: 0 }", "not visible"),
        (".chart text { font-size: 60px }", "outside its figure"),
        (".chart text { font-size: 40px }", "two labels overlap"),
    ],
)
def test_a_planted_fault_is_found(browser, pages, style, problem):
    show(browser, pages["run"], "desktop", "light")
    browser.execute_script(
        "const s = document.createElement('style'); s.textContent = arguments[0];"
        "document.head.append(s)", style,
    )  # fmt: skip
    assert problem in " ".join(browser.execute_script(CHECK))


def test_cards_that_are_too_wide_are_found(browser, pages):
    show(browser, pages["run"], "phone", "light")
    browser.execute_script(
        "document.querySelector('#comparison td.number').style.minWidth = '400px'"
    )
    assert "cards that must be scrolled" in " ".join(browser.execute_script(CHECK))


def test_a_planted_error_is_in_the_console(browser, tmp_path):
    (tmp_path / "fault.html").write_text("<script>throw new Error('planted')</script>")
    show(browser, tmp_path / "fault.html", "desktop", "light")
    assert "planted" in str(browser.get_log("browser"))
