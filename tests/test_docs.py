"""The pages of docs/ say what is so: generated parts are current, links hold, code runs."""

import json
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest

from autoloss_jax.cli import main
from autoloss_jax.cli.flags import CommandFlags
from autoloss_jax.cli.help import SUMMARIES
from autoloss_jax.language.operators import LEAVES, OPERATORS, REDUCTIONS
from autoloss_jax.losses import HAND_DESIGNED

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {page.name: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))}
GENERATE = runpy.run_path(str(DOCS / "generate.py"))


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


# --- generated parts ---


@pytest.mark.parametrize("page", PAGES)
def test_generated_parts_are_current(page):
    assert PAGES[page] == GENERATE["filled"](PAGES[page]), "run: python docs/generate.py"


def test_every_generated_part_is_on_a_page():
    names = re.findall(r"<!-- generated: (\w+) -->", "".join(PAGES.values()))
    assert sorted(names) == sorted(GENERATE["SECTIONS"])


def test_an_old_part_is_found_and_replaced():
    stale = "a\n<!-- generated: relations -->\nold\n<!-- end -->\nb\n"
    fresh = GENERATE["filled"](stale)
    assert fresh != stale
    assert fresh.startswith("a\n<!-- generated: relations -->\n| written |")
    assert fresh.endswith("<!-- end -->\nb\n")
    assert GENERATE["filled"](fresh) == fresh


def test_a_bar_ends_no_cell():
    for page, text in PAGES.items():
        for rows in re.findall(r"(?:^\|.*\|\n)+", without_code(text), re.MULTILINE):
            counts = {len(re.findall(r"(?<!\\)\|", row)) for row in rows.splitlines()}
            assert len(counts) == 1, (page, rows)


def test_the_language_is_complete():
    text = PAGES["language.md"]
    for name in LEAVES:
        assert name.endswith("_j") or f"| `{name}` |" in text
    for operator in OPERATORS.values():
        spelled = operator.python.format("x") if operator.arity == 1 else (
            operator.python.format("a", "b"))  # fmt: skip
        assert f"| `{spelled}` |" in text
    for name in (*REDUCTIONS, *HAND_DESIGNED):
        assert re.search(rf"\| `{name}\b", text), name


def test_every_flag_of_every_command_is_on_the_page():
    for command in SUMMARIES:
        assert f"## autoloss {command}\n" in PAGES["flags.md"]
        for name in set(CommandFlags(command).values) - {"?"}:
            assert f"| `--{name}` |" in PAGES["flags.md"]


# --- links, code, commands ---


