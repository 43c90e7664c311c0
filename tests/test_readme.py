"""README.md and BUILD.md say what is so: code runs, commands exist, links lead somewhere."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from autoloss_jax.cli.flags import CommandFlags
from autoloss_jax.cli.help import SUMMARIES
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import LOSSES

ROOT = Path(__file__).parents[1]
README, BUILD = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "BUILD.md"))


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


PYTHON = blocks(README, "python")
COMMANDS = [line for block in blocks(README, "bash") for line in block.splitlines()]


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_blocks_run(number, tmp_path, capsys):
    path = tmp_path / "block.py"
    path.write_text(PYTHON[number], encoding="utf-8")
    runpy.run_path(str(path))
    assert capsys.readouterr().out


def test_there_are_blocks_to_test():
    assert len(PYTHON) >= 1
    assert len(COMMANDS) >= 4


def test_the_first_screen_has_what_convinces():
    screen = "\n".join(README.splitlines()[:60])
    assert "autoloss run" in screen  # one command
    assert re.search(r"\d+ cores \(AMD EPYC,\s+\d{4}-\d\d-\d\d\)", screen)  # a figure, and whose
    assert 8 <= len(PYTHON[0].splitlines()) <= 14 and PYTHON[0] in screen
    assert "(docs/README.md)" in screen


def test_every_page_of_the_documentation_is_linked():
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in README, page.name


def ci_lines() -> list[str]:
    return (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_readme_installs_and_tests_as_the_clean_check_does():
    (command,) = [line for line in COMMANDS if "pytest" in line]
    environment, install, run = command.split(" && ")
    assert environment == "python3 -m venv .venv"
    assert '"$python" -m venv "$folder/venv"' in ci_lines()
    install = install.replace(".venv/bin/pip install", "python -m pip install --quiet")
    assert install in ci_lines()
    assert run.replace(".venv/bin/", "") == ci_lines()[-1]


def test_readme_and_build_name_the_same_test_command():
    (command,) = [line for line in COMMANDS if "pytest" in line]
    assert command in BUILD


def test_readme_installs_a_wheel_to_run_as_the_clean_check_does():
    (command,) = [line for line in COMMANDS if "install . " in line]
    environment, install, run = command.split(" && ")
    assert environment == "python3 -m venv .venv"
    assert install == ".venv/bin/pip install ."
    assert "python -m pip install --quiet ." in ci_lines()
    assert run.startswith(".venv/bin/autoloss run --out ")


def autoloss_commands() -> list[str]:
    found = [line.split(" && ")[-1] for line in COMMANDS if "autoloss" in line.split(" && ")[-1]]
    return found + re.findall(r"`(autoloss [a-z]+(?: --[^`]*)?)`", README + BUILD)


@pytest.mark.parametrize("line", sorted(set(autoloss_commands())))
def test_commands_and_their_flags_exist(line):
    program, command, *arguments = shlex.split(line)
    assert program in ("autoloss", ".venv/bin/autoloss")
    assert command in SUMMARIES
    flags = CommandFlags(command)
    arguments = [a for a in arguments if a != "--help"]
    if arguments and arguments[-1] == "--loss":  # the flag as such
        assert "loss" in flags.values
        return
    besides = flags.parse(arguments)  # folders, or a formula
    assert command == "report" or len(besides) <= (command in ("data", "explain"))


def test_every_command_is_explained():
    for command in SUMMARIES:
        assert re.search(rf"^\| `autoloss {command}\b", README, re.MULTILINE), command


def test_flags_named_in_passing_exist():
    known = set(CommandFlags("run").values) | {"help", "target"}
    benchmarks = "".join(p.read_text() for p in (ROOT / "experiments/benchmarks").glob("*.py"))
    known |= set(re.findall(r"flags\.DEFINE_\w+\(\s*\"(\w+)\"", benchmarks))
    pip_and_pytest = {"dist"}
    for name in re.findall(r"(?<![\w-])--([a-z_]+)", README):
        assert name in known | pip_and_pytest, f"--{name}"


def test_losses_in_the_table_are_those_of_the_library():
    rows = re.findall(r"^\| (\w+) \| `(.+)` \|$", README, re.MULTILINE)
    assert len(rows) >= 5
    for name, formula in rows:
        assert parse(formula) == LOSSES[name], name


@pytest.mark.parametrize("text", [README, BUILD], ids=["README", "BUILD"])
def test_links_lead_somewhere(text):
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_build_names_every_module():
    package = ROOT / "autoloss_jax"
    in_detail = ("language", "execution")
    names = {f"{p.name}/" for p in package.iterdir() if p.is_dir() and list(p.glob("*.py"))}
    names -= {f"{folder}/" for folder in in_detail}
    paths = [*package.glob("*.py"), *(p for f in in_detail for p in (package / f).glob("*.py"))]
    names |= {p.relative_to(package).as_posix() for p in paths if not p.name.startswith("__")}
    named = re.findall(r"^\| `([\w/.]+)` \| ", BUILD, re.MULTILINE)
    assert names - set(named) == set()
    missing = {n for n in named if not (package / n).exists() and not (ROOT / n).exists()}
    assert missing == set()
