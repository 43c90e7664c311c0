"""The batched path's public functions, and which of its two interpreters runs them.

`interpreter.py` is plain XLA and runs everywhere; `kernel.py` is one kernel for GPUs. They agree
but for rounding.
"""

import concurrent.futures
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import Array

from autoloss_jax.errors import AutolossError
from autoloss_jax.execution import interpreter, kernel
from autoloss_jax.execution.programs import Programs, encode

INTERPRETERS = ("auto", "xla", "kernel")
"""`auto`: the kernel on a GPU, XLA elsewhere. Without a GPU the kernel is interpreted, slowly."""

_TRIED = (
    "sum_ij(softplus(s_j - s_i) * abs(discount_i - discount_j), where=y_i > y_j) / max_dcg",
    "mean_i(log(1 + exp(s_i)) - logsumexp_j(0.5 * (s_j - s_i)))",
)
_chosen = jax.make_user_context("auto")  # part of what jit keeps a compiled function by


def using_interpreter(name: str) -> AbstractContextManager[Any]:
    """A context in which the interpreter is the one of this name, one of INTERPRETERS.

    Raises:
      AutolossError: there is none of this name.
    """
    if name not in INTERPRETERS:
        raise AutolossError(f"interpreter: expected one of {', '.join(INTERPRETERS)}; got '{name}'")
    return _chosen(name)


def interpreter_in_use(truncation_level: int = 0) -> str:
    """The interpreter that runs losses here, given how their pairs are truncated: xla or kernel.

    Raises:
      AutolossError: the kernel is asked for, and pairs are truncated, which it does not do.
    """
    if not truncation_level:
        return _automatic() if _chosen.value == "auto" else _chosen.value
    if _chosen.value == "kernel":
        raise AutolossError(
            f"truncation_level is {truncation_level}, and the interpreter 'kernel' does not "
            "truncate pairs; expected the interpreter auto or xla"
        )
    return "xla"


@functools.cache
def _automatic() -> str:
    return "kernel" if jax.default_backend() == "gpu" and _kernel_works() else "xla"


def _kernel_works() -> bool:
    """Whether the kernel compiles here and agrees with XLA on a small batch; warns if not."""
    # In a thread of its own, where no function is being traced, as here one may be.
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        reason = executor.submit(_trouble).result()
    if reason:
        logging.warning("the GPU kernel is not used, but XLA, which is slower: %s", reason)
    return not reason


