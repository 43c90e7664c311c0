"""The order of the layers: a module imports only from layers above its own, or from its package."""

import ast
import graphlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "autoloss_jax"

# From the top down; a folder is one layer. A new module fails the tests until it is placed here.
LAYERS = (
    "errors",
    "files",
    "checkpoints",
    "processes",
    "memory",
    "profile",
    "metrics",
    "runs",
    "data",
    "language",
    "execution",
    "losses",
    "models",
    "training",
    "feed",
    "trainer",
    "canaries",
    "screening",
    "candidates",
    "controller",
    "evolution",
    "proposers",
    "proxy",
    "finalists",
    "search_rounds",
    "search",
    "statistics",
    "verdicts",
    "comparison",
    "interruption",
    "evaluation",
    "gbdt",
    "convergence",
    "fold_tests",
    "effectiveness",
    "export",
    "explain",
    "ablation",
    "report",
    "__init__",
    "cli",
    "__main__",
)

# Modules whose name differs from that of the distribution they come in.
DISTRIBUTIONS = {"absl": "absl-py", "tensorboardX": "tensorboardx"}


def module_files(root: Path) -> dict[str, Path]:
    """Dotted module names below the package ("data.letor", "data", "__init__") and their files."""
    files = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        is_subpackage = parts[-1] == "__init__" and len(parts) > 1
        files[".".join(parts[:-1] if is_subpackage else parts)] = path
    return files


def imported_names(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import in a file, those inside functions included.

    `from a import b` gives "a.b", which may be a module or a name in one.
    """
    package = [PACKAGE, *module.split(".")]
    package = package if path.name == "__init__.py" and module != "__init__" else package[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def imported_module(name: str, modules: dict[str, Path]) -> str | None:
    """The module of the package that an absolute dotted name lies in; None if it is foreign."""
    top, *parts = name.split(".")
    if top != PACKAGE:
        return None
    while parts and ".".join(parts) not in modules:
        parts.pop()  # a name in the module
    return ".".join(parts) or "__init__"


def layer_violations(root: Path, layers: tuple[str, ...]) -> list[str]:
    """What breaks the order, a sentence each."""
    modules = module_files(root)
    unplaced = sorted({name.split(".")[0] for name in modules} - set(layers))
    if unplaced:
        return [f"{PACKAGE}/{name} is in no layer" for name in unplaced]
    found = []
    for module, path in modules.items():
        own = module.split(".")[0]
        for line, name in imported_names(module, path):
            target = imported_module(name, modules)
            if target is None:
                continue
            layer = target.split(".")[0]
            if layer != own and layers.index(layer) > layers.index(own):
                found.append(f"{path.relative_to(root)}:{line} imports {name} from a layer below")
    return found


def import_graph(root: Path) -> dict[str, set[str]]:
    """For every module, the modules of the package that it names in its imports."""
    modules = module_files(root)
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = [imported_module(name, modules) for _, name in imported_names(module, path)]
        graph[module] = {name for name in names if name is not None} - {module}
    return graph


def test_every_module_imports_only_from_layers_above():
    assert layer_violations(ROOT, LAYERS) == []


def import_cycle(root: Path) -> list[str]:
    """Modules that import one another in a circle, the first one again at the end."""
    try:
        graphlib.TopologicalSorter(import_graph(root)).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_imports_have_no_cycle():
    assert import_cycle(ROOT) == []


def test_every_imported_library_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # What is only there to test must not be needed by the package.
    declared = [*project["dependencies"], *(d for e in extras if e != "test" for d in extras[e])]
    allowed = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in declared}
    for module, path in module_files(ROOT).items():
        for line, name in imported_names(module, path):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top != PACKAGE:
                assert DISTRIBUTIONS.get(top, top) in allowed, f"{path}:{line} imports {name}"


@pytest.mark.parametrize(
    "statement",
    [
        "import autoloss_jax.low",
        "from autoloss_jax import low",
        "from autoloss_jax.low import f",
        "from .low import f",
        "from . import low",
        "def f():\n    from autoloss_jax.low import f",
        "if TYPE_CHECKING:\n    import autoloss_jax.low as l",
        "from autoloss_jax import f",
    ],
)
def test_an_import_from_below_is_found_however_it_is_written(tmp_path, statement):
    package = tmp_path / PACKAGE
    package.mkdir()
    (package / "high.py").write_text(statement)
    (package / "low.py").write_text("import autoloss_jax.high")
    (package / "__init__.py").write_text("from autoloss_jax.low import f")
    found = layer_violations(tmp_path, ("high", "low", "__init__"))
    assert len(found) == 1
    assert "high.py" in found[0]


def test_relative_imports_inside_a_folder_and_out_of_it(tmp_path):
    data = tmp_path / PACKAGE / "data"
    data.mkdir(parents=True)
    (tmp_path / PACKAGE / "low.py").write_text("")
    (data / "__init__.py").write_text("from .text import f")
    (data / "text.py").write_text("from . import other\nfrom .other import g")
    (data / "other.py").write_text("from ..low import h")
    found = layer_violations(tmp_path, ("data", "low"))
    assert found == [f"{PACKAGE}/data/other.py:1 imports {PACKAGE}.low.h from a layer below"]
    assert import_graph(tmp_path)["data.text"] == {"data.other"}


def test_a_cycle_inside_a_layer_is_found(tmp_path):
    data = tmp_path / PACKAGE / "data"
    data.mkdir(parents=True)
    for name, other in (("one", "two"), ("two", "three"), ("three", "one")):
        (data / f"{name}.py").write_text(f"from . import {other}\n")
    assert layer_violations(tmp_path, ("data",)) == []
    assert set(import_cycle(tmp_path)) == {"data.one", "data.two", "data.three"}


def test_a_module_in_no_layer_is_found(tmp_path):
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "novel.py").write_text("")
    assert layer_violations(tmp_path, ("high",)) == [f"{PACKAGE}/novel is in no layer"]
