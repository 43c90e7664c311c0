"""Training rankers: one run, then many runs, then many devices.

`RankerTraining` writes a training run for one model under one loss, as pure functions.
`train_runs` and `evaluate_runs` lift it: over *runs* (candidate losses or learning rates, side by
side in chunks, spread over the devices), and over *replicates* (cross-validation folds or seeds,
one after the other). All runs of a replicate start from the same weights and see the same batches,
so that two of them can be compared in pairs and most of the noise cancels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from autoloss_jax.data import BatchPlan, ListBatch
from autoloss_jax.execution.batched import truncated_program_gradient
from autoloss_jax.execution.exact import compile_loss
from autoloss_jax.language.expressions import Expression
from autoloss_jax.metrics import MetricPerQuery, ndcg_per_query

PROGRAMS_KEPT = 16
"""Trainings whose compiled programs a process keeps, so that equal ones compile once. Each takes
some ten megabytes, and XLA gives back not all of that of a program that is dropped."""

_RUNS = P(None, "candidates")  # the layout of what leads with [replicates, runs]
_EACH = P("candidates")  # and of what leads with [runs]

CPU_CHUNK = 4
"""Runs trained side by side on one CPU device: fewer leave the processor idle, more the cache.
Where there are fewer than devices have places for, a chunk of one wastes nothing."""
ACCELERATOR_CHUNK = 64
"""The same on a GPU or TPU, which needs thousands of queries at once to be busy; not measured."""

_ADAM = optax.scale_by_adam(eps=1e-6)
"""Gradients have norm 1, so eps is far below any entry that matters, and far above rounding, which
is all that the output's bias gets from a loss of score differences."""

FAULTS = (
    "",
    "its gradient by the scores is not finite",
    "the scores of its model are not finite",
    "its gradient by the weights is not finite",
)
"""Why a run was frozen, by the number in its state; 0 is none."""

ScoreGradient = Callable[[Any, list[Array], list[Array], list[Array]], list[Array]]
"""`(loss, scores, labels, masks) -> gradients`: of every length bucket, [queries, list]."""


class RunState(NamedTuple):
    """A ranker in training; `train_runs` adds the leading axes [replicates, runs] to every leaf."""

    params: Any
    optimizer: Any
    fault: Array  # i32[]: a place in FAULTS; once it is not 0, the run is frozen

    @property
    def alive(self) -> Array:
        """bool[]: False once the run has turned non-finite."""
        return self.fault == 0

    @property
    def updates(self) -> Array:
        """i32[]: how many steps changed the model; one without a gradient does not."""
        updates: Array = self.optimizer.count
        return updates


