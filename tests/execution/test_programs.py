"""Tests of losses as arrays: limits with clear errors, registers, round trips, conditions."""

import warnings

import jax
import numpy as np
import pytest

from autoloss_jax.errors import AutolossError
from autoloss_jax.execution import programs as programs_module
from autoloss_jax.execution.programs import (
    CONSTANT,
    DOCUMENT_CONDITIONS,
    DOCUMENT_LEAVES,
    MAX_DOCUMENT_INSTRUCTIONS,
    MAX_PAIR_INSTRUCTIONS,
    OPCODES,
    PAIR_CONDITIONS,
    PAIR_LEAVES,
    PAIR_WORK_REGISTERS,
    WORK_REGISTERS,
    decode,
    encode,
)
from autoloss_jax.language.expressions import Expression, apply, leaf
from autoloss_jax.language.grammar import random_expressions
from autoloss_jax.language.operators import LARGE, OPERATORS
from autoloss_jax.language.parsing import FormulaError, parse
from autoloss_jax.language.simplification import simplify
from autoloss_jax.losses import HAND_DESIGNED, LOSSES


def chain(op: str, parts: list[str]) -> str:
    return f" {op} ".join(parts)


def balanced(depth: int) -> str:
    """A full binary tree of exponentials: each level needs one register more."""
    half = balanced(depth - 1) if depth else ""
    return f"({half} {'-*'[depth % 2]} {half})" if depth else "exp(s_i)"


# -------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", HAND_DESIGNED)
def test_hand_designed_losses_fit_and_read_back(name):
    (read,) = decode(encode([LOSSES[name]]))
    assert read == LOSSES[name]


def test_many_losses_in_order():
    losses = random_expressions(jax.random.key(0), 50)
    programs = encode(losses)
    assert programs.count == 50
    assert all(leaf.shape[0] == 50 for leaf in jax.tree.leaves(programs))
    for k, loss in enumerate(decode(programs)):
        assert loss == decode(encode([losses[k]]))[0]


