"""What no file may hold: ways to execute text, unsafe readers, paths of one machine."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "sympify", "__builtins__"}
FORBIDDEN_MODULES = {
    "pickle", "_pickle", "cPickle", "pickletools", "copyreg", "cloudpickle", "dill", "joblib",
    "marshal", "shelve", "builtins", "codeop", "imp", "runpy", "ctypes", "cffi", "pty",
    "jax.experimental.serialize_executable", "numexpr",
}  # fmt: skip
# By the last part of a dotted name, of which modules; None is of whatever.
FORBIDDEN_ATTRIBUTES = {
    "sympify": None,
    "eval": {"pd", "pandas"},
    "load": {"yaml", "torch"},
    "load_all": {"yaml"},
    "unsafe_load": {"yaml"},
    "full_load": {"yaml"},
    "read_pickle": None,
    "to_pickle": None,
    "find_class": None,
    "exec_module": None,
    "serialize_executable": None,
    "create_subprocess_shell": None,
    "__subclasses__": None,
    "__globals__": None,
    "__builtins__": None,
    "__import__": None,
    "__reduce__": None,
    "__reduce_ex__": None,
    "getoutput": {"subprocess"},
    "getstatusoutput": {"subprocess"},
    **{
        name: {"os", "posix"}
        for name in ("system", "popen", "fork", "forkpty", "startfile", "posix_spawn",
                     "posix_spawnp", "execl", "execle", "execlp", "execlpe", "execv", "execve",
                     "execvp", "execvpe", "spawnl", "spawnle", "spawnlp", "spawnlpe", "spawnv",
                     "spawnve", "spawnvp", "spawnvpe")
    },
}  # fmt: skip
FORBIDDEN_KEYWORDS = {"shell", "allow_pickle"}
# The third argument of numpy.load, without its keyword.
PICKLE_PLACE = 2
# What gives an attribute, or an entry, by its name as a text.
BY_NAME = {"getattr", "setattr", "attrgetter", "methodcaller", "get", "import_module"}

# Neither this pattern nor the examples at the end of the file match it as they are written.
LOCAL_PATH = re.compile(r"(?<![\w.-])/(?:work|root|home)/|\.\./shared")
TEXT_SUFFIXES = {".cfg", ".html", ".ipynb", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yml"}


def forbidden_calls(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of everything in a Python source that could run text or unpack code."""
    tree = ast.parse(source)
    modules = {
        alias.asname: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.asname
    }
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) if name in FORBIDDEN_NAMES:
                yield node.lineno, name
            case ast.Attribute(attr=name, value=value) if _is_forbidden(
                _dotted(value, modules), name
            ):
                yield node.lineno, name
            case ast.Import(names=aliases):
                for alias in aliases:
                    if _is_module(alias.name):
                        yield node.lineno, alias.name
            case ast.ImportFrom(module=module, names=aliases):
                for alias in aliases:
                    whole = f"{module}.{alias.name}"
                    if _is_module(module or "") or _is_forbidden(module or "", alias.name):
                        yield node.lineno, whole
            case ast.keyword(arg=str(name), value=value) if name in FORBIDDEN_KEYWORDS:
                if not (isinstance(value, ast.Constant) and value.value is False):
                    yield node.value.lineno, f"{name}="
            case ast.Call(func=function, args=args):
                called = _dotted(function, modules)
                last = called.rpartition(".")[2]
                if last == "load" and len(args) > PICKLE_PLACE:
                    yield node.lineno, "allow_pickle, by its place"
                if last == "import_module" and not isinstance(args[0], ast.Constant):
                    yield node.lineno, "import_module of what is computed"
                if last in BY_NAME:
                    yield from ((node.lineno, text) for text in _names_in(args))
            case ast.Subscript(slice=ast.Constant(value=str(name))) if name in FORBIDDEN_NAMES:
                yield node.lineno, name


def _dotted(node: ast.expr, modules: Mapping[str, str]) -> str:
    """`a.b` as a text, with the module that the first name stands for; "" for what is no name."""
    if isinstance(node, ast.Name):
        return modules.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, modules)}.{node.attr}"
    return ""


def _is_module(name: str) -> bool:
    return name in FORBIDDEN_MODULES or name.partition(".")[0] in FORBIDDEN_MODULES


def _is_forbidden(owner: str, name: str) -> bool:
    """Whether an attribute of an owner is, such as `system` of `os`."""
    if _is_module(owner) or _is_module(f"{owner}.{name}"):
        return True
    owners = FORBIDDEN_ATTRIBUTES.get(name, ())
    return owners is None or owner.rpartition(".")[2] in owners or owner in owners


def _names_in(args: Iterable[ast.expr]) -> Iterator[str]:
    for arg in args:
        if isinstance(arg, ast.Constant) and isinstance(arg.value, str):
            name = arg.value.rpartition(".")[2]
            if name in FORBIDDEN_NAMES or _is_module(arg.value) or name in FORBIDDEN_ATTRIBUTES:
                yield arg.value


def python_files() -> list[Path]:
    return sorted(
        p for part in ("autoloss_jax", "experiments", "docs") for p in (ROOT / part).rglob("*.py")
    )


def text_files(root: Path) -> Iterator[Path]:
    """The project's own text files; hidden folders, but for .ci, hold what tools wrote."""
    for entry in sorted(root.iterdir()):
        if entry.name == ".git":  # a folder, or a file in a work tree
            continue
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


def test_the_package_starts_no_process_and_opens_no_connection():
    for path in sorted((ROOT / "autoloss_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")]
            modules = [*names, getattr(node, "module", None) or ""]
            if isinstance(node, ast.Import | ast.ImportFrom):
                tops = {name.split(".")[0] for name in modules}
                assert not tops & {"subprocess", "multiprocessing", "urllib", "http", "ftplib"}, (
                    path
                )


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
        "import numpy as np\nnp.load(path, None, True)",
        "getattr(builtins, 'eval')",
        "getattr(x, 'exec')('1')",
        "import builtins as b\nb.eval('1')",
        "from builtins import eval as e",
        "globals()['__builtins__']",
        "vars(x)['eval']",
        "__builtins__",
        "x.__builtins__",
        "().__class__.__base__.__subclasses__()",
        "f.__globals__",
        "operator.attrgetter('system')(os)",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module\nimport_module(f'{x}')",
        "import importlib\nimportlib.import_module('pickle')",
        "import os as o\no.system('ls')",
        "import os\nos.execv(path, args)",
        "import os\nos.spawnlp(0, 'ls')",
        "import os\nos.popen('ls')",
        "from os import execvp as run",
        "import subprocess as s\ns.getoutput('ls')",
        "import asyncio\nasyncio.create_subprocess_shell('ls')",
        "import marshal",
        "import _pickle",
        "import runpy",
        "import ctypes",
        "import pandas\npandas.read_pickle(path)",
        "import torch as t\nt.load(path)",
        "from jax.experimental import serialize_executable",
        "import jax.experimental.serialize_executable as s",
        "import jax\njax.experimental.serialize_executable.deserialize_and_load(x)",
        "class C:\n    def f(self):\n        return self.__reduce__()",
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
        "from importlib import metadata, resources",
        "import importlib\nimportlib.import_module('tensorflow_datasets')",
        "getattr(flags, 'name')",
        "cache.load(a, b)",
        "json.loads(text)",
        "environment.get('PATH')",
        "import os\nos.replace(a, b)",
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
