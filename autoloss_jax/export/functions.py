"""The functions that exported modules consist of: their sources by name, for each target.

JAX gets the exact path's own functions, so an export equals it by construction; numpy gets the same
ones with jnp's names exchanged for np's, torch its own, and objectives for gradient boosting
numpy's, where there are none of their own that carry derivatives.
"""

import ast
import inspect
import re
from collections.abc import Iterable
from functools import cache

from autoloss_jax.execution import exact, queries
from autoloss_jax.export import boosting_functions, dual_numbers, prelude
from autoloss_jax.export.torch_functions import TORCH_FUNCTIONS
from autoloss_jax.language import operators

IMPORTS = {
    "jax": """\
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
""",
    "numpy": """\
import numpy as np
from numpy.typing import ArrayLike
""",
    "boosting": """\
from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
""",
    "torch": """\
import math

import torch
from torch import Tensor
""",
}

# Where what stands in the JAX sources for the sake of gradients would only mislead.
_NUMPY_FUNCTIONS = """\
def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    defined = np.abs(b) > TINY
    quotient = np.clip(a / np.where(defined, b, 1.0), -LARGE, LARGE)
    return np.where(defined, quotient, 0.0)

def absolute(x: np.ndarray) -> np.ndarray:
    return np.abs(x)

def sigmoid(x: np.ndarray) -> np.ndarray:
    tail = np.exp(-np.abs(x))  # at most 1, so nothing overflows
    return np.where(x >= 0.0, 1.0, tail) / (1.0 + tail)

def stop_gradient(x: np.ndarray) -> np.ndarray:
    return x

def _logsumexp(values: np.ndarray, selected: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    top = _max(values, selected, axes)
    total = _sum(np.exp(np.where(selected, values - top, 0.0)), selected, axes)
    return np.where(total > 0.0, top + np.log(np.maximum(total, TINY)), 0.0)
"""
_FINITE_GRADIENT = "_finite_gradient"


@cache
def sources(target: str) -> dict[str, str]:
    """Source text by the name it defines, in an order in which a module may define them."""
    if target == "torch":
        return _definitions(TORCH_FUNCTIONS)
    if target == "boosting":
        table = dict(sources("numpy"))
        for module in (dual_numbers, boosting_functions):
            table |= _definitions(inspect.getsource(module))
        return table
    table = {}
    for module in (operators, queries, exact, prelude):
        table |= _definitions(inspect.getsource(module))
    if target == "jax":
        return table
    without_gradient = {k: v for k, v in table.items() if not k.startswith(_FINITE_GRADIENT)}
    translated = {name: _to_numpy(source) for name, source in without_gradient.items()}
    return translated | _definitions(_NUMPY_FUNCTIONS)


def module_functions(target: str, names: Iterable[str]) -> str:
    """The definitions of `names` and of all that these refer to."""
    table = sources(target)
    pending, found = list(names), set()
    while pending:
        name = pending.pop()
        if name in table and name not in found:
            found.add(name)
            pending += [n.id for n in ast.walk(ast.parse(table[name])) if isinstance(n, ast.Name)]
            pending += [other for other in table if other.startswith(f"{name}.")]
    chosen = [source for name, source in table.items() if name in found]
    code = ("def", "class", "@", "_finite")
    constants = [source for source in chosen if not source.startswith(code)]
    functions = [source for source in chosen if source not in constants]
    return "\n\n".join(["".join(constants), *functions] if constants else functions)


def _definitions(text: str) -> dict[str, str]:
    """The functions, classes and constants at the top of a module's text, by name.

    A call of a function's attribute, such as `f.defvjp(...)`, is found as "f.defvjp".
    """
    table = {}
    lines = text.splitlines(keepends=True)
    for node in ast.parse(text).body:
        first = node.lineno
        match node:
            case (
                ast.FunctionDef(name=name, decorator_list=decorators)
                | ast.ClassDef(name=name, decorator_list=decorators)
            ):
                first = min([first, *(decorator.lineno for decorator in decorators)])
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant()):
                pass
            case ast.Expr(ast.Call(ast.Attribute(ast.Name(id=owner), attribute))):
                name = f"{owner}.{attribute}"
            case _:
                continue
        source = "".join(lines[first - 1 : node.end_lineno])
        table[name] = source if source.endswith("\n") else source + "\n"
    return table


def _to_numpy(source: str) -> str:
    """A jnp function as a np function, without gradients."""
    source = re.sub(r"jax\.lax\.stop_gradient\((\w+)\)", r"\1", source)
    source = re.sub(r"^ *(\w+) = \1\n", "", source, flags=re.MULTILINE)
    source = source.replace(f"    scores = {_FINITE_GRADIENT}(scores)\n", "")
    source = re.sub(r"\bjnp\.", "np.", source)
    return re.sub(r"\bArray\b", "np.ndarray", source).replace(" without gradient.", ".")
