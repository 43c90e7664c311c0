"""The best found loss and the one to beat, query by query."""

from collections.abc import Sequence

import numpy as np

from autoloss_jax.report import markup, wording
from autoloss_jax.report.figures.queries import differences_svg
from autoloss_jax.report.markup import Column, Html, Row, Section
from autoloss_jax.report.reading import PerQuery, QueryDifferences, RunFiles, is_number
from autoloss_jax.report.wording import number
from autoloss_jax.statistics import WinTieLoss, win_tie_loss

EXTREMES = 5
_TITLE, _ANCHOR = "Query by query", "queries"


def _differences(run: RunFiles) -> QueryDifferences | None:
    """The best found loss less the one to beat."""
    row, best = run.best_row, run.best_hand_designed
    if run.per_query is None or row is None or best is None:
        return None
    return run.per_query.difference(str(row.get("name")), best)


def best_tally(run: RunFiles) -> WinTieLoss | None:
    """On how many queries the best found loss is better, the same and worse; None if unknown."""
    differences = _differences(run)
    if differences is not None:
        return win_tie_loss(differences.values)
    counts = [(run.verdict_row or {}).get(key) for key in ("wins", "ties", "losses")]
    return WinTieLoss(*map(int, counts)) if all(map(is_number, counts)) else None  # type: ignore


def per_query(run: RunFiles) -> Section:
    """Sorted differences, how many are gains, and the queries that gain and lose most."""
    differences = _differences(run)
    if differences is None or run.per_query is None or run.best_row is None:
        return Section(_TITLE, _ANCHOR, *_missing(run))
    name, best = str(run.best_row.get("name")), str(run.best_hand_designed)
    wins, ties, losses = win_tie_loss(differences.values)
    sentence = (
        f"Of {len(differences.values):,} test queries with a relevant document, {name} ranks "
        f"{wins:,} better than {best}, {ties:,} the same and {losses:,} worse; on average "
        f"{number(float(differences.values.mean()), signed=True)} {run.metric_title}."
    )
    svg = differences_svg(
        differences.values,
        f"{run.metric_title} difference",
        f"Difference of {name} to {best} on every test query, sorted",
    )
    caption = (
        f"{name} less {best} on each test query, the mean over seeds. Bars above 0 are queries "
        "that the found loss ranks better; the dotted line is their mean."
    )
    note = wording.empty_convention(run.effectiveness or {})
    return Section(
        _TITLE,
        _ANCHOR,
        markup.paragraph(sentence),
        markup.figure(Html(svg), caption),
        markup.details(
            "The queries that gain and lose most", _extremes(run.per_query, differences, name, best)
        ),
        markup.paragraph(note, "note"),
    )


def _missing(run: RunFiles) -> list[Html]:
    if run.effectiveness is None:
        return [markup.missing("The losses have not been tested yet.")]
    if run.best_row is None:
        return [markup.missing("No found loss was tested.")]
    counts = best_tally(run)
    known = []
    if counts:
        known.append(markup.paragraph(
            f"The best found loss ranks {counts.wins:,} queries better than "
            f"{run.best_hand_designed}, {counts.ties:,} the same and {counts.losses:,} worse."
        ))  # fmt: skip
    note = (
        "This run recorded no figures of single queries: there is no per_query.npz of its losses."
    )
    return [*known, markup.missing(note)]


def _extremes(per_query: PerQuery, differences: QueryDifferences, name: str, best: str) -> Html:
    """The queries of the largest differences either way, with both losses' figures."""
    order = np.argsort(-differences.values, kind="stable")
    gains = [k for k in order[:EXTREMES] if differences.values[k] > 0]
    losses = [k for k in order[::-1][:EXTREMES] if differences.values[k] < 0]
    places = {query: k for k, query in enumerate(per_query.query_ids)}
    found, known = (per_query.values[per_query.names.index(n)] for n in (name, best))

    def rows(chosen: Sequence[int]) -> list[Row]:
        ids = [differences.query_ids[k] for k in chosen]
        return [
            Row((query, number(found[places[query]]), number(known[places[query]]),
                 number(differences.values[k], signed=True)))
            for k, query in zip(chosen, ids, strict=True)
        ]  # fmt: skip

    columns = (
        Column("query", "name"),
        Column(name, "number"),
        Column(best, "number"),
        Column("difference", "number"),
    )
    return markup.table(columns, [*rows(gains), *rows(list(reversed(losses)))], "cards")
