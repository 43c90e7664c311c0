"""The work that benchmarks of the batched loss time: many rankers in training on random queries."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from autoloss_jax.execution.batched import losses_and_gradients
from autoloss_jax.execution.exact import compile_loss
from autoloss_jax.execution.programs import OPCODES, Programs, encode
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.grammar import random_expressions
from autoloss_jax.language.operators import OPERATORS
from autoloss_jax.language.parsing import parse
from autoloss_jax.models import MLP

FEATURES = 46
CHUNK = 4
"""Candidates trained side by side, the arrangement of the library."""

ScoreGradient = Callable[[Any, Array], Array]
"""A chunk's losses and scores f32[chunk, queries, list] to the gradient by the scores."""


class Queries(NamedTuple):
    features: Array  # f32[queries, list, features]
    labels: Array  # f32[queries, list]
    mask: Array  # bool[queries, list]

    @staticmethod
    def random(queries: int, list_length: int) -> "Queries":
        rng = np.random.default_rng(0)
        return Queries(
            jnp.asarray(rng.normal(size=(queries, list_length, FEATURES)), jnp.float32),
            jnp.asarray(rng.integers(0, 3, (queries, list_length)), jnp.float32),
            jnp.ones((queries, list_length), bool),
        )


def training(
    score_gradient: ScoreGradient, losses: Any, queries: Queries, candidates: int, steps: int
) -> Callable[[], Any]:
    """A function without arguments that trains an MLP per candidate and returns the parameters.

    Chunks of candidates run one after the other, each through all its steps; devices share them.
    """
    model, adam = MLP(), optax.adam(1e-3)

    def train(losses: Any, params: Any) -> Any:
        def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            apply = jax.vmap(lambda p: model.apply(p, queries.features, queries.mask))
            scores, backward = jax.vjp(apply, params)
            (gradient,) = backward(score_gradient(losses, scores))
            updates, state = jax.vmap(adam.update)(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return lax.scan(step, (params, jax.vmap(adam.init)(params)), None, length=steps)[0][0]

    def in_chunks(losses: Any, params: Any) -> Any:
        return lax.map(lambda chunk: train(*chunk), (losses, params))

    chunked = partial(jax.tree.map, lambda x: x.reshape(-1, CHUNK, *x.shape[1:]))
    keys = jax.random.split(jax.random.key(0), candidates)
    params = jax.vmap(lambda key: model.init(key, queries.features[:1], queries.mask[:1]))(keys)
    mesh = jax.make_mesh((jax.device_count(),), ("candidates",), axis_types=(AxisType.Auto,))
    spread = jax.shard_map(
        in_chunks, mesh=mesh, in_specs=P("candidates"), out_specs=P("candidates"), check_vma=False
    )
    return partial(jax.jit(spread), chunked(losses), chunked(params))


def fixed(loss: Expression, queries: Queries, candidates: int, steps: int) -> Callable[[], Any]:
    """Training under one loss: plain `jax.grad` of its compiled function."""
    loss_fn = compile_loss(loss)

    def score_gradient(_: Array, scores: Array) -> Array:
        one = jax.grad(lambda s: jnp.sum(loss_fn(s, queries.labels, where=queries.mask)))
        return jax.vmap(one)(scores)

    return training(score_gradient, jnp.zeros(candidates), queries, candidates, steps)


def batched(losses: list[Expression], queries: Queries, steps: int) -> Callable[[], Any]:
    """Training every candidate under a loss of its own, by the batched path."""

    def score_gradient(programs: Programs, scores: Array) -> Array:
        return losses_and_gradients(programs, scores, queries.labels, queries.mask)[1]

    return training(score_gradient, encode(losses), queries, len(losses), steps)


class Sample(NamedTuple):
    """Losses of one kind, as a search draws them."""

    losses: list[Expression]
    operators: float  # on average, in the stage of the kind's name


def samples(count: int, seed: int = 0) -> dict[str, Sample]:
    """Random losses of four kinds, `count` each."""
    losses = random_expressions(jax.random.key(seed), 250 * count)
    programs = encode(losses)
    pair_stages = np.sum(np.asarray(programs.pair.reduction) > 0, axis=1)
    pair, document = (
        np.sum(_operators(segments), axis=1) for segments in (programs.pair, programs.document)
    )
    kinds = {
        "per-document": ((pair_stages == 0) & (document >= 6) & (document <= 12), document),
        "pair, about 5 operators": ((pair_stages == 1) & (pair >= 4) & (pair <= 6), pair),
        "pair, about 9 operators": ((pair_stages == 1) & (pair >= 8) & (pair <= 10), pair),
        "pair, as sampled": (pair_stages > 0, pair),
    }
    found = {}
    for name, (wanted, operators) in kinds.items():
        rows = np.flatnonzero(wanted)[:count]
        if len(rows) < count:
            raise ValueError(f"found {len(rows)} of {count} losses of the kind '{name}'")
        found[name] = Sample([losses[k] for k in rows], float(np.mean(operators[rows])))
    return found


def searched(count: int, budget: int, seed: int = 0) -> dict[str, Sample]:
    """Losses that the controller proposed in a search on the synthetic queries, and that trained.

    They are taken evenly over the whole search, `count` of each kind, repeated where it found
    fewer: what the controller samples changes from round to round.
    """
    from autoloss_jax import SearchConfig, search
    from autoloss_jax.data import synthetic

    records = search(synthetic(), SearchConfig(budget=budget, seed=seed)).records
    losses = [parse(r["formula"]) for r in records if r["status"] == "trained"]
    programs = encode(losses)
    of_pairs = np.any(np.asarray(programs.pair.reduction) > 0, axis=1)
    found = {}
    for kind, wanted, segments in (
        ("per-document, of a search", ~of_pairs, programs.document),
        ("pair, of a search", of_pairs, programs.pair),
    ):
        rows = np.flatnonzero(wanted)
        if not rows.size:
            raise ValueError(f"the search of {budget} candidates trained no loss '{kind}'")
        rows = rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]
        operators = float(np.mean(np.sum(_operators(segments), axis=1)[rows]))
        found[kind] = Sample([losses[k] for k in rows], operators)
    return found


def _operators(segments: Any) -> np.ndarray:
    """i64[candidates, stages]: the operators of each stage, without what loads leaves."""
    codes = np.asarray(segments.code)[..., 0]
    used = np.arange(codes.shape[-1]) < np.asarray(segments.length)[..., None]
    is_operator = np.array([name in OPERATORS for name in OPCODES])
    return np.sum(is_operator[codes] & used, axis=-1)
