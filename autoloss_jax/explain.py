"""What a loss does, measured: `explain` says how its gradient behaves and which losses it is like.

Everything is measured in double precision on the same probes: 64 lists of 6 to 12 documents, with
the labels of synthetic queries and standard normal scores, and lists of two documents. Nothing is
proved: a property that holds on every probe is said to hold.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from autoloss_jax.data import synthetic
from autoloss_jax.export import export_latex
from autoloss_jax.export.evaluation import query_derivatives
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.operators import REDUCTIONS
from autoloss_jax.language.parsing import as_loss
from autoloss_jax.language.simplification import simplify
from autoloss_jax.losses import HAND_DESIGNED, LOSSES, resolve_loss
from autoloss_jax.screening import SAME_DIRECTION, make_probe

STATES = 4
"""Draws of scores for every list of the screening probe."""
SEGMENTS = 8
"""Segments between two score states of every list, for convexity."""
GROWTH = (1.0, 8.0, 16.0)
"""What scores are multiplied by to see how the gradient grows."""
DIFFERENCES = (-2.0, 0.0, 2.0)
"""Score differences of two documents: in the wrong order, tied, in the right order."""
_LABEL_PAIRS = ((1, 0), (2, 1), (2, 0), (4, 0))
_RANKS = ((1, 1), (2, 3), (4, 6), (7, 12))
_NOISE = 1e-12  # what is left of a gradient that cancels
_EXACT = 1e-6  # relative differences up to this are rounding
_NEAREST = 3
_SHIFT = 3.0
# Other labels of the same order, 0 to 4: one keeps the 0 that marks irrelevant documents.
_RELABELLED = {
    "order and zero": np.array([0.0, 1.5, 1.8, 5.0, 6.5]),
    "order": np.array([0.5, 1.0, 3.0, 3.5, 7.0]),
}


class Neighbour(NamedTuple):
    """A hand-designed loss and the cosine between its gradient and that of the loss explained."""

    name: str
    cosine: float


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; `str` gives it as a short text.

    Attributes:
      formula: the canonical form.
      name: the hand-designed loss whose gradient points the same way on every probe, if any.
      types: the free indices of what is reduced, step by step, down to none: "{i, j} -> {}".
      size: operators, leaves and literals.
      depth: the longest way from the root to a leaf, in nodes.
      latex: the formula for math mode.
      trains: whether it has a gradient at all.
      shift_invariant: whether adding a number to all scores of a list leaves the gradient as it is.
      degree: d if scores times c give the loss times c**d, up to a constant; None if there is none.
      doubling_cosine: between the gradients before and after all scores are doubled.
      monotone: whether raising the better of two documents never raises the loss.
      largest_gradient: the largest entry at scores times each of GROWTH.
      bounded: whether the last two of these differ by less than a tenth.
      convex: whether the loss lies below its chord on every probed segment between score states.
      concave_share: the share of these segments on which it does not.
      label_use: "none", "order" (another scale of labels of the same order gives the same
        gradient), "order and zero" (if label 0 stays 0), or "values".
      push_by_labels: by (better label, other label), half the force apart on two tied documents.
      push_by_difference: the same for labels 1 and 0, by the score differences of DIFFERENCES.
      weight_by_rank: the share of the gradient's size by current rank, (first, last, share).
      all_irrelevant: whether a list without a relevant document has a gradient.
      ties_alike: whether tied documents of equal labels have equal gradients; None if it has no
        gradient there.
      nearest: the other hand-designed losses nearest by gradient direction, the nearest first.
    """

    formula: str
    name: str | None
    types: str
    size: int
    depth: int
    latex: str
    trains: bool
    shift_invariant: bool
    degree: float | None
    doubling_cosine: float
    monotone: bool
    largest_gradient: tuple[float, ...]
    bounded: bool
    convex: bool
    concave_share: float
    label_use: str
    push_by_labels: dict[tuple[int, int], float]
    push_by_difference: tuple[float, ...]
    weight_by_rank: tuple[tuple[int, int, float], ...]
    all_irrelevant: bool
    ties_alike: bool | None
    nearest: tuple[Neighbour, ...]

    def __str__(self) -> str:
        rows = [
            ("type", f"{self.types}, size {self.size}, depth {self.depth}"),
            ("LaTeX", self.latex),
        ]
        if self.name:
            rows.append(("known as", f"{self.name}: {HAND_DESIGNED[self.name].source}"))
        rows += _described(self) if self.trains else [("gradient", "none: it trains nothing")]
        return "\n".join([self.formula, *(f"  {name:<20}{text}" for name, text in rows)])


