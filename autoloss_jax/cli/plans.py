"""What a working command is asked to do, checked in full before anything is written."""

import datetime
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging

from autoloss_jax.cli.flags import effectiveness_config, search_config
from autoloss_jax.cli.machine import user_cache
from autoloss_jax.cli.progress import held_back
from autoloss_jax.convergence import check_truncation
from autoloss_jax.data import Dataset, Fold, assign_folds, load_dataset, synthetic
from autoloss_jax.effectiveness import EffectivenessConfig, clean_folds
from autoloss_jax.errors import AutolossError
from autoloss_jax.finalists import stored_losses
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import ALIASES, HAND_DESIGNED, LOSSES, resolve_loss
from autoloss_jax.report.reading import read_run
from autoloss_jax.runs import CONFIG_FILE, FINALISTS_FILE, read_config
from autoloss_jax.search_rounds import SearchConfig


@dataclass(frozen=True)
class Tested:
    """The losses of Phase II.

    Attributes:
      finalists: whether those of this run's own search are tested.
      found: formulas that were given.
      hand_designed: names of LOSSES to compare with.
    """

    finalists: bool
    found: tuple[str, ...]
    hand_designed: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A command, complete.

    Attributes:
      out: the run folder.
      command: how to go on with it, to be pasted into a shell.
      dataset: all folds.
      fold: the flag: "all" or the number of the only fold.
      searched: the place of the fold whose training queries the search sees.
      tested: the places of the folds of Phase II.
      notes: what the log should say of the data.
    """

    out: Path
    command: str
    dataset: Dataset
    fold: str
    searched: int
    tested: tuple[int, ...]
    search: SearchConfig
    effectiveness: EffectivenessConfig
    losses: Tested
    notes: tuple[str, ...]
    placement: str  # of the data; no part of the configuration, for it changes no result

    @property
    def search_fold(self) -> Fold:
        return self.dataset.folds[self.searched]

    @property
    def test_data(self) -> Dataset:
        folds = tuple(self.dataset.folds[place] for place in self.tested)
        return replace(self.dataset, folds=folds)

    def described(self) -> dict[str, Any]:
        """The configuration of the run folder: what a resumed run must share, and no more."""
        data = {"sha256": self.dataset.sha256, "fold": self.fold}
        return {
            "data": data | {"tested_folds": [place + 1 for place in self.tested]},
            "search": asdict(self.search),
            "effectiveness": asdict(self.effectiveness),
            "losses": asdict(self.losses),
        }

    def about(self) -> dict[str, Any]:
        """What config.json says besides."""
        machine = {"devices": jax.device_count(), "processes": jax.process_count()}
        return {"command": self.command, "data_name": self.dataset.name, "machine": machine}


def make_plan(
    command: str, arguments: Sequence[str], values: flags.FlagValues, own_finalists: bool = True
) -> Plan:
    """Reads the data and checks every setting. Raises AutolossError; writes to the cache only.

    `own_finalists`: whether the run folder has, or will have, finalists to test (`has_finalists`).
    """
    search, effectiveness = search_config(values), effectiveness_config(values)
    if search.reference not in LOSSES:  # however the formula is spelled
        search = replace(search, reference=str(resolve_loss(search.reference)))
    if command == "search" and values.loss + [*filter(None, [values["from"].value])]:
        raise AutolossError("--loss and --from are for `autoloss test` and `autoloss run`")
    losses = _losses(values, own_finalists)
    try:
        check_truncation([parse(text) for text in losses.found], effectiveness.truncation_level)
    except AutolossError as error:
        raise AutolossError(f"--{error}") from error
    with held_back() as notes:
        dataset = load_data(values.data, values)
    searched, tested = _choose_folds(dataset, values, losses, notes)
    _check_queries(dataset, searched, tested, search)
    out = Path(values.out) if values.out else _new_folder(dataset.name)
    line = ["autoloss", command, *arguments] + ([] if values.out else ["--out", str(out)])
    return Plan(
        out, shlex.join(line), dataset, values.fold, searched, tested, search, effectiveness,
        losses, tuple(notes), values.data_placement,
    )  # fmt: skip


def load_data(source: str | None, values: flags.FlagValues) -> Dataset:
    """What --data names, or the synthetic queries; parsed text is kept where the flags say."""
    if not source:
        return synthetic()
    folder = values.data_cache
    if folder is None:
        cache: Path | None = user_cache() / "data"
    else:
        cache = None if folder == "none" else Path(folder)
    return load_dataset(source, cache=cache, verify=values.verify_data)


def _losses(values: flags.FlagValues, own_finalists: bool) -> Tested:
    """The losses to test; a given one that has a name counts as hand-designed."""
    names = _hand_designed(values.hand_designed)
    names += [_usual_name(text) for text in values.loss if text in LOSSES]
    found = [str(_given_loss(text)) for text in values.loss if text not in LOSSES]
    if values["from"].value:
        found += finalists_of(values["from"].value)
    if not names:
        raise AutolossError(
            "--hand_designed none: expected at least one hand-designed loss to compare with; give "
            "one by --loss"
        )
    return Tested(own_finalists, tuple(dict.fromkeys(found)), tuple(dict.fromkeys(names)))


def _given_loss(text: str) -> Expression:
    """The loss that --loss spells out."""
    try:
        return resolve_loss(text)
    except AutolossError as error:
        raise AutolossError(f"--loss: {error}") from error


def _hand_designed(text: str) -> list[str]:
    if text in ("all", "none"):
        return list(HAND_DESIGNED) if text == "all" else []
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in LOSSES:
            raise AutolossError(
                f"--hand_designed: unknown loss '{name}', expected all, none, or some of "
                f"{','.join(LOSSES)}"
            )
    return [_usual_name(name) for name in names]


def _usual_name(name: str) -> str:
    return ALIASES.get(name, name)


def finalists_of(folder: str) -> list[str]:
    """The formulas of a finished search. Raises AutolossError if there are none."""
    finalists = read_run(folder).finalists
    if finalists is None:
        raise AutolossError(f"--from {folder}: its search is not finished; expected finalists.json")
    return [str(loss) for loss in stored_losses(Path(folder) / FINALISTS_FILE, finalists)]


def has_finalists(command: str, out: str | None) -> bool:
    """Whether the run folder has finalists of its own; `test` may go on where `search` ended."""
    if command != "test":
        return True
    if out is None or not (Path(out) / CONFIG_FILE).exists():
        return False
    stored = read_config(Path(out))
    try:
        own = bool(stored["config"]["losses"]["finalists"])
    except (KeyError, TypeError):
        return False  # another run's folder, which opening it refuses
    if own and not (Path(out) / FINALISTS_FILE).exists():
        raise AutolossError(
            f"{out}: its search is not finished, so there are no finalists to test; go on with the "
            "command that began it"
        )
    return own


def _choose_folds(
    dataset: Dataset, values: flags.FlagValues, losses: Tested, notes: list[str]
) -> tuple[int, tuple[int, ...]]:
    """The places of the fold to search on, and of those to test on."""
    count = len(dataset.folds)
    only = _fold_place(values.fold, count)
    searched = {only or 0} if losses.finalists else set()
    if values["from"].value:
        searched |= _searched_there(values["from"].value, dataset)
    clean = set(range(count))
    for place in searched:
        clean &= _clean_places(dataset, place)
    if only is not None:
        if only not in clean:
            notes.append(
                f"the search of {values['from'].value} has seen test queries of "
                f"{dataset.folds[only].name}: the figures of its finalists will be too good"
            )
        return only, (only,)
    if not clean:
        raise AutolossError(
            "no fold is left to test on: the searches have seen test queries of each; expected "
            "the finalists of one search, or --fold with a number"
        )
    if len(clean) < count:
        left = ", ".join(fold.name for k, fold in enumerate(dataset.folds) if k not in clean)
        notes.append(
            f"{count - len(clean)} of {count} folds ({left}) are left out of the test: their test "
            "queries train or validate in the fold that the losses were searched in"
        )
    return 0, tuple(sorted(clean))


def _clean_places(dataset: Dataset, searched: int) -> set[int]:
    """The folds whose test queries a search in that fold has not seen."""
    others = [fold for k, fold in enumerate(dataset.folds) if k != searched]
    clean = clean_folds(replace(dataset, folds=(dataset.folds[searched], *others)))
    names = {fold.name for fold in clean.folds}
    return {k for k, fold in enumerate(dataset.folds) if fold.name in names}


def _fold_place(text: str, count: int) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= count:
        raise AutolossError(f"--fold {text}: expected all, or a number from 1 to {count}")
    return int(text) - 1


def _searched_there(folder: str, dataset: Dataset) -> set[int]:
    """The fold that another run searched on, as far as it had the same data."""
    config = read_run(folder).config.get("config") or {}
    data = config.get("data") or {}
    if data.get("sha256") != dataset.sha256:
        logging.warning(
            "%s was searched on other data than given here: make sure that it holds none of the "
            "test queries", folder,
        )  # fmt: skip
        return set()
    return {_fold_place(str(data.get("fold", "all")), len(dataset.folds)) or 0}


def _check_queries(
    dataset: Dataset, searched: int, tested: tuple[int, ...], search: SearchConfig
) -> None:
    """Raises AutolossError for queries that nothing could be learned or told from."""
    assign_folds(dataset.folds[searched].train, search.proxy.folds, search.seed)
    for place in tested:
        fold = dataset.folds[place]
        for role in ("train", "validation", "test"):
            if not getattr(fold, role).has_relevant().any():
                raise AutolossError(
                    f"{fold.name}: no {role} query has a relevant document (a label above 0); "
                    "expected at least one"
                )


def _new_folder(name: str) -> Path:
    time = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{name.replace('/', '-')}-{time}"