def heading_anchors(text):
    """GitHub's anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", without_code(PAGES[page])):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (DOCS / path) if path else DOCS / page
        assert file.exists(), target
        if anchor:
            assert anchor in heading_anchors(file.read_text(encoding="utf-8")), target


def test_the_index_names_every_page():
    assert set(re.findall(r"^\| \[(\w+\.md)\]", PAGES["README.md"], re.MULTILINE)) == (
        set(PAGES) - {"README.md"}
    )


CODE = [
    (page, number)
    for page in PAGES
    if page != "library.md"  # which has tests of its own
    for number in range(len(blocks(PAGES[page], "python")))
]


@pytest.mark.parametrize("page, number", CODE)
def test_python_blocks_run(page, number, tmp_path, capsys):
    path = tmp_path / "block.py"
    path.write_text(blocks(PAGES[page], "python")[number], encoding="utf-8")
    runpy.run_path(str(path))
    assert capsys.readouterr().out


def test_the_figures_of_the_three_conventions_are_as_the_page_says(capsys, tmp_path):
    path = tmp_path / "block.py"
    path.write_text(blocks(PAGES["conventions.md"], "python")[0], encoding="utf-8")
    runpy.run_path(str(path))
    assert json.loads(capsys.readouterr().out) == [1.0, 0.5, 1.0]


COMMANDS = sorted(
    {
        line
        for text in PAGES.values()
        for block in blocks(text, "bash")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("autoloss ")
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_and_their_flags_exist(line):
    _, command, *arguments = shlex.split(line)
    assert command in SUMMARIES
    folders = CommandFlags(command).parse(arguments)
    assert command == "report" or len(folders) <= (command in ("data", "explain"))


# --- the tutorial, and what a run leaves ---

SMALL = {
    "run": [
        "--budget=4", "--proposals=16", "--proposer=random", "--model=linear", "--hall_of_fame=4",
        "--fresh_seeds=1", "--finalists=2", "--proxy_rung_steps=4", "--proxy_rungs=1,1",
        "--hand_designed=mse,softmax", "--test_seeds=1", "--max_buckets=1",
        "--test_learning_rates=0.01", "--test_max_steps=20", "--compilation_cache=none",
        "--test_confirmation_seeds=2", "--data_cache=none", "--dump_scores",
    ],
    "test": [
        "--model=linear", "--test_seeds=1", "--max_buckets=1", "--test_learning_rates=0.01",
        "--test_confirmation_seeds=2", "--test_max_steps=20", "--compilation_cache=none",
        "--data_cache=none",
    ],
    "data": ["--data_cache=none"],
}  # fmt: skip


def write_letor(path, queries, seed):
    generator = np.random.default_rng(seed)
    lines = []
    for query in queries:
        x = generator.normal(size=(6, 3))
        labels = [1, *(x[1:, 0] > 0.5).astype(int)]
        lines += [
            f"{label} qid:{query} " + " ".join(f"{k}:{v:.3f}" for k, v in enumerate(row, 1)) + "\n"
            for label, row in zip(labels, x, strict=True)
        ]
    path.write_text("".join(lines))


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The folder in which every command of the tutorial was run, smaller, and what each printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    for number in (1, 2):
        fold = folder / "MQ2008" / f"Fold{number}"
        fold.mkdir(parents=True)
        for place, role in enumerate(("train", "vali", "test")):
            first = 100 * number + 30 * place
            write_letor(fold / f"{role}.txt", range(first, first + (24 if place else 30)), first)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in "".join(blocks(PAGES["tutorial.md"], "bash")).splitlines():
            if line.startswith("autoloss "):
                program, command, *arguments = shlex.split(line)
                status = main([program, command, *arguments, *SMALL.get(command, [])])
                assert status == 0, line
    return folder


@pytest.mark.slow
def test_the_tutorial_leaves_what_it_says(tutorial):
    for path in ("runs/known/report.html", "runs/margin/report.html", "runs/mq2008/report.html",
                 "runs/mq2008/best_loss.py"):  # fmt: skip
        assert (tutorial / path).stat().st_size > 0, path
    margin = json.loads((tutorial / "runs/margin/effectiveness.json").read_text())
    assert {row["kind"] for row in margin["rows"]} == {"found", "hand_designed"}


def field_paths(value, prefix=""):
    """Dotted paths of all values in JSON; `[]` is an item of a list of objects."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from field_paths(item, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            yield from field_paths(item, f"{prefix}[]")
    else:
        yield prefix


def documented(heading):
    """The names in the table below a heading of run_folder.md."""
    section = PAGES["run_folder.md"].split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


ELSEWHERE = {
    "config.json": {
        "resumed_with[].fingerprint.*",
        "resumed_with[].at",
        "fingerprint.devices",
    },
    "ledger.jsonl": {"metric"},
    "effectiveness.json": {
        "rows[].settings[].*",
        "failure_reasons.*",
        "confirmation",
        "confirmation.failed.*",
        *(name for name in documented("effectiveness.json") if "against_reference." in name),
    },
}
"""What other runs leave: on accelerators, elsewhere, of another metric, with the reference, with
trainings that break down, without a found loss."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", ["config.json", "ledger.jsonl", "finalists.json", "effectiveness.json"]
)
def test_every_field_of_a_run_is_documented(tutorial, file):
    lines = (tutorial / "runs/mq2008" / file).read_text()
    values = map(json.loads, lines.splitlines()) if file.endswith("l") else [json.loads(lines)]
    occurring = {path for value in values for path in field_paths(value)}
    patterns = [re.escape(name).replace(r"\*", r"[^.]+") for name in documented(file)]
    missing = {path for path in occurring if not any(re.fullmatch(p, path) for p in patterns)}
    assert missing == set()
    unused = {
        name
        for name, pattern in zip(documented(file), patterns, strict=True)
        if not any(re.fullmatch(pattern, path) for path in occurring)
    }
    assert unused == ELSEWHERE.get(file, set())


@pytest.mark.slow
def test_every_file_and_array_of_a_run_is_documented(tutorial):
    folder = tutorial / "runs/mq2008"
    first = PAGES["run_folder.md"].split("\n## ")[0]
    named = set(re.findall(r"^\| \[?`([^`/]+)/?`", first, re.MULTILINE))
    assert {path.name for path in folder.iterdir()} <= named
    unmade = named - {path.name for path in folder.iterdir()}
    assert unmade <= {"ablation", "metrics", "profile.json"}
    for file in ("per_query.npz", "test_scores.npz"):
        with np.load(folder / file) as arrays:
            assert set(arrays) == set(documented(file)), file