def explain(expression: Expression | str) -> Explanation:
    """Measures how a loss behaves; see `Explanation` for what, and the module for on what.

    Args:
      expression: a loss expression, its text, or a name of LOSSES.

    Raises:
      AutolossError: neither expression nor text, an unknown name, or a free index.
      FormulaError: the text is not a loss.

    >>> ranknet = explain("ranknet")
    >>> ranknet.shift_invariant, ranknet.bounded, ranknet.convex, ranknet.monotone
    (True, True, True, True)
    """
    given = as_loss(resolve_loss(expression) if isinstance(expression, str) else expression)
    loss = simplify(given)
    lists = _lists()
    gradient = _gradient(loss, lists.scores, lists)
    gradient = np.where(np.abs(gradient).max() > _NOISE, gradient, 0.0)
    known = _nearest(gradient)
    same = [n.name for n in known if n.cosine >= SAME_DIRECTION]
    degree, cosine = _doubled(gradient, _gradient(loss, 2.0 * lists.scores, lists))
    largest = tuple(
        float(np.abs(_gradient(loss, scale * lists.scores, lists)).max()) for scale in GROWTH
    )
    concave = _concave_share(loss, lists)
    irrelevant = query_derivatives(loss, lists.scores, 0 * lists.labels, lists.mask).gradient
    return Explanation(
        formula=str(loss),
        name=same[0] if same else None,
        types=_types(loss),
        size=loss.size,
        depth=loss.depth,
        latex=export_latex(loss),
        trains=bool(np.any(gradient)),
        shift_invariant=_equal(_gradient(loss, lists.scores + _SHIFT, lists), gradient),
        degree=degree,
        doubling_cosine=cosine,
        monotone=_monotone(loss),
        largest_gradient=largest,
        bounded=largest[-1] <= 1.1 * largest[-2],
        convex=concave == 0.0,
        concave_share=concave,
        label_use=_label_use(loss, gradient, lists),
        push_by_labels={labels: _push(loss, *labels, 0.0) for labels in _LABEL_PAIRS},
        push_by_difference=tuple(_push(loss, 1, 0, difference) for difference in DIFFERENCES),
        weight_by_rank=_weight_by_rank(gradient, lists),
        all_irrelevant=bool(np.any(irrelevant)),
        ties_alike=_ties_alike(loss, lists),
        nearest=known[len(same) : len(same) + _NEAREST],
    )


def gradient_direction(expression: Expression) -> np.ndarray:
    """The gradient of a loss on the probes, f64[entries], of norm 1; zeros if it has none.

    The product of two is the cosine that `explain` gives for hand-designed losses.
    """
    gradient = _gradient(simplify(expression), _lists().scores, _lists()).ravel()
    largest = np.abs(gradient).max()
    if largest <= _NOISE:
        return np.zeros_like(gradient)
    return gradient / largest / np.linalg.norm(gradient / largest)


# --- probes ---


class _Lists(NamedTuple):
    scores: np.ndarray  # f64[queries, list]
    labels: np.ndarray  # f64[queries, list], whole numbers from 0 to 4
    mask: np.ndarray  # bool[queries, list]


@cache
def _lists() -> _Lists:
    """The screening probe's lists, several times over, with scores of their own."""
    probe = make_probe(synthetic(num_queries=40, num_features=6).folds[0].train, 0)
    labels, mask = (np.tile(np.asarray(x), (STATES, 1)) for x in (probe.labels, probe.mask))
    scores = np.random.default_rng(0).normal(size=labels.shape)
    return _Lists(np.where(mask, scores, 0.0), labels.astype(np.float64), mask)


