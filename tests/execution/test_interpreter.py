"""Tests of the batched path: the exact path's values and gradients, one compile, nothing leaks.

Two float32 computations of an ill-conditioned formula differ by its rounding, however right both
are (`sum_ij(s_i - s_j, where=y_i != y_j)` is 0, and rounding is all that is left of it). So a
deviation is a mismatch only if it exceeds 1e-5 of the exact path's gradient, and also ten times
what rounding may do, measured by the exact path in float64 with every operation's result off by up
to 2**-23. Half of the times, the terms of a sum of n are off by as much times the root of n, since
a sum may go in any order (Higham and Mary, A new approach to probabilistic rounding error analysis,
2019).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autoloss_jax.errors import AutolossError
from autoloss_jax.execution import exact, interpreter, pair_blocks
from autoloss_jax.execution.batched import batched_loss, losses_and_gradients
from autoloss_jax.execution.exact import compile_loss
from autoloss_jax.execution.programs import DOCUMENT_CONDITIONS, PAIR_CONDITIONS, encode
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.grammar import random_expressions
from autoloss_jax.language.operators import OPERATORS
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import HAND_DESIGNED, LOSSES

GROUP = 25  # candidates a call, so that one compile serves all tests
RUN = jax.jit(losses_and_gradients)
VALUE = jax.jit(batched_loss)
TINY_DEVIATION = 1e-6
ROUNDINGS = 16


class Batch(NamedTuple):
    scores: jax.Array
    labels: jax.Array
    mask: jax.Array


@functools.cache
def padded_batch(largest: float = 1e4, length: int = 64) -> Batch:
    """Queries of 0 to 64 documents, at any place of the list, of all kinds of scores and labels."""
    rng = np.random.default_rng(7)
    # documents, scale of the scores
    kinds = [
        (1, 1),
        (2, 1),
        (5, 1),
        (12, 1),
        (20, 1),
        (64, 1),
        (33, 1e4),
        (0, 1),
        (8, 0),
        (16, 100),
    ]
    kinds = [(documents, min(scale, largest)) for documents, scale in kinds]
    mask = np.zeros((len(kinds), length), bool)
    for q, (documents, _) in enumerate(kinds):
        mask[q, rng.permutation(length)[:documents]] = True
    scores = rng.normal(size=mask.shape) * np.array(kinds)[:, 1:]
    scores[3] = np.round(scores[3])  # ties
    labels = rng.integers(0, 5, mask.shape).astype(float)
    labels[2] = 0.0
    labels[4] = np.minimum(labels[4], 1.0)
    arrays = (np.where(mask, scores, 0.0), np.where(mask, labels, 0.0))
    return Batch(*(jnp.asarray(x, jnp.float32) for x in arrays), jnp.asarray(mask))


def batched(losses: Sequence[Expression], batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Losses [candidates, queries] and their gradients by the scores, in calls of GROUP."""
    padded = [*losses, *[losses[-1]] * (-len(losses) % GROUP)]
    scores = jnp.broadcast_to(batch.scores, (GROUP, *batch.scores.shape))
    groups = [
        RUN(encode(padded[k : k + GROUP]), scores, batch.labels, batch.mask)
        for k in range(0, len(padded), GROUP)
    ]
    values, gradients = (np.concatenate(x)[: len(losses)] for x in zip(*groups, strict=True))
    return values.astype(np.float64), gradients.astype(np.float64)


def exactly(loss: Expression, batch: Batch, dtype=jnp.float32) -> tuple[np.ndarray, np.ndarray]:
    """The same by the exact path, operator by operator, since each loss would compile anew."""
    loss_fn = compile_loss(loss)
    scores, labels = (jnp.asarray(np.asarray(x), dtype) for x in (batch.scores, batch.labels))

    def total(scores):
        values = loss_fn(scores, labels, where=batch.mask, reduce_fn=None)
        return values.sum(), values

    (_, values), gradients = jax.value_and_grad(total, has_aux=True)(scores)
    return np.asarray(values, np.float64), np.asarray(gradients, np.float64)


