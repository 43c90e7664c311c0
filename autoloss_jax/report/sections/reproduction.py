"""What a run cost, and what it takes to do it again."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from autoloss_jax.report import markup, wording
from autoloss_jax.report.markup import Column, Html, Row, Section
from autoloss_jax.report.reading import RunFiles, is_number
from autoloss_jax.report.wording import NOTHING, number


def cost(run: RunFiles) -> Section:
    """Seconds, candidates an hour and the device."""
    facts = [("device", wording.device(run.config) or "not recorded", "")]
    if run.seconds:
        facts.append(
            ("whole run", wording.duration(run.seconds), "by the times in run.log, without pauses")
        )
    seconds = [r["seconds"] for r in run.ledger if is_number(r.get("seconds"))]
    trained = [r for r in run.ledger if r.get("status") in ("trained", "failed")]
    total = sum(seconds)
    if trained and total > 0:
        facts += [
            ("search rounds", wording.duration(total), "compilation included"),
            ("a candidate", f"{total / len(trained):.2f} s", f"mean of {len(trained):,} trained"),
            ("candidates an hour", f"{3600 * len(trained) / total:,.0f}", ""),
        ]
    trainings = _trainings(run)
    if trainings:
        facts.append(("trainings in the test", f"{trainings[0]:,}", trainings[1]))
    return Section("What it cost", "cost", markup.facts(facts, "list"))


def _trainings(run: RunFiles) -> tuple[int, str] | None:
    """How many models the test trained, and as what product."""
    content = run.effectiveness or {}
    rates = run.setting("effectiveness", "learning_rates")
    seeds, folds = content.get("seeds"), content.get("folds")
    if not (is_number(seeds) and isinstance(rates, list) and isinstance(folds, list)):
        return None
    losses = sum(row.get("kind") in ("found", "hand_designed") for row in run.rows)
    failed = content.get("failed")
    losses += len(failed) if isinstance(failed, list) else 0
    product = f"{losses} losses \u00d7 {len(rates)} rates \u00d7 {seeds} seeds"
    if len(folds) > 1:
        product += f" \u00d7 {len(folds)} folds"
    return losses * len(rates) * int(seeds) * len(folds), product


def reproduction(run: RunFiles) -> Section:
    """The command, the data's hash, the seeds, versions and every setting."""
    contents = []
    command = command_of(run)
    if command:
        contents += [
            markup.paragraph("The same command, data, versions and machine give the same result:"),
            markup.preformatted(command),
        ]
    contents.append(markup.facts(_facts(run), "list"))
    contents.append(markup.details("Every setting", _settings(run.config.get("config", {}))))
    contents.append(markup.details("Environment", _settings(run.config.get("fingerprint", {}))))
    resumed = run.config.get("resumed_with", [])
    for place, environment in enumerate(resumed if isinstance(resumed, list) else [], start=1):
        contents.append(
            markup.details(f"Environment after resuming, {place}", _settings(environment))
        )
    return Section("To reproduce it", "reproduce", *contents)


def command_of(run: RunFiles) -> str | None:
    """The command that began a run, a line for each flag; None if it is not recorded."""
    command = run.config.get("command") or run.setting("command")
    if not command:
        return None
    try:
        words = list(map(str, command)) if isinstance(command, list) else shlex.split(str(command))
    except ValueError:  # no closing quotation
        return str(command)
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    return " \\\n    ".join(shlex.join(line) for line in lines)


def _facts(run: RunFiles) -> list[tuple[str, str, str]]:
    fingerprint = run.config.get("fingerprint")
    versions = fingerprint.get("versions") if isinstance(fingerprint, Mapping) else None
    versions = versions if isinstance(versions, Mapping) else {}
    folds = (run.effectiveness or {}).get("folds")
    facts = [
        ("data", str(run.config.get("data_name") or "not recorded"), ""),
        ("its sha256", str(run.setting("data", "sha256") or NOTHING), ""),
        ("folds tested", ", ".join(map(str, folds)) if isinstance(folds, list) else NOTHING, ""),
    ]
    for label, keys in (
        ("seed of the search", ("search", "seed")),
        ("seed of the test", ("effectiveness", "seed")),
    ):
        facts.append((label, number(run.setting(*keys), 0), ""))
    facts += [
        ("versions", ", ".join(f"{k} {v}" for k, v in versions.items()) or NOTHING, ""),
        ("begun", str(run.config.get("created", "not recorded")), ""),
    ]
    return facts


def _settings(value: Any) -> Html:
    columns = (Column("setting"), Column("value"))
    rows = [Row((markup.code(key), markup.code(item))) for key, item in flatten(value).items()]
    return markup.table(columns, rows, "settings")


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested objects as one with dotted keys; every other value as JSON."""
    if not isinstance(value, dict) or not value:
        return {prefix: json.dumps(value)}
    flat: dict[str, str] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
