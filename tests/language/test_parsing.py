"""Tests of reading loss expressions: round trips, what is refused and how the message says so."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autoloss_jax.errors import AutolossError
from autoloss_jax.language.expressions import (
    MAX_DEPTH,
    MAX_TEXT,
    Expression,
    apply,
    leaf,
    literal,
    swap_indices,
)
from autoloss_jax.language.operators import LEAVES, OPERATORS, REDUCTIONS
from autoloss_jax.language.parsing import FormulaError, parse, parse_expression

# ------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize(
    "text, canonical",
    [
        ("mean_i(square(s_i-y_i))", "mean_i(square(s_i - y_i))"),
        ("sum_ij(s_i, where=y_j < y_i)", "sum_ij(s_i, where=y_i > y_j)"),
        ("sum_ij(s_i, where=y_j <= y_i)", "sum_ij(s_i, where=y_i >= y_j)"),
        ("sum_i(s_i ** 2)", "sum_i(square(s_i))"),
        ("sum_i((s_i + 1) ** 3)", "sum_i((s_i + 1) ** 3)"),
        ("sum_i(s_i ** 4)", "sum_i(square(square(s_i)))"),
        ("sum_i(s_i ** -1)", "sum_i(1 / s_i)"),
        ("sum_i(s_i ** -3)", "sum_i(1 / s_i ** 3)"),
        ("sum_i(s_i ** 1)", "sum_i(s_i)"),
        ("sum_i(s_i ** 0)", "sum_i(1)"),
        ("n - (n - (n + n))", "n - (n - (n + n))"),
        ("(n - n) - n", "n - n - n"),
        ("(n / n) * n", "n / n * n"),
        ("n / (n * n)", "n / (n * n)"),
        ("-(n + n)", "-(n + n)"),
        ("-n ** 2", "-square(n)"),
        ("(-n) ** 3", "(-n) ** 3"),
        ("(n ** 3) ** 3", "(n ** 3) ** 3"),
        ("--n", "-(-n)"),
        ("- -2", "2"),
        ("-(+2)", "-2"),
        ("-(2 ** 1)", "-2"),
        ("n - -2", "n - -2"),
        ("-2 * n", "-2 * n"),
        ("(-2) ** 3", "(-2) ** 3"),
        ("+n", "n"),
        ("-0.0", "0"),
        ("1e3 + 0.1 + 1_0 + 0x10", "1000 + 0.1 + 10 + 16"),
        ("1e300", "1e+300"),
        (" \t\n n \r\n + \n 1", "n + 1"),
        ("sum_i(1, where=y_i > -1)", "sum_i(1, where=y_i > -1)"),
        (
            "sum_ij(1, where=(y_i > y_j or y_i == 0) and i != j)",
            "sum_ij(1, where=(y_i > y_j or y_i == 0) and i != j)",
        ),
        (
            "sum_ij(1, where=y_i > y_j or (y_i == 0 and i != j))",
            "sum_ij(1, where=y_i > y_j or y_i == 0 and i != j)",
        ),
        (
            "sum_ij(1, where=y_i > 0 and (y_j > 0 and i != j))",
            "sum_ij(1, where=y_i > 0 and (y_j > 0 and i != j))",
        ),
    ],
)
def test_text_to_canonical_text(text, canonical):
    assert str(parse(text)) == canonical
    assert parse(canonical) == parse(text)


def test_the_tree_of_a_formula():
    pair = apply("sub", leaf("s_j"), leaf("s_i"))
    assert parse("sum_ij(softplus(s_j - s_i), where=y_i > y_j)") == apply(
        "sum_ij", apply("softplus", pair), where=apply("gt", leaf("y_i"), leaf("y_j"))
    )


CONDITION_SIDES = st.sampled_from([leaf(n) for n in LEAVES if n[0] != "s"] + [literal(-1.5)])
CONDITIONS = st.recursive(
    st.builds(apply, st.sampled_from(["gt", "ge", "eq", "ne"]), CONDITION_SIDES, CONDITION_SIDES)
    | st.just(apply("ne", leaf("i"), leaf("j"))),
    lambda inner: st.builds(apply, st.sampled_from(["and", "or"]), inner, inner),
    max_leaves=4,
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False).map(literal)


def _compound(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    unary = [name for name, op in OPERATORS.items() if op.arity == 1]
    binary = [name for name, op in OPERATORS.items() if op.arity == 2]
    # A negated number is a negative number.
    return (
        st.builds(apply, st.sampled_from(unary), inner).filter(
            lambda e: not (e.op == "neg" and e.args[0].op == "literal")
        )
        | st.builds(apply, st.sampled_from(binary), inner, inner)
        | st.builds(
            lambda op, body, where: apply(op, body, where=where),
            st.sampled_from(list(REDUCTIONS)),
            inner,
            st.none() | CONDITIONS,
        )
    )


EXPRESSIONS = st.recursive(
    st.sampled_from([leaf(name) for name in LEAVES]) | NUMBERS, _compound, max_leaves=12
)


@given(EXPRESSIONS)
def test_every_expression_survives_its_text(expression):
    again = parse_expression(str(expression))
    assert again == expression
    assert hash(again) == hash(expression)
    assert again.indices == expression.indices


@given(EXPRESSIONS)
def test_exchanging_the_indices_twice_changes_nothing(expression):
    exchanged = swap_indices(expression)
    assert swap_indices(exchanged) == expression
    assert exchanged.indices == {{"i": "j", "j": "i"}[index] for index in expression.indices}


# ------------------------------------------------------------------------------ free indices


@pytest.mark.parametrize(
    "text, indices",
    [
        ("n * max_dcg", ""),
        ("s_i", "i"),
        ("s_i - y_j", "ij"),
        ("sum_i(s_i - y_j)", "j"),
        ("sum_ij(s_i - y_j)", ""),
        ("sum_i(s_i) - s_j", "j"),
        ("mean_i(1, where=y_i > y_j)", "j"),
        ("sum_i(s_i * sum_i(s_i))", ""),
        ("sum_i(1, where=i != j)", "j"),
    ],
)
def test_the_type_is_the_set_of_free_indices(text, indices):
    assert parse_expression(text).indices == set(indices)


@pytest.mark.parametrize("text, free", [("s_i", "i"), ("sum_i(s_j)", "j"), ("s_i * s_j", "i, j")])
def test_a_loss_has_no_free_index(text, free):
    with pytest.raises(FormulaError, match=rf"is not a loss: index {free} is free; expected a red"):
        parse(text)


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "text, column, token, expected",
    [
        ("", 1, "empty", "expected a loss expression"),
        ("  \n ", 1, "empty", "expected a loss expression"),
        ("mean_i(s_k)", 8, "'s_k'", "expected one of s_i, s_j"),
        ("mean_i(s_i) + foo(y_i)", 15, "'foo'", "expected one of the functions exp, log"),
        ("mean_i(s_i) +", 14, "end of text", "expected a loss expression"),
        ("mean_i(s_i", 7, "'('", "expected a loss expression"),
        ("mean_i(s_i))", 12, "')'", "expected a loss expression"),
        ("mean_i(s_i y_i)", 8, "'s'", "expected a loss expression"),
        ("  mean_i(s_i << y_i)", 10, "'s_i << y_i'", "expected numbers, names, + - * / **"),
        (
            "  mean_i(s_i @ y_i)",
            14,
            "character '@'",
            "expected ASCII letters, digits, blanks and _ .",
        ),
        ("mean_i(s_i // 2)", 8, "'s_i // 2'", "expected numbers, names"),
        ("mean_i(~s_i)", 8, "'~'", "and _ . ( ) , + - * / < > = !"),
        ("mean_i(not s_i)", 8, "'not s_i'", "expected numbers, names"),
        ("mean_i([s_i])", 8, "'['", "expected ASCII letters"),
        ("mean_i((s_i, 1))", 8, "'(s_i, 1)'", "expected numbers, names"),
        ("mean_i(s_i[0])", 11, "'['", "expected ASCII letters"),
        ("mean_i(s_i.real)", 8, "'s_i.real'", "expected numbers, names"),
        ("mean_i(lambda: 1)", 14, "':'", "expected ASCII letters"),
        ("mean_i(s_i if n else 1)", 8, "'s_i if n else 1'", "expected numbers, names"),
        ("mean_i((a := 1))", 11, "':'", "expected ASCII letters"),
        ("mean_i(s_i for i in n)", 7, "'(s_i for i in n)'", "expected numbers, names"),
        ("mean_i(f'{s_i}')", 9, 'character "\'"', "expected ASCII letters"),
        ("n.append(1)", 1, "'n.append'", "expected the name of a function"),
        ("mean_i(s_i)(1)", 1, "'mean_i(s_i)'", "expected the name of a function"),
        ("mean_i(n # s)", 10, "'#'", "expected ASCII letters"),
        ("mean_i(1or 2)", 8, "'1or'", "expected a number"),
        ("mean_i(0xfor n)", 8, "'0xfor'", "expected a number"),
        ("mean_i(n..1e4for n)", 10, "'.1e4for'", "expected a number"),
        ("mean_i(1__0)", 8, "'1__0'", "expected a number"),
        ("mean_i(True)", 8, "'True'", "expected a number"),
        ("mean_i(None)", 8, "'None'", "expected a number"),
        ("mean_i(2j)", 8, "'2j'", "expected a number"),
        ("mean_i(1e999)", 8, "'1e999'", "expected a finite number"),
        ("mean_i(0x" + "f" * 400 + ")", 8, "'0xff", "expected a finite number"),
        ("mean_i(exp)", 8, "'exp'", "expected a call, exp(...)"),
        ("mean_i(sum_j)", 8, "'sum_j'", "expected a call, sum_j(...)"),
        ("mean_i(i)", 8, "'i'", "an index may stand only in where=, as in i != j"),
        ("mean_i(y_i > 0)", 8, "'y_i > 0'", "a comparison may stand only in where="),
        ("mean_i(n and n)", 8, "'n and n'", "a comparison may stand only in where="),
        ("mean_i(exp(s_i, 2))", 8, "'exp(s_i, 2)'", "exp takes 1 argument, got 2"),
        ("mean_i(min(s_i))", 8, "'min(s_i)'", "min takes 2 arguments, got 1"),
        ("mean_i(min(*s_i, 1))", 8, "'min(*s_i, 1)'", "min takes 2 arguments, got 2"),
        ("mean_i()", 1, "'mean_i()'", "mean_i takes 1 argument, got 0"),
        ("exp(n, where=n > 0)", 1, "'exp(n, where=n > 0)'", "got where="),
        ("mean_i(s_i, axis=0)", 1, "'mean_i(s_i, axis=0)'", "only one, where=; got axis="),
        ("mean_i(s_i, **n)", 1, "'mean_i(s_i, **n)'", "only one, where=; got **"),
        ("n ** 5", 6, "'5'", "expected a literal whole exponent from -4 to 4"),
        ("n ** 0.5", 6, "'0.5'", "expected a literal whole exponent"),
        ("n ** n", 6, "'n'", "expected a literal whole exponent"),
        ("n ** foo", 6, "'foo'", "expected a literal whole exponent"),
        ("mean_i(1, where=y_i)", 17, "'y_i'", "expected a comparison, such as y_i > y_j"),
        ("mean_i(1, where=not y_i > 0)", 17, "'not y_i > 0'", "expected a comparison"),
        ("mean_i(1, where=0 < y_i < 2)", 17, "'0 < y_i < 2'", "expected one comparison by <, <="),
        ("mean_i(1, where=y_i is 1)", 17, "'y_i is 1'", "expected one comparison by <, <="),
        ("mean_i(1, where=s_i > 0)", 17, "'s_i'", "expected a number or one of y_i, y_j"),
        ("mean_i(1, where=y_i > 1 + 1)", 23, "'1 + 1'", "expected a number or one of"),
        ("mean_i(1, where=i > 0)", 17, "'i > 0'", "an index compares only with the other index"),
        ("mean_i(1, where=i == i)", 17, "'i == i'", "an index compares only with the other"),
        ("mean_i(1, where=y_i > True)", 23, "'True'", "expected a number"),
        ("mean_i(s_i) + \u00e9", 15, "'\u00e9'", "expected ASCII letters"),
        ("n\x00", 2, "'\\x00'", "expected ASCII letters"),
        ("__import__(os).system(true)", 1, "'__import__", "expected the name of a function"),
        ("__import__(os)", 1, "'__import__'", "expected one of the functions"),
        ("n.__class__", 1, "'n.__class__'", "expected numbers, names"),
    ],
)
def test_what_is_refused_names_token_column_and_expectation(text, column, token, expected):
    with pytest.raises(FormulaError) as caught:
        parse(text)
    message = str(caught.value)
    assert caught.value.column == column
    assert message.startswith(f"formula, column {column}: ")
    assert token in message
    assert expected in message


def test_the_pointer_stands_under_the_fault():
    with pytest.raises(FormulaError) as caught:
        parse("mean_i(s_i -\nfoo)")
    first, shown, pointer = str(caught.value).split("\n")
    assert shown == "  mean_i(s_i - foo)"
    assert shown[pointer.index("^") :].startswith("foo")
    assert "column 14" in first


def test_a_long_text_is_shown_around_its_fault():
    text = " + ".join(["n"] * 30) + " + foo"
    with pytest.raises(FormulaError) as caught:
        parse(text)
    _, shown, pointer = str(caught.value).split("\n")
    assert len(shown) <= 82
    assert shown[pointer.index("^") :].startswith("foo")


@pytest.mark.parametrize("value", [None, 5, b"n", ["n"]])
def test_a_formula_is_a_string(value):
    with pytest.raises(AutolossError, match=f"must be a string, got {type(value).__name__}"):
        parse(value)


# ------------------------------------------------------------------------------ limits


def test_limit_of_length():
    assert parse("n".ljust(MAX_TEXT)) == leaf("n")
    with pytest.raises(FormulaError, match=f"has {MAX_TEXT + 1} characters; expected at most"):
        parse("n".ljust(MAX_TEXT + 1))


def test_limit_of_nesting():
    nested = "exp(" * (MAX_DEPTH - 1) + "n" + ")" * (MAX_DEPTH - 1)
    assert parse(nested).depth == MAX_DEPTH
    with pytest.raises(FormulaError, match=f"nested deeper than {MAX_DEPTH}; expected less"):
        parse(f"exp({nested})")
    with pytest.raises(FormulaError, match=f"nested deeper than {MAX_DEPTH}; expected less") as far:
        parse("(" * (MAX_DEPTH + 1) + "n" + ")" * (MAX_DEPTH + 1))
    assert far.value.column == MAX_DEPTH + 1


def test_limit_of_size():
    def tree(depth: int) -> str:
        return "n" if depth == 0 else f"({tree(depth - 1)} + {tree(depth - 1)})"

    assert parse(tree(8)).size == 2**9 - 1
    with pytest.raises(FormulaError, match=f"has {2**10 - 1} nodes, conditions incl"):
        parse(tree(9))


def test_limit_of_size_counts_conditions():
    long = "sum_i(1, where=" + " or ".join(["y_i > 0"] * 50) + ")"
    parse(" + ".join([long] * 4))
    with pytest.raises(FormulaError, match=r"has \d{4} nodes, conditions included; expected at m"):
        parse(" + ".join([long] * 7))


@pytest.mark.parametrize("exponent, levels", [(4, 31), (-4, 21), (3, 60)])
def test_limit_of_nesting_is_of_the_formula_not_of_its_text(exponent, levels):
    text = "n"
    for _ in range(levels):
        text = f"({text}) ** {exponent}"
    with pytest.raises(FormulaError, match="nested deeper than 60; expected less nesting"):
        parse(text)


def test_limit_of_nesting_in_conditions():
    # Each chain of comparisons, for itself, is short enough.
    text = "y_i > 0"
    for k in range(8):
        text = f"({text})" + (" and y_i > 0", " or y_i > 0")[k % 2] * 20
    with pytest.raises(FormulaError, match="nested deeper than 60; expected less nesting"):
        parse(f"sum_i(1, where={text})")


def test_limit_of_length_is_of_the_canonical_text_too():
    def tree(leaves: int) -> str:
        half = leaves // 2
        return f"min({tree(half)},{tree(leaves - half)})" if half else "9e14"

    assert len(tree(500)) < MAX_TEXT / 2
    with pytest.raises(FormulaError, match=r"has 10\d+ characters when written out; expected at m"):
        parse(tree(500))


def test_a_fault_is_shown_without_control_characters():
    with pytest.raises(FormulaError) as caught:
        parse("n + \x1b[31m\u202e + n")
    assert "character '\\x1b'" in str(caught.value)
    assert str(caught.value).replace("\n", "").isprintable()


def test_limit_of_comparisons_in_a_row():
    parse("sum_i(1, where=" + "y_i > 0 or " * (MAX_DEPTH // 2) + "y_i > 1)")
    with pytest.raises(FormulaError, match=f"expected at most {MAX_DEPTH} comparisons in a row"):
        parse("sum_i(1, where=" + "y_i>0 or " * 1000 + "y_i>1)")


@pytest.mark.parametrize(
    "text",
    [
        "-" * 9000 + "n",
        "n" + "+n" * 4900,
        "n" + "**1" * 3000,
        "not " * 2400 + "n",
        "[" * 90 + "n",
        "n" + "[1]" * 2900,
        "n" + ".a" * 4900,
        "lambda:" * 1400 + "n",
        "1" * 5000,
    ],
)
def test_hostile_texts_are_refused_not_crashed_on(text):
    with pytest.raises(FormulaError):
        parse(text)


WORDS = st.sampled_from(
    [*LEAVES, *OPERATORS, *REDUCTIONS, "i", "j", "where=", "(", ")", ",", "+", "-", "*", "/", "**",
     ">", "<=", "==", "!=", "and", "or", "not", "0", "1.5", "2", "1e999", "lambda", ":", "[", "]",
     "'", "if", "else", "for", "in", "await", "yield", ":=", "=", "#", "\\", "\n", "\r", "\t"]
)  # fmt: skip


@given(st.text() | st.lists(WORDS, max_size=20).map(" ".join) | st.lists(WORDS).map("".join))
@example("mean_i(1if 2else 3)")
@example("'\\d'")
@example("n\r+ 1")
@example("mean_i(s_i) # comment")
def test_any_text_is_either_an_expression_or_a_formula_error(text):
    try:
        expression = parse_expression(text)
    except FormulaError as error:
        assert 1 <= error.column <= len(text) + 1  # noqa: PT017
    else:
        assert parse_expression(str(expression)) == expression
