"""The search grammar: losses as prefix sequences of tokens, with a mask that keeps them well typed.

A search draws losses of three levels, which are exactly what the batched path holds: a *query*
expression over at most three reductions of *document* expressions, over at most two reductions of
*pair* expressions, which see the scores through their difference only (a pairwise loss that is not
a function of it changes when all scores shift, and no ranking metric does).

    query      1 + sum_i(document) / max_dcg        sum_ij(pair, where=y_i > y_j)
    document   gain_i * log2(2 + sum_j(pair, where=i != j))
    pair       softplus(s_j - s_i) * abs(gain_i - gain_j)
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from autoloss_jax.errors import AutolossError
from autoloss_jax.language.expressions import LITERAL, Expression, apply, literal
from autoloss_jax.language.operators import OPERATORS, REDUCTIONS
from autoloss_jax.language.parsing import parse_expression

MAX_DOCUMENT_STAGES = 3
MAX_PAIR_STAGES = 2


class Level(enum.IntEnum):
    """What an expression is computed for."""

    QUERY = 0
    DOCUMENT = 1
    PAIR = 2


@dataclass(frozen=True)
class Token:
    """One symbol of the prefix form.

    Attributes:
      template: the expression it stands for; for operators and reductions without arguments yet.
      arity: how many arguments follow.
      levels: where it may stand.
      argument_level: the level of its arguments; None: the level at which it stands.
      prior: its weight when tokens are drawn at random.
    """

    template: Expression
    arity: int
    levels: frozenset[Level]
    argument_level: Level | None
    prior: float

    @property
    def text(self) -> str:
        if self.arity == 0:
            return str(self.template)
        where = f"[{self.template.where}]" if self.template.where else ""
        return self.template.op + where


CONSTANTS = (0.1, 0.5, 1.0, 2.0, 10.0)

# What a search draws, with its weight under random sampling: leaves and operators of a textbook
# loss first, the rest less often.
_DOCUMENT_LEAVES = {"s_i": 4.0, "y_i": 2.0, "gain_i": 1.0, "rank_i": 0.3, "discount_i": 0.5}
_PAIR_LEAVES = {
    "s_i - s_j": 3.0, "s_j - s_i": 3.0, "y_i": 1.0, "y_j": 1.0, "gain_i": 0.5, "gain_j": 0.5,
    "rank_i": 0.2, "rank_j": 0.2, "discount_i": 0.4, "discount_j": 0.4,
}  # fmt: skip
_OPERATOR_PRIORS = {
    "add": 1.0, "sub": 1.5, "mul": 2.0, "div": 1.0, "neg": 0.5, "exp": 0.6, "log": 0.6, "log2": 0.4,
    "sqrt": 0.3, "square": 0.8, "cube": 0.1, "abs": 0.6, "sign": 0.2, "sigmoid": 0.8,
    "softplus": 0.8, "tanh": 0.4, "relu": 0.5, "min": 0.2, "max": 0.2, "stop_gradient": 0.1,
}  # fmt: skip
_QUERY_REDUCTIONS = {  # over documents
    "sum_i": (None, "y_i > 0"), "mean_i": (None, "y_i > 0"), "max_i": (None,),
    "logsumexp_i": (None,),
}  # fmt: skip
_PAIR_TO_QUERY = {"sum_ij": ("y_i > y_j", "y_i != y_j", None), "mean_ij": ("y_i > y_j",)}
_PAIR_CONDITIONS = (None, "i != j", "y_i > y_j", "y_j > y_i", "y_i >= y_j", "y_i != y_j")
_DOCUMENT_REDUCTIONS = {
    "sum_j": _PAIR_CONDITIONS, "mean_j": _PAIR_CONDITIONS, "max_j": (None, "y_j > y_i"),
    "logsumexp_j": _PAIR_CONDITIONS,
}  # fmt: skip
_REDUCTION_PRIORS = {"sum_i": 2.0, "mean_i": 2.0, "sum_ij": 3.0, "mean_ij": 3.0, "sum_j": 0.3,
                     "logsumexp_j": 0.3, "max_i": 0.2, "logsumexp_i": 0.2, "mean_j": 0.1,
                     "max_j": 0.1}  # fmt: skip


def parse_condition(text: str) -> Expression:
    """The condition of a reduction, from its text."""
    where = parse_expression(f"sum_ij(1, where={text})").where
    assert where is not None
    return where


def _reduction_tokens(
    reductions: dict[str, tuple[str | None, ...]], level: Level, argument_level: Level
) -> Iterable[Token]:
    for op, conditions in reductions.items():
        for text in conditions:
            where = None if text is None else parse_condition(text)
            template = Expression(op, where=where)
            prior = _REDUCTION_PRIORS[op] / len(conditions)
            yield Token(template, 1, frozenset({level}), argument_level, prior)


def _vocabulary() -> tuple[Token, ...]:
    every = frozenset(Level)
    leaves: dict[str, dict[Level, float]] = {}
    for level, weights in ((Level.DOCUMENT, _DOCUMENT_LEAVES), (Level.PAIR, _PAIR_LEAVES)):
        for text, prior in weights.items():
            leaves.setdefault(text, {})[level] = prior
    tokens = [
        Token(parse_expression(text), 0, frozenset(levels), None, max(levels.values()))
        for text, levels in leaves.items()
    ]
    tokens += [Token(parse_expression(text), 0, every, None, 0.2) for text in ("n", "max_dcg")]
    tokens += [Token(literal(value), 0, every, None, 0.3) for value in CONSTANTS]
    tokens += [
        Token(Expression(name), operator.arity, every, None, _OPERATOR_PRIORS[name])
        for name, operator in OPERATORS.items()
    ]
    tokens += _reduction_tokens(_QUERY_REDUCTIONS, Level.QUERY, Level.DOCUMENT)
    tokens += _reduction_tokens(_PAIR_TO_QUERY, Level.QUERY, Level.PAIR)
    tokens += _reduction_tokens(_DOCUMENT_REDUCTIONS, Level.DOCUMENT, Level.PAIR)
    return tuple(tokens)


VOCABULARY: tuple[Token, ...] = _vocabulary()
"""Every token of the search grammar; a token id is a position here."""

_IDS = {(token.template, token.arity > 0): index for index, token in enumerate(VOCABULARY)}

# An argument that its operator would undo or ignore: `--x`, `log(exp(x))`, `abs(square(x))`, ...
_NOT_NEGATIVE = ("exp", "square", "abs", "sigmoid", "softplus", "relu", "sqrt", "max_dcg", "n")
_USELESS: dict[str, tuple[str, ...]] = {
    "neg": ("neg", "sub"),
    "abs": ("neg", *_NOT_NEGATIVE),
    "square": ("neg", "abs"),
    "relu": ("sign", *_NOT_NEGATIVE),
    "sign": ("sign", *_NOT_NEGATIVE),
    "log": ("exp",),
    "log2": ("exp",),
    "exp": ("log",),
    "sqrt": ("square", "neg"),
    "stop_gradient": ("stop_gradient", "sign", "n", "max_dcg", *_DOCUMENT_LEAVES, "y_j", "gain_j"),
}


class Tables(NamedTuple):
    """The grammar as arrays, one row a token."""

    arity: np.ndarray  # i32[tokens]
    legal: np.ndarray  # bool[levels, tokens]
    argument_level: np.ndarray  # i32[levels, tokens]
    document_stages: np.ndarray  # i32[tokens]: how many of the stages the token uses up
    pair_stages: np.ndarray  # i32[tokens]
    useless: np.ndarray  # bool[tokens + 1, tokens]: by parent (the last row: no parent)
    log_prior: np.ndarray  # f32[levels, tokens]


def _prior(token: Token, level: Level) -> float:
    """Query arithmetic only weighs whole queries against each other: mostly a lone reduction."""
    plain = token.arity == 0 or token.template.op in OPERATORS
    return token.prior * (0.1 if plain and level == Level.QUERY else 1.0)


def _tables() -> Tables:
    count = len(VOCABULARY)
    legal = np.array([[level in token.levels for token in VOCABULARY] for level in Level])
    argument_level = np.array(
        [[level if t.argument_level is None else t.argument_level for t in VOCABULARY]
         for level in Level], np.int32,
    )  # fmt: skip
    reduces = [token.template.op in REDUCTIONS for token in VOCABULARY]
    of_documents = [r and Level.QUERY in t.levels for r, t in zip(reduces, VOCABULARY, strict=True)]
    of_pairs = [
        r and t.argument_level == Level.PAIR for r, t in zip(reduces, VOCABULARY, strict=True)
    ]
    weights = [[_prior(token, level) for token in VOCABULARY] for level in Level]
    useless = np.zeros((count + 1, count), bool)
    for p, parent in enumerate(VOCABULARY):
        for c, child in enumerate(VOCABULARY):
            name = child.template.op
            foldable = parent.arity == 1 and name == LITERAL and parent.template.op in OPERATORS
            useless[p, c] = foldable or name in _USELESS.get(parent.template.op, ())
    useless[count] = [token.arity == 0 for token in VOCABULARY]
    return Tables(
        arity=np.array([token.arity for token in VOCABULARY], np.int32),
        legal=legal,
        argument_level=argument_level,
        document_stages=np.array(of_documents, np.int32),
        pair_stages=np.array(of_pairs, np.int32),
        useless=useless,
        log_prior=np.log(weights).astype(np.float32),
    )


TABLES: Tables = _tables()
START = len(VOCABULARY)
"""Stands for "no token" as a parent or sibling, and fills token arrays after the end."""


class GrammarState(NamedTuple):
    """A prefix under construction, unbatched: `vmap` it.

    The stack holds the arguments still to be written, the next one on top.
    """

    levels: Array  # i32[max_tokens]: of the open arguments
    parents: Array  # i32[max_tokens]: the token each belongs to
    siblings: Array  # i32[max_tokens]: the argument written before it, START if none
    open: Array  # i32[]: how many arguments are open; 0: the loss is complete
    left: Array  # i32[]: how many tokens may still be written
    document_stages: Array  # i32[]: how many may still be used
    pair_stages: Array  # i32[]


def start(max_tokens: int) -> GrammarState:
    """The empty prefix: one query expression is open."""
    full = jnp.full(max_tokens, START, jnp.int32)
    return GrammarState(
        levels=jnp.zeros(max_tokens, jnp.int32),
        parents=full,
        siblings=full,
        open=jnp.int32(1),
        left=jnp.int32(max_tokens),
        document_stages=jnp.int32(MAX_DOCUMENT_STAGES),
        pair_stages=jnp.int32(MAX_PAIR_STAGES),
    )


def legal_tokens(state: GrammarState) -> Array:
    """bool[tokens]: which tokens keep the prefix a prefix of a loss; never all False while open."""
    top = state.open - 1
    fits = state.open + TABLES.arity <= state.left
    stages = (TABLES.document_stages <= state.document_stages) & (
        TABLES.pair_stages <= state.pair_stages
    )
    legal = jnp.asarray(TABLES.legal)[state.levels[top]] & fits & stages
    useful = legal & ~jnp.asarray(TABLES.useless)[state.parents[top]]
    return jnp.where(jnp.any(useful), useful, legal)


def log_prior(state: GrammarState) -> Array:
    """f32[tokens]: the logarithms of the tokens' weights where the next one stands."""
    return jnp.asarray(TABLES.log_prior)[state.levels[state.open - 1]]


