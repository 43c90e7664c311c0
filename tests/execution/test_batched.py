"""Tests of the choice between the two interpreters, and of what stands on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from autoloss_jax.errors import AutolossError
from autoloss_jax.execution import batched, interpreter, kernel
from autoloss_jax.execution.batched import (
    batched_loss,
    interpreter_in_use,
    program_gradient,
    truncated_program_gradient,
    using_interpreter,
)
from autoloss_jax.execution.programs import encode
from autoloss_jax.losses import LOSSES
from tests.execution.test_kernel import GPUS, lowered_for_cuda

LOSSES_RUN = [LOSSES["mse"], LOSSES["lambdarank"]]
LABELS = jnp.asarray(np.random.default_rng(0).integers(0, 3, (3, 5)), jnp.float32)
SCORES = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 5)), jnp.float32)
MASK = jnp.ones(LABELS.shape, bool)


@pytest.fixture
def stub(monkeypatch):
    """A kernel that gives every query the loss 7 and every score the slope 3."""

    def losses_and_gradients(programs, scores, labels, mask):
        return jnp.full(scores.shape[:2], 7.0), jnp.full(scores.shape, 3.0)

    monkeypatch.setattr(kernel, "losses_and_gradients", losses_and_gradients)


@pytest.fixture
def xla_stub(monkeypatch):
    """An XLA path that compiles at once: the loss 1 and the slope 0."""

    def losses_and_gradients(programs, scores, labels, mask):
        return jnp.ones(scores.shape[:2]), jnp.zeros(scores.shape)

    monkeypatch.setattr(interpreter, "losses_and_gradients", losses_and_gradients)


def test_an_unknown_interpreter_is_refused():
    with pytest.raises(AutolossError, match="expected one of auto, xla, kernel; got 'triton'"):
        using_interpreter("triton")


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="of machines without a GPU")
def test_without_a_gpu_the_interpreter_is_xla():
    assert interpreter_in_use() == "xla"


def test_compiled_functions_follow_the_choice_and_are_kept_for_each(stub, xla_stub):
    traced = []

    @jax.jit
    def loss(scores):
        traced.append(interpreter_in_use())
        return batched_loss(encode(LOSSES_RUN), scores, LABELS, MASK)

    for _ in range(2):
        with using_interpreter("kernel"):
            assert interpreter_in_use() == "kernel"
            assert loss(SCORES).tolist() == [7.0, 7.0]
        with using_interpreter("xla"):
            assert loss(SCORES).tolist() == [1.0, 1.0]
    assert traced == ["kernel", "xla"]


def test_mapped_program_gradients_go_through_the_kernel_together(stub, monkeypatch):
    calls = []
    original = kernel.losses_and_gradients

    def counted(programs, scores, labels, mask):
        calls.append(scores.shape)
        return original(programs, scores, labels, mask)

    monkeypatch.setattr(kernel, "losses_and_gradients", counted)
    mapped = jax.vmap(program_gradient, (0, 0, None, None))
    with using_interpreter("kernel"):
        gradient = jax.jit(mapped)(encode(LOSSES_RUN), SCORES, LABELS, MASK)
    np.testing.assert_array_equal(gradient, jnp.full(SCORES.shape, 3.0))
    assert SCORES.shape in calls


# ----------------------------------------------------------------------- the kernel is tried first


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As if JAX had a GPU, on which the kernel is still untried."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    batched._automatic.cache_clear()
    yield
    batched._automatic.cache_clear()


@pytest.mark.usefixtures("on_a_gpu", "xla_stub")
def test_on_a_gpu_a_kernel_that_agrees_is_taken(monkeypatch):
    monkeypatch.setattr(kernel, "losses_and_gradients", interpreter.losses_and_gradients)
    asked_in_a_trace = []
    jax.jit(lambda x: asked_in_a_trace.append(interpreter_in_use()) or x)(1.0)
    assert asked_in_a_trace == ["kernel"]


@pytest.mark.usefixtures("on_a_gpu", "stub", "xla_stub")
def test_on_a_gpu_a_kernel_that_differs_is_left_with_a_warning(caplog):
    assert interpreter_in_use() == "xla"
    assert "the GPU kernel is not used, but XLA, which is slower: it differs" in caplog.text


@pytest.mark.usefixtures("on_a_gpu")
def test_on_a_gpu_a_kernel_that_does_not_compile_is_left_with_a_warning(monkeypatch, caplog):
    def fails(*args):
        raise NotImplementedError("no such instruction\nand a long explanation")

    monkeypatch.setattr(kernel, "losses_and_gradients", fails)
    assert interpreter_in_use() == "xla"
    assert "NotImplementedError: no such instruction\n" in caplog.text
    assert "long explanation" not in caplog.text


@pytest.mark.usefixtures("on_a_gpu", "xla_stub")
def test_on_a_gpu_truncated_pairs_go_through_xla(monkeypatch):
    monkeypatch.setattr(kernel, "losses_and_gradients", interpreter.losses_and_gradients)
    assert interpreter_in_use() == "kernel"
    assert interpreter_in_use(truncation_level=3) == "xla"


def test_the_kernel_refuses_to_truncate_pairs():
    program = jax.tree.map(lambda x: x[0], encode(LOSSES_RUN))
    message = "truncation_level is 3, and the interpreter 'kernel' .* expected .* auto or xla"
    with using_interpreter("kernel"), pytest.raises(AutolossError, match=message):
        truncated_program_gradient(3)(program, SCORES[0], LABELS, MASK)


# ------------------------------------------------------------------------------------- in training


def test_training_over_devices_can_be_lowered_with_the_kernel_for_cuda(monkeypatch):
    native = functools.partial(kernel.losses_and_gradients, interpret=False)
    monkeypatch.setattr(kernel, "losses_and_gradients", native)
    mapped = jax.vmap(program_gradient, (0, 0, None, None))
    each = P("candidates")
    spread = jax.shard_map(
        mapped, mesh=GPUS, in_specs=(each, each, P(), P()), out_specs=each, check_vma=False
    )
    with using_interpreter("kernel"):
        module = lowered_for_cuda(spread, encode(LOSSES_RUN), SCORES, LABELS, MASK)
    assert "__gpu$xla.gpu.triton" in module


@pytest.mark.slow
def test_descent_by_the_kernel_is_that_by_xla():
    @jax.jit
    def descend(scores):
        mapped = jax.vmap(program_gradient, (0, 0, None, None))
        step = lambda s, _: (s - 0.1 * mapped(encode(LOSSES_RUN), s, LABELS, MASK), None)  # noqa: E731
        return jax.lax.scan(step, scores, length=20)[0]

    ends = []
    for name in ("xla", "kernel"):
        with using_interpreter(name):
            ends.append(descend(SCORES))
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-4, atol=1e-5)
    assert np.abs(ends[0] - SCORES).max() > 0.1