@contextlib.contextmanager
def rounded(seed: int) -> Iterator[None]:
    """Lets the exact path be off in every result and term as float32's rounding may be."""
    rng = np.random.default_rng(seed)

    def off(x, roundings=1.0):
        return x * (1.0 + roundings * 2.0**-23 * rng.uniform(-1.0, 1.0, jnp.shape(x)))

    def rounding(operator):
        value = operator.value
        return dataclasses.replace(operator, value=lambda *args: off(value(*args)))

    precise = ("neg", "abs", "sign", "relu", "min", "max", "stop_gradient")
    operators = {name: rounding(op) for name, op in OPERATORS.items() if name not in precise}
    kinds = {
        kind: lambda values, *rest, reduce=reduce: reduce(
            off(values, values.shape[-1] ** (seed % 2 / 2)), *rest
        )
        for kind, reduce in exact._KINDS.items()
    }
    with mock.patch.dict(OPERATORS, operators), mock.patch.dict(exact._KINDS, kinds):
        yield


def norm(gradients: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(np.square(gradients), axis=-1))


def deviations(a, b) -> np.ndarray:
    """Of value and gradient, [2, queries]."""
    return np.stack([np.abs(a[0] - b[0]), norm(a[1] - b[1])])


def unexplained(loss: Expression, batch: Batch, got) -> tuple[bool, bool]:
    """Whether rounding had to be looked at, and whether a deviation remains that it is not."""
    expected = exactly(loss, batch)
    size = np.stack([np.abs(expected[0]), norm(expected[1])])
    allowed = 1e-5 * size + TINY_DEVIATION
    wrong = deviations(got, expected) > allowed
    if not wrong.any():
        return False, False
    with jax.enable_x64(True):
        precise = exactly(loss, batch, jnp.float64)
        rounding = deviations(expected, precise)
        deviation = np.minimum(deviations(got, expected), deviations(got, precise))
        for seed in range(ROUNDINGS):
            with rounded(seed):
                rounding = np.maximum(
                    rounding, deviations(exactly(loss, batch, jnp.float64), precise)
                )
            wrong &= deviation > allowed + 10.0 * rounding
            if not wrong.any():
                return True, False
    return True, True


def mismatches(losses: Sequence[Expression], batch: Batch) -> tuple[int, list[str]]:
    """How many losses are ill-conditioned on the batch, and those that the two paths differ in."""
    values, gradients = batched(losses, batch)
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(gradients))
    results = [unexplained(loss, batch, (values[k], gradients[k])) for k, loss in enumerate(losses)]
    wrong = [str(loss) for loss, (_, bad) in zip(losses, results, strict=True) if bad]
    return sum(looked for looked, _ in results), wrong


# ------------------------------------------------------------------------- equal to the exact path


def test_every_hand_designed_loss_equals_the_exact_path():
    losses = [LOSSES[name] for name in HAND_DESIGNED]
    ill_conditioned, wrong = mismatches(losses, padded_batch())
    assert wrong == []
    assert ill_conditioned <= 4


def test_random_losses_equal_the_exact_path():
    losses = list(dict.fromkeys(random_expressions(jax.random.key(1), 260)))[:200]
    ill_conditioned, wrong = mismatches(losses, padded_batch(largest=1.0))
    assert wrong == []
    assert ill_conditioned <= 0.05 * len(losses)


@pytest.mark.slow
def test_2000_random_losses_equal_the_exact_path():
    losses = random_expressions(jax.random.key(11), 2000)
    ill_conditioned, wrong = mismatches(losses, padded_batch())
    assert wrong == []
    assert ill_conditioned <= 0.12 * len(losses)


def test_every_condition_equals_the_exact_path():
    texts = [f"sum_ij(sigmoid(s_i - s_j) * y_i, where={c})" for c in PAIR_CONDITIONS[1:]]
    texts += [f"mean_ij(sigmoid(s_i - s_j) * y_i, where={c})" for c in PAIR_CONDITIONS[1:]]
    texts += [f"mean_i(sigmoid(s_i), where={c})" for c in DOCUMENT_CONDITIONS[1:]]
    # Where the condition holds for the other order of the pair only, the indices are exchanged.
    texts.append("sum_ij(sigmoid(s_i - s_j) * y_j, where=y_j > y_i or y_i == y_j and i >= j)")
    ill_conditioned, wrong = mismatches([parse(text) for text in texts], padded_batch())
    assert wrong == []
    assert ill_conditioned <= 1  # none with jax 0.10.2, one with 0.10.1


