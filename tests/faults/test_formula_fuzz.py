"""Hostile formulas: whatever the text, an expression that is read back, or an error that says why.

`--fuzz-formulas N` texts of seed `--fault-seed S`: mutated formulas, near ones by a grammar, and
garbage. Nothing is executed, imported or opened, nothing recurses too deep, warns or takes long.
"""

import ast
import random
import signal
import string
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.exact import compile_loss
from autoloss_jax.execution.programs import encode
from autoloss_jax.explain import explain
from autoloss_jax.export import TARGETS, export_mathml, export_source
from autoloss_jax.language.expressions import (
    LITERAL,
    MAX_DEPTH,
    MAX_SIZE,
    MAX_TEXT,
    Expression,
    swap_indices,
)
from autoloss_jax.language.operators import LEAVES, OPERATORS, REDUCTIONS
from autoloss_jax.language.parsing import FormulaError, parse, parse_expression
from autoloss_jax.language.simplification import simplify
from autoloss_jax.losses import HAND_DESIGNED, resolve_loss

SECONDS = 10
"""The most of the processor that one text may take. A thousandth of it is usual."""
MEGABYTES = 16
"""The most memory that one text may take at its peak."""

# ------------------------------------------------------------------------------ hostile texts

TOKENS = (
    *LEAVES, *OPERATORS, *REDUCTIONS, "i", "j", "where=", "(", ")", ",", "+", "-", "*", "/", "**",
    ">", "<", ">=", "<=", "==", "!=", "and", "or", "not", "0", "1.5", "2", "4", "9e14", "1e30",
)  # fmt: skip
FOREIGN = (
    "lambda", "lambda x: x", ":=", "(x:=1)", "[", "]", "{", "}", "'", '"', '"""', "f'{s_i}'", "b''",
    "#", "# type: ignore", "\\", "\\\n", ";", ":", "->", "@", "~", "%", "&", "|", "^", "<<", ">>",
    "//", "...", ".", "..", "n.real", "n.__class__.__base__.__subclasses__()", "__import__(n)",
    "__import__('os').system('true')", "exec", "eval", "open", "globals()", "__builtins__", "yield",
    "await n", "async", "for", "in", "is", "is not", "if", "else", "None", "True", "False", "print",
    "*", "*n", "**n", "x=", "where=where=", "(x for x in n)", "[x for x in n]", "import os", "del",
    "return", "pass", "class", "9**9**9", "1e400", "-1e999", "0x", "0x1F", "0b12", "0o8", "1_0",
    "1__0", "_1", "1j", "1or 2", "0xfor", "1if 1else 2", "1.e5", ".5", "1..real", "007", "1e",
    "9" * 5000, "0x" + "f" * 300, "0" * 500, "\x00", "\x0b", "\x0c", "\x1b[31m", "\x7f", "\x85",
    "\xa0", "\u2028", "\u202e", "\ufeff", "\ud800", "\udfff", "\uff53_i", "s\u200b_i", "\u2212",
    "\u00d7", "\u0455_i", "\U0001d460", "\u0660", "\u00b2", "\n", "\r", "\r\n", "\t", "  ", "",
)  # fmt: skip
CHARACTERS = string.printable + "\x00\x0b\x1c\x7f\x85\xa0\u0455\u2028\u202e\ufeff\ud800\U0001f600"


def whole_texts() -> list[str]:
    """Texts that are hostile as they are: beyond a limit, or at it."""
    deep = MAX_DEPTH + 1
    return [
        "(" * 100_000, ")" * 100_000, "(" * deep + "n" + ")" * deep, "[" * 5000, "-" * 9000 + "n",
        "- " * 4900 + "n", "+" * 9000 + "n", "~" * 9000, "not " * 2400 + "n", "n" + "+n" * 4900,
        "n" + "-n" * 60, "n" + "*n" * 59, "n" + "**1" * 3000, "n" + "**-4" * 60, "n" + "/n" * 4900,
        "n" + ".a" * 4900, "n" + "()" * 4900, "n" + "(n)" * 3300, "n" + "<n" * 4900, "exp(" * 2400,
        "n" + " if n else n" * 800, "n" + " and n" * 1600, "n" + ",n" * 4900, "lambda:" * 1400,
        "n" + "==n" * 3000, "sum_i(1,where=" * 700, "sum_i(1, where=" + "y_i>0 or " * 1000 + "1>0)",
        "*" * 9000, "**" * 4000, "." * 9000, "," * 9000, "=" * 9000, "_" * 9000, "1" * 9999,
        "n" * 1_000_000, "x" * 1_000_000, " " * 1_000_000, "\n" * 1_000_000, "\u0455" * 1_000_000,
        "n + " * 250_000 + "n", "9**9**9", "9**9**9**9", "2**-4**4", "1e400", "-" + "9" * 4400,
        "0x" + "f" * 9000, "1_" * 4000 + "1", "1e" + "9" * 4000, "0." + "0" * 9000 + "1",
        "#" * 9000, "n # comment", "n\\\n+ 1", "n # type: int", "\f n", "\tn", "n\x00", "",
        "min(" * 59 + "n" + ",n)" * 59, "exp(" * 59 + "n" + ")" * 59, "-(" * 29 + "n" + ")" * 29,
        "sum_i(" * 59 + "n" + ")" * 59,
    ]  # fmt: skip