def test_texts_are_read():
    text = "sum_ij(softplus(s_j - s_i), where=y_i > y_j)"
    for a, b in zip(*(jax.tree.leaves(encode([x])) for x in (text, parse(text))), strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_losses_are_no_candidates():
    assert encode([]).count == 0
    assert decode(encode([])) == []


def test_numbers_are_float32_and_saturate():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        programs = encode(["sum_i(1e300 * s_i - 1e39 + 1e-60 * y_i * 0.1)"])
    assert np.all(np.isfinite(programs.document.constant))
    constants = set(np.asarray(programs.document.constant).ravel().tolist())
    assert constants == {np.float32(LARGE), 0.0, np.float32(0.1)}
    (read,) = decode(programs)
    assert str(read) == "sum_i(1e+30 * s_i - 1e+30 + 0 * y_i * 0.1)"


@pytest.mark.parametrize("where", PAIR_CONDITIONS[1:])
def test_conditions_of_pairs(where):
    loss = parse(f"sum_i(sum_j(s_i - s_j, where={where}), where=y_i > 0)")
    assert decode(encode([loss])) == [loss]
    assert decode(encode([simplify(loss)])) == [loss]


@pytest.mark.parametrize("where", DOCUMENT_CONDITIONS[1:])
def test_conditions_of_documents(where):
    loss = parse(f"mean_i(s_i, where={where})")
    assert decode(encode([loss])) == [loss]


@pytest.mark.parametrize(
    "where, known",
    [
        ("y_j != y_i", "y_i != y_j"),
        ("j != i", "i != j"),
        ("y_j < y_i", "y_i > y_j"),
        ("i <= j and y_j == y_i or y_i > y_j", "y_i > y_j or y_j == y_i and j >= i"),
    ],
)
def test_conditions_are_known_however_they_are_written(where, known):
    loss = parse(f"sum_i(sum_j(s_i - s_j, where={where}), where=y_i > 0)")
    assert decode(encode([loss])) == [
        parse(f"sum_i(sum_j(s_i - s_j, where={known}), where=y_i > 0)")
    ]


def test_a_sum_over_pairs_may_exchange_its_indices_to_fit():
    loss = parse("sum_ij(s_i - s_j, where=y_j > y_i or y_i == y_j and i >= j)")
    assert decode(encode([loss])) == [
        parse("sum_ij(s_j - s_i, where=y_i > y_j or y_j == y_i and j >= i)")
    ]


def test_programs_know_whether_they_use_ranks():
    texts = ["sum_i(s_i)", "sum_i(rank_i)", "sum_ij(s_i - s_j + discount_j)", "n"]
    assert encode(texts).uses_ranks.tolist() == [False, True, True, False]


# --------------------------------------------------------------------------- instructions


def test_instructions_read_only_leaves_and_what_was_written_before():
    programs = encode([*random_expressions(jax.random.key(1), 300), *LOSSES.values()])
    levels = (
        (programs.pair, range(PAIR_WORK_REGISTERS), 0),
        (programs.document, range(len(DOCUMENT_LEAVES) + WORK_REGISTERS), len(DOCUMENT_LEAVES)),
    )
    for segments, registers, ready in levels:
        segments = jax.tree.map(np.asarray, segments)
        for stage in np.ndindex(segments.length.shape):
            written = set(range(ready))
            for op, a, b, target in segments.code[stage][: segments.length[stage]]:
                if OPCODES[op] in OPERATORS:
                    assert {a, b} <= written
                else:
                    assert OPCODES[op] == CONSTANT or OPCODES[op] in PAIR_LEAVES
                assert target in registers
                assert target >= ready  # leaves are never overwritten
                written.add(target)
            if segments.length[stage]:
                assert segments.result[stage] in written


def test_a_later_pair_stage_leaves_the_result_of_the_earlier_alone():
    programs = encode(
        ["sum_i(sum_j(exp(s_i - s_j) * y_j) / sum_j(exp(s_j - s_i) * (y_i + exp(gain_j) * y_j)))"]
    )
    pair = jax.tree.map(lambda x: np.asarray(x)[0], programs.pair)
    assert np.all(pair.reduction > 0)
    later = pair.code[1, : pair.length[1], 3]
    assert pair.result[0] not in later


def test_deep_chains_need_few_registers():
    # Left-leaning: one register; right-leaning: the deeper side is computed first.
    left = "sum_i(" + "(" * 20 + "exp(s_i)" + " + y_i)" * 20 + ")"
    right = "sum_i(" + "(y_i + " * 20 + "exp(s_i)" + ")" * 20 + ")"
    code = np.asarray(encode([left, right]).document.code)[:, 0, :21]
    assert set(code[..., 3].ravel()) == {len(DOCUMENT_LEAVES)}


# ---------------------------------------------------------------------------- what does not fit


def refused(loss: str | Expression) -> str:
    with pytest.raises(AutolossError) as caught:
        encode([LOSSES["mse"], loss])
    assert str(caught.value).startswith(f"'{loss}' does not fit a batched program: ")
    return str(caught.value)


def test_as_many_stages_as_stated():
    pair, document = "sum_j(s_i - s_j)", "sum_i(s_i)"
    encode([f"sum_i({chain('+', [pair] * 2)})", chain("+", [document] * 3)])
    text = refused(f"sum_i({chain('+', [pair] * 3)})")
    assert f"more than 2 reductions over pairs; at '{pair}'" in text
    text = refused(chain("+", [document] * 4))
    assert f"more than 3 reductions over documents; at '{document}'" in text
    # A sum over pairs takes a stage of both.
    assert "more than 2 reductions over pairs" in refused(chain("+", ["sum_ij(y_j)"] * 3))


@pytest.mark.parametrize(
    "level, loss, capacity",
    [
        ("pair", "sum_ij(exp(y_i){})", MAX_PAIR_INSTRUCTIONS),  # the leaf is an instruction, too
        ("document", "sum_i(y_i{})", MAX_DOCUMENT_INSTRUCTIONS),
        ("query", "n{}", MAX_DOCUMENT_INSTRUCTIONS),
    ],
)
def test_as_many_instructions_as_stated(level, loss, capacity):
    each = 2 if level == "pair" else 1  # an addition and, over pairs, the loading of its leaf
    fits = loss.format(" + n" * ((capacity - 2 * (level == "pair")) // each))
    assert str(decode(encode([fits]))[0]) == fits
    text = refused(loss.format(" + n" * (capacity // each + 1)))
    assert f"a {level} stage of a batched program holds at most {capacity} instructions" in text


def test_as_many_registers_as_stated(monkeypatch):
    monkeypatch.setattr(programs_module, "MAX_DOCUMENT_INSTRUCTIONS", 1000)
    encode([f"sum_i({balanced(WORK_REGISTERS - 1)})"])
    text = refused(str(parse(f"sum_i({balanced(WORK_REGISTERS)})")))
    assert f"needs more than {WORK_REGISTERS} registers" in text


@pytest.mark.parametrize(
    "loss, message",
    [
        ("sum_ij(s_i * y_j)", "'s_i' cannot stand in the pair stage"),
        ("sum_ij(sum_j(y_j))", "'sum_j(y_j)' cannot stand in the pair stage"),
        ("sum_i(sum_i(s_i) * y_i)", "'sum_i(s_i)' cannot stand in the document stage"),
        ("sum_j(s_j)", "'sum_j(s_j)' cannot reduce documents; expected a reduction over i"),
        (
            "sum_i(s_i, where=y_i > 1)",
            "'where=y_i > 1' of sum_i is not one a batched program holds",
        ),
        ("sum_ij(1, where=gain_i > y_j)", "'where=gain_i > y_j' of sum_ij is not one"),
    ],
)
def test_what_does_not_fit_is_named(loss, message):
    text = refused(loss)
    assert message in text
    assert "expected" in text


def test_what_is_no_loss_is_named():
    with pytest.raises(AutolossError, match="expected a loss, an Expression or its text; got 5"):
        encode([5])
    with pytest.raises(AutolossError, match="'s_i' is not a loss: expected no free index, got i"):
        encode([leaf("s_i")])
    with pytest.raises(FormulaError, match="column 7"):
        encode(["sum_i(t_i)"])


@pytest.mark.parametrize("loss", ["sum_i(s_i)", apply("sum_i", leaf("s_i"))])
def test_one_loss_is_no_sequence(loss):
    with pytest.raises(
        AutolossError, match=r"expected a sequence of losses, got the one loss 'sum_i"
    ):
        encode(loss)