@dataclass(frozen=True)
class RankerTraining:
    """One training run: Adam on a ranker under one loss.

    The gradient of every step is scaled to norm 1, so that a loss is not rewarded for its scale,
    which is only a hidden learning rate.

    Attributes:
      model: maps features [queries, list, features] and mask to scores [queries, list].
      score_gradient: gives a loss's gradient by the scores.
      metric_cutoff: the k of the NDCG@k it is evaluated by.
      metric: what it is evaluated by instead.
      rare: length buckets that few steps have a query of (`data.rare_buckets`); the others skip
        them. Each is compiled apart.
      cpu_chunk: runs trained side by side on one CPU device. The last bits depend on it.
    """

    model: nn.Module
    score_gradient: ScoreGradient
    metric_cutoff: int | None = 10
    metric: MetricPerQuery | None = None
    rare: tuple[int, ...] = ()
    cpu_chunk: int = CPU_CHUNK

    def init(self, key: Array, batch: ListBatch) -> RunState:
        """A fresh run; `batch` gives the shapes only."""
        params = self.model.init(key, batch.features[:1], batch.mask[:1])
        return RunState(params, _ADAM.init(params), jnp.asarray(0))

    def step(
        self, state: RunState, loss: Any, learning_rate: Array, batch: Sequence[ListBatch]
    ) -> RunState:
        """One update on a batch of queries, given as one part per length bucket."""

        def forward(params: Any) -> list[Any]:
            def scores(part: ListBatch) -> Any:
                return self.model.apply(params, part.features, part.mask)

            return [
                _if_any(part.mask, partial(scores, part)) if b in self.rare else scores(part)
                for b, part in enumerate(batch)
            ]

        scores, pull_back = jax.vjp(forward, state.params)
        gradients = self._score_gradients(loss, scores, batch)
        # The largest entry becomes 1 first: the norm of a gradient near overflow would overflow.
        peak = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in gradients]))
        gradients = [g / jnp.where(peak > 0, peak, 1.0) for g in gradients]
        (gradient,) = pull_back(gradients)
        norm = optax.tree.norm(gradient)
        gradient = jax.tree.map(lambda g: g / jnp.where(norm > 0, norm, 1.0), gradient)
        update, optimizer = _ADAM.update(gradient, state.optimizer)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, update)

        finite = jnp.asarray(True)
        for s, part in zip(scores, batch, strict=True):
            finite &= _all_finite(s, part.mask)
        by_gradients = jnp.where(jnp.isfinite(peak), jnp.where(jnp.isfinite(norm), 0, 3), 1)
        fault = jnp.where(state.alive, jnp.where(finite, by_gradients, 2), state.fault)
        moves = (fault == 0) & (norm > 0)
        params, optimizer = jax.tree.map(
            lambda new, old: jnp.where(moves, new, old),
            (params, optimizer),
            (state.params, state.optimizer),
        )
        return RunState(params, optimizer, fault)

    def _score_gradients(
        self, loss: Any, scores: list[Array], batch: Sequence[ListBatch]
    ) -> list[Array]:
        """Of every length bucket: the rare ones each apart, the others together."""

        def gradients(buckets: list[int]) -> list[Array]:
            labels, masks = [batch[b].labels for b in buckets], [batch[b].mask for b in buckets]
            return self.score_gradient(loss, [scores[b] for b in buckets], labels, masks)

        common = [b for b in range(len(batch)) if b not in self.rare]
        found = dict(zip(common, gradients(common), strict=True))
        for b in self.rare:
            (found[b],) = _if_any(batch[b].mask, partial(gradients, [b]))
        return [found[b] for b in range(len(batch))]

    def train(
        self,
        state: RunState,
        loss: Any,
        learning_rate: Array,
        batches: Sequence[ListBatch],
        plan: BatchPlan,
    ) -> RunState:
        """The steps of a plan, rows [steps, slots] per bucket."""

        def step(state: RunState, plan: BatchPlan) -> tuple[RunState, None]:
            batch = [_take(*part) for part in zip(batches, plan.rows, plan.valid, strict=True)]
            return self.step(state, loss, learning_rate, batch), None

        return lax.scan(step, state, plan)[0]

    def evaluate(self, state: RunState, batches: Sequence[ListBatch], plan: BatchPlan) -> Array:
        """f32[pieces, queries]: the metric of every row of a plan, 0 where undefined or not valid.

        NaN for a run that is not alive, and all over a piece that has a score that is not finite.
        """
        metric = self.metric or partial(ndcg_per_query, k=self.metric_cutoff)

        def piece(plan: BatchPlan) -> Array:
            values, finite = [], state.alive
            for bucket, rows, valid in zip(batches, plan.rows, plan.valid, strict=True):
                part = _take(bucket, rows, valid)
                scores: Any = self.model.apply(state.params, part.features, part.mask)
                value, defined = metric(scores, part.labels, where=part.mask)
                values.append(jnp.where(defined, value, 0.0))
                finite &= _all_finite(scores, part.mask)
            return jnp.where(finite, jnp.concatenate(values), jnp.nan)

        return lax.map(piece, plan)


def _all_finite(scores: Array, mask: Array) -> Array:
    """bool[]: whether every real document has a finite score; a model may give padding any."""
    return jnp.all(jnp.isfinite(scores) | ~mask)


def _if_any(mask: Array, compute: Callable[[], Any]) -> Any:
    """`compute()` if the mask has a document; else zeros instead, at no cost.

    A real branch, under `vmap` over runs too: the mask is that of all runs.
    """

    def nothing() -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute))

    return lax.cond(jnp.any(mask), compute, nothing)


def _take(bucket: ListBatch, rows: Any, valid: Any) -> ListBatch:
    """The rows of a bucket as a batch; a filler has no documents."""
    return ListBatch(bucket.features[rows], bucket.labels[rows], bucket.mask[rows] & valid[:, None])