def advance(state: GrammarState, token: Array) -> GrammarState:
    """The state after a legal `token`; a complete state stays as it is."""
    top = state.open - 1
    arity = jnp.asarray(TABLES.arity)[token]
    level = jnp.asarray(TABLES.argument_level)[state.levels[top], token]
    position = jnp.arange(state.levels.shape[0])
    # The arguments take the place of the written one; whoever waits below it has it as sibling.
    new = (position >= top) & (position < top + arity)
    moved = GrammarState(
        levels=jnp.where(new, level, state.levels),
        parents=jnp.where(new, token, state.parents),
        siblings=jnp.where(new, START, jnp.where(position == top - 1, token, state.siblings)),
        open=top + arity,
        left=state.left - 1,
        document_stages=state.document_stages - jnp.asarray(TABLES.document_stages)[token],
        pair_stages=state.pair_stages - jnp.asarray(TABLES.pair_stages)[token],
    )
    return jax.tree.map(lambda old, new: jnp.where(state.open > 0, new, old), state, moved)


def from_tokens(tokens: Sequence[int] | np.ndarray) -> Expression:
    """The expression of a complete prefix sequence; anything after its end is ignored.

    Raises:
      AutolossError: the sequence ends too early or has an unknown token.
    """
    position = 0

    def read() -> Expression:
        nonlocal position
        if position >= len(tokens) or not 0 <= tokens[position] < len(VOCABULARY):
            got = "the end" if position >= len(tokens) else f"token {tokens[position]}"
            raise AutolossError(
                f"token sequence, position {position}: got {got}, expected a token id from 0 to "
                f"{len(VOCABULARY) - 1}"
            )
        token = VOCABULARY[int(tokens[position])]
        position += 1
        if token.arity == 0:
            return token.template
        args = tuple(read() for _ in range(token.arity))
        return apply(token.template.op, *args, where=token.template.where)

    return read()


