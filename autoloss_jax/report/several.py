"""Several runs on one page: where they differ, and what each found."""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from autoloss_jax.errors import AutolossError
from autoloss_jax.report import markup, wording
from autoloss_jax.report.differences import Differences
from autoloss_jax.report.figures.charts import Chart, Curve, chart_svg, robust_range
from autoloss_jax.report.figures.search import best_so_far
from autoloss_jax.report.markup import Column, Html, Row, Section
from autoloss_jax.report.page import page
from autoloss_jax.report.reading import RunFiles, is_number
from autoloss_jax.report.sections.reproduction import command_of, flatten
from autoloss_jax.report.sections.verdict import HEADINGS, verdict_sentence
from autoloss_jax.report.wording import NOTHING, Outcome, number
from autoloss_jax.statistics import bootstrap_interval, randomisation_p_value

_STYLES = ("first", "second", "third", "fourth")


class NamedRun(NamedTuple):
    """A run and what it is called beside others."""

    label: str
    run: RunFiles


def several_html(runs: Sequence[RunFiles]) -> str:
    """The page that compares runs of the same data.

    Raises AutolossError for a folder that is given twice and for runs of other data.
    """
    named = _named(runs)
    _check_data(named)
    sections = [
        _side_by_side(named),
        _head_to_head(named),
        _settings(named),
        _curves(named),
        _searches(named),
        _commands(named),
    ]
    return page(f"autoloss_jax: {len(named)} runs compared", _opening(named), sections)


def _named(runs: Sequence[RunFiles]) -> list[NamedRun]:
    """Runs by their folder's name, or as they were given where two bear the same one."""
    paths = Counter(os.path.realpath(run.path) for run in runs)
    for run in runs:
        if paths[os.path.realpath(run.path)] > 1:
            raise AutolossError(f"{run.path} is given twice; expected different run folders")
    names = Counter(run.name for run in runs)
    return [NamedRun(run.name if names[run.name] == 1 else run.path, run) for run in runs]


def _data_of(run: RunFiles) -> str | None:
    sha256 = run.setting("data", "sha256")
    return None if sha256 is None else str(sha256)


def _check_data(named: Sequence[NamedRun]) -> None:
    known = [entry for entry in named if _data_of(entry.run) is not None]
    for entry in known[1:]:
        first = known[0]
        if _data_of(entry.run) != _data_of(first.run):
            raise AutolossError(
                "runs of different data cannot be compared, expected the same data in all: "
                f"{first.run.path} has {_described_data(first.run)}, "
                f"{entry.run.path} has {_described_data(entry.run)}"
            )


def _described_data(run: RunFiles) -> str:
    return f"{run.config.get('data_name', 'data')} (sha256 {str(_data_of(run))[:12]}\u2026)"


def _warnings(named: Sequence[NamedRun]) -> list[str]:
    """What keeps figures from being compared, a sentence each."""
    unknown = [entry.label for entry in named if _data_of(entry.run) is None]
    found = []
    if unknown:
        found.append(f"Not known to be of the same data: {', '.join(unknown)} record no data hash.")
    tested = [entry for entry in named if entry.run.effectiveness]
    for what, of in _CONDITIONS.items():
        values = {entry.label: of(entry.run) for entry in tested}
        if len(set(values.values())) > 1:
            listed = "; ".join(f"{label}: {value}" for label, value in values.items())
            found.append(f"Test figures do not compare, since {what} differs ({listed}).")
    searched = [entry for entry in named if entry.run.trained]
    if len({(entry.run.reference, _proxy(entry.run)) for entry in searched}) > 1:
        found.append(
            "Rewards do not compare, since the searches measured them differently (another "
            "reference, model, schedule or training of candidates)."
        )
    return found


_CONDITIONS: dict[str, Callable[[RunFiles], str]] = {
    "the metric": lambda run: run.metric,
    "the convention for queries without a relevant document": lambda run: str(
        (run.effectiveness or {}).get("empty")
    ),
    "the tested folds": lambda run: ", ".join(
        map(str, (run.effectiveness or {}).get("folds") or ["not recorded"])
    ),
}


def _proxy(run: RunFiles) -> str:
    keys = ("proxy", "model", "features", "schedule")
    return str([run.setting("search", key) for key in keys])


