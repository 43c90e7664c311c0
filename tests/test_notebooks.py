"""The notebooks: valid, without outputs, their names exist, and they run from top to bottom."""

import ast
import os
import re
import runpy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import autoloss_jax as al

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "experiments" / "colab").glob("*.ipynb"))
NOTEBOOKS = {path.name: nbformat.read(path, as_version=4) for path in PATHS}
SECONDS = 600  # a limit that only a hanging cell reaches
each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


def code(name):
    return [cell.source for cell in NOTEBOOKS[name].cells if cell.cell_type == "code"]


def prose(name):
    return "\n\n".join(c.source for c in NOTEBOOKS[name].cells if c.cell_type == "markdown")


def test_there_are_three():
    assert [name[0] for name in NOTEBOOKS] == ["1", "2", "3"]


@each_notebook
def test_it_is_valid_and_has_no_outputs(name):
    notebook = NOTEBOOKS[name]
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.metadata, cell.id
        assert not cell.get("outputs"), cell.id
        assert cell.get("execution_count") is None, cell.id
    assert notebook.metadata.kernelspec.name == "python3"


@each_notebook
def test_it_is_pleasant_to_read(name):
    cells = NOTEBOOKS[name].cells
    assert cells[0].source.startswith("# ")
    assert all(cell.source.count("\n") < 30 for cell in cells)
    # Prose before nearly every piece of code.
    alone = [
        b.id for a, b in zip(cells, cells[1:], strict=False) if a.cell_type == b.cell_type == "code"
    ]
    assert len(alone) <= 1  # the imports, which follow the installation


@each_notebook
def test_every_name_of_the_package_exists(name):
    used = set()
    for source in code(name):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used |= {node.attr} if node.value.id == "al" else set()
    used |= set(re.findall(r"`al\.(\w+)", prose(name)))
    assert used
    assert used - set(al.__all__) == set()


@each_notebook
def test_the_first_code_installs_only_what_is_missing_and_says_how(name):
    first = code(name)[0]
    assert 'if importlib.util.find_spec("autoloss_jax") is None:' in first
    assert "set SOURCE in this cell" in first
    assert first == code("1_loss_language.ipynb")[0]
    assert "On Colab" in NOTEBOOKS[name].cells[0].source


def run_first_cell(folder):
    path = folder / "cell.py"
    path.write_text(code("1_loss_language.ipynb")[0])
    runpy.run_path(str(path))


def test_without_the_package_and_without_a_source_the_first_cell_says_what_to_do(
    monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="Not installed: set SOURCE in this cell"):
        run_first_cell(tmp_path)


def test_in_a_clone_the_first_cell_installs_the_clone(monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").write_text("")
    inside = tmp_path / "experiments" / "colab"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    calls = []
    monkeypatch.setattr("subprocess.run", lambda command, **options: calls.append(command))
    run_first_cell(tmp_path)
    assert [command[1:5] for command in calls] == [["-m", "pip", "install", "--quiet"]]
    assert calls[0][-1] == str(tmp_path)


PICTURES = {"1": 2, "2": 1, "3": 1}


@pytest.mark.slow
@each_notebook
def test_it_runs_from_top_to_bottom_and_shows_pictures(name, tmp_path):
    notebook = nbformat.from_dict(NOTEBOOKS[name])
    last = nbformat.v4.new_code_cell("print(al.__file__)")
    notebook = nbformat.v4.new_notebook(cells=[*notebook.cells, last], metadata=notebook.metadata)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute(env=environment)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert outputs[-1]["text"].strip() == str(ROOT / "autoloss_jax" / "__init__.py")
    pictures = [o for o in outputs if "autoloss-picture" in str(o.get("data", {}).get("text/html"))]
    assert len(pictures) == PICTURES[name[0]]
    # The runtime says on standard error only what it is asked to.
    assert not [o for o in outputs if o.output_type == "error"]
    assert list(tmp_path.iterdir()) == []
