"""The best found loss: its formula, and the code to use it."""

import textwrap

from autoloss_jax.errors import AutolossError
from autoloss_jax.export import TARGETS, export_latex, export_mathml, export_source
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import LOSSES
from autoloss_jax.report import markup, wording
from autoloss_jax.report.markup import Html, Section
from autoloss_jax.report.reading import RunFiles
from autoloss_jax.report.wording import Outcome

_TITLE = "The best loss found"


def best_expression(run: RunFiles) -> Expression | None:
    """The best found loss; None if there is none or its text is not of this loss language."""
    return None if run.best is None else readable(run.best.get("formula"))


def readable(formula: object) -> Expression | None:
    """The loss of a formula; None if it is not of this loss language."""
    try:
        return parse(formula) if isinstance(formula, str) else None
    except AutolossError:
        return None


def best_loss(run: RunFiles) -> Section:
    """The formula typeset and as text, with what its letters mean."""
    if run.best is None:
        return Section(_TITLE, "formula", markup.missing("No loss has been trained yet."))
    formula = str(run.best.get("formula"))
    expression = best_expression(run)
    if expression is None:
        note = "This version of the loss language cannot read the formula."
        return Section(_TITLE, "formula", markup.preformatted(formula), markup.missing(note))
    return Section(
        _TITLE,
        "formula",
        markup.paragraph(_standing(run)),
        Html(f'<div class="math" tabindex="0">{export_mathml(expression)}</div>'),
        markup.paragraph(_symbols(expression), "note"),
        markup.paragraph("The same as text, for this library and its commands:", "note"),
        markup.preformatted(str(expression)),
        markup.details("LaTeX", markup.preformatted(export_latex(expression)), "listing"),
    )


def _standing(run: RunFiles) -> str:
    """How the loss came to be the best one."""
    if run.best_row:
        chosen = "Of the losses found, validation queries chose this one"
        name = f" (\u201c{run.best_row.get('name')}\u201d in the tables below)"
        result = wording.outcome(run)
        if result is Outcome.NOT_SHOWN:
            return f"{chosen}{name}. It is not shown to be better than {run.best_hand_designed}."
        if result is Outcome.WORSE:
            return f"{chosen}{name}. It is worse than {run.best_hand_designed} on test queries."
        return f"{chosen}{name}."
    if run.finalists and run.finalists["finalists"]:
        return "The first finalist of the search; it has not been tested."
    return "The candidate of the highest reward so far; it has not been evaluated again or tested."


def _symbols(expression: Expression) -> str:
    """What the formula's letters mean, as far as they occur."""
    meanings = {
        ("s_i", "s_j"): "s is a document\u2019s score",
        ("y_i", "y_j"): "y its label",
        ("gain_i", "gain_j"): "g its gain 2^y \N{MINUS SIGN} 1",
        ("rank_i", "rank_j"): "\u03c1 its rank by the current scores",
        ("discount_i", "discount_j"): "d its discount 1 / log2(1 + rank)",
        ("n",): "n the number of documents of the query",
        ("max_dcg",): "DCG\u2217 the DCG of the ideal order",
        ("sigmoid",): "\u03c3 the sigmoid",
        ("stop_gradient",): "sg(x) is x, but no gradient flows through it",
    }
    present = [text for names, text in meanings.items() if expression.uses(*names)]
    documents = "i and j run over the documents of one query"
    return f"{'; '.join([documents, *present])}. A batch\u2019s loss is the mean over its queries."


def use(run: RunFiles) -> Section:
    """Code to paste: what to train with, in this library and without it."""
    title, anchor = "How to use it", "use"
    expression = best_expression(run)
    contents = []
    best = run.best_hand_designed
    if best in LOSSES and wording.outcome(run) not in (Outcome.BETTER, Outcome.UNKNOWN):
        contents += [
            markup.paragraph(f"What the test recommends, {best}:"),
            markup.preformatted(_compiled(f'al.LOSSES["{best}"]')),
        ]
    if expression is None:
        missing = markup.missing("There is no found loss to use yet.")
        return Section(title, anchor, *contents, missing)
    if contents:
        contents.append(markup.paragraph("The found loss, to try all the same:"))
    contents += [
        markup.preformatted(_compiled(_literal(str(expression)))),
        markup.paragraph(
            "It is called as a loss of Rax is: put it where rax.softmax_loss stands. "
            "To minimise it with any optimiser, take jax.grad of it as of any other loss.",
            "note",
        ),
        _sources(expression),
    ]
    return Section(title, anchor, *contents)


def _sources(expression: Expression) -> Html:
    """The loss as source for every target, folded."""
    sources = [(target, _source(expression, target)) for target in TARGETS]
    listings = [
        markup.details(f"For {target}", markup.preformatted(source))
        for target, source in sources
        if source
    ]
    lead = "Without this library, as source to paste, which autoloss export prints too:"
    return Html(f'<div class="listing">{markup.paragraph(lead)}{"".join(listings)}</div>')


def _source(expression: Expression, target: str) -> str | None:
    """The exported module; None for LaTeX, which is shown elsewhere, and for what has none."""
    try:
        return None if target == "latex" else export_source(expression, target)
    except AutolossError:
        return None


def _compiled(loss: str) -> str:
    return (
        "import autoloss_jax as al\n\n"
        f"loss_fn = al.compile_loss({loss})\n"
        "value = loss_fn(scores, labels, where=mask)  # arrays [queries, list]\n"
    )


def _literal(formula: str) -> str:
    """A formula as a Python string, over several lines if it is long."""
    parts = textwrap.wrap(
        formula, 76, break_long_words=False, break_on_hyphens=False, drop_whitespace=False
    )
    return "\n" + "".join(f'    "{part}"\n' for part in parts)
