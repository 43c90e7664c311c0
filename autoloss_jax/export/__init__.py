"""Losses for use elsewhere: formula to source for jax, numpy, torch or boosting, or to LaTeX."""

import os
from collections.abc import Iterable
from importlib import metadata

from autoloss_jax.errors import AutolossError
from autoloss_jax.export.boosting import BOOSTING_TARGETS, boosting_source
from autoloss_jax.export.source import module_source
from autoloss_jax.export.typesetting import export_latex, export_mathml
from autoloss_jax.files import printable, write_atomic
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.parsing import as_loss
from autoloss_jax.losses import resolve_loss

__all__ = ["TARGETS", "export_latex", "export_mathml", "export_source", "write_best_loss"]

TARGETS = ("jax", "torch", "numpy", "latex", *BOOSTING_TARGETS)


def export_source(expression: Expression | str, target: str) -> str:
    """A loss as source that needs nothing but its target.

    Args:
      expression: a loss expression, its text, or a name of LOSSES.
      target: `jax`, `torch` and `numpy` give a module that defines
        `loss(scores, labels, where=None)` of arrays [..., list], the mean over the queries that
        have a document, equal to that of `compile_loss`: jax and torch with its gradients, numpy
        the value alone. `lightgbm` and `xgboost` give, in numpy, that function and a custom
        objective besides, with exact gradient and Hessian diagonal. `latex` gives the formula for
        math mode.

    Raises:
      AutolossError: an unknown target; neither expression nor text, or a free index.
      FormulaError: the text is not a loss.
    """
    if target not in TARGETS:
        raise AutolossError(f"export target {target!r}: expected one of {', '.join(TARGETS)}")
    loss = as_loss(resolve_loss(expression) if isinstance(expression, str) else expression)
    if target == "latex":
        return export_latex(loss)
    if target in BOOSTING_TARGETS:
        return boosting_source(loss, target, _version())
    return module_source(loss, target, _version())


def _version() -> str:
    try:
        return metadata.version("autoloss_jax")
    except metadata.PackageNotFoundError:  # a source tree that was never installed
        return "(from source)"


def write_best_loss(
    path: str | os.PathLike[str], expression: Expression | str, header_lines: Iterable[str] = ()
) -> None:
    """Writes `export_source(expression, "jax")` to `path`, atomically, below a comment.

    header_lines: what the comment says, such as the run's result; each stays inside the comment.
    """
    lines = [part for line in header_lines for part in (str(line).splitlines() or [""])]
    comment = "".join(f"# {printable(line)}".rstrip() + "\n" for line in lines)
    # Python would take the encoding from either of the first two lines, whatever they are about.
    encoding = "# -*- coding: utf-8 -*-\n" if comment else ""
    write_atomic(path, encoding + comment + export_source(expression, "jax"))