def to_tokens(expression: Expression) -> list[int]:
    """The prefix sequence of a loss of the search grammar, the inverse of `from_tokens`.

    Raises:
      AutolossError: a part has no token, such as a number that is not one of CONSTANTS.
    """
    leaf_id = _IDS.get((expression, False))
    if leaf_id is not None:
        return [leaf_id]
    if expression.op == LITERAL and expression.value < 0.0:  # a negated constant
        return [_IDS[Expression("neg"), True], *to_tokens(literal(-expression.value))]
    template = Expression(expression.op, where=expression.where)
    index = _IDS.get((template, True))
    if index is None:
        raise AutolossError(f"'{expression}' is not of the search grammar: no token for it")
    return [index, *(t for arg in expression.args for t in to_tokens(arg))]


class Sampled(NamedTuple):
    """A batch of sampled prefix sequences."""

    tokens: Array  # i32[count, max_tokens], START after the end
    length: Array  # i32[count]


@partial(jax.jit, static_argnames=("count", "max_tokens"))
def sample_tokens(key: Array, count: int, max_tokens: int) -> Sampled:
    """Well-typed losses at random: each token by its prior among the legal ones."""

    def write(state: GrammarState, key: Array) -> tuple[GrammarState, Array]:
        logits = jnp.where(legal_tokens(state), log_prior(state), -jnp.inf)
        token = jnp.where(state.open > 0, jax.random.categorical(key, logits), START)
        return advance(state, token), token

    def one(key: Array) -> Sampled:
        state, tokens = jax.lax.scan(write, start(max_tokens), jax.random.split(key, max_tokens))
        return Sampled(tokens.astype(jnp.int32), max_tokens - state.left)

    return jax.vmap(one)(jax.random.split(key, count))