def grown(rng: random.Random, depth: int, of_condition: bool = False) -> str:
    """A text by the language's grammar, with a fault now and then."""
    if rng.random() < 0.004:
        return rng.choice(FOREIGN)
    if of_condition:
        if depth > 0 and rng.random() < 0.3:
            parts = [grown(rng, depth - 1, True) for _ in range(rng.choice((2, 2, 3, 20)))]
            return f"({rng.choice((' and ', ' or ')).join(parts)})"
        sides = [rng.choice(["y_i", "y_j", "rank_i", "n", "0", "-1", "9e14"]) for _ in range(2)]
        return rng.choice((" > ", "<", ">=", "<=", "==", " != ")).join(sides)
    if depth <= 0 or rng.random() < 0.08:
        return rng.choice((*LEAVES, "1", "0.5", "-2", "1e300", "9e14"))
    kind = rng.random()
    if kind < 0.3:
        name = rng.choice([name for name, op in OPERATORS.items() if op.precedence == 5])
        given = rng.choices((OPERATORS[name].arity, 1, 3), (50, 1, 1))[0]
        return f"{name}({', '.join(grown(rng, depth - 1) for _ in range(given))})"
    if kind < 0.45:
        where = f", where={grown(rng, 2, True)}" if rng.random() < 0.4 else ""
        return f"{rng.choice(list(REDUCTIONS))}({grown(rng, depth - 1)}{where})"
    if kind < 0.55:
        return f"({grown(rng, depth - 1)}) ** {rng.randint(-4, 4)}"
    if kind < 0.65:
        return f"{rng.choice('-+')}{grown(rng, depth - 1)}"
    sign = rng.choice((" + ", " - ", "*", "/"))
    count = rng.choices((2, 3, 30), (90, 9, 1))[0]
    parts = [grown(rng, depth - 1) for _ in range(count)]
    return f"({sign.join(parts)})"


def closed(rng: random.Random, text: str) -> str:
    """The text as a loss, more often than not."""
    return text if rng.random() < 0.3 else f"{rng.choice(('sum_ij', 'mean_ij'))}({text})"


def deep(rng: random.Random) -> str:
    """A text near the limit of nesting, which powers may take it beyond."""
    text = rng.choice(("s_i", "s_i - s_j", "y_i"))
    wraps = ("exp({})", "-({})", "({}) ** {k}", "min({}, n)", "({}) + s_i", "2 / ({})",
             "sum_i({})", "n - ({})", "({}) * y_i", "tanh(({}) - y_j)",
             "sum_j({}, where=y_i > y_j)")  # fmt: skip
    wraps = rng.sample(wraps, rng.randint(1, 4))
    for _ in range(rng.randint(20, 62)):
        text = rng.choice(wraps).format(text, k=rng.randint(-4, 4))
    return text


def wide(rng: random.Random) -> str:
    """A text near the limits of size and length: balanced sums or products of many terms."""
    sign = rng.choice(("+", "-", "*", "/"))

    def tree(leaves: int) -> str:
        if leaves < 2:
            return rng.choice(("exp({}*n)", "{}-s_i", "tanh(y_i-{})", "9e14", "s_i/{}")).format(
                rng.randint(0, 99)
            )
        return f"({tree(leaves // 2)}{sign}{tree(leaves - leaves // 2)})"

    return tree(rng.randint(20, 340))