@lru_cache(maxsize=PROGRAMS_KEPT)
def exact_score_gradient(loss: Expression) -> ScoreGradient:
    """The gradient of one fixed loss, through the exact path; the `loss` of the run is ignored."""
    loss_fn = compile_loss(loss)

    def total(scores: Array, labels: Array, mask: Array) -> Array:
        return jnp.sum(loss_fn(scores, labels, where=mask, reduce_fn=None))

    def score_gradient(
        _: Any, scores: list[Array], labels: list[Array], masks: list[Array]
    ) -> list[Array]:
        return [jax.grad(total)(*part) for part in zip(scores, labels, masks, strict=True)]

    return score_gradient


def program_score_gradient(truncation_level: int = 0) -> ScoreGradient:
    """The gradient of the run's own loss, an encoded program, its pairs truncated at a level."""
    return truncated_program_gradient(truncation_level)


def candidates_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh with the one axis `candidates`, over all devices by default."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), ("candidates",), axis_types=(AxisType.Auto,), devices=devices
    )


def chunk_size(training: RankerTraining, mesh: Mesh) -> int:
    """Runs trained side by side on one device of the mesh. The last bits depend on it."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return training.cpu_chunk if on_cpu else ACCELERATOR_CHUNK


def padded_count(count: int, training: RankerTraining, mesh: Mesh) -> int:
    """The least number of runs that fills chunks on every device of the mesh."""
    multiple = chunk_size(training, mesh) * mesh.size
    return -(-count // multiple) * multiple


def init_run(training: RankerTraining, seed: int, replicates: int, batch: ListBatch) -> RunState:
    """One fresh run of each replicate, [replicates, 1], for `spread_runs` to multiply."""
    return _init_runs(training, np.uint32(seed), replicates, ListBatch(*(x[:1] for x in batch)))


# As one program: operation by operation, each would be compiled by itself.
@partial(jax.jit, static_argnums=(0, 2))
def _init_runs(training: RankerTraining, seed: Array, replicates: int, batch: ListBatch) -> Any:
    keys = jax.random.split(jax.random.key(seed), replicates)
    states = jax.vmap(lambda key: training.init(key, batch))(keys)
    return jax.tree.map(lambda x: x[:, None], states)


def spread_runs(mesh: Mesh, states: Any, order: np.ndarray) -> Any:
    """The runs `order` of states that every process has, laid out over the mesh.

    A run may be taken several times. What is laid out already is moved by `reorder_runs`.
    """

    def spread(x: Any) -> Array:
        return place(mesh, np.take(np.asarray(x), order, 1), _RUNS)

    return jax.tree.map(spread, states)


def reorder_runs(mesh: Mesh, states: Any, order: np.ndarray) -> Any:
    """The runs `order` of states that are laid out over the mesh, as many as before.

    The only step of a training in which devices exchange models.
    """
    return _gather_runs(mesh, _EACH)(states, place(mesh, np.asarray(order, np.int32), _EACH))


def take_runs(mesh: Mesh, states: Any, order: Sequence[int]) -> Any:
    """The runs `order` of states that are laid out over the mesh, for every process, as numpy."""
    taken = _gather_runs(mesh, P())(states, place(mesh, np.asarray(order, np.int32), P()))
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), taken)


@lru_cache
def _gather_runs(mesh: Mesh, spec: P) -> Callable[..., Any]:
    """`(states, order) -> states`, with order, and so the runs of the result, laid out by `spec`.

    Written out, for the partitioner's own gather adds up what devices hold, which turns -0 to 0.
    """

    def local(states: RunState, order: Array) -> RunState:
        def gather(x: Array) -> Array:
            return lax.all_gather(x, "candidates", axis=1, tiled=True)[:, order]

        return jax.tree.map(gather, states)

    return jax.jit(_on_mesh(mesh, local, (_RUNS, spec), P(None, *spec)))


def place(mesh: Mesh, tree: Any, spec: P) -> Any:
    """Arrays that every process has, laid out over the mesh; nothing is communicated."""
    sharding = NamedSharding(mesh, spec)

    def part(x: Any) -> Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(part, tree)  # device_put would compare the values of all processes first


def place_runs(mesh: Mesh, tree: Any) -> Any:
    """Arrays that lead with the runs, such as losses, laid out over the mesh."""
    return place(mesh, tree, _EACH)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The arrays of a tree, whole on every device of the mesh."""
    return place(mesh, tree, P())