def sample_batch(seed: int, number: int, count: int, max_tokens: int) -> np.ndarray:
    """Batch `number` of the losses that a seed draws by the prior, i32[count, max_tokens]."""
    key = jax.random.fold_in(jax.random.key(seed), number)
    return np.asarray(sample_tokens(key, count, max_tokens).tokens)


def random_expressions(key: Array, count: int, *, max_tokens: int = 24) -> list[Expression]:
    """Random losses of the search grammar that depend on the scores and on the labels.

    Args:
      key: a JAX PRNG key.
      count: how many; repetitions are possible.
      max_tokens: the length of the longest, at least 4.
    """
    if count < 0 or max_tokens < 4:
        raise AutolossError(
            f"expected count >= 0 and max_tokens >= 4, got {count} and {max_tokens}"
        )
    found: list[Expression] = []
    while len(found) < count:
        key, batch_key = jax.random.split(key)
        tokens = np.asarray(sample_tokens(batch_key, 1024, max_tokens).tokens)
        found += [e for e in map(from_tokens, tokens) if depends_on_data(e)]
    return found[:count]


def depends_on_data(expression: Expression) -> bool:
    """Whether both a score and something of the labels occur in a formula."""
    labels = ("y_i", "y_j", "gain_i", "gain_j")
    return expression.uses("s_i", "s_j") and expression.uses(*labels)