def mutated(rng: random.Random, text: str) -> str:
    """The text with one to five changes of tokens or of characters."""
    for _ in range(rng.randint(1, 5)):
        a, b = sorted(rng.randint(0, len(text)) for _ in range(2))
        match rng.randrange(8):
            case 0:
                text = text[:a] + rng.choice(TOKENS) + text[a:]
            case 1:
                text = text[:a] + rng.choice(FOREIGN) + text[a:]
            case 2:
                text = text[:a] + rng.choice(CHARACTERS) + text[a + 1 :]
            case 3:
                text = text[:a] + text[min(b, a + 9) :]
            case 4:
                text = text[:b] + text[a:b] * rng.choice((1, 1, 2, 40)) + text[b:]
            case 5:
                text = text.replace(rng.choice(TOKENS), rng.choice(TOKENS), 1)
            case 6:
                text = text[:a] + text[a:b][::-1] + text[b:]
            case 7:
                raw = bytearray(text.encode("utf-8", "surrogatepass"))
                if raw:
                    raw[rng.randrange(len(raw))] = rng.randrange(256)
                text = raw.decode("utf-8", "surrogateescape")
    return text[: 3 * MAX_TEXT]


def hostile_texts(count: int, seed: int) -> Iterator[str]:
    """`count` texts, and those of `whole_texts`; the same for the same seed."""
    yield from whole_texts()
    rng = random.Random(seed)
    seeds = [loss.formula for loss in HAND_DESIGNED.values()]
    for _ in range(count):
        kind = rng.random()
        if kind < 0.45:
            yield mutated(rng, rng.choice(seeds))
        elif kind < 0.75:
            yield closed(rng, grown(rng, rng.randint(1, 6)))
        elif kind < 0.80:
            yield mutated(rng, closed(rng, grown(rng, rng.randint(1, 6))))
        elif kind < 0.82:
            yield closed(rng, deep(rng))
        elif kind < 0.822:
            yield closed(rng, wide(rng))
        elif kind < 0.92:
            words = rng.choices(TOKENS + FOREIGN, k=rng.randint(1, 25))
            yield rng.choice(("", " ")).join(words)
        else:
            yield "".join(rng.choices(CHARACTERS, k=rng.randint(1, 80)))


# ------------------------------------------------------------------------------ what must hold


@contextmanager
def bounded(text: str) -> Iterator[None]:
    """Within SECONDS, by a signal, which interrupts any Python code, and again if that goes on."""

    def stop(*_: object) -> None:
        raise AssertionError(f"longer than {SECONDS} s: {text[:500]!r}")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def read(text: str) -> Expression | None:
    """The expression of a text, None if it is refused as documented."""
    try:
        expression = parse_expression(text)
    except FormulaError as error:
        assert 1 <= error.column <= len(text) + 1  # noqa: PT017
        message = str(error)
        assert len(message) < 1200
        assert message.replace("\n", "").isprintable()
        return None
    assert expression.full_depth <= MAX_DEPTH
    assert expression.full_size <= MAX_SIZE
    again = str(expression)
    assert len(again) <= MAX_TEXT
    assert parse_expression(again) == expression
    assert str(parse_expression(again)) == again
    return expression


def walk(expression: Expression) -> None:
    """Everything that goes through an expression by itself."""
    canonical = simplify(expression)
    assert simplify(canonical) == canonical
    assert canonical.indices <= expression.indices
    assert parse_expression(str(canonical)) == canonical
    assert swap_indices(swap_indices(expression)) == expression
    assert hash(expression) == hash(parse_expression(str(expression)))
    assert sum(1 for _ in expression.walk()) == expression.size
    assert expression.depth <= expression.full_depth
    assert not expression.uses("no such name")


@pytest.fixture(scope="module")
def losses(request) -> list[Expression]:
    """The losses among the texts, once each; all texts are checked on the way."""
    count = request.config.getoption("--fuzz-formulas")
    found: dict[Expression, None] = {}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for text in hostile_texts(count, request.config.getoption("--fault-seed")):
            with bounded(text):
                expression = read(text)
                if expression is not None:
                    walk(expression)
                    if not expression.indices:
                        found[expression] = None
    assert warned == []
    return list(found)


def test_every_text_is_a_formula_or_refused(losses, request):
    # A tenth and more are losses, so that what follows has something to work on.
    assert len(losses) >= request.config.getoption("--fuzz-formulas") / 10


