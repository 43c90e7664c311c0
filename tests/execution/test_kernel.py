"""Tests of the GPU kernel: the XLA path's values and gradients, and that Triton can lower it.

Here the kernel is interpreted by Pallas on the CPU, in tiles so small that lists take several of
them; where JAX has a GPU, it runs natively as well.
"""

import functools
import sys
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from autoloss_jax.errors import AutolossError
from autoloss_jax.execution import interpreter, kernel
from autoloss_jax.execution.programs import DOCUMENT_CONDITIONS, PAIR_CONDITIONS, encode
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.grammar import random_expressions
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import HAND_DESIGNED, LOSSES
from tests.execution.test_interpreter import GROUP, Batch, group, norm, unexplained

LENGTH, WIDTH = 7, 4
HAS_GPU = jax.default_backend() == "gpu"

XLA = jax.jit(interpreter.losses_and_gradients)


@jax.jit
def interpreted(*args):
    return kernel.losses_and_gradients(*args, interpret=True)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(kernel, "tile_width", lambda length: WIDTH)


@functools.cache
def batch() -> Batch:
    """Queries of 0 to 7 documents, at any place of the list, of all kinds of scores and labels."""
    rng = np.random.default_rng(3)
    # documents, scale of the scores
    kinds = [(7, 1), (1, 1), (2, 1), (5, 1), (0, 1), (7, 1e4), (6, 0), (7, 1), (3, 10)]
    mask = np.zeros((len(kinds), LENGTH), bool)
    for q, (documents, _) in enumerate(kinds):
        mask[q, rng.permutation(LENGTH)[:documents]] = True
    scores = rng.normal(size=mask.shape) * np.array(kinds)[:, 1:]
    scores[7] = np.round(scores[7])  # ties
    labels = rng.integers(0, 5, mask.shape).astype(float)
    labels[3] = 0.0
    arrays = (np.where(mask, scores, 0.0), np.where(mask, labels, 0.0))
    return Batch(*(jnp.asarray(x, jnp.float32) for x in arrays), jnp.asarray(mask))


class Deviation(NamedTuple):
    ill_conditioned: int
    wrong: list[str]


def deviation(
    losses: Sequence[Expression], run=interpreted, held: Batch | None = None
) -> Deviation:
    """How many losses are ill-conditioned on the batch, and those that kernel and XLA differ in."""
    held = held or batch()
    padded = [*losses, *[losses[-1]] * (-len(losses) % GROUP)]
    looked, wrong = 0, []
    for start in range(0, len(losses), GROUP):
        part = padded[start : start + GROUP]
        args = (encode(part), jnp.stack([held.scores] * GROUP), held.labels, held.mask)
        got, expected = (jax.tree.map(np.float64, run(*args)) for run in (run, XLA))
        for c, loss in enumerate(part[: len(losses) - start]):
            one, other = ((values[c], gradients[c]) for values, gradients in (got, expected))
            assert all(np.all(np.isfinite(x)) for x in one)
            close = [np.abs(one[0] - other[0]) <= 1e-5 * np.abs(other[0]) + 1e-6,
                     norm(one[1] - other[1]) <= 1e-5 * norm(other[1]) + 1e-6]  # fmt: skip
            if not np.all(close):  # then the two may still be as right as rounding lets them
                looked += 1
                wrong += [str(loss)] if unexplained(loss, held, one)[1] else []
    return Deviation(looked, wrong)


# ---------------------------------------------------------------------------- equal to the XLA path


def test_every_hand_designed_loss_equals_the_xla_path():
    ill_conditioned, wrong = deviation([LOSSES[name] for name in HAND_DESIGNED])
    assert wrong == []
    assert ill_conditioned <= 2


def test_random_losses_equal_the_xla_path():
    # Seeds of few ill-conditioned ones, which are slow to judge.
    losses = [loss for seed in (3, 6) for loss in random_expressions(jax.random.key(seed), GROUP)]
    ill_conditioned, wrong = deviation(losses)
    assert wrong == []
    assert ill_conditioned <= 5


@pytest.mark.slow
def test_500_random_losses_equal_the_xla_path():
    ill_conditioned, wrong = deviation(random_expressions(jax.random.key(11), 500))
    assert wrong == []
    assert ill_conditioned <= 50


def test_every_condition_and_reduction_equals_the_xla_path():
    texts = [f"sum_ij(sigmoid(s_i - s_j) * y_i, where={c})" for c in PAIR_CONDITIONS[1:]]
    texts += [f"mean_ij(sigmoid(s_i - s_j) * y_i, where={c})" for c in PAIR_CONDITIONS[1:4]]
    for kind in ("sum", "mean", "max", "logsumexp"):
        texts += [
            f"{kind}_i({kind}_j(s_i - s_j, where={c}) * s_i)" for c in ("i != j", "y_i > y_j")
        ]
        texts += [f"{kind}_i(square(s_i), where={c})" for c in DOCUMENT_CONDITIONS[1:]]
    # The greatest of several equal values, in different tiles.
    texts.append("sum_i(s_i * max_j(sign(s_j - s_i)))")
    assert deviation([parse(text) for text in texts]).wrong == []


def test_a_saturated_loss_has_no_gradient_and_a_tiny_divisor_keeps_its_own():
    losses = [
        parse("sum_ij(exp(100 * (s_i - s_j)), where=y_i != y_j)"),
        parse("mean_ij(0.1 / softplus(10 * (s_i - s_j)), where=y_i > y_j)"),
        parse("mean_i(1 / sigmoid(10 * s_i))"),
    ]
    assert deviation(losses).wrong == []


