"""What no file may hold: ways to execute text, unsafe readers, paths of one machine."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "sympify"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_ATTRIBUTES = {
    "sympify": None,  # of whatever
    "eval": {"builtins", "pd", "pandas", "numexpr"},
    "exec": {"builtins"},
    "compile": {"builtins"},
    "load": {"yaml"},
    "load_all": {"yaml"},
    "unsafe_load": {"yaml"},
    "system": {"os"},
    "popen": {"os"},
    "getoutput": {"subprocess"},
    "getstatusoutput": {"subprocess"},
}
FORBIDDEN_KEYWORDS = {"shell", "allow_pickle"}

# Neither this pattern nor the examples at the end of the file match it as they are written.
LOCAL_PATH = re.compile(r"(?<![\w.-])/(?:work|root|home)/|\.\./shared")
TEXT_SUFFIXES = {".cfg", ".html", ".ipynb", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yml"}


def forbidden_calls(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of everything in a Python source that could run text or unpack code."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) if name in FORBIDDEN_NAMES:
                yield node.lineno, name
            case ast.Attribute(attr=name) if name in FORBIDDEN_ATTRIBUTES:
                owners = FORBIDDEN_ATTRIBUTES[name]
                if owners is None or (isinstance(node.value, ast.Name) and node.value.id in owners):
                    yield node.lineno, name
            case ast.Import(names=aliases):
                for alias in aliases:
                    if alias.name.split(".")[0] in FORBIDDEN_MODULES:
                        yield node.lineno, alias.name
            case ast.ImportFrom(module=module, names=aliases):
                top = (module or "").split(".")[0]
                for alias in aliases:
                    owners = FORBIDDEN_ATTRIBUTES.get(alias.name, ())
                    if top in FORBIDDEN_MODULES or owners is None or top in owners:
                        yield node.lineno, f"{module}.{alias.name}"
            case ast.keyword(arg=str(name), value=value) if name in FORBIDDEN_KEYWORDS:
                if not (isinstance(value, ast.Constant) and value.value is False):
                    yield node.value.lineno, f"{name}="


def python_files() -> list[Path]:
    return sorted(
        p for part in ("autoloss_jax", "experiments") for p in (ROOT / part).rglob("*.py")
    )


def text_files(root: Path) -> Iterator[Path]:
    """The project's own text files; hidden folders, but for .ci, hold what tools wrote."""
    for entry in sorted(root.iterdir()):
        if entry.is_dir():
            ours = not entry.name.startswith(".") or entry.name in (".ci", ".github")
            written = entry.name in ("__pycache__", "venv", "build", "dist", "runs", "out")
            if ours and not written:
                yield from text_files(entry)
        elif entry.suffix in TEXT_SUFFIXES or entry.suffix == "":
            yield entry


def test_no_module_executes_text_or_unpacks_code():
    assert python_files()
    found = [(p.name, *f) for p in python_files() for f in forbidden_calls(p.read_text())]
    assert found == []


def test_no_file_names_a_path_of_one_machine():
    files = list(text_files(ROOT))
    assert Path(__file__) in files
    assert ROOT / ".ci" / "run" in files
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()[:80]}"
        for path in files
        for line in path.read_text(errors="replace").splitlines()
        if LOCAL_PATH.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "f = exec",
        "compile('1', '', 'eval')",
        "__import__('os')",
        "import builtins\nbuiltins.eval('1')",
        "import pickle",
        "def f():\n    import pickle as p",
        "from pickle import loads",
        "import sympy\nsympy.sympify('x')",
        "from sympy import sympify",
        "import yaml\nyaml.load(text)",
        "from yaml import load",
        "import os\nos.system('ls')",
        "from os import system",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess\nsubprocess.run('ls', shell=flag)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
    ],
)
def test_what_is_forbidden_is_found(source):
    assert list(forbidden_calls(source))


@pytest.mark.parametrize(
    "source",
    [
        "import re\nre.compile('a')",
        "jax.jit(f).lower(x).compile()",
        "model.eval()",
        "np.load(path, allow_pickle=False)",
        "yaml.safe_load(text)",
        "import ast\nast.parse('1', mode='eval')",
    ],
)
def test_what_is_allowed_is_not_found(source):
    assert list(forbidden_calls(source)) == []


@pytest.mark.parametrize(
    "text", ["see {}work/x", "'{}home/me/x'", "({}root/.cache)", "'..{}shared'"]
)
def test_paths_of_one_machine_are_found(text):
    assert LOCAL_PATH.search(text.format("/"))


@pytest.mark.parametrize("text", ["https://example.org/a{}work/b", "network{}x", "{}shared/x"])
def test_other_paths_are_not_found(text):
    assert not LOCAL_PATH.search(text.format("/"))
