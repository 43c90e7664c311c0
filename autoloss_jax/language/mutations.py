"""Typed changes of losses as prefix sequences of tokens, and the check that a sequence is a loss.

Changes keep every subtree at a level where it may stand. What comes out may still break the other
rules of the grammar (too long, too many stages, an operator that its argument undoes):
`are_complete` asks the grammar itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from autoloss_jax.language.grammar import (
    START,
    TABLES,
    VOCABULARY,
    Level,
    advance,
    legal_tokens,
    start,
)


@jax.jit
def are_complete(tokens: Array) -> Array:
    """bool[count]: which of i32[count, max_tokens] are complete losses, START after their ends.

    The grammar itself is the judge: every token is replayed and must be legal where it stands.
    """

    def read(carry: Any, token: Array) -> tuple[Any, None]:
        state, legal = carry
        known = (token >= 0) & (token < len(VOCABULARY))
        index = jnp.where(known, token, 0)
        fits = jnp.where(state.open > 0, known & legal_tokens(state)[index], token == START)
        return (advance(state, index), legal & fits), None

    def one(tokens: Array) -> Array:
        (state, legal), _ = jax.lax.scan(read, (start(tokens.shape[0]), True), tokens)
        return legal & (state.open == 0)

    return jax.vmap(one)(tokens)


class Node(NamedTuple):
    """A subtree of a prefix sequence: tokens[begin:end], at a level."""

    begin: int
    end: int
    level: int


def subtrees(tokens: np.ndarray) -> list[Node]:
    """The subtrees of a complete prefix sequence, one for each of its tokens, in order."""
    ends: dict[int, int] = {}
    levels: list[int] = []

    def read(begin: int, level: int) -> int:
        token = tokens[begin]
        levels.append(level)
        end = begin + 1
        for _ in range(TABLES.arity[token]):
            end = read(end, int(TABLES.argument_level[level, token]))
        ends[begin] = end
        return end

    length = read(0, int(Level.QUERY))
    return [Node(begin, ends[begin], levels[begin]) for begin in range(length)]


def replace_subtree(
    rng: np.random.Generator, parent: np.ndarray, donor: np.ndarray
) -> list[int] | None:
    """The parent with one of its subtrees replaced by one of the donor, of the same level."""
    node = _pick(rng, subtrees(parent))
    fitting = [other for other in subtrees(donor) if other.level == node.level]
    if not fitting:
        return None
    other = _pick(rng, fitting)
    return [*parent[: node.begin], *donor[other.begin : other.end], *_written(parent, node.end)]


def replace_token(
    rng: np.random.Generator, parent: np.ndarray, donor: np.ndarray
) -> list[int] | None:
    """The parent with one token replaced by one that takes the same arguments."""
    del donor
    node = _pick(rng, subtrees(parent))
    token = parent[node.begin]
    alike = (
        TABLES.legal[node.level]
        & (TABLES.arity == TABLES.arity[token])
        & (TABLES.argument_level[node.level] == TABLES.argument_level[node.level, token])
    )
    alike[token] = False
    chosen = _by_prior(rng, node.level, alike)
    return [*parent[: node.begin], chosen, *_written(parent, node.begin + 1)]


def hoist(rng: np.random.Generator, parent: np.ndarray, donor: np.ndarray) -> list[int] | None:
    """The parent with a subtree replaced by a smaller one inside it, of the same level."""
    del donor
    nodes = subtrees(parent)
    node = _pick(rng, nodes)
    inner = [n for n in nodes if node.begin < n.begin < node.end and n.level == node.level]
    if not inner:
        return None
    kept = _pick(rng, inner)
    return [*parent[: node.begin], *parent[kept.begin : kept.end], *_written(parent, node.end)]


def insert(rng: np.random.Generator, parent: np.ndarray, donor: np.ndarray) -> list[int] | None:
    """The parent with an operator written around a subtree; a second argument is the donor's."""
    node = _pick(rng, subtrees(parent))
    operators = (TABLES.arity > 0) & (TABLES.argument_level[node.level] == node.level)
    operator = _by_prior(rng, node.level, operators & TABLES.legal[node.level])
    arguments = [list(parent[node.begin : node.end])]
    if TABLES.arity[operator] == 2:
        fitting = [other for other in subtrees(donor) if other.level == node.level]
        if not fitting:
            return None
        other = _pick(rng, fitting)
        arguments.insert(int(rng.integers(2)), list(donor[other.begin : other.end]))
    return [*parent[: node.begin], operator, *sum(arguments, []), *_written(parent, node.end)]


MUTATIONS: tuple[Callable[[np.random.Generator, np.ndarray, np.ndarray], list[int] | None], ...] = (
    replace_subtree,
    replace_token,
    hoist,
    insert,
)
"""What makes a child of a parent, or None where the subtrees drawn allow none.

They take a generator, the tokens of the parent and those of a donor, such as a random loss, and
return those of the child, without padding. Neither argument is changed.
"""


def _pick(rng: np.random.Generator, nodes: list[Node]) -> Node:
    return nodes[int(rng.integers(len(nodes)))]


def _written(tokens: np.ndarray, begin: int) -> np.ndarray:
    return tokens[begin:][tokens[begin:] != START]


def _by_prior(rng: np.random.Generator, level: int, allowed: np.ndarray) -> int:
    weights = np.where(allowed, np.exp(TABLES.log_prior[level].astype(np.float64)), 0.0)
    return int(rng.choice(weights.size, p=weights / weights.sum()))