def _gradient(loss: Expression, scores: np.ndarray, lists: _Lists) -> np.ndarray:
    return query_derivatives(loss, scores, lists.labels, lists.mask).gradient


def _pair(loss: Expression, better: float, other: float, difference: float) -> np.ndarray:
    """f64[2]: the gradient on a list of two documents, the first ahead by `difference`."""
    scores, labels = np.array([[difference, 0.0]]), np.array([[better, other]], np.float64)
    return query_derivatives(loss, scores, labels, np.ones((1, 2), bool)).gradient[0]


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= _EXACT * np.abs(b).max())


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    # Divided by the largest entry first, since squares of large gradients overflow.
    a, b = (x.ravel() / max(np.abs(x).max(), 1e-300) for x in (a, b))
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0 else 0.0


# --- measurements ---


def _types(loss: Expression) -> str:
    """The types of what the reductions take, from pairs down to the loss."""
    taken = {len(node.args[0].indices) for node in loss.walk() if node.op in REDUCTIONS}
    names = {2: "{i, j}", 1: "{i}", 0: "{}"}
    return " -> ".join(names[count] for count in sorted(taken | {0}, reverse=True))


def _doubled(gradient: np.ndarray, doubled: np.ndarray) -> tuple[float | None, float]:
    """The degree of homogeneity, if there is one, and the cosine between the gradients."""
    cosine = _cosine(gradient, doubled)
    ratio = float(np.sum(gradient * doubled) / max(np.sum(gradient * gradient), 1e-300))
    if ratio <= 0 or not _equal(doubled, ratio * gradient):
        return None, cosine
    return 1.0 + round(math.log2(ratio), 6), cosine


def _monotone(loss: Expression) -> bool:
    """Whether the better of two documents is never pushed down, at any score difference probed."""
    differences = np.linspace(-6.0, 6.0, 25)
    pairs = [(a, b) for a in range(1, 5) for b in range(a)]
    labels = np.repeat(np.array(pairs, np.float64), len(differences), 0)
    ahead = np.tile(differences, len(pairs))
    scores = np.stack([ahead, np.zeros_like(ahead)], 1)
    slope = query_derivatives(loss, scores, labels, np.ones(scores.shape, bool)).gradient[:, 0]
    return bool(slope.max() <= _EXACT * np.abs(slope).max())


def _concave_share(loss: Expression, lists: _Lists) -> float:
    """The share of segments between two score states whose middle lies above their chord."""
    generator = np.random.default_rng(1)
    above = []
    for _ in range(SEGMENTS):
        ends = [2.0 * generator.normal(size=lists.scores.shape) for _ in range(2)]
        low, high, middle = (
            query_derivatives(loss, scores, lists.labels, lists.mask).values
            for scores in (*ends, (ends[0] + ends[1]) / 2)
        )
        size = np.maximum(np.abs(low), np.abs(high)) + 1e-9
        above.append(middle - (low + high) / 2 > 1e-9 * size)
    return float(np.mean(above))


def _label_use(loss: Expression, gradient: np.ndarray, lists: _Lists) -> str:
    def under(labels: np.ndarray) -> np.ndarray:
        return query_derivatives(loss, lists.scores, labels, lists.mask).gradient

    if _equal(under(np.roll(lists.labels, 1, 0)), gradient):
        return "none"
    for use in ("order", "order and zero"):
        if _equal(under(_RELABELLED[use][lists.labels.astype(int)]), gradient):
            return use
    return "values"


def _push(loss: Expression, better: float, other: float, difference: float) -> float:
    """Half the force that moves two documents apart, the better one up."""
    up, down = _pair(loss, better, other, difference)
    return float(down - up) / 2


def _weight_by_rank(gradient: np.ndarray, lists: _Lists) -> tuple[tuple[int, int, float], ...]:
    """How the size of the gradient is spread over the current ranks, the mean over lists."""
    rank = 1 + np.argsort(np.argsort(np.where(lists.mask, -lists.scores, np.inf), -1), -1)
    size = np.abs(gradient).sum(-1, keepdims=True)
    share = np.abs(gradient) / np.where(size > 0, size, 1.0)
    count = max(int((size > 0).sum()), 1)
    return tuple(
        (first, last, float(share[(rank >= first) & (rank <= last)].sum()) / count)
        for first, last in _RANKS
    )