def test_a_saturated_loss_has_no_gradient_and_a_tiny_divisor_keeps_its_own():
    losses = [
        parse("sum_ij(exp(100 * (s_i - s_j)), where=y_i != y_j)"),  # beyond 1e30 by its sum only
        parse("mean_ij(0.1 / softplus(10 * (s_i - s_j)), where=y_i > y_j)"),
        parse("mean_i(1 / sigmoid(10 * s_i))"),
        parse("mean_i(10 * exp(10 * s_i) / exp(20 * s_i))"),
    ]
    assert mismatches(losses, padded_batch())[1] == []


# --------------------------------------------------------------------------------- padded queries


def group(*names: str) -> list[Expression]:
    """GROUP losses that begin with those of `names`."""
    return ([LOSSES[name] for name in names] + list(LOSSES.values()) * 2)[:GROUP]


def spread(scores: jax.Array) -> jax.Array:
    """The same scores for every candidate."""
    return jnp.broadcast_to(scores, (GROUP, *scores.shape))


def test_batched_loss_is_the_mean_over_queries_that_have_a_document():
    scores, labels, mask = padded_batch(largest=1.0)
    losses = group("ranknet", "mse", "approx_ndcg")
    per_query, gradients = RUN(encode(losses), spread(scores), labels, mask)
    values = VALUE(encode(losses), spread(scores), labels, mask)
    assert per_query[:, 7].tolist() == [0.0] * GROUP  # the query without a document
    assert not np.any(gradients[:, 7])
    assert not np.any(np.asarray(gradients)[:, ~np.asarray(mask)])
    np.testing.assert_allclose(values, per_query.sum(1) / 9, rtol=1e-6)
    for k in range(3):
        expected = compile_loss(losses[k])(scores, labels, where=mask)
        np.testing.assert_allclose(values[k], expected, rtol=1e-5)


def test_gradient_in_reverse_mode_by_the_scores_alone():
    scores, labels, mask = padded_batch(largest=1.0)
    programs = encode(group("mse", "softmax"))
    weights = jnp.arange(GROUP, dtype=jnp.float32)

    @jax.jit
    def total(scores):
        return jnp.sum(weights * batched_loss(programs, scores, labels, mask))

    value, gradient = jax.value_and_grad(total)(spread(scores))
    _, per_query = RUN(programs, spread(scores), labels, mask)
    values = VALUE(programs, spread(scores), labels, mask)
    np.testing.assert_allclose(value, jnp.sum(weights * values), rtol=1e-6)
    # 9 of the 10 queries have a document.
    np.testing.assert_allclose(
        gradient, weights[:, None, None] * per_query / 9, rtol=1e-5, atol=1e-7
    )


def test_masked_documents_never_matter():
    scores, labels, mask = padded_batch()
    programs = encode(random_expressions(jax.random.key(2), GROUP))
    expected = RUN(programs, spread(scores), labels, mask)
    for anything in (jnp.nan, jnp.inf, -1e30, 7.0):
        other = spread(jnp.where(mask, scores, anything))
        got = RUN(programs, other, jnp.where(mask, labels, anything), mask)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_batch_of_nothing_but_padding_has_loss_zero():
    scores, labels, mask = padded_batch()
    programs = encode(group())
    nothing = jnp.zeros_like(mask)
    assert not np.any(VALUE(programs, spread(scores), labels, nothing))
    assert not np.any(RUN(programs, spread(scores), labels, nothing)[1])


@pytest.mark.parametrize("scale", [0.0, 1e4, 1e15, 1e30])
def test_values_and_gradients_are_finite_at_extremes(scale):
    scores, labels, mask = padded_batch(largest=1.0)
    for labels_ in (labels, jnp.zeros_like(labels), 30.0 * labels):
        programs = encode(random_expressions(jax.random.key(3), GROUP))
        for array in RUN(programs, spread(jnp.sign(scores) * scale), labels_, mask):
            assert np.all(np.isfinite(array))


# ------------------------------------------------------------------- one program for all candidates


