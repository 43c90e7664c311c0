"""How the found loss pushes scores, beside known losses."""

from collections.abc import Mapping

import numpy as np

from autoloss_jax.language.expressions import Expression
from autoloss_jax.losses import LOSSES
from autoloss_jax.report import markup
from autoloss_jax.report.figures.fields import field_svg, gradient_field
from autoloss_jax.report.figures.shapes import LossShape, loss_shape, shape_charts
from autoloss_jax.report.markup import Html, Section
from autoloss_jax.report.reading import RunFiles
from autoloss_jax.report.sections.formula import best_expression

_NO_LOSS = "There is no found loss to draw yet."
_ALWAYS = {"RankNet": "ranknet", "softmax": "softmax"}
_STYLES = ("first", "second", "third", "fourth")


def _known(run: RunFiles) -> dict[str, Expression]:
    """RankNet, softmax and the loss to beat, by the names to show."""
    known = {shown: LOSSES[name] for shown, name in _ALWAYS.items()}
    best = run.best_hand_designed
    if best in LOSSES and LOSSES[best] not in known.values():
        known[best] = LOSSES[best]
    return known


def shapes(run: RunFiles) -> Section:
    """Value and gradient over the score difference of a relevant and an irrelevant document."""
    title, anchor = "The found loss beside known ones", "shape"
    expression = best_expression(run)
    if expression is None:
        return Section(title, anchor, markup.missing(_NO_LOSS))
    losses = {"found": expression} | _known(run)
    styles = dict(zip(losses, _STYLES, strict=False))
    computed = {name: loss_shape(loss) for name, loss in losses.items()}
    drawn = {name: shape for name, shape in computed.items() if shape is not None}
    # The found loss is drawn last, on top of the others.
    value, gradient = shape_charts({styles[name]: drawn[name] for name in reversed(drawn)})
    caption = (
        "Two documents, one relevant (label 1) and one not (label 0), their scores d/2 and "
        "\N{MINUS SIGN}d/2. Each loss is scaled to a steepest gradient of 1 and its value shifted "
        "to 0 at its lowest, since training normalises gradients. Where the gradient is near 0 the "
        "loss no longer cares."
    )
    caption += _coincidences(drawn)
    if "found" not in drawn:
        caption += " The found loss has no finite gradient here and is not drawn."
    panels = Html(f'<div class="panels">{value}{gradient}</div>')
    lines = markup.legend([(styles[name], name) for name in drawn])
    return Section(title, anchor, markup.figure(Html(lines + panels), caption))


def _coincidences(drawn: Mapping[str, LossShape]) -> str:
    """A sentence for each group of losses of which one hides the others."""
    groups: list[list[str]] = []
    for name, shape in drawn.items():
        for group in groups:
            if np.allclose(drawn[group[0]].slopes, shape.slopes, atol=1e-3):
                group.append(name)
                break
        else:
            groups.append([name])
    return "".join(
        f" Here {', '.join(group[:-1])} and {group[-1]} coincide."
        for group in groups
        if len(group) > 1
    )


def fields(run: RunFiles) -> Section:
    """Where the found loss and the one to beat push a list of three documents."""
    title, anchor = "Where it pushes a list of three", "field"
    expression = best_expression(run)
    if expression is None:
        return Section(title, anchor, markup.missing(_NO_LOSS))
    best = run.best_hand_designed
    name = best if best in LOSSES else "softmax"
    panels = []
    for shown, loss in (("The found loss", expression), (str(name), LOSSES[str(name)])):
        field = gradient_field(loss)
        if field is None:
            panels.append(markup.missing(f"{shown} has no finite gradient here."))
        else:
            title_ = f"Descent directions of {shown} on a list with labels 2, 1 and 0"
            panels.append(markup.figure(Html(field_svg(field, title_)), "", heading=shown))
    about = (
        "A query has three documents, of labels 2, 1 and 0. A point of the plane is a state of "
        "the model: to the right the score of label 2 above that of label 1, upwards the score of "
        "label 1 above that of label 0 (their mean is 0). Arrows show where gradient descent moves "
        "that state, longer where it pushes harder. The six regions are the six orders of the "
        "documents, printed with their NDCG and shaded by it: arrows should lead to the upper "
        "right, where it is 1."
    )
    return Section(
        title,
        anchor,
        markup.paragraph(about),
        Html(f'<div class="panels">{"".join(panels)}</div>'),
    )
