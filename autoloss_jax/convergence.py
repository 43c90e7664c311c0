"""Training to convergence: every loss, learning rate and seed of a fold in one compiled program.

All folds of a data set have the same shapes, so the program is compiled once. Training goes in
blocks; after each one validation queries are looked at, and a loss is done when none of its models
has become better for a while.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from autoloss_jax import processes
from autoloss_jax.canaries import defined_queries
from autoloss_jax.data import (
    TRANSFORMS,
    BatchPlan,
    BucketShapes,
    Fold,
    all_rows,
    bucket_queries,
    common_shapes,
    draw_batches,
    plan_labels,
    rare_buckets,
    scale_fold,
)
from autoloss_jax.errors import AutolossError
from autoloss_jax.evaluation import NDCG_CUTOFFS
from autoloss_jax.execution.programs import Programs, encode, unfit
from autoloss_jax.feed import Feed
from autoloss_jax.gbdt import import_lightgbm
from autoloss_jax.interruption import PartCheckpoints
from autoloss_jax.language.expressions import Expression
from autoloss_jax.metrics import MetricPerQuery
from autoloss_jax.models import make_model
from autoloss_jax.trainer import Runs, Trainer
from autoloss_jax.training import (
    CPU_CHUNK,
    FAULTS,
    RankerTraining,
    exact_score_gradient,
    init_run,
    program_score_gradient,
)


@dataclass(frozen=True)
class EffectivenessConfig:
    """Settings of an effectiveness test.

    Attributes:
      model: a name of MODELS.
      features: how features are scaled, a name of TRANSFORMS.
      seed: of everything random.
      seeds: how many models of different initial weights and batches are trained.
      confirmation_seeds: on so many fresh seeds, or up to the next multiple of `seeds`, the found
        and the hand-designed loss that validation queries choose are trained again, each at its
        learning rate, and the verdict rests on these; 0: on `seeds`.
      learning_rates: of Adam, from which validation queries choose one for each loss.
      queries_per_step: of each update.
      block_steps: updates between two looks at the validation queries.
      patience: how many looks without a better one end a training.
      max_steps: updates after which it ends anyway.
      metric_cutoff: the k of the NDCG@k that validates, and that the losses are compared by.
      empty: how queries without a relevant document count: "skip", "zero" or "one".
      max_buckets: the most length buckets; 0 chooses them by the data.
      lambdamart: whether LightGBM's LambdaMART is trained as a reference; needs the extra gbdt.
      dump_scores: whether every model's scores of the test documents are written to
        test_scores.npz.
      truncation_level: in training, pairs count only if one of their documents is among this many
        first by current scores; 0: all pairs.
    """

    model: str = "mlp"
    features: str = "standardize"
    seed: int = 0
    seeds: int = 3
    confirmation_seeds: int = 24
    learning_rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    queries_per_step: int = 32
    block_steps: int = 20
    patience: int = 8
    max_steps: int = 2000
    metric_cutoff: int = 10
    empty: str = "skip"
    max_buckets: int = 0
    lambdamart: bool = False
    dump_scores: bool = False
    truncation_level: int = 0

    def check(self) -> None:
        """Raises AutolossError for a setting out of range, naming it."""
        if self.empty not in ("skip", "zero", "one"):
            raise AutolossError(f"empty is {self.empty!r}; expected one of skip, zero, one")
        if self.metric_cutoff not in NDCG_CUTOFFS:
            raise AutolossError(
                f"metric_cutoff is {self.metric_cutoff}; expected 1, 3, 5, 10 or 30"
            )
        for name in ("seeds", "block_steps", "patience", "max_steps", "queries_per_step"):
            if getattr(self, name) < 1:
                raise AutolossError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("confirmation_seeds", "truncation_level"):
            if getattr(self, name) < 0:
                raise AutolossError(f"{name} is {getattr(self, name)}, expected at least 0")
        if not 0 <= self.seed < 2**31:
            raise AutolossError(f"seed is {self.seed}, expected 0 to 2**31 - 1")
        if self.max_steps < self.block_steps:
            raise AutolossError(
                f"max_steps is {self.max_steps}, expected at least one block of {self.block_steps}"
            )
        if self.features not in TRANSFORMS:
            raise AutolossError(
                f"unknown features {self.features!r}; expected one of {', '.join(TRANSFORMS)}"
            )
        make_model(self.model)
        if not self.learning_rates or not all(0 < r < np.inf for r in self.learning_rates):
            raise AutolossError(
                f"learning_rates is {self.learning_rates}, expected positive numbers"
            )
        if self.lambdamart:
            import_lightgbm()


class FoldShapes(NamedTuple):
    """The shapes of all folds."""

    train: BucketShapes
    held_out: BucketShapes  # of validation and test queries

    @staticmethod
    def of(folds: Sequence[Fold], max_buckets: int) -> "FoldShapes":
        held_out = [part for fold in folds for part in (fold.validation, fold.test)]
        return FoldShapes(
            common_shapes([fold.train for fold in folds], max_buckets),
            common_shapes(held_out, max_buckets),
        )


class FoldData:
    """The queries of one fold, their features scaled, in the shapes of all folds."""

    def __init__(
        self, fold: Fold, shapes: FoldShapes, features: str, mesh: Mesh, placement: str
    ) -> None:
        scaled = scale_fold(fold, features)
        self.train = Feed(bucket_queries(scaled.train, shapes.train), mesh, placement)
        self.validation, self.test = (
            Feed(bucket_queries(part, shapes.held_out), mesh, placement)
            for part in (scaled.validation, scaled.test)
        )


class Converged(NamedTuple):
    """A loss's models at their best on validation, under the learning rate that did best there."""

    learning_rate: float
    steps: list[int]  # when each seed's model was best
    converged: bool  # whether patience ended their training, and not max_steps
    validation: float  # mean of the metric over seeds and queries
    params: Any  # [seeds, ...]; None if no learning rate kept every seed finite
    reason: str = ""  # then why, one of FAULTS