def local_copy(tree: Any) -> Any:
    """What `replicate` made, on one device of this process alone.

    A program on all devices would be another one for every number of them.
    """
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def fetch(x: Array | np.ndarray) -> np.ndarray:
    """An array that is laid out over the mesh, whole, on the host of every process."""
    if not isinstance(x, Array) or x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


@lru_cache(maxsize=PROGRAMS_KEPT)
def train_runs(training: RankerTraining, mesh: Mesh) -> Callable[..., RunState]:
    """The compiled training of many runs; call it again to train on.

    Returns:
      `(states, losses, learning_rates, active, batches, plan) -> states` with states
      [replicates, runs], losses (a pytree) and learning_rates [runs], active bool[runs] (chunks of
      `chunk_size` runs of which none is active are left as they are, at no cost), and plan rows
      [replicates, steps, slots]. `runs` fills chunks on every device of the mesh (`padded_count`).
    """
    size = chunk_size(training, mesh)

    def local(
        states: RunState, losses: Any, rates: Array, active: Array, batches: Any, plan: Any
    ) -> RunState:
        def replicate(inputs: Any) -> RunState:
            states, plan = inputs
            many = jax.vmap(partial(training.train, batches=batches, plan=plan))

            def chunk(states: RunState, losses: Any, rates: Array, active: Array) -> RunState:
                return lax.cond(
                    jnp.any(active), lambda: many(states, losses, rates), lambda: states
                )

            return _in_chunks(chunk, size, states, losses, rates, active)

        return lax.map(replicate, (states, plan))

    specs = (_RUNS, _EACH, _EACH, _EACH, P(), P())
    return jax.jit(
        _on_mesh(mesh, local, specs, _RUNS), donate_argnums=0, compiler_options=_options(mesh)
    )


@lru_cache(maxsize=PROGRAMS_KEPT)
def evaluate_runs(training: RankerTraining, mesh: Mesh) -> Callable[..., Array]:
    """The compiled evaluation of many runs.

    Returns:
      `(states, active, batches, plan) -> values` with states and active as for `train_runs`, plan
      rows [replicates, pieces, slots], and the metric's values f32[runs, replicates,
      pieces * slots]. Values of chunks that are not active are NaN.
    """
    size = chunk_size(training, mesh)

    def local(states: RunState, active: Array, batches: Any, plan: Any) -> Array:
        shape = (size, plan.rows[0].shape[1], sum(rows.shape[2] for rows in plan.rows))

        def replicate(inputs: Any) -> Array:
            states, plan = inputs
            many = jax.vmap(partial(training.evaluate, batches=batches, plan=plan))

            def chunk(states: RunState, active: Array) -> Array:
                return lax.cond(
                    jnp.any(active), lambda: many(states), lambda: jnp.full(shape, jnp.nan)
                )

            return _in_chunks(chunk, size, states, active)

        values = lax.map(replicate, (states, plan))
        return jnp.swapaxes(values.reshape(*values.shape[:2], -1), 0, 1)

    specs = (_RUNS, _EACH, P(), P())
    return jax.jit(_on_mesh(mesh, local, specs, _EACH), compiler_options=_options(mesh))


def _options(mesh: Mesh) -> dict[str, str] | None:
    """Compiler options under which a CPU program for one device has the bits of one for many.

    XLA merges common subexpressions of a program for several devices before it simplifies, and of
    one for a single device after that, when quotients have been rewritten in other ways. Within a
    kernel LLVM merges as well.
    """
    return {"xla_disable_hlo_passes": "cse"} if mesh.devices.flat[0].platform == "cpu" else None


def _on_mesh(mesh: Mesh, local: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
    # Parameters come in as sharded arguments and nothing is reduced over devices: the check of
    # varying axes would only demand casts of every constant the interpreter starts a loop from.
    return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _in_chunks(function: Callable[..., Any], size: int, *arrays: Any) -> Any:
    """Maps a function over chunks of runs, which lead in all arrays, one after the other."""
    chunked = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), arrays)
    results = lax.map(lambda chunk: function(*chunk), chunked)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)
