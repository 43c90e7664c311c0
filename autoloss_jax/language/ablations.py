"""Ablations: the losses that are left when one part of a formula is removed."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from autoloss_jax.language.expressions import LITERAL, Expression, apply, literal
from autoloss_jax.language.grammar import depends_on_data
from autoloss_jax.language.parsing import as_loss
from autoloss_jax.language.simplification import is_score_difference, simplify


class Ablation(NamedTuple):
    """A loss without one of its parts.

    Attributes:
      removed: which part, to be read after "without".
      expression: what is left, in canonical form.
    """

    removed: str
    expression: Expression


def ablations(loss: Expression | str) -> list[Ablation]:
    """The losses that are left of a loss when one part of its canonical form is removed.

    The parts, and what takes the place of each:

    - a term of a sum or difference: nothing; the others keep their signs;
    - a factor or divisor: nothing, which is 1 above a divisor;
    - an argument of `min` or `max`: nothing, so the other one is left;
    - a function, or a reduction whose argument has no index more than itself: its argument;
    - a condition: nothing, so all documents count; a side of its `and` or `or`: the other side.

    The score difference `s_i - s_j` is one part. A sum or product of several has each of them as a
    part, and none of its partial sums or products. A sign is no part. Of parts that are written
    alike, `removed` says which, as in "y_i (2 of 3)".

    Args:
      loss: a loss or the text of one.

    Returns:
      Each one once, in the order of the parts. Every one is a loss in which scores and labels
      occur, and smaller than the one given: it has fewer nodes, or a 1 for a quantity.

    Raises:
      AutolossError: not a loss.

    >>> for ablation in ablations("sum_ij(softplus(s_j - s_i) * gain_i, where=y_i > y_j)"):
    ...     print(f"without {ablation.removed}: {ablation.expression}")
    without where=y_i > y_j: sum_ij(gain_i * softplus(s_j - s_i))
    without gain_i: sum_ij(softplus(s_j - s_i), where=y_i > y_j)
    without softplus around s_j - s_i: sum_ij(gain_i * (s_j - s_i), where=y_i > y_j)
    """
    whole = simplify(as_loss(loss))
    removals = list(_removals(whole))
    times, before = Counter(removal.part for removal in removals), Counter[str]()
    found: dict[Expression, str] = {}
    for part, left in removals:
        before[part] += 1
        left = simplify(left)
        if depends_on_data(left) and _extent(left) < _extent(whole):
            place = f" ({before[part]} of {times[part]})" if times[part] > 1 else ""
            found.setdefault(left, part + place)
    return [Ablation(removed, left) for left, removed in found.items()]


class _Removal(NamedTuple):
    part: str
    left: Expression


# Terms of one sum, and factors of one product.
_TOGETHER = ({"add", "sub"}, {"mul", "div"}, {"min"}, {"max"}, {"and"}, {"or"})


def _removals(node: Expression) -> Iterator[_Removal]:
    """What is left of an expression or condition without each of its parts, itself not counted."""
    if is_score_difference(node):
        return
    if node.where is not None:
        yield _Removal(f"where={node.where}", replace(node, where=None))
        for removal in _removals(node.where):
            yield removal._replace(left=replace(node, where=removal.left))
    if len(node.args) == 1 and node.op != "neg" and node.args[0].indices <= node.indices:
        yield _Removal(f"{node.op} around {node.args[0]}", node.args[0])
    for place, arg in enumerate(node.args):
        left = _without(node, place)
        if left is not None:
            yield _Removal(str(arg), left)
        for removal in _removals(arg):
            yield removal._replace(left=node.with_arg(place, removal.left))


def _without(node: Expression, place: int) -> Expression | None:
    """What is left of a node without one of its arguments; None if that is no part of it."""
    arg = node.args[place]
    kin = next((ops for ops in _TOGETHER if node.op in ops), None)
    if kin is None or (arg.op in kin and not is_score_difference(arg)):
        return None  # of a function or comparison, or several parts at once
    other = node.args[1 - place]
    if node.op == "sub" and place == 0:
        return apply("neg", other)
    if node.op == "div" and place == 0:
        return None if arg.op == LITERAL else apply("div", literal(1), other)
    return other


def _extent(expression: Expression) -> tuple[int, int]:
    """All nodes, and those of them that are not numbers."""
    return expression.full_size, sum(node.op != LITERAL for node in expression.walk())