class Convergence(NamedTuple):
    """The training of a group of losses, after some of its blocks."""

    step: int
    slots: np.ndarray  # i64[losses x learning rates]: the trainer's slot of each run
    runs: Runs
    best: list[Any]  # params of each run at its best on validation, laid out as the runs are
    best_value: np.ndarray  # f64[seeds, losses x learning rates]
    best_step: np.ndarray  # i64[seeds, losses x learning rates]


def group_losses(
    losses: Sequence[Expression], model: nn.Module, config: EffectivenessConfig, mesh: Mesh,
    train: BucketShapes, metric: MetricPerQuery | None = None,
    rates: Sequence[float] | None = None,
) -> list["LossGroup"]:  # fmt: skip
    """All losses that fit a batched program as one group, and each other one by itself.

    `train`: the shapes of the training queries of all folds. `metric`: what validates, instead of
    NDCG at the config's cutoff. `rates`: one of each loss, instead of the config's for all; so few
    runs train in chunks of one. Raises AutolossError if pairs are to be truncated and a loss does
    not fit.
    """
    check_truncation(losses, config.truncation_level)
    fitting = [k for k, loss in enumerate(losses) if not unfit(loss)]
    others = [[k] for k in range(len(losses)) if k not in fitting]
    tried = np.tile(np.array(config.learning_rates)[:, None], len(losses))
    if rates is not None:
        tried = np.array(rates)[None]
    return [
        LossGroup(
            places,
            [losses[k] for k in places],
            tried[:, places],
            places == fitting,
            model,
            config,
            mesh,
            train,
            metric,
            CPU_CHUNK if rates is None else 1,
        )
        for places in ([fitting] if fitting else []) + others
    ]


