"""Writes the parts of the documentation that follow from the code; a test fails when they are old.

    python docs/generate.py

In a page, what stands between `<!-- generated: NAME -->` and `<!-- end -->` is replaced by what the
function of that name below returns.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from autoloss_jax.cli.flags import WORKING_COMMANDS, CommandFlags
from autoloss_jax.cli.help import STATUSES, SUMMARIES, about, examples
from autoloss_jax.execution import programs
from autoloss_jax.language import expressions, grammar, parsing
from autoloss_jax.language.operators import LEAVES, OPERATORS, REDUCTIONS, RELATIONS
from autoloss_jax.losses import ALIASES, HAND_DESIGNED

DOCS = Path(__file__).parent
_GENERATED = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(_cell(text) for text in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", r"\|")
    return text if "`" in text or "$" in text else text.replace("<", r"\<")


def _math(latex: str) -> str:
    # A bar would end the table's cell, in mathematics too.
    return "$" + latex.replace("|", r"\vert{}") + "$"


def _free(indices: Iterable[str]) -> str:
    return f"`{{{', '.join(sorted(indices))}}}`"


def leaves() -> str:
    """Quantities that are given with a query; `_j` means as `_i`, of the other document."""
    rows = [
        [f"`{leaf.name}`", _free(leaf.indices), _math(leaf.latex), leaf.meaning]
        for leaf in LEAVES.values()
        if not leaf.name.endswith("_j")
    ]
    return table(["name", "free indices", "in print", "meaning"], rows)


def operators() -> str:
    """Every elementwise operator."""
    letters = {1: ("x",), 2: ("a", "b")}
    rows = [
        [
            f"`{operator.python.format(*letters[operator.arity])}`",
            _math(operator.latex.format(*letters[operator.arity])),
            operator.domain,
        ]
        for operator in OPERATORS.values()
    ]
    return table(["written", "in print", "defined for"], rows)


def reductions() -> str:
    """Every reduction."""
    rows = []
    for reduction in REDUCTIONS.values():
        over = "pairs `i`, `j`" if len(reduction.indices) == 2 else f"`{min(reduction.indices)}`"
        index = "".join(sorted(reduction.indices))
        rows.append([f"`{reduction.name}(x)`", _math(reduction.latex.format(index) + " x"), over])
    return table(["written", "in print", "over"], rows)


def relations() -> str:
    """What a condition is made of."""
    rows = [
        [f"`{text.format('a', 'b')}`", _math(latex.format("a", "b"))]
        for text, latex in RELATIONS.values()
    ]
    return table(["written", "in print"], rows)


def limits() -> str:
    """What a text may be, and what a batched program holds."""
    pair = [text or "none" for text in programs.PAIR_CONDITIONS]
    document = [text or "none" for text in programs.DOCUMENT_CONDITIONS]
    rows = [
        ["characters of a text, given or written out", str(expressions.MAX_TEXT), "-"],
        ["nesting, conditions included", str(expressions.MAX_DEPTH), "-"],
        ["nodes, conditions included", str(expressions.MAX_SIZE), "-"],
        ["size of a whole exponent", str(parsing.MAX_EXPONENT), "the same"],
        ["reductions over pairs", "any", str(grammar.MAX_PAIR_STAGES)],
        ["reductions over documents", "any", str(grammar.MAX_DOCUMENT_STAGES)],
        ["instructions of a stage over pairs", "any", str(programs.MAX_PAIR_INSTRUCTIONS)],
        ["instructions of a stage over documents", "any", str(programs.MAX_DOCUMENT_INSTRUCTIONS)],
        ["scores in a pair formula", "any", "only as `s_i - s_j`"],
        ["conditions over pairs", "any", ", ".join(f"`{text}`" for text in pair)],
        ["conditions over documents", "any", ", ".join(f"`{text}`" for text in document)],
    ]
    return table(["", "`parse`, `compile_loss`", "`encode`, and so a search"], rows)


def losses() -> str:
    """The hand-designed losses."""
    other = {name: alias for alias, name in ALIASES.items()}
    rows = [
        [
            f"`{name}`" + (f", `{other[name]}`" if name in other else ""),
            f"`{loss.formula}`",
            " ".join(filter(None, [f"{loss.source}.", loss.note])),
        ]
        for name, loss in HAND_DESIGNED.items()
    ]
    return table(["name", "formula", "from, and where it differs from others of that name"], rows)


def flags() -> str:
    """Every command with its flags; those of run, search and test are the same, and stand once."""
    parts = []
    for command in SUMMARIES:
        parts.append(f"## autoloss {command}\n\n{_sentence(SUMMARIES[command])}\n\n")
        parts.append(f"{about(command)}\n\n```bash\n")
        parts.append("".join(f"{line}\n" for line in examples(command)) + "```\n\n")
        if command in WORKING_COMMANDS[1:]:
            parts.append(f"Its flags are those of [autoloss {WORKING_COMMANDS[0]}](#autoloss-run).")
            parts.append("\n\n")
            continue
        described = CommandFlags(command)
        for section in described.sections:
            rows = []
            for name in section.names:
                flag = described.describe(name)
                default = f"`{flag.default}`" if flag.default else ""
                rows.append([f"`--{name}`", _values(flag.values), default, flag.text])
            title = "" if section.title == "Flags" else f"**{section.title}**\n\n"
            parts.append(title + table(["flag", "values", "default", "meaning"], rows) + "\n")
    return "".join([*parts, "## Exit status\n\n", "```text\n", STATUSES, "\n```\n"])


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _values(text: str) -> str:
    if "|" in text:
        return ", ".join(f"`{choice}`" for choice in text.split("|"))
    return text.lower() or "on or off"


SECTIONS: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (leaves, operators, reductions, relations, limits, losses, flags)
}


def filled(text: str) -> str:
    """A page with its generated parts as they should be. Raises KeyError for an unknown one."""
    return _GENERATED.sub(lambda m: f"{m[1]}{SECTIONS[m[2]]()}{m[3]}", text)


def main() -> None:
    for page in sorted(DOCS.glob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"wrote {page}")


if __name__ == "__main__":
    main()
