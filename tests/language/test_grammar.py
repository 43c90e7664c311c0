"""Tests of the search grammar: what is legal, what is drawn, and the round trips of its tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.programs import decode, encode
from autoloss_jax.language import grammar
from autoloss_jax.language.expressions import apply, literal
from autoloss_jax.language.grammar import (
    MAX_DOCUMENT_STAGES,
    MAX_PAIR_STAGES,
    START,
    VOCABULARY,
    Level,
    from_tokens,
    random_expressions,
    sample_tokens,
    to_tokens,
)
from autoloss_jax.language.operators import OPERATORS, REDUCTIONS
from autoloss_jax.language.parsing import parse
from autoloss_jax.language.simplification import simplify

MAX_TOKENS = 24
IDS = {token.text: index for index, token in enumerate(VOCABULARY)}

LEGAL = [
    "mean_i[y_i > 0] square sub s_i y_i",
    "sum_ij[y_i > y_j] softplus s_j - s_i",
    "sum_ij[y_i > y_j] mul softplus s_j - s_i abs sub gain_i gain_j",
    "sum_i mul y_i logsumexp_j s_j - s_i",
    "div sum_i mul s_i y_i max_dcg",
    "add sum_i s_i add mean_i y_i max_i s_i",
    "sum_i add sum_j s_i - s_j sum_j[i != j] sigmoid s_i - s_j",
    "n",
]
# tokens, and the position of the first that may not stand there
ILLEGAL = [
    ("s_i", 0),  # a document's score is no query expression
    ("mean_i sum_ij s_i - s_j", 1),  # a query reduction inside a document expression
    ("sum_ij s_i", 1),  # a pair sees the scores through their difference only
    ("sum_i s_i - s_j", 1),  # a document expression has no second document
    ("sum_i y_j", 1),
    ("sum_j s_i - s_j", 0),
    ("sum_ij sum_j s_i - s_j", 1),
    ("sum_i neg neg s_i", 2),  # undone by its parent
    ("sum_i log exp s_i", 2),
    ("sum_i exp 1", 2),  # a number in the disguise of an operator
    ("add sum_i s_i add sum_i s_i add sum_i s_i sum_i s_i", 9),  # a fourth document stage
    ("sum_i add sum_j y_j add sum_j y_j sum_j y_j", 7),  # a third pair stage
    ("add sum_ij y_i add sum_ij y_i sum_ij y_i", 6),
]


@functools.cache
def advance_to(prefix: tuple[int, ...]) -> grammar.GrammarState:
    state = grammar.start(MAX_TOKENS)
    return _ADVANCE(advance_to(prefix[:-1]), jnp.int32(prefix[-1])) if prefix else state


_ADVANCE = jax.jit(grammar.advance)
_LEGAL = jax.jit(grammar.legal_tokens)


def ids(text: str) -> list[int]:
    """The tokens of a text in which they stand one after the other."""
    words, found = text.split(), []
    while words:
        # The longest token that the words begin with: "s_i - s_j" before "s_i".
        length = max(k for k in range(1, 6) if " ".join(words[:k]) in IDS)
        found.append(IDS[" ".join(words[:length])])
        words = words[length:]
    return found


@functools.cache
def sampled() -> np.ndarray:
    return np.asarray(sample_tokens(jax.random.key(0), 2000, MAX_TOKENS).tokens)


# ------------------------------------------------------------------------------------------- legal


@pytest.mark.parametrize("text", LEGAL)
def test_legal_sequences(text):
    tokens = ids(text)
    for k, token in enumerate(tokens):
        state = advance_to(tuple(tokens[:k]))
        assert state.open > 0
        # The root alone may not be a number: "n" is legal, but draws pass it over.
        assert _LEGAL(state)[token] or text == "n"
    assert advance_to(tuple(tokens)).open == 0
    assert to_tokens(from_tokens(tokens)) == tokens


@pytest.mark.parametrize("text, position", ILLEGAL)
def test_illegal_sequences(text, position):
    tokens = ids(text)
    for k, token in enumerate(tokens[: position + 1]):
        assert bool(_LEGAL(advance_to(tuple(tokens[:k])))[token]) == (k < position), text


def test_a_token_is_legal_only_if_its_arguments_still_fit():
    state = grammar.start(3)
    fits = [token.text for token, ok in zip(VOCABULARY, _LEGAL(state), strict=True) if ok]
    assert "sum_i" in fits
    assert "add" in fits  # and two queries of one token each
    two_left = _ADVANCE(state, IDS["sum_i"])
    fits = [token.text for token, ok in zip(VOCABULARY, _LEGAL(two_left), strict=True) if ok]
    assert "abs" in fits
    assert "add" not in fits


def test_a_complete_prefix_stays_as_it_is():
    done = advance_to(tuple(ids("sum_i s_i")))
    again = _ADVANCE(done, IDS["n"])
    for a, b in zip(jax.tree.leaves(done), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_state_knows_parent_and_sibling():
    state = advance_to(tuple(ids("sum_i add s_i")))
    top = int(state.open) - 1
    assert VOCABULARY[int(state.parents[top])].text == "add"
    assert VOCABULARY[int(state.siblings[top])].text == "s_i"
    assert int(state.levels[top]) == Level.DOCUMENT
    assert int(state.left) == MAX_TOKENS - 3
    assert int(state.document_stages) == MAX_DOCUMENT_STAGES - 1
    first = advance_to(tuple(ids("sum_i add")))
    assert int(first.siblings[int(first.open) - 1]) == START


def test_every_operator_and_leaf_can_be_drawn():
    texts = {token.template.op for token in VOCABULARY}
    assert set(OPERATORS) <= texts
    assert len(IDS) == len(VOCABULARY)
    assert np.all(np.isfinite(grammar.TABLES.log_prior))


# ------------------------------------------------------------------------------------------ sampled


def test_sampled_sequences_are_complete_and_well_typed():
    for tokens in sampled():
        expression = from_tokens(tokens)
        assert not expression.indices
        assert parse(str(expression)) == expression  # the parser agrees


@pytest.mark.parametrize("max_tokens", [1, 2, 4, 7, 24, 60])
def test_sampled_sequences_respect_the_largest_length(max_tokens):
    tokens, length = map(np.asarray, sample_tokens(jax.random.key(1), 300, max_tokens))
    assert tokens.shape == (300, max_tokens)
    for row, used in zip(tokens, length, strict=True):
        assert np.all(row[used:] == START)
        assert len(to_tokens(from_tokens(row[:used]))) == used
    assert length.max() == max_tokens  # which some make full use of


def test_sampled_sequences_respect_the_limits_of_the_stages():
    for tokens in sampled():
        reduced = [VOCABULARY[t] for t in tokens if t != START and _reduces(VOCABULARY[t])]
        document = [t for t in reduced if Level.QUERY in t.levels]
        pair = [t for t in reduced if t.argument_level == Level.PAIR]
        assert len(document) <= MAX_DOCUMENT_STAGES
        assert len(pair) <= MAX_PAIR_STAGES


def _reduces(token: grammar.Token) -> bool:
    return token.template.op in REDUCTIONS


def test_sampling_is_deterministic_and_depends_on_the_key():
    again = np.asarray(sample_tokens(jax.random.key(0), 2000, MAX_TOKENS).tokens)
    np.testing.assert_array_equal(sampled(), again)
    other = np.asarray(sample_tokens(jax.random.key(1), 2000, MAX_TOKENS).tokens)
    assert np.any(sampled() != other)
    assert random_expressions(jax.random.key(3), 5) == random_expressions(jax.random.key(3), 7)[:5]


def test_random_losses_depend_on_scores_and_labels():
    losses = random_expressions(jax.random.key(4), 300, max_tokens=12)
    assert len(losses) == 300
    for loss in losses:
        assert loss.uses("s_i", "s_j")
        assert loss.uses("y_i", "y_j", "gain_i", "gain_j")
        assert len(to_tokens(loss)) <= 12


@pytest.mark.parametrize("count, max_tokens", [(-1, 24), (3, 3)])
def test_random_losses_need_room(count, max_tokens):
    with pytest.raises(AutolossError, match=f"max_tokens >= 4, got {count} and {max_tokens}"):
        random_expressions(jax.random.key(0), count, max_tokens=max_tokens)


# -------------------------------------------------------------------------------------- round trips


def test_round_trip_between_text_expression_tokens_and_program():
    losses = random_expressions(jax.random.key(5), 600)
    decoded = decode(encode(losses))
    for loss, read in zip(losses, decoded, strict=True):
        assert parse(str(loss)) == loss
        assert from_tokens(to_tokens(loss)) == loss
        # A program stores what stages compute, so `sum_i(sum_j(x))` reads back as `sum_ij(x)`.
        assert simplify(read) == simplify(loss)
    assert decode(encode(decoded)) == decoded


def test_a_negative_number_is_the_negated_constant():
    expression = apply("mul", literal(-2), parse("sum_i(s_i)"))
    tokens = to_tokens(expression)
    assert [VOCABULARY[t].text for t in tokens] == ["mul", "neg", "2", "sum_i", "s_i"]
    assert from_tokens(tokens) == expression


@pytest.mark.parametrize("text", ["sum_i(3 * s_i)", "sum_i(s_i, where=y_i == 0)", "mean_ij(s_i)"])
def test_what_has_no_token_is_named(text):
    with pytest.raises(AutolossError, match="is not of the search grammar: no token for it"):
        to_tokens(parse(text))


@pytest.mark.parametrize(
    "tokens, message",
    [
        ([], "position 0: got the end"),
        ([IDS["sum_i"], IDS["add"], IDS["s_i"]], "position 3: got the end"),
        ([IDS["sum_i"], START], f"position 1: got token {START}"),
        ([-1], "position 0: got token -1"),
    ],
)
def test_incomplete_sequences_are_refused(tokens, message):
    with pytest.raises(AutolossError, match=message):
        from_tokens(tokens)


def test_what_follows_the_end_is_ignored():
    assert from_tokens([*ids("sum_i s_i"), *ids("n")]) == parse("sum_i(s_i)")
