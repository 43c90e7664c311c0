"""The flags of the command line, most of them read off the configuration dataclasses."""

import inspect
import math
import re
import textwrap
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from typing import Any, NamedTuple

from absl import flags

from autoloss_jax.data import TRANSFORMS
from autoloss_jax.effectiveness import EffectivenessConfig
from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.batched import INTERPRETERS
from autoloss_jax.export import TARGETS
from autoloss_jax.feed import PLACEMENTS
from autoloss_jax.metrics import EMPTY_CONVENTIONS
from autoloss_jax.models import MODELS
from autoloss_jax.proposers import LEAST_TOKENS, PROPOSERS
from autoloss_jax.proxy import ProxyConfig
from autoloss_jax.search_rounds import SCHEDULES, SearchConfig

WORKING_COMMANDS = ("run", "search", "test")

_DATA = (
    "LETOR text: a folder of Fold1, Fold2, ...; one such folder; or three files "
    "train,validation,test joined by commas. Or a name of TensorFlow Datasets, such as "
    "tfds:mslr_web/10k_fold1"
)
_QUOTE = "'"  # which absl puts around defaults

_CHOICES = {
    "proposer": PROPOSERS,
    "schedule": SCHEDULES,
    "model": MODELS,
    "features": TRANSFORMS,
    "empty": EMPTY_CONVENTIONS,
}
_LEAST = {
    "seed": 0,
    "max_buckets": 0,
    "truncation_level": 0,
    "tuning_rounds": 0,
    "max_tokens": LEAST_TOKENS,
    "folds": 2,
}
# Settings that the proxy runs and the test share have one flag, without a prefix.
_CLEARER = {
    "proposer": "what proposes the losses: chance, evolution, an LSTM and policy gradient, or both",
    "model": "the ranker that is trained",
    "seed": "of everything random but the synthetic data",
    "max_tokens": "tokens of the longest loss",
    "fresh_seeds": "on how many seeds they are evaluated again",
    "finalists": "how many of them are tested in Phase II",
    "proxy_keep": "the share of candidates that goes on to the next rung",
    "metric_cutoff": "the k of the NDCG@k that rewards, validates and compares",
    "max_buckets": "the most length buckets that lists are padded to; 0: 3, or with many documents "
    "so many more that padding wastes less than 15 %",
    "truncation_level": "train both phases with those pairs only of which a document is among this "
    "many first by current scores, as lambdarank_truncation_level of LightGBM; 0: all pairs. It "
    "changes every loss with a sum over pairs: figures are of truncated losses. XLA runs them on a "
    "GPU too; losses that fit no batched program, and --interpreter kernel, are refused",
    "lambdamart": "train LightGBM's LambdaMART besides, as a reference; needs the extra gbdt",
    "dump_scores": "write every model's scores of the test documents to the run folder's "
    "test_scores.npz, so that they can be evaluated elsewhere",
}
"""Better texts than an attribute's own, which leans on its neighbours."""
_WITHOUT_PREFIX = (
    "model", "features", "seed", "metric_cutoff", "max_buckets", "empty", "lambdamart",
    "dump_scores", "truncation_level",
)  # fmt: skip


class _Group(NamedTuple):
    title: str
    config: type
    prefix: str


_GROUPS = (
    _Group("Phase I, the search", SearchConfig, ""),
    _Group("Proxy runs of Phase I", ProxyConfig, "proxy_"),
    _Group("Phase II, the test", EffectivenessConfig, "test_"),
)


class _Number(flags.ArgumentParser):
    """A finite number of one type."""

    def __init__(self, kind: type, least: int | None = None) -> None:
        super().__init__()
        self._kind, self._least = kind, least

    def parse(self, argument: Any) -> Any:
        what = "a whole number" if self._kind is int else "a number"
        try:
            value = self._kind(argument)
        except ValueError:
            raise ValueError(f"expected {what}") from None
        if not math.isfinite(value):
            raise ValueError(f"expected {what} that is finite")
        if self._least is not None and value < self._least:
            raise ValueError(f"expected {what} of at least {self._least}")
        return value

    def flag_type(self) -> str:
        return self._kind.__name__


class _Numbers(_Number):
    """Finite numbers separated by commas, as a tuple."""

    def parse(self, argument: Any) -> Any:
        parts = argument.split(",") if isinstance(argument, str) else argument
        return tuple(super(_Numbers, self).parse(part) for part in parts)

    def flag_type(self) -> str:
        return f"{self._kind.__name__},..."