def _opening(named: Sequence[NamedRun]) -> Html:
    better = sum(wording.outcome(entry.run) is Outcome.BETTER for entry in named)
    tested = sum(entry.run.best_row is not None for entry in named)
    data = named[0].run.config.get("data_name")
    on = f" on {data}" if data else ""
    count = "none" if better == 0 else str(better)
    sentence = (
        f"{len(named)} runs{on}: {count} of the {tested} that tested a found loss showed it to be "
        "better than the hand-designed ones."
    )
    style = Outcome.BETTER.value if better else Outcome.NOT_SHOWN.value
    box = Html(f'<div class="verdict {style}">{markup.paragraph(sentence)}</div>')
    notes = [markup.paragraph(warning, "warning") for warning in _warnings(named)]
    verdicts = [
        (entry.label, HEADINGS[wording.outcome(entry.run)], verdict_sentence(entry.run))
        for entry in named
    ]
    return Html(box + "".join(notes) + markup.facts(verdicts, "list"))


def _side_by_side(named: Sequence[NamedRun]) -> Section:
    differences = Differences(e.run.verdict_row or {} for e in named)
    columns = (
        Column("run", "name"),
        Column("difference to the one to beat", "plot"),
        Column("difference", "number"),
        Column("p", "number"),
        Column("on test queries", "number"),
        Column("to beat", "number"),
    )
    body, found = [], []
    for entry in named:
        row, run = entry.run.verdict_row or {}, entry.run
        words = wording.interval(row.get("difference"), signed=True)
        plot = differences.plot(row, wording.style(row))
        best = run.best
        formula = markup.code(best.get("formula")) if best else NOTHING
        metric = f"{run.metric_title} {wording.interval((row.get('test') or {}).get(run.metric))}"
        to_beat = run.best_hand_designed or NOTHING
        body.append(Row((entry.label, plot, words, wording.p_value(row), metric, to_beat)))
        found.append(Row((entry.label, _size(run), _reward(run), formula)))
    body += differences.axis(len(columns))
    conventions = dict.fromkeys(
        wording.empty_convention(e.run.effectiveness) for e in named if e.run.effectiveness
    )
    note = (
        "Each run\u2019s best found loss, chosen by validation queries, against the hand-designed "
        "loss that validation chose in the same run. In brackets 95 % intervals; p is corrected "
        "within its run. "
    )
    losses = (
        Column("run", "name"),
        Column("size", "number"),
        Column("reward \u00b1 error", "number"),
        Column("best found loss", "formula"),
    )
    return Section(
        "What each run found",
        "found",
        markup.table(columns, body, "cards"),
        markup.paragraph(note + " ".join(conventions), "note"),
        markup.table(losses, found, "cards"),
        markup.paragraph("Rewards on fresh seeds after the search, with standard errors.", "note"),
    )


def _finalist(run: RunFiles) -> dict[str, Any]:
    """The best found loss among the finalists; empty if it is none of them."""
    formula = (run.best or {}).get("formula")
    finalists = (run.finalists or {}).get("finalists", ())
    return next((row for row in finalists if row.get("formula") == formula), {})


def _size(run: RunFiles) -> str:
    return number(_finalist(run).get("size"), 0)


def _reward(run: RunFiles) -> str:
    """The reward of the best found loss on fresh seeds."""
    row = _finalist(run)
    reward, error = number(row.get("reward"), signed=True), row.get("reward_se")
    return f"{reward} \u00b1 {number(error)}" if is_number(error) else reward


def _head_to_head(named: Sequence[NamedRun]) -> Section:
    """The runs' best found losses on the same test queries, against the first one's."""
    title, anchor = "Their best losses on the same queries", "head-to-head"
    known = [e for e in named if e.run.per_query and e.run.best_row]
    if len(known) < 2:
        note = (
            "Fewer than two of these runs recorded figures of single queries (per_query.npz) for a "
            "found loss."
        )
        return Section(title, anchor, markup.missing(note))
    first = known[0]
    columns = (
        Column("run", "name"),
        Column(f"difference to {first.label} [95 % interval]", "number"),
        Column("p", "number"),
        Column("queries", "number"),
    )
    body = []
    for entry in known[1:]:
        values = _paired(first.run, entry.run)
        if values is None:
            body.append(Row((entry.label, "tested on other queries", NOTHING, NOTHING)))
            continue
        mean, low, high = bootstrap_interval(values)
        shown = f"{number(mean, signed=True)} [{number(low, signed=True)}, "
        shown += f"{number(high, signed=True)}]"
        p_value = wording.probability(randomisation_p_value(values))
        body.append(Row((entry.label, shown, p_value, f"{len(values):,}")))
    conventions = dict.fromkeys(wording.empty_convention(e.run.effectiveness or {}) for e in known)
    note = (
        "Paired by query, by a randomisation test; p is not corrected for the number of runs. A "
        "run that is chosen by this table is chosen by its test queries, which flatters it. "
    )
    return Section(
        title,
        anchor,
        markup.table(columns, body, "cards"),
        markup.paragraph(note + " ".join(conventions), "note"),
    )


