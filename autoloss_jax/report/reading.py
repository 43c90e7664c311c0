"""A run folder's files as the report reads them; what a run has not written yet is None."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from autoloss_jax.errors import AutolossError
from autoloss_jax.files import read_json, read_ledger
from autoloss_jax.runs import CONFIG_FILE, LEDGER_FILE

FINALISTS_FILE, EFFECTIVENESS_FILE = "finalists.json", "effectiveness.json"
DEFAULT_METRIC = "ndcg@10"


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds.

    Attributes:
      name: the folder's name.
      config: config.json: `config`, `fingerprint`, `created`.
      ledger: the records of ledger.jsonl; [] without one.
      finalists: finalists.json as an object with the list `finalists`; None without one.
      effectiveness: effectiveness.json; None without one.
    """

    name: str
    config: dict[str, Any]
    ledger: list[dict[str, Any]]
    finalists: dict[str, Any] | None
    effectiveness: dict[str, Any] | None

    @property
    def metric(self) -> str:
        """The metric by which losses are compared."""
        for content in (self.effectiveness, self.finalists):
            if content and content.get("metric"):
                return str(content["metric"])
        return DEFAULT_METRIC

    @property
    def best(self) -> dict[str, Any] | None:
        """The best found loss, chosen without test queries; None if nothing was found.

        The row that effectiveness.json names as `best_found`, else the first finalist, else the
        trained candidate of the highest reward.
        """
        if self.effectiveness and self.effectiveness.get("best_found"):
            for row in self.effectiveness["rows"]:
                if row.get("name") == self.effectiveness["best_found"]:
                    return row
        if self.finalists and self.finalists["finalists"]:
            return self.finalists["finalists"][0]
        return max(self.trained, key=lambda record: record["reward"], default=None)

    @property
    def trained(self) -> list[dict[str, Any]]:
        """The ledger's records that have a reward, in their order."""
        return [r for r in self.ledger if r.get("status") == "trained" and is_number(r["reward"])]


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a JSON value is a number, which null, text and true are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_run(folder: str | os.PathLike[str]) -> RunFiles:
    """Reads the files of a run folder.

    Raises AutolossError, naming the file, if config.json is missing or any file is damaged.
    """
    path = Path(folder)
    if not (path / CONFIG_FILE).exists():
        raise AutolossError(
            f"{path} is not a run folder: expected a folder with {CONFIG_FILE}, written by a run"
        )
    finalists = _optional(path / FINALISTS_FILE)
    if isinstance(finalists, list):
        finalists = {"finalists": finalists}
    _check_rows(path / FINALISTS_FILE, finalists, "finalists")
    effectiveness = _optional(path / EFFECTIVENESS_FILE)
    _check_rows(path / EFFECTIVENESS_FILE, effectiveness, "rows")
    config = read_json(path / CONFIG_FILE)
    if not isinstance(config, dict):
        raise AutolossError(f"{path / CONFIG_FILE}: expected an object, got {_kind(config)}")
    ledger = [{"reward": None, **record} for record in read_ledger(path / LEDGER_FILE)]
    return RunFiles(path.resolve().name, config, ledger, finalists, effectiveness)


def _optional(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _kind(value: Any) -> str:
    for kind, name in ((dict, "an object"), (list, "a list"), (str, "a text")):
        if isinstance(value, kind):
            return name
    return repr(value)


def _check_rows(path: Path, content: Any, key: str) -> None:
    if content is None:
        return
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        got = "something else there" if isinstance(content, dict) else _kind(content)
        raise AutolossError(
            f"{path}: expected an object whose '{key}' is a list of objects, got {got}"
        )
