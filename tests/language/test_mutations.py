"""Typed changes of losses, and what is a complete loss."""

import jax
import numpy as np
import pytest

from autoloss_jax.language import grammar
from autoloss_jax.language.grammar import START, TABLES, VOCABULARY, from_tokens, to_tokens
from autoloss_jax.language.mutations import MUTATIONS, Node, are_complete, subtrees
from autoloss_jax.language.parsing import parse_expression


def row(formula: str, max_tokens: int = 16) -> np.ndarray:
    tokens = to_tokens(parse_expression(formula))
    return np.array(tokens + [START] * (max_tokens - len(tokens)), np.int32)


@pytest.mark.parametrize(
    "formula",
    [
        "mean_i(s_i * y_i)",
        "sum_ij(softplus(s_j - s_i), where=y_i > y_j)",
        "sum_i(gain_i / log2(2 + sum_j(sigmoid(s_j - s_i), where=i != j))) / max_dcg",
        "sum_ij(s_i - s_j) + (sum_ij(s_j - s_i) + max_i(s_i))",
    ],
)
def test_complete_losses_are_recognised(formula):
    assert np.all(are_complete(row(formula)[None]))


@pytest.mark.parametrize(
    "tokens, why",
    [
        (row("mean_i(s_i * y_i)", 4)[:3], "ends too early"),
        (np.append(row("mean_i(s_i)", 2), [0]), "a token after the end"),
        (row("s_i", 4), "a document where a query belongs"),
        (row("mean_i(-(-s_i))", 4), "an operator that its argument undoes"),
        (row("n", 4), "a lone leaf"),
        (np.array([START] * 4), "nothing"),
        (np.array([-1, START]), "a negative token"),
        (np.append(row("mean_i(s_i)", 2), [-1]), "a negative token after the end"),
        (np.array([len(VOCABULARY) + 1, START]), "a token beyond the vocabulary"),
        (row("max_i(s_i) + (max_i(s_i) + (max_i(s_i) + max_i(s_i)))"), "four document stages"),
        (row("sum_i(max_j(s_i - s_j) + (max_j(s_i - s_j) + max_j(s_i - s_j)))"), "3 pair stages"),
    ],
)  # fmt: skip
def test_what_is_no_complete_loss_is_found(tokens, why):
    assert not np.any(are_complete(tokens[None])), why


def test_subtrees_of_a_formula():
    tokens = row("sum_i(y_i * logsumexp_j(s_j - s_i))")
    # sum_i, mul, y_i, logsumexp_j, s_j - s_i: a query over documents over a pair.
    expected = [Node(0, 5, 0), Node(1, 5, 1), Node(2, 3, 1), Node(3, 5, 1), Node(4, 5, 2)]
    assert subtrees(tokens) == expected


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_mutations_keep_the_types(mutate):
    losses = np.asarray(grammar.sample_tokens(jax.random.key(0), 400, 16).tokens)
    rng = np.random.default_rng(0)
    children = [mutate(rng, a, b) for a, b in zip(losses[:200], losses[200:], strict=True)]
    children = [child for child in children if child is not None]
    assert len(children) > 30
    padded = np.full((len(children), 48), START, np.int32)
    for place, child in zip(padded, children, strict=True):
        place[: len(child)] = child
        assert from_tokens(child).indices == frozenset()
        assert [n.end for n in subtrees(place)][0] == len(child)
        levels = [TABLES.legal[n.level, t] for n, t in zip(subtrees(place), child, strict=True)]
        assert all(levels)
    legal = np.mean(are_complete(padded))
    changed = np.mean([child not in losses[:200].tolist() for child in children])
    assert legal > 0.5  # the rest has too many stages or an operator that its argument undoes
    assert changed > 0.5