def _ties_alike(loss: Expression, lists: _Lists) -> bool | None:
    """Whether tied documents of equal labels are moved alike, whatever their positions."""
    tied = np.zeros_like(lists.scores)
    gradient = _gradient(loss, tied, lists)
    if not np.any(gradient):
        return None
    equal = (lists.labels[:, :, None] == lists.labels[:, None, :]) & lists.mask[:, None, :]
    mean = np.where(equal, gradient[:, None, :], 0.0).sum(-1) / np.maximum(equal.sum(-1), 1)
    return _equal(np.where(lists.mask, mean, 0.0), gradient)


@cache
def _known() -> dict[str, np.ndarray]:
    return {name: _gradient(LOSSES[name], _lists().scores, _lists()) for name in HAND_DESIGNED}


def _nearest(gradient: np.ndarray) -> tuple[Neighbour, ...]:
    """All hand-designed losses, the nearest first; none to a gradient of zero."""
    if not np.any(gradient):
        return ()
    found = [Neighbour(name, _cosine(known, gradient)) for name, known in _known().items()]
    return tuple(sorted(found, key=lambda n: -n.cosine))


# --- the text ---


def _described(e: Explanation) -> list[tuple[str, str]]:
    """Name and text of every property."""
    base = abs(e.push_by_labels[1, 0]) or 1.0
    labels = ", ".join(f"{a}:{b} {push / base:.3g}" for (a, b), push in e.push_by_labels.items())
    wrong, tied, right = (push / base for push in e.push_by_difference)
    ranks = ", ".join(
        f"{first if first == last else f'{first}-{last}'} {share:.0%}"
        for first, last, share in e.weight_by_rank
    )
    return [
        ("all scores shifted", "no effect" if e.shift_invariant else "another gradient"),
        ("all scores doubled", _doubling(e)),
        ("better document up", "never raises the loss" if e.monotone else "can raise the loss"),
        ("largest gradient", _largest(e)),
        ("along the scores", _curvature(e)),
        ("uses of the labels", _LABEL_TEXTS[e.label_use]),
        ("labels all 0", "a gradient all the same" if e.all_irrelevant else "no gradient"),
        ("scores all tied", _TIE_TEXTS[e.ties_alike]),
        ("push by labels", f"{labels} (two tied documents; labels 1:0 are 1)"),
        (
            "push by order",
            f"wrong {wrong:.3g}, tied {tied:.3g}, right {right:.3g} (labels 1:0, scores 2 apart)",
        ),
        ("gradient by rank", f"{ranks} of its size"),
        ("nearest", ", ".join(f"{n.name} {n.cosine:.3f}" for n in e.nearest)),
    ]


_LABEL_TEXTS = {
    "none": "none: it ignores them",
    "order": "their order alone",
    "order and zero": "their order, and which are 0",
    "values": "their values",
}
_TIE_TEXTS = {
    None: "no gradient: training cannot start there",
    True: "documents of equal labels move alike",
    False: "documents of equal labels move by their positions",
}


def _doubling(e: Explanation) -> str:
    if e.degree is not None:
        return f"the same gradient direction (homogeneous of degree {e.degree:g})"
    return f"another gradient direction (cosine {e.doubling_cosine:.3f})"


def _largest(e: Explanation) -> str:
    first, middle, last = e.largest_gradient
    text = f"{first:.3g}; {last:.3g} at {GROWTH[-1]:g} times the scores: "
    if e.bounded:
        return text + "bounded"
    power = math.log2(last / max(middle, 1e-300)) / math.log2(GROWTH[-1] / GROWTH[-2])
    grows = f"about as |s|^{power:.1f}" if power < 8 else "faster than any power"
    return f"{text}grows {grows}"


def _curvature(e: Explanation) -> str:
    if e.convex:
        return "convex"
    return f"not convex ({e.concave_share:.0%} of segments)"
