"""A run folder's files as the report reads them; what a run has not written yet is None."""

import datetime
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from autoloss_jax.errors import AutolossError
from autoloss_jax.files import read_ledger
from autoloss_jax.metrics import metric_title
from autoloss_jax.runs import (
    ABLATION_FILE,
    ABLATION_FOLDER,
    CONFIG_FILE,
    EFFECTIVENESS_FILE,
    FINALISTS_FILE,
    LEDGER_FILE,
    LOG_FILE,
    PER_QUERY_FILE,
    read_config,
    read_result,
)

DEFAULT_METRIC = "ndcg@10"


class PerQuery(NamedTuple):
    """The comparison metric of every loss on every test query."""

    names: list[str]
    query_ids: list[str]
    values: np.ndarray  # f64[losses, queries], the mean over seeds: fresh ones where there are such

    def difference(self, name: str, other: str) -> "QueryDifferences | None":
        """Of two losses, where both have a value; None if a loss is not there or nothing is."""
        if name not in self.names or other not in self.names:
            return None
        of = self.values[self.names.index(name)] - self.values[self.names.index(other)]
        defined = np.isfinite(of)
        if not defined.any():
            return None
        ids = [query for query, keep in zip(self.query_ids, defined, strict=True) if keep]
        return QueryDifferences(ids, of[defined])


class QueryDifferences(NamedTuple):
    """How much better one loss is than another on each query."""

    query_ids: list[str]
    values: np.ndarray  # f64[queries]


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds.

    Attributes:
      path: the folder as it was given.
      name: the folder's name.
      config: config.json: `config`, `fingerprint`, `created`.
      ledger: the records of ledger.jsonl; [] without one.
      finalists: finalists.json as an object with the list `finalists`; None without one.
      effectiveness: effectiveness.json; None without one.
      per_query: per_query.npz; None without one.
      ablation: ablation.json of the folder `ablation`; None without one.
      seconds: how long the run worked, from the times in run.log; None without one.
    """

    path: str
    name: str
    config: dict[str, Any]
    ledger: list[dict[str, Any]]
    finalists: dict[str, Any] | None
    effectiveness: dict[str, Any] | None
    per_query: PerQuery | None = None
    ablation: dict[str, Any] | None = None
    seconds: float | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The run's configuration; empty if config.json records none."""
        config = self.config.get("config")
        return config if isinstance(config, dict) else {}

    def setting(self, *keys: str) -> Any:
        """A setting by its nested keys; None if it is not recorded."""
        value: Any = self.settings
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of effectiveness.json; [] without one."""
        return self.effectiveness["rows"] if self.effectiveness else []

    @property
    def best_row(self) -> dict[str, Any] | None:
        """The tested row of the best found loss."""
        name = (self.effectiveness or {}).get("best_found")
        return next((row for row in self.rows if name and row.get("name") == name), None)

    @property
    def confirmation(self) -> dict[str, Any] | None:
        """What fresh seeds showed of the best found loss and the one to beat; None without such."""
        content = (self.effectiveness or {}).get("confirmation")
        return content if isinstance(content, dict) and content.get("found") else None

    @property
    def verdict_row(self) -> dict[str, Any] | None:
        """The row of the best found loss that the verdict rests on: of fresh seeds, if any."""
        return self.confirmation["found"] if self.confirmation else self.best_row

    @property
    def best_hand_designed(self) -> str | None:
        """The name of the hand-designed loss to beat."""
        name = (self.effectiveness or {}).get("best_hand_designed")
        return None if name is None else str(name)

    @property
    def reference(self) -> str | None:
        """The loss that rewards are measured against."""
        name = (self.finalists or {}).get("reference") or self.setting("search", "reference")
        return None if name is None else str(name)

    @property
    def metric(self) -> str:
        """The metric by which losses are compared."""
        for content in (self.effectiveness, self.finalists):
            if content and content.get("metric"):
                return str(content["metric"])
        return DEFAULT_METRIC

    @property
    def metric_title(self) -> str:
        """Its name for people."""
        return metric_title(self.metric)

    @property
    def best(self) -> dict[str, Any] | None:
        """The best found loss, chosen without test queries; None if nothing was found.

        The row that effectiveness.json names as `best_found`, else the first finalist, else the
        trained candidate of the highest reward.
        """
        if self.best_row:
            return self.best_row
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
    ablation = _optional(path / ABLATION_FOLDER / ABLATION_FILE)
    _check_rows(path / ABLATION_FOLDER / ABLATION_FILE, ablation, "ablations")
    config = read_config(path)
    if not isinstance(config, dict):
        raise AutolossError(f"{path / CONFIG_FILE}: expected an object, got {_kind(config)}")
    ledger = [{"reward": None, **record} for record in read_ledger(path / LEDGER_FILE)]
    return RunFiles(
        str(folder),
        path.resolve().name,
        config,
        ledger,
        finalists,
        effectiveness,
        _read_per_query(path / PER_QUERY_FILE),
        ablation,
        _logged_seconds(path / LOG_FILE),
    )


_CONFIRMED = ("confirmed_names", "confirmed_values")


def _read_per_query(path: Path) -> PerQuery | None:
    if not path.exists():
        return None
    try:
        # Opened here, because numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            names, ids, values = (content[key] for key in ("names", "query_ids", "values"))
            confirmed = {key: content[key] for key in _CONFIRMED if key in content}
        values = np.asarray(values, np.float64)
        if values.shape != (len(names), len(ids)):
            raise ValueError(f"values of shape {values.shape}")
        if confirmed:
            places = [names.tolist().index(name) for name in confirmed["confirmed_names"]]
            values[places] = confirmed["confirmed_values"]
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise AutolossError(
            f"{path} is damaged ({error}): expected names, query_ids and values [names, "
            f"query_ids]; remove it and {EFFECTIVENESS_FILE} and give the command again: what is "
            "finished is not trained again"
        ) from error
    return PerQuery([str(name) for name in names], [str(query) for query in ids], values)


_LOGGED = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} \w+ (.*)")
_RESUMED = "going on in "


def _logged_seconds(path: Path) -> float | None:
    """The time between a log's lines, but for the pauses before a run went on."""
    if not path.exists():
        return None
    total, last = 0.0, None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        match = _LOGGED.match(line)
        if match is None:
            continue
        try:
            time = datetime.datetime.fromisoformat(match[1])
        except ValueError:
            continue
        if last is not None and not match[2].startswith(_RESUMED):
            total += max(0.0, (time - last).total_seconds())
        last = time
    return total or None


def _optional(path: Path) -> Any:
    return read_result(path) if path.exists() else None


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