def _trouble() -> str:
    """What keeps the kernel from being used, "" if nothing does."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(len(_TRIED), 3, 40)).astype(np.float32)
    labels = rng.integers(0, 3, scores.shape[1:]).astype(np.float32)
    batch = (encode(_TRIED), scores, labels, rng.random(labels.shape) < 0.8)
    try:
        got = jax.device_get(jax.jit(kernel.losses_and_gradients)(*batch))
    # Compilers of accelerators fail in many ways, and whichever it is, XLA can go on.
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    expected = jax.device_get(jax.jit(interpreter.losses_and_gradients)(*batch))
    for a, b in zip(got, expected, strict=True):
        if not np.allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max()):
            return f"it differs from XLA by {np.abs(a - b).max():.2g} on a small batch"
    return ""


def losses_and_gradients(
    programs: Programs, scores: Array, labels: Array, mask: Array
) -> tuple[Array, Array]:
    """Every candidate's loss of every query, and its gradient by the scores.

    Args:
      programs: the candidates' losses.
      scores: f32[candidates, queries, list].
      labels: f32[queries, list], shared by the candidates.
      mask: bool[queries, list], True for real documents.

    Returns:
      f32[candidates, queries], 0 for a query without a document; f32[candidates, queries, list].
    """
    module = kernel if interpreter_in_use() == "kernel" else interpreter
    return module.losses_and_gradients(programs, scores, labels, mask)


def _mean_loss(
    programs: Programs, scores: Array, labels: Array, mask: Array
) -> tuple[Array, Array]:
    losses, gradients = losses_and_gradients(programs, scores, labels, mask)
    queries_ = jnp.maximum(jnp.sum(jnp.any(mask, -1), dtype=scores.dtype), 1.0)
    return jnp.sum(losses, -1) / queries_, gradients / queries_


@jax.custom_vjp
def _batched_loss(programs: Programs, scores: Array, labels: Array, mask: Array) -> Array:
    return _mean_loss(programs, scores, labels, mask)[0]


def _backward(gradients: Array, cotangent: Array) -> tuple[None, Array, None, None]:
    return None, cotangent[:, None, None] * gradients, None, None


_batched_loss.defvjp(_mean_loss, _backward)


def batched_loss(programs: Programs, scores: Array, labels: Array, mask: Array) -> Array:
    """The mean loss of each candidate over the queries that have a document.

    One XLA program serves all candidates, ever: new losses are new arrays. Differentiable in the
    scores, once, in reverse mode; the gradient comes with the value at no further pass.

    Args:
      programs: the losses of `encode`, as many as scores has candidates.
      scores: f32[candidates, queries, list].
      labels: f32[queries, list].
      mask: bool[queries, list], True for real documents.

    Returns:
      f32[candidates], equal to `compile_loss(expression)(scores[c], labels, where=mask)`.

    Raises:
      AutolossError: the shapes do not fit each other.
    """
    expected = (programs.count, *labels.shape)
    if scores.shape != expected or mask.shape != labels.shape or labels.ndim != 2:
        raise AutolossError(
            "expected scores [candidates, queries, list], labels and mask [queries, list] for "
            f"{programs.count} candidates; got {scores.shape}, {labels.shape} and {mask.shape}"
        )
    return _batched_loss(programs, scores, labels, mask)


def _gradients(
    programs: Programs, scores: Any, labels: Any, masks: Any, truncation_level: int
) -> Any:
    """The gradients of every candidate's summed loss, of an array or of a list of arrays."""
    if isinstance(scores, Array):
        return _gradients(programs, [scores], [labels], [masks], truncation_level)[0]
    if interpreter_in_use(truncation_level) == "xla":
        return interpreter.ragged_losses_and_gradients(
            programs, scores, labels, masks, truncation_level
        )[1]
    parts = zip(scores, labels, masks, strict=True)
    return [kernel.losses_and_gradients(programs, *part)[1] for part in parts]


ProgramGradient = Callable[[Programs, Any, Any, Any], Any]


@functools.cache  # so that equal trainings have equal functions, and are compiled once
def truncated_program_gradient(truncation_level: int) -> ProgramGradient:
    """`program_gradient` of pairs of which one document is among the first by current scores.

    Args:
      truncation_level: how many come first, as in `interpreter.losses_and_gradients`; 0: all.
    """

    @jax.custom_batching.custom_vmap
    def gradient(program: Programs, scores: Any, labels: Any, mask: Any) -> Any:
        programs, scores = jax.tree.map(lambda x: x[None], (program, scores))
        gradients = _gradients(programs, scores, labels, mask, truncation_level)
        return jax.tree.map(lambda x: x[0], gradients)

    @gradient.def_vmap
    def together(
        axis_size: int, batched: list, program: Programs, scores: Any, labels: Any, mask: Any
    ) -> tuple[Any, Any]:
        program_batched, scores_batched, labels_batched, mask_batched = batched
        if any(jax.tree.leaves((labels_batched, mask_batched))):
            raise AutolossError(
                "program_gradient maps over candidates that share their queries: labels and mask "
                "must not be mapped; map over sets of queries by lax.map outside"
            )

        def every(x: Array, is_batched: bool) -> Array:
            return x if is_batched else jnp.broadcast_to(x, (axis_size, *x.shape))

        programs = jax.tree.map(every, program, program_batched)
        scores = jax.tree.map(every, scores, scores_batched)
        gradients = _gradients(programs, scores, labels, mask, truncation_level)
        return gradients, jax.tree.map(lambda _: True, gradients)

    return gradient


def program_gradient(program: Programs, scores: Any, labels: Any, mask: Any) -> Any:
    """The gradient of one candidate's summed loss by its scores, for code written for one run.

    Under `vmap` over programs and scores the candidates go through the interpreter together.

    Args:
      program: one loss, that is, Programs without the candidate axis.
      scores, labels, mask: [queries, list], as in `batched_loss`; or a list of such for each, of
        queries padded to several lengths, which then go through the interpreter together.

    Returns:
      f32[queries, list], or a list of such.
    """
    return truncated_program_gradient(0)(program, scores, labels, mask)