class _NumberText(flags.ArgumentSerializer):
    """What a parser above would read."""

    def serialize(self, value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


class Section(NamedTuple):
    """Flags that are explained together."""

    title: str
    names: list[str]


class Description(NamedTuple):
    """What is said of a flag."""

    values: str  # its choices or type; "" for one that is on or off
    default: str  # "" if there is none, or if the text says it
    text: str


class CommandFlags:
    """The flags of one command: `values` to parse with, `sections` to explain."""

    def __init__(self, command: str) -> None:
        self.values = flags.FlagValues()
        self.values.set_gnu_getopt(True)  # a folder may stand before flags
        self.sections: list[Section] = []
        self._texts: dict[str, str] = {}  # absl adds remarks of its own to a flag's help
        if command in WORKING_COMMANDS:
            self._define_data()
            for group in _GROUPS:
                self._define_group(group)
            self._define_machine()
        elif command == "report":
            self._section(
                "Flags",
                self._text(
                    "out",
                    None,
                    "the file to write; by default report.html in DIR, or, for several, "
                    "comparison.html in the current folder. Without DIR: the run folder",
                ),
            )
        elif command == "data":
            self._section(
                "Flags",
                self._text("data", None, f"{_DATA}, instead of FOLDER"),
                *self._define_cache(),
                self._number(
                    "max_buckets", SearchConfig().proxy.max_buckets,
                    _Number(int, _LEAST.get("max_buckets", 1)),
                    "length buckets that the cost of padding is for",
                ),
            )  # fmt: skip
        elif command == "explain":
            self._section(
                "Flags",
                self._text("loss", None, "a name of `autoloss losses`, or a formula, as LOSS is"),
                self._text("from", None, "a run folder, whose best found loss is explained"),
            )
        elif command == "export":
            self._section(
                "Flags",
                self._text("loss", None, "a name of `autoloss losses`, or a formula"),
                self._text("from", None, "a run folder, whose best found loss is exported"),
                self._enum("target", "jax", TARGETS, "what the source is for"),
            )

    def _section(self, title: str, *names: str) -> None:
        self.sections.append(Section(title, list(names)))

    def _text(self, name: str, default: str | None, text: str) -> str:
        flags.DEFINE_string(name, default, text, flag_values=self.values)
        return self._explained(name, text)

    def _enum(self, name: str, default: str, choices: Iterable[str], text: str) -> str:
        flags.DEFINE_enum(name, default, list(choices), text, flag_values=self.values)
        return self._explained(name, re.sub(r",? ?\ba name of [A-Z]+", "", text))

    def _bool(self, name: str, text: str) -> str:
        flags.DEFINE_bool(name, False, text, flag_values=self.values)
        return self._explained(name, text)

    def _number(self, name: str, default: Any, parser: _Number, text: str) -> str:
        flags.DEFINE(parser, name, default, text, self.values, _NumberText())
        return self._explained(name, text)

    def _explained(self, name: str, text: str) -> str:
        self._texts[name] = text
        return name

    def _define_data(self) -> None:
        flags.DEFINE_multi_string("loss", [], "", flag_values=self.values)
        self._section(
            "Data and results",
            self._text(
                "data",
                None,
                f"{_DATA}. By default synthetic queries, always the same ones",
            ),
            *self._define_cache(),
            self._text(
                "fold",
                "all",
                "'all': the search sees the first fold; found losses are tested on every fold "
                "whose test queries it has not seen, given ones on all. A number: that fold alone",
            ),
            self._text(
                "out", None, "the run folder. By default a new one, runs/<data>-<date>-<time>"
            ),
            self._explained("loss", "a loss to test, a name or a formula; may be given again"),
            self._text("from", None, "a run folder, whose finalists are tested"),
            self._text(
                "hand_designed",
                "all",
                "the hand-designed losses to compare with: all, none, or names joined by commas",
            ),
        )

    def _define_cache(self) -> tuple[str, str]:
        return (
            self._text(
                "data_cache",
                None,
                "a folder that keeps parsed data, to be opened at once the next time, or 'none'. "
                "By default autoloss_jax/data in the user's cache folder",
            ),
            self._bool(
                "verify_data",
                "hash data files and what is cached of them, even if their times say that nothing "
                "has changed",
            ),
        )

    def _define_group(self, group: _Group) -> None:
        texts = _attribute_texts(group.config)
        names = []
        for field in fields(group.config):
            name = flag_name(field.name, group.prefix)
            if name not in self.values and field.default is not MISSING:
                self._define_field(name, field, _CLEARER.get(name) or texts.get(field.name, ""))
                names.append(name)
        self._section(group.title, *names)

    def _define_field(self, name: str, field: Field, text: str) -> None:
        default: Any = field.default
        if field.name in _CHOICES:
            self._enum(name, default, _CHOICES[field.name], text)
        elif isinstance(default, bool):
            self._bool(name, text)
        elif isinstance(default, tuple):
            self._number(name, default, _Numbers(type(default[0])), text)
        elif isinstance(default, str):
            self._text(name, default, text)
        else:
            least = _LEAST.get(field.name, 1) if isinstance(default, int) else None
            self._number(name, default, _Number(type(default), least), text)

    def _define_machine(self) -> None:
        self._section(
            "Machine",
            self._bool(
                "tensorboard",
                "write scalars for TensorBoard to the run folder's metrics/; needs the extra tb",
            ),
            self._number(
                "devices",
                None,
                _Number(int, 1),
                "CPU devices that candidates are spread over; by default one a core. Accelerators "
                "are all used in any case",
            ),
            self._enum(
                "data_placement",
                "auto",
                PLACEMENTS,
                "where the training reads its data: resident on the devices, or streamed to them "
                "from the host's memory, to the same result; auto: resident where it fits",
            ),
            self._enum(
                "interpreter",
                "auto",
                INTERPRETERS,
                "what runs the losses of candidates: XLA, or one GPU kernel, which without a GPU "
                "is interpreted, slowly. 'auto' takes the kernel on a GPU on which it works",
            ),
            self._bool(
                "profile",
                "print where the time of the search goes, and write it to profile.json",
            ),
            self._text(
                "compilation_cache",
                None,
                "a folder that keeps compiled programs, or 'none'. By default autoloss_jax in the "
                "user's cache folder. Whoever can write to it can run code here",
            ),
        )
        self._section(
            "Several processes. Slurm, Open MPI and TPU pods need none of these flags",
            self._text(
                "coordinator_address", None, "host:port of process 0, the same in all of them"
            ),
            self._number("num_processes", None, _Number(int, 1), "how many there are"),
            self._number(
                "process_id",
                None,
                _Number(int, 0),
                "which one this is, counted from 0; process 0 writes the run folder and prints",
            ),
        )

    def parse(self, arguments: list[str]) -> list[str]:
        """Sets the values and returns what is no flag.

        Raises AutolossError for an unknown flag or a value out of range.
        """
        try:
            return self.values(["autoloss", *arguments])[1:]
        except flags.Error as error:
            raise AutolossError(_plain(error)) from error

    def explain(self) -> str:
        """All flags with their defaults, section by section."""
        return "\n\n".join(
            "\n".join([f"{section.title}:", *(self._explain(name) for name in section.names)])
            for section in self.sections
        )

    def _explain(self, name: str) -> str:
        flag = self.describe(name)
        head = f"  --{name} {flag.values}".rstrip()
        body = flag.text + (f" (default {flag.default})" if flag.default else "")
        indent = " " * 6
        wrapped = textwrap.fill(body, 92, initial_indent=indent, subsequent_indent=indent)
        return f"{head}\n{wrapped}"

    def describe(self, name: str) -> Description:
        """A flag in words."""
        flag = self.values[name]
        choices = getattr(flag.parser, "enum_values", None)
        values = "|".join(choices) if choices else flag.parser.flag_type().upper()
        default = "" if flag.boolean or name == "loss" else (flag.default_as_str or "")
        return Description(
            "" if flag.boolean else values,
            default.strip(_QUOTE),
            self._texts[name].rstrip(".").strip(),
        )


def flag_name(field: str, prefix: str) -> str:
    """The flag of a configuration's field."""
    return field if field in _WITHOUT_PREFIX else prefix + field


def search_config(values: flags.FlagValues) -> SearchConfig:
    """The settings of Phase I. Raises AutolossError if one is out of range."""
    proxy = ProxyConfig(**_given(ProxyConfig, "proxy_", values))
    config = SearchConfig(proxy=proxy, **_given(SearchConfig, "", values))
    _check_flags(proxy, "proxy_")  # first, for the other check includes it
    _check_flags(config, "")
    return config


def effectiveness_config(values: flags.FlagValues) -> EffectivenessConfig:
    """The settings of Phase II. Raises AutolossError if one is out of range."""
    config = EffectivenessConfig(**_given(EffectivenessConfig, "test_", values))
    _check_flags(config, "test_")
    return config


def _given(kind: type, prefix: str, values: flags.FlagValues) -> dict[str, Any]:
    return {
        field.name: values[flag_name(field.name, prefix)].value
        for field in fields(kind)
        if field.default is not MISSING
    }


def _check_flags(config: Any, prefix: str) -> None:
    """Runs the configuration's own check, in which a setting goes by its flag's name."""
    try:
        config.check()
    except AutolossError as error:
        names = {field.name for field in fields(config)}
        word, space, rest = str(error).partition(" ")
        shown = f"--{flag_name(word, prefix)}" if word in names else word
        raise AutolossError(shown + space + rest) from error


def _attribute_texts(kind: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each attribute."""
    _, _, text = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    entries = re.split(r"^  (\w+): ", text, flags=re.MULTILINE)[1:]
    return {
        name: " ".join(body.split()) for name, body in zip(entries[::2], entries[1::2], strict=True)
    }


def _plain(error: flags.Error) -> str:
    """absl's message as one short line."""
    text = " ".join(str(error).split())
    text = re.sub(r"\('([^']*)', '[^']*'\)", r"\1", text)
    return re.sub(
        r"value should be one of <(.*)>", lambda m: f"expected one of {_listed(m[1])}", text
    )


def _listed(choices: str) -> str:
    return ", ".join(choices.split("|"))
