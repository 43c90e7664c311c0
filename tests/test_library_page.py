"""docs/library.md, run top to bottom as the one program that it is."""

import re
import runpy
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "library.md"


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    for library in ("rax", "lightgbm"):
        pytest.importorskip(library)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "page.py").write_text("\n\n".join(blocks))
    names = runpy.run_path("page.py")
    printed = capsys.readouterr().out
    assert "36 training, 12 validation, 12 test" in printed
    assert names["test"]["verdict"] in printed
    assert {row["kind"] for row in names["test"]["rows"]} == {"found", "hand_designed"}
    assert float(names["after"]) > float(names["before"])
    assert "nearest" in printed
    assert re.search(r"^softmax: [\d.]+\nfound: -?[\d.e-]+$", printed, re.MULTILINE)
    assert float(printed.rsplit("NDCG", 1)[1]) > 0.8
    for folder in ("mine", "strict"):
        assert (tmp_path / "runs" / folder / "finalists.json").exists()