def some(losses: list[Expression], count: int) -> list[Expression]:
    """A share of them, and the largest and deepest."""
    step = max(1, len(losses) // count)
    extreme = [max(losses, key=lambda e: e.full_size), max(losses, key=lambda e: e.full_depth)]
    return [*losses[::step][:count], *extreme]


def test_memory_is_bounded(request):
    seed = request.config.getoption("--fault-seed")
    texts = [*whole_texts(), *list(hostile_texts(300, seed + 1))]
    tracemalloc.start()
    try:
        for text in texts:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            read(text)
            used = tracemalloc.get_traced_memory()[1] - before
            assert used < MEGABYTES * 2**20, text[:200]
    finally:
        tracemalloc.stop()


def test_resolving_a_name_or_formula_only_refuses_as_documented(request):
    for text in hostile_texts(500, request.config.getoption("--fault-seed") + 2):
        with bounded(text):
            try:
                resolve_loss(text)
            except AutolossError as error:
                assert len(str(error)) < 2000  # noqa: PT017


def test_programs_hold_or_refuse(losses):
    held = 0
    for loss in losses[:2000]:
        for form in (loss, simplify(loss)):
            with bounded(str(loss)):
                try:
                    encode([form])
                    held += 1
                except AutolossError:
                    pass
    assert held > 100


SCORES, LABELS = jnp.array([0.5, -1.0, 2.0]), jnp.array([2.0, 0.0, 1.0])


def test_compiled_losses_are_finite(losses):
    for loss in some(losses, 8):
        with bounded(str(loss)):
            value, slope = jax.value_and_grad(compile_loss(loss))(SCORES, LABELS)
        assert np.isfinite(value), str(loss)
        assert np.isfinite(slope).all(), str(loss)


def test_exports_are_what_they_say_and_no_more(losses):
    for loss in some(losses, 40):
        with bounded(str(loss)):
            ElementTree.fromstring(export_mathml(loss))
            for target in TARGETS:
                source = export_source(loss, target)
                if target == "latex":
                    assert "\n" not in source
                    assert source.count("{") == source.count("}")
                    continue
                module = ast.parse(source)
                assert ast.get_docstring(module).startswith("A ranking loss:")
                for node in ast.walk(module):
                    assert not isinstance(node, ast.Lambda | ast.Global | ast.AsyncFunctionDef)
                    if isinstance(node, ast.Name):
                        assert node.id not in ("eval", "exec", "open", "__import__", "compile")


def test_explanations_end(losses):
    for loss in some([x for x in losses if x.uses("s_i", "s_j")], 4):
        with bounded(str(loss)):
            assert str(explain(loss)).startswith(str(simplify(loss)))


# ------------------------------------------------------------------------------ at the limits

AT_THE_LIMITS = {
    "depth": "mean_i(" + "exp(" * (MAX_DEPTH - 2) + "s_i" + ")" * (MAX_DEPTH - 1),
    "reductions": "sum_i(" * (MAX_DEPTH - 1) + "s_i" + ")" * (MAX_DEPTH - 1),
    "chain": "mean_i(s_i" + " - y_i" * (MAX_DEPTH - 2) + ")",
    "terms": "mean_i({})",
    "condition": f"sum_i(s_i, where={' or '.join(['y_i > 0'] * (MAX_DEPTH - 2))})",
}


def balanced(leaves: int) -> str:
    half = leaves // 2
    return f"({balanced(half)}+{balanced(leaves - half)})" if half else "s_i"


@pytest.mark.parametrize("name", AT_THE_LIMITS)
def test_whatever_walks_over_formulas_holds_at_the_limits(name):
    loss = parse(AT_THE_LIMITS[name].format(balanced((MAX_SIZE - 1) // 2)))
    assert loss.full_depth == MAX_DEPTH or loss.full_size >= MAX_SIZE - 2
    # As from code that is deep in calls itself.
    nested(300, lambda: walk(loss))
    for target in TARGETS:
        nested(200, lambda target=target: export_source(loss, target))
    nested(200, lambda: export_mathml(loss))
    assert loss.op != LITERAL


def nested(depth: int, call) -> None:
    call() if depth == 0 else nested(depth - 1, call)


# ------------------------------------------------------------------------------ nothing executed

AUDITED = """
import sys

from {module} import hostile_texts, parse_expression, resolve_loss
from autoloss_jax.errors import AutolossError
from autoloss_jax.language.simplification import simplify

texts = list(hostile_texts({count}, {seed}))
seen, watching = {{}}, False


def audit(event, arguments):
    if watching and event not in seen:
        seen[event] = repr(arguments)[:200]


sys.addaudithook(audit)
for text in texts:
    watching = True
    try:
        simplify(parse_expression(text))
        resolve_loss(text)
    except AutolossError:
        pass
    watching = False
watching = True
exec("1")
watching = False
assert seen.pop("exec"), "the hook hears nothing"
# What ast.parse announces; running what was compiled would have been `exec`.
allowed = {{"compile"}}
print({{event: what for event, what in seen.items() if event not in allowed}}, len(texts))
"""


def test_parsing_runs_imports_and_opens_nothing(request):
    script = AUDITED.format(
        module=Path(__file__).stem, count=2000, seed=request.config.getoption("--fault-seed")
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300,
        env={"PYTHONPATH": f"{Path(__file__).parents[2]}", "JAX_PLATFORMS": "cpu",
             "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split(" ")[0] == "{}", done.stdout
    assert done.stderr == ""
