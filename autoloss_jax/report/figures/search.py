"""The course of a search, and what size its losses have."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from autoloss_jax.report.figures.charts import (
    Chart,
    Curve,
    Mark,
    Points,
    chart_svg,
    data_range,
    robust_range,
)

MAX_DOTS = 1500
_BLOCKS = 20


class SearchChart(NamedTuple):
    """A chart of candidates. svg: the chart. hidden: how many candidates lie below it."""

    svg: str
    hidden: int


def search_curve(trained: Sequence[Mapping[str, Any]], y_label: str) -> SearchChart:
    """The reward of every trained candidate, their mean by rounds and the best so far.

    trained: at least one ledger record with a `reward`.
    """
    rewards = [float(record["reward"]) for record in trained]
    y_range = robust_range(rewards)
    every = -(-len(rewards) // MAX_DOTS)
    chart = Chart(
        title="Reward over the candidates trained",
        x_label="candidates trained",
        y_label=y_label,
        curves=(Curve(_means(trained, rewards), "mean"), Curve(best_so_far(rewards), "best")),
        dots=list(enumerate(rewards, start=1))[::every],
        y_range=y_range,
    )
    return SearchChart(chart_svg(chart), sum(reward < y_range[0] for reward in rewards))


def best_so_far(rewards: Sequence[float]) -> Points:
    """The rising steps of the best reward over the number trained, from 1 on."""
    best = list(itertools.accumulate(rewards, max))
    steps: list[tuple[float, float]] = []
    for number, value in enumerate(best, start=1):
        if steps and value > steps[-1][1]:
            steps.append((number, steps[-1][1]))
        if not steps or value > steps[-1][1]:
            steps.append((number, value))
    return [*steps, (len(best), best[-1])]


def _means(trained: Sequence[Mapping[str, Any]], rewards: Sequence[float]) -> Points:
    """The mean reward of each round, or of about 20 blocks if there are few or very many rounds."""
    rounds = [record.get("round") for record in trained]
    starts = [k for k, mine in enumerate(rounds) if k == 0 or mine != rounds[k - 1]]
    if not 3 <= len(starts) <= 200:
        starts = list(range(0, len(rewards), max(1, len(rewards) // _BLOCKS)))
    ends = [*starts[1:], len(rewards)]
    return [
        ((start + 1 + end) / 2, float(np.mean(rewards[start:end])))
        for start, end in zip(starts, ends, strict=True)
    ]


class Sized(NamedTuple):
    """A loss with its size in nodes and what it reached."""

    size: int
    value: float
    name: str
    style: str = ""


def pareto_front(losses: Sequence[Sized]) -> list[Sized]:
    """The losses than which none is both as small and better, or smaller and as good.

    By ascending size, hence ascending value.

    >>> [loss.name for loss in pareto_front([Sized(3, 0.2, "b"), Sized(2, 0.1, "a"),
    ...                                      Sized(4, 0.2, "c")])]
    ['a', 'b']
    """
    front: list[Sized] = []
    for loss in sorted(losses, key=lambda x: (x.size, -x.value)):
        if not front or loss.value > front[-1].value:
            front.append(loss)
    return front


def front_chart(
    losses: Sequence[Sized], marks: Sequence[Mark], y_label: str, title: str
) -> SearchChart:
    """Size against value: `losses` as dots, their front as steps, `marks` as named points."""
    y_range = robust_range([loss.value for loss in losses])
    ends = [y for mark in marks for y in (mark.y, mark.low, mark.high) if y is not None]
    if ends:
        low, high = data_range(ends)
        y_range = (min(y_range[0], low), max(y_range[1], high))
    widest = max(loss.size for loss in losses)
    dots = list(dict.fromkeys((float(loss.size), loss.value) for loss in losses))
    chart = Chart(
        title=title,
        x_label="size of the formula (nodes)",
        y_label=y_label,
        curves=(Curve(_steps(pareto_front(losses), widest), "best"),),
        dots=[] if marks and len(marks) == len(losses) else dots[:: -(-len(dots) // MAX_DOTS)],
        marks=marks,
        y_range=y_range,
        zero_line=False,
    )
    return SearchChart(chart_svg(chart), sum(loss.value < y_range[0] for loss in losses))


def _steps(front: Sequence[Sized], widest: int) -> Points:
    points: list[tuple[float, float]] = []
    for loss in front:
        if points:
            points.append((loss.size, points[-1][1]))
        points.append((loss.size, loss.value))
    return [*points, (widest, points[-1][1])]