def test_new_candidates_never_compile_again():
    scores, labels, mask = padded_batch()
    traced = []

    # jit traces what it is about to compile, and only that.
    @jax.jit
    def step(programs, scores, labels, mask):
        traced.append(1)
        return batched_loss(programs, scores, labels, mask)

    for seed in range(4):
        programs = encode(random_expressions(jax.random.key(seed), GROUP))
        step(programs, spread(scores), labels, mask)
    step(encode(group()), spread(scores), labels, mask)
    assert len(traced) == 1


def test_candidates_do_not_disturb_each_other():
    scores, labels, mask = padded_batch()
    losses = random_expressions(jax.random.key(5), GROUP)
    # One that overflows stands among them.
    losses[7] = parse("sum_ij(exp(100 * (s_i - s_j)) / exp(100 * (s_j - s_i)))")
    order = np.random.default_rng(0).permutation(GROUP)
    many = spread(scores) * (1.0 + 0.1 * np.arange(GROUP)[:, None, None])
    straight = RUN(encode(losses), many, labels, mask)
    mixed = RUN(encode([losses[k] for k in order]), many[order], labels, mask)
    for a, b in zip(straight, mixed, strict=True):
        np.testing.assert_array_equal(np.asarray(a)[order], b)


def assert_same_in_pieces(
    monkeypatch, block_pairs: int, tile_pairs: int, tiles: int, blocks: int, keep_pairs: bool
) -> None:
    """The same results, when queries are cut into so many tiles and a tile's pairs into blocks."""
    scores, labels, mask = padded_batch(largest=1.0)
    # Losses whose pair stages are reduced in every way, and that read each result differently.
    names = ("softmax", "approx_ndcg", "lambdarank", "ranknet", "mse")
    extra = ["sum_i(square(max_j(s_i - s_j)))", "sum_i(y_i * mean_j(exp(s_i - s_j)))",
             "mean_ij(softplus(s_j - s_i), where=y_i > y_j) + sum_i(rank_i * s_i)"]  # fmt: skip
    programs = encode([*group(*names)[: GROUP - len(extra)], *extra])
    expected = RUN(programs, spread(scores), labels, mask)
    monkeypatch.setattr(interpreter, "BLOCK_PAIRS", block_pairs)
    monkeypatch.setattr(interpreter, "TILE_PAIRS", tile_pairs)
    queries, length = labels.shape
    assert interpreter._tile_count([(queries, length)]) == tiles
    cut = pair_blocks.Blocks.of([(-(-queries // tiles), length)], block_pairs, 2 * tile_pairs)
    assert (cut.count, cut.keep_pairs) == (blocks, keep_pairs)
    got = jax.jit(lambda *args: losses_and_gradients(*args))(programs, spread(scores), labels, mask)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_tiles_are_not_mostly_fillers():
    assert interpreter._tile_count([(8, 800)]) == 8
    assert interpreter._tile_count([(8, 800), (8, 400), (3, 10)]) == 8
    # One long list would be computed in each of six tiles.
    assert interpreter._tile_count([(6, 77), (5, 126), (3, 198), (1, 539)]) == 1
    assert interpreter._tile_count([(40, 10), (10, 1)]) == 1


def test_queries_are_independent_of_the_tile_they_fall_into(monkeypatch):
    # Tiles of 3 of the 10 queries of 64 * 64 pairs, the last one padded; blocks of 96 rows, which
    # end within a query.
    assert_same_in_pieces(monkeypatch, 2 * 64 * 64, 3 * 64 * 64, tiles=4, blocks=2, keep_pairs=True)


def test_lists_whose_pairs_are_too_many_to_be_kept(monkeypatch):
    # A query has 64 * 64 pairs, more than twice 1,000, so they are computed again on the way back;
    # a block has 3 of its 64 rows, so the last one has places for two that are not there.
    assert_same_in_pieces(monkeypatch, 3 * 64, 1000, tiles=10, blocks=22, keep_pairs=False)


def test_lists_of_several_lengths_are_run_together():
    scores, labels, mask = padded_batch(largest=1.0)
    programs = encode(group("softmax", "lambdarank", "mse"))
    order = np.argsort(~np.asarray(mask), axis=1, kind="stable")  # the real documents first
    together = [np.take_along_axis(np.asarray(x), order, 1) for x in (scores, labels, mask)]
    rows = (np.array([0, 1, 2, 8]), np.array([3, 4, 9]), np.array([5, 6, 7]))
    parts = [[jnp.asarray(x[r, :n]) for x in together]
             for r, n in zip(rows, (8, 20, 64), strict=True)]  # fmt: skip
    scores_, labels_, masks = (list(x) for x in zip(*parts, strict=True))
    losses, gradients = jax.jit(interpreter.ragged_losses_and_gradients)(
        programs, [spread(x) for x in scores_], labels_, masks
    )
    expected = RUN(programs, spread(together[0]), together[1], together[2])
    for r, n, loss, gradient in zip(rows, (8, 20, 64), losses, gradients, strict=True):
        np.testing.assert_allclose(loss, expected[0][:, r], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gradient, expected[1][:, r, :n], rtol=1e-5, atol=1e-5)


def test_columns_are_the_same_by_a_loop_over_rows_and_without_one(monkeypatch):
    scores, labels, mask = padded_batch(largest=1.0)
    names = ("softmax", "approx_ndcg", "lambdarank", "ranknet", "mse")
    programs = encode(group(*names))

    def run(by_loop: bool):
        monkeypatch.setattr(pair_blocks, "row_by_row", lambda: by_loop)
        compiled = jax.jit(lambda *args: losses_and_gradients(*args))
        return compiled(programs, spread(scores), labels, mask)

    for a, b in zip(run(True), run(False), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_blocks_hold_only_rows_that_can_have_a_pair_that_counts():
    labels = np.zeros((4, 8), np.float32)
    labels[0, 2], labels[1, :5], labels[2, 1:3] = 2.0, 1.0, np.nan
    blocks = pair_blocks.Blocks.of([labels.shape], most=64, kept=10_000)
    assert (blocks.count, blocks.shares[0].rows) == (4, 8)
    sets = pair_blocks.RowSets.of([jnp.asarray(labels)], blocks)
    rows = {name: [int(x) for x in sets.documents[0][k] if x < labels.size]
            for k, name in ((pair_blocks.ALL, "all"), (pair_blocks.BETTER, "better"),
                            (pair_blocks.WORSE, "worse"))}  # fmt: skip
    assert rows["all"] == [k for k in range(32) if k not in (17, 18)]
    assert rows["better"] == [2, 8, 9, 10, 11, 12]
    assert rows["worse"] == [0, 1, 3, 4, 5, 6, 7, 13, 14, 15]
    assert list(map(int, sets.blocks)) == [4, 1, 2]


def test_lists_of_one_document():
    scores, labels = jnp.array([[2.0], [-1.0]]), jnp.array([[1.0], [0.0]])
    mask = jnp.ones((2, 1), bool)
    programs = encode([LOSSES["mse"], LOSSES["ranknet"], LOSSES["softmax"]])
    losses, gradients = RUN(programs, jnp.stack([scores] * 3), labels, mask)
    np.testing.assert_allclose(losses, [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(gradients[..., 0], [[2.0, -2.0], [0.0, 0.0], [0.0, 0.0]])


# ---------------------------------------------------------------------------------- truncated pairs

LEVEL = 5
TRUNCATED = (
    "ranknet", "lambdarank", "pairwise_mse", "softmax",
    "mean_ij(square(s_i - s_j), where=y_i >= y_j) + sum_i(max_j(s_i - s_j) * y_i)",
    "mse",
)  # fmt: skip


def truncated(truncation_level: int):
    def run(*args):
        return interpreter.losses_and_gradients(*args, truncation_level)

    return jax.jit(run)


@functools.cache
def truncated_programs():
    """Some losses, and enough of others to fill a group."""
    losses = [LOSSES[text] if text in LOSSES else parse(text) for text in TRUNCATED]
    return encode([*losses, *group()[len(losses) :]])


def by_hand(scores, labels, level):
    """ranknet, lambdarank and the mean of the truncated programs, of one query without padding.

    By loops over pairs in float64, with derivatives by hand.
    """
    order = np.argsort(-scores, kind="stable")
    rank = np.empty(len(scores))
    rank[order] = 1.0 + np.arange(len(scores))
    ideal = np.sort(2.0**labels - 1.0)[::-1]
    max_dcg = np.sum(ideal / np.log2(2.0 + np.arange(len(scores))))
    values, gradients = np.zeros(3), np.zeros((3, len(scores)))
    pairs = 0
    for i in range(len(scores)):
        for j in range(len(scores)):
            if min(rank[i], rank[j]) > level:
                continue
            apart = scores[i] - scores[j]
            if labels[i] > labels[j]:
                gain = 2.0 ** labels[i] - 2.0 ** labels[j]
                discount = abs(1 / np.log2(1 + rank[i]) - 1 / np.log2(1 + rank[j]))
                for k, weight in enumerate((1.0, gain * discount / max_dcg)):
                    values[k] += weight * np.log1p(np.exp(-apart))
                    pull = -weight / (1.0 + np.exp(apart))
                    gradients[k, i] += pull
                    gradients[k, j] -= pull
            if labels[i] >= labels[j]:
                pairs += 1
                values[2] += apart**2
                gradients[2, i] += 2 * apart
                gradients[2, j] -= 2 * apart
    return values / [1, 1, pairs], gradients / np.array([[1], [1], [pairs]])


def check_by_hand(run) -> None:
    scores, labels, mask = padded_batch(largest=1.0)
    mean = parse("mean_ij(square(s_i - s_j), where=y_i >= y_j)")
    programs = encode([LOSSES["ranknet"], LOSSES["lambdarank"], mean, *group()[3:]])
    losses, gradients = run(programs, spread(scores), labels, mask)
    for q, real in enumerate(np.asarray(mask)):  # of fewer and of more documents than the level
        if real.any():
            numbers = (np.asarray(x[q], np.float64)[real] for x in (scores, labels))
            with np.errstate(invalid="ignore"):
                value, gradient = map(np.nan_to_num, by_hand(*numbers, LEVEL))
            np.testing.assert_allclose(losses[:3, q], value, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(gradients[:3, q][:, real], gradient, rtol=1e-4, atol=1e-5)


def test_truncated_pairs_are_those_with_a_document_among_the_first():
    check_by_hand(truncated(LEVEL))


@pytest.mark.parametrize(
    "block_pairs, tile_pairs", [(2 * 64 * 64, 3 * 64 * 64), (3 * 64, 1000)], ids=["tiles", "rows"]
)
def test_pairs_are_truncated_in_pieces_as_well(monkeypatch, block_pairs, tile_pairs):
    monkeypatch.setattr(interpreter, "BLOCK_PAIRS", block_pairs)
    monkeypatch.setattr(interpreter, "TILE_PAIRS", tile_pairs)
    check_by_hand(truncated(LEVEL))


def test_a_level_that_no_list_exceeds_truncates_nothing():
    scores, labels, mask = padded_batch(largest=1.0)
    batch = (truncated_programs(), spread(scores), labels, mask)
    for a, b in zip(truncated(64)(*batch), RUN(*batch), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_truncation_concerns_reductions_over_pairs_alone():
    scores, labels, mask = padded_batch(largest=1.0)
    batch = (truncated_programs(), spread(scores), labels, mask)
    got, whole = truncated(LEVEL)(*batch), RUN(*batch)
    short = np.asarray(mask).sum(1) <= LEVEL
    mse = TRUNCATED.index("mse")
    for a, b in zip(map(np.asarray, got), map(np.asarray, whole), strict=True):
        np.testing.assert_allclose(a[mse], b[mse], rtol=1e-6)
        np.testing.assert_allclose(a[:, short], b[:, short], rtol=1e-5, atol=1e-6)
        assert all(np.abs(a[k, 5] - b[k, 5]).max() > 1e-3 for k in range(mse))  # 64 documents


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "scores, labels, mask",
    [
        ((3, 2, 4), (2, 4), (2, 4)),
        ((2, 4), (2, 4), (2, 4)),
        ((2, 2, 4), (2, 5), (2, 4)),
        ((2, 2, 4), (2, 4), (4,)),
        ((2, 4), (4,), (4,)),
    ],
)
def test_shapes_that_do_not_fit_are_named(scores, labels, mask):
    programs = encode([LOSSES["mse"], LOSSES["ranknet"]])
    with pytest.raises(AutolossError, match="for 2 candidates; got") as caught:
        batched_loss(programs, jnp.zeros(scores), jnp.zeros(labels), jnp.zeros(mask, bool))
    assert str(scores) in str(caught.value)
    assert "scores [candidates, queries, list]" in str(caught.value)