def _paired(first: RunFiles, other: RunFiles) -> np.ndarray | None:
    """f64[queries]: the other's best found loss less the first one's; None on other queries."""
    columns = []
    for run in (first, other):
        assert run.per_query is not None and run.best_row is not None
        name = str(run.best_row.get("name"))
        if name not in run.per_query.names or run.metric != first.metric:
            return None
        values = run.per_query.values[run.per_query.names.index(name)]
        columns.append(dict(zip(run.per_query.query_ids, values.tolist(), strict=True)))
    if columns[0].keys() != columns[1].keys():
        return None
    differences = np.array([columns[1][query] - value for query, value in columns[0].items()])
    defined = differences[np.isfinite(differences)]
    return defined if len(defined) else None


def _settings(named: Sequence[NamedRun]) -> Section:
    title, anchor = "Settings that differ", "settings"
    flat = [
        flatten({"config": dict(e.run.settings) | {"command": None},
                 "environment": e.run.config.get("fingerprint", {})})
        for e in named
    ]  # fmt: skip
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = []
    for key in keys:
        values = [settings.get(key, "absent") for settings in flat]
        if len(set(values)) > 1:
            shown = key.removeprefix("config.")
            rows.append(Row((markup.code(shown), *map(markup.code, values))))
    if not rows:
        return Section(title, anchor, markup.paragraph("All settings and environments are equal."))
    columns = (Column("setting", "name"), *(Column(entry.label) for entry in named))
    return Section(title, anchor, markup.table(columns, rows, "cards"))


def _curves(named: Sequence[NamedRun]) -> Section:
    """The best reward so far of every search."""
    title, anchor = "The searches", "curves"
    searched = [entry for entry in named if entry.run.trained]
    if not searched:
        return Section(title, anchor, markup.missing("None of these runs has trained a candidate."))
    styles = [_STYLES[k % 4] + (" faint" if k // 4 % 2 else "") for k in range(len(searched))]
    rewards = [[float(r["reward"]) for r in entry.run.trained] for entry in searched]
    curves = [
        Curve(best_so_far(of_run), style) for of_run, style in zip(rewards, styles, strict=True)
    ]
    # The best after each candidate: a range of these leaves out how the searches began.
    heights = [best for of_run in rewards for best in itertools.accumulate(of_run, max)]
    references = {entry.run.reference for entry in searched}
    reference = references.pop() if len(references) == 1 else None
    chart = Chart(
        title="Best reward so far over the candidates trained, by run",
        x_label="candidates trained",
        y_label="best reward so far",
        curves=curves,
        y_range=robust_range(heights),
    )
    caption = "The best reward so far, as selected: the best of many is always too high."
    if reference:
        caption += f" 0 is {reference}."
    lines = markup.legend(list(zip(styles, (e.label for e in searched), strict=True)))
    return Section(title, anchor, markup.figure(Html(lines + chart_svg(chart)), caption))


def _searches(named: Sequence[NamedRun]) -> Section:
    columns = (
        Column("run", "name"),
        *(Column(status, "number") for status in ("sampled", *wording.STATUSES)),
        Column("time", "number"),
        Column("device", "number"),
    )
    body = []
    for entry in named:
        counts = wording.status_counts(entry.run.ledger)
        figures = [len(entry.run.ledger), *(counts[status] for status in wording.STATUSES)]
        seconds = entry.run.seconds
        time = NOTHING if seconds is None else wording.duration(seconds)
        device = wording.device(entry.run.config) or NOTHING
        body.append(Row((entry.label, *(f"{count:,}" for count in figures), time, Html(
            f'<span class="wrap">{markup.text(device)}</span>'))))  # fmt: skip
    return Section("What they tried and cost", "cost", markup.table(columns, body, "cards"))


def _commands(named: Sequence[NamedRun]) -> Section:
    contents = []
    for entry in named:
        command = command_of(entry.run)
        contents.append(Html(f"<h3>{markup.text(entry.label)}</h3>"))
        contents.append(
            markup.preformatted(command) if command else markup.missing("Not recorded.")
        )
    return Section("To reproduce them", "reproduce", *contents)