class LossGroup:
    """Losses that train side by side, in one compiled program for every fold.

    Attributes:
      places: of the losses among all.
      losses: themselves.
      model: the ranker.
    """

    def __init__(
        self,
        places: list[int],
        losses: Sequence[Expression],
        rates: np.ndarray,
        batched: bool,
        model: nn.Module,
        config: EffectivenessConfig,
        mesh: Mesh,
        train: BucketShapes,
        metric: MetricPerQuery | None,
        cpu_chunk: int,
    ) -> None:
        """`rates`: f64[tried, losses], the learning rates that each loss tries."""
        self.places, self.losses, self.model = places, losses, model
        self._config, self._metric = config, metric
        if batched:
            gradient = program_score_gradient(config.truncation_level)
        else:
            gradient = exact_score_gradient(losses[0])
        self._training = RankerTraining(
            model, gradient, config.metric_cutoff, metric,
            rare=rare_buckets(train.rows, config.queries_per_step), cpu_chunk=cpu_chunk,
        )  # fmt: skip
        # Of each run: all losses by the first learning rate, then by the second, and so on. On the
        # host, where every block lays them out.
        programs = encode([*losses] * len(rates)) if batched else None
        self._programs = jax.tree.map(np.asarray, programs)
        self._rates = rates.ravel()
        self._count = rates.size
        self._trainer = Trainer(self._training, self._count, mesh=mesh)

    @property
    def trainings(self) -> int:
        """How many there are of a fold: losses x learning rates x seeds."""
        return self._count * self._config.seeds

    def converge(
        self, data: FoldData, checkpoints: PartCheckpoints, tell: Callable[[float], None]
    ) -> list[Converged]:
        """Trains losses x learning rates x seeds until none gets better on validation.

        Goes on from the last of the checkpoints, if there is one.
        """
        return self._trainer.within_memory(lambda: self._converge(data, checkpoints, tell))

    def _converge(
        self, data: FoldData, checkpoints: PartCheckpoints, tell: Callable[[float], None]
    ) -> list[Converged]:
        config, trainer = self._config, self._trainer
        now = self._begin(data, checkpoints)
        every = all_rows(data.validation.buckets, config.seeds)
        metric = self._metric
        defined = None if metric is None else defined_queries(metric, data.validation)
        _, counted = plan_labels(data.validation.buckets, every, defined)
        while (step := now.step + config.block_steps) <= config.max_steps:
            self._stop_if_asked(now, checkpoints)
            going = step - now.best_step.max(0) <= config.patience * config.block_steps
            if not going.any():
                break
            now = self._packed(now, going)
            active = trainer.by_slot(now.slots, going)
            losses, rates = self._occupy(now)
            plans = [_plan(data, config, step)]
            runs = trainer.train(now.runs, losses, rates, active, data.train, plans)
            values = trainer.evaluate(runs, active, data.validation, every)[now.slots]
            means = np.array([values[:, s][:, counted[s]].mean(1)
                              for s in range(config.seeds)], np.float64)  # fmt: skip
            better = (np.nan_to_num(means, nan=-np.inf) > now.best_value) & going
            now = now._replace(
                step=step,
                runs=runs,
                best=trainer.choose(trainer.by_slot(now.slots, better), _params(runs), now.best),
                best_value=np.where(better, means, now.best_value),
                best_step=np.where(better, step, now.best_step),
            )
            checkpoints.offer(step // config.block_steps, partial(self._state, now))
            tell(1 - going.sum() / self._count * (1 - step / config.max_steps))
        faults = trainer.faults(now.runs)[0][:, now.slots]
        return [self._chosen(k, now, faults) for k in range(len(self.places))]

    # --- stopping and going on ---

    def _begin(self, data: FoldData, checkpoints: PartCheckpoints) -> Convergence:
        """Fresh runs, or those of the last checkpoint."""
        config, trainer = self._config, self._trainer
        start = init_run(self._training, config.seed, config.seeds, data.train.example)
        value, step = np.full((config.seeds, 1), -np.inf), np.zeros((config.seeds, 1), int)
        state = {"runs": start, "best": start.params, "best_value": value, "best_step": step}
        block, state = checkpoints.latest(state) or (0, state)
        slots = np.array([trainer.slot(run) for run in range(self._count)])
        run = np.minimum(np.arange(self._count), state["best_step"].shape[1] - 1)
        order = trainer.by_slot(slots, run)  # the slots of no run only fill a batch
        return Convergence(
            block * config.block_steps, slots, trainer.spread(state["runs"], order),
            trainer.spread(state["best"], order), state["best_value"][:, run],
            state["best_step"][:, run],
        )  # fmt: skip

    def _state(self, now: Convergence) -> dict[str, Any]:
        """What `_begin` goes on from: the runs alone, wherever they lie."""
        laid_out = {"runs": self._trainer.gather(now.runs), "best": self._trainer.gather(now.best)}
        runs: dict[str, Any] = jax.tree.map(lambda x: x[:, now.slots], laid_out)
        return runs | {"best_value": now.best_value, "best_step": now.best_step}

    def _stop_if_asked(self, now: Convergence, checkpoints: PartCheckpoints) -> None:
        try:
            processes.stop_together()
        except processes.Preempted:
            checkpoints.save(now.step // self._config.block_steps, partial(self._state, now))
            raise

    # --- what is trained, and what is chosen ---

    def _packed(self, now: Convergence, going: np.ndarray) -> Convergence:
        """Moves the runs that go on together, if that leaves chunks without any: those are free."""
        trainer = self._trainer
        slots = np.empty_like(now.slots)
        first = np.argsort(~going, kind="stable")
        slots[first] = [trainer.slot(place) for place in range(self._count)]
        packed = now._replace(slots=slots)
        chunks = [trainer.chunks_of(trainer.by_slot(x.slots, going)) for x in (now, packed)]
        if chunks[1] >= chunks[0]:
            return now
        order = trainer.by_slot(slots, now.slots)
        return packed._replace(
            runs=trainer.reorder(now.runs, order), best=trainer.reorder(now.best, order)
        )

    def _occupy(self, now: Convergence) -> tuple[Programs | None, np.ndarray]:
        """The losses and learning rates of all slots."""
        run = self._trainer.by_slot(now.slots, np.arange(self._count))
        rates = self._rates.astype(np.float32)[run]
        return jax.tree.map(lambda x: x[run], self._programs), rates

    def _chosen(self, loss: int, now: Convergence, faults: np.ndarray) -> Converged:
        """The learning rate that is best on validation, over all seeds."""
        config, values, steps = self._config, now.best_value, now.best_step
        runs = range(loss, self._count, len(self.places))
        chosen = max(runs, key=lambda run: values[:, run].mean())
        if not np.isfinite(values[:, chosen]).all():  # every rate lost a seed: nothing to show
            # A run may be well after its last step, and not finite on validation queries.
            reason = FAULTS[int(faults[:, runs].max()) or 2]
            return Converged(float("nan"), [], False, float("-inf"), None, reason)
        return Converged(
            float(self._rates[chosen]),
            steps[:, chosen].tolist(),
            bool(steps[:, chosen].max() + config.patience * config.block_steps <= config.max_steps),
            float(values[:, chosen].mean()),
            jax.tree.map(lambda x: x[:, 0], self._trainer.take(now.best, now.slots[chosen])),
        )


def _plan(data: FoldData, config: EffectivenessConfig, step: int) -> BatchPlan:
    """The batches of the block that ends at a step, different for every seed."""
    plans = [
        draw_batches(
            (config.seed + 1) * 7919 + step * 101 + s, data.train.buckets, None, 1,
            config.block_steps, config.queries_per_step,
        )
        for s in range(config.seeds)
    ]  # fmt: skip
    return jax.tree.map(lambda *x: np.concatenate(x), *plans)


def check_truncation(losses: Sequence[Expression], truncation_level: int) -> None:
    """Raises AutolossError for a loss whose pairs cannot be truncated, if they are to be."""
    if not truncation_level:
        return
    for loss in losses:
        if reason := unfit(loss):
            raise AutolossError(
                f"truncation_level is {truncation_level}; expected 0, or losses that fit a batched "
                f"program: {reason}"
            )


def _params(runs: Runs) -> list[Any]:
    return [states.params for states in runs]