def test_masked_documents_and_other_candidates_never_matter():
    scores, labels, mask = batch()
    programs = encode(random_expressions(jax.random.key(2), GROUP))
    expected = interpreted(programs, jnp.stack([scores] * GROUP), labels, mask)
    assert not np.any(np.asarray(expected[1])[:, ~np.asarray(mask)])
    assert not np.any(expected[0][:, 4])  # the query without a document
    for anything in (jnp.nan, jnp.inf, -1e30):
        other = jnp.stack([jnp.where(mask, scores, anything)] * GROUP).at[3].set(jnp.nan)
        got = interpreted(programs, other, jnp.where(mask, labels, anything), mask)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(np.delete(a, 3, 0), np.delete(b, 3, 0))


def test_candidates_at_rest_have_no_gradient_and_change_no_other():
    scores, labels, mask = batch()
    programs = encode(group("softmax", "lambdarank", "mse", "ranknet"))
    active = np.arange(GROUP) % 3 > 0
    many = jnp.broadcast_to(scores, (GROUP, *scores.shape))
    for run in (XLA, interpreted):
        expected = np.asarray(run(programs, many, labels, mask)[1])
        got = np.asarray(run(programs.only(active), many, labels, mask)[1])
        np.testing.assert_array_equal(got[active], expected[active])
        assert np.abs(expected[~active]).max() > 0.0
        assert not got[~active].any()


def test_a_batch_of_nothing_but_padding_has_loss_and_gradient_zero():
    scores, labels, mask = batch()
    args = (jnp.stack([scores] * GROUP), labels, jnp.zeros_like(mask))
    for array in interpreted(encode(random_expressions(jax.random.key(4), GROUP)), *args):
        assert not np.any(array)


@pytest.mark.slow
def test_lists_of_one_document_equal_the_xla_path():
    mask = jnp.array([[True], [True], [False]])
    scores, labels = jnp.array([[2.0], [-1.0], [0.0]]), jnp.array([[1.0], [0.0], [0.0]])
    held = Batch(scores, labels, mask)
    losses = [*(LOSSES[name] for name in HAND_DESIGNED), *random_expressions(jax.random.key(5), 6)]
    assert deviation(losses, held=held).wrong == []


@pytest.mark.slow
def test_tiles_of_the_real_size_equal_the_xla_path(monkeypatch):
    monkeypatch.undo()
    rng = np.random.default_rng(1)
    mask = jnp.asarray(rng.random((2, 40)) < 0.9)
    arrays = (rng.normal(size=mask.shape), rng.integers(0, 3, mask.shape))
    held = Batch(*(jnp.where(mask, jnp.asarray(x, jnp.float32), 0.0) for x in arrays), mask)
    losses = [LOSSES[name] for name in HAND_DESIGNED]

    @jax.jit
    def run(*args):
        return kernel.losses_and_gradients(*args, interpret=True)

    assert deviation(losses, run, held).wrong == []


@pytest.mark.skipif(not HAS_GPU, reason="JAX finds no GPU on this machine")
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.parametrize("length", [7, 40, 100, 300])
def test_on_a_gpu_the_kernel_equals_the_xla_path(length, monkeypatch):
    monkeypatch.undo()
    rng = np.random.default_rng(length)
    mask = jnp.asarray(rng.random((6, length)) < 0.9)
    arrays = (rng.normal(size=mask.shape), rng.integers(0, 3, mask.shape))
    held = Batch(*(jnp.where(mask, jnp.asarray(x, jnp.float32), 0.0) for x in arrays), mask)
    losses = [*(LOSSES[name] for name in HAND_DESIGNED), *random_expressions(jax.random.key(5), 81)]
    assert deviation(losses, jax.jit(kernel.losses_and_gradients), held).wrong == []


def test_a_jax_without_triton_is_told_to_use_xla(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    monkeypatch.delattr(pallas, "triton", raising=False)
    scores, labels, mask = batch()
    with pytest.raises(AutolossError, match="does not have; expected the interpreter xla"):
        kernel.losses_and_gradients(
            encode([LOSSES["mse"]]), scores[None], labels, mask, interpret=False
        )


# ------------------------------------------------------------------- lowered for a GPU without one


GPUS = AbstractMesh(
    (2,),
    ("candidates",),
    axis_types=(AxisType.Auto,),
    abstract_device=AbstractDevice("NVIDIA H100", 132, "gpu"),
)


def lowered_for_cuda(function, *args) -> str:
    """The module that JAX would hand to XLA on NVIDIA GPUs, with the kernel lowered by Triton."""
    with jax.sharding.use_abstract_mesh(GPUS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
        return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def shapes_of(length: int) -> tuple:
    labels = jax.ShapeDtypeStruct((3, length), jnp.float32)
    return (
        encode([LOSSES["lambdarank"], LOSSES["softmax"]]),
        jax.ShapeDtypeStruct((2, *labels.shape), jnp.float32),
        labels,
        jax.ShapeDtypeStruct(labels.shape, jnp.bool_),
    )


@pytest.mark.parametrize("length", [40, 300])
def test_triton_lowers_every_operation_of_the_kernel(length, monkeypatch):
    monkeypatch.undo()
    run = functools.partial(kernel.losses_and_gradients, interpret=False)
    module = lowered_for_cuda(run, *shapes_of(length))
    assert module.count("custom_call @__gpu$xla.gpu.triton") == 1
    assert f"num_warps = {kernel.warps(length)} : i32" in module
    # No array of every candidate's pairs: what has two lists is shared, the ideal order's counts.
    assert f"tensor<2x3x{length}x{length}x" not in module
