"""Proxy runs: short trainings of a small ranker under candidate losses, and the reward they earn.

The training queries are cut into cross-validation folds; a replicate trains on all folds but one
and is evaluated on that one, so every training query is a reward query once. A candidate's reward
is its paired difference, over these queries, to a reference loss trained beside it: same weights
to start from, same batches, same number of steps. Training goes in rungs (successive halving,
Jamieson and Talwalkar 2016): all candidates train a little, the better share trains on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import flax.linen as nn
import numpy as np

from autoloss_jax import canaries
from autoloss_jax.data import (
    BatchPlan,
    Queries,
    assign_folds,
    bucket_queries,
    draw_batches,
    held_out_rows,
    plan_labels,
    rare_buckets,
)
from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.programs import encode
from autoloss_jax.feed import Feed
from autoloss_jax.language.expressions import Expression
from autoloss_jax.metrics import MetricPerQuery, ndcg_per_query
from autoloss_jax.models import Attention, Linear
from autoloss_jax.profile import Profile
from autoloss_jax.trainer import Runs, Trainer
from autoloss_jax.training import (
    FAULTS,
    RankerTraining,
    RunState,
    init_run,
    program_score_gradient,
)

NO_UPDATE = "its gradient is zero on every batch"
CONSTANT_SCORES = "its model gives all documents of a query the same score"
FAILURES = (*FAULTS[1:], NO_UPDATE, CONSTANT_SCORES)
"""Why a candidate fails, though it was accepted."""
LEARNING_RATES: dict[type[nn.Module], float] = {Linear: 0.1, Attention: 0.03}
LEARNING_RATE = 0.01
"""Of proxy runs of these models, and of others: far below, a short run stays near its initial
weights, and says little of how losses train to convergence (experiments/benchmarks/reward.py)."""
_TIED_QUERIES = 64  # of each replicate, by which constant scores are known


@dataclass(frozen=True)
class ProxyConfig:
    """How proxy runs train.

    Attributes:
      folds: cross-validation folds of the training queries.
      queries_per_step: of each update.
      learning_rate: of Adam; 0: 0.1 for the linear model, 0.03 for attention, 0.01 for others.
      rung_steps: updates of one training block.
      rungs: training blocks of each rung; the better share goes on from rung to rung.
      keep: that share.
      metric_cutoff: the k of the reward's NDCG@k.
      max_buckets: the most length buckets of the training queries; 0 chooses them by the data.
      truncation_level: pairs count only if one of their documents is among this many first by
        current scores; 0: all pairs.
    """

    folds: int = 3
    queries_per_step: int = 32
    learning_rate: float = 0.0
    rung_steps: int = 20
    rungs: tuple[int, ...] = (1, 2)
    keep: float = 0.5
    metric_cutoff: int = 10
    max_buckets: int = 0
    truncation_level: int = 0

    def check(self) -> None:
        """Raises AutolossError for a setting out of range, naming it."""
        for name, least in (
            ("folds", 2), ("queries_per_step", 1), ("rung_steps", 1), ("metric_cutoff", 1),
            ("max_buckets", 0), ("truncation_level", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise AutolossError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if not 0 <= self.learning_rate < np.inf:
            raise AutolossError(
                f"learning_rate is {self.learning_rate}, expected a positive number, or 0"
            )
        if not 0 < self.keep <= 1:
            raise AutolossError(f"keep is {self.keep}, expected above 0 and up to 1")
        if not self.rungs or min(self.rungs) < 1:
            raise AutolossError(
                f"rungs is {self.rungs}, expected one or more block counts of at least 1"
            )


class Outcome(NamedTuple):
    """What became of one candidate."""

    reward: float  # mean difference to the reference, at most that of any candidate trained longer;
    # -inf if it failed
    reward_se: float  # its standard error over the queries
    ndcg: float  # mean over the queries with a relevant document; of another metric if one rewards
    steps: int  # updates it was trained for
    reason: str  # one of FAILURES if it failed, else ""
    differences: np.ndarray  # f64[queries]: to the reference


class ProxyRound(NamedTuple):
    """The outcomes of a round, and the models of the best candidate (or of the reference)."""

    outcomes: list[Outcome]
    reference_ndcg: float
    best: RunState  # [replicates, 1]
    reference: RunState  # [replicates, 1]


class ProxyTraining:
    """Trains candidates on one set of queries; compiles once."""

    def __init__(
        self, queries: Queries, model: nn.Module, reference: Expression, config: ProxyConfig,
        capacity: int, seed: int, placement: str = "auto", metric: MetricPerQuery | None = None,
        profile: Profile | None = None,
    ) -> None:  # fmt: skip
        """`capacity`: the most candidates of a round, the reference not counted.

        `placement`: of the data, one of `feed.PLACEMENTS`; it changes no result. `metric`: what
        rewards are differences of; NDCG at the config's cutoff by default.
        """
        config.check()
        self.config = config
        default = LEARNING_RATES.get(type(model), LEARNING_RATE)
        self.learning_rate = config.learning_rate or default
        self.capacity = capacity
        self.reference = reference
        self.buckets = bucket_queries(queries, max_buckets=config.max_buckets)
        self.training = RankerTraining(
            model, program_score_gradient(config.truncation_level), config.metric_cutoff, metric,
            rare_buckets(self.buckets.rows, config.queries_per_step),
        )  # fmt: skip
        self.trainer = Trainer(self.training, capacity + 1, profile=profile)
        self.folds = assign_folds(queries, config.folds, seed)
        self.feed = Feed(self.buckets, self.trainer.mesh, placement)
        self._held_out = held_out_rows(self.buckets, self.folds, config.folds)
        self.metric = metric or partial(ndcg_per_query, k=config.metric_cutoff)
        defined = None if metric is None else canaries.defined_queries(metric, self.feed)
        _, self._counted = plan_labels(self.buckets, self._held_out, defined)
        self._ties = self._measure_ties()
        # Rounds that start from scratch share one seed; others never come back to theirs.
        self.fresh = lru_cache(maxsize=1)(self._init)
        self._plan = lru_cache(maxsize=1)(self._draw)

    def _measure_ties(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each replicate, some of its held-out queries, and what constant scores get there.

        Such queries as have labels to tell apart; their places among the values of an evaluation.
        """
        queries, ties = self.buckets.queries, []
        spread = np.array([np.ptp(labels) > 0 for labels in np.split(
            queries.labels, queries.offsets[1:-1])])  # fmt: skip
        which = [
            np.append(members, np.full(count - len(members), -1))[rows]
            for members, count, rows in zip(
                self.buckets.members, self.buckets.rows, self._held_out.rows, strict=True
            )
        ]
        flat = np.concatenate(which, axis=-1).reshape(self._counted.shape)
        for query, counted in zip(flat, self._counted, strict=True):
            places = np.flatnonzero(counted & spread[query])
            places = places[:: max(1, len(places) // _TIED_QUERIES)][:_TIED_QUERIES]
            lists = [queries.labels[slice(*queries.offsets[q : q + 2])] for q in query[places]]
            longest = max(map(len, lists), default=1)
            labels = np.array([np.pad(x, (0, longest - len(x))) for x in lists], np.float32)
            mask = np.array([np.arange(longest) < len(x) for x in lists], bool)
            shape = (len(lists), longest)
            values, _ = self.metric(
                np.zeros(shape, np.float32), labels.reshape(shape), where=mask.reshape(shape)
            )
            ties.append((places, np.asarray(values, np.float64)))
        return ties

    def _is_constant(self, measured: np.ndarray) -> np.ndarray:
        """bool[slots, replicates]: whether the values are those of constant scores."""
        return np.stack(
            [
                np.isclose(measured[:, r, places], values, rtol=1e-5, atol=1e-6).all(1)
                & (len(places) > 0)
                for r, (places, values) in enumerate(self._ties)
            ],
            axis=1,
        )

    @cached_property
    def full_steps(self) -> int:
        """Updates of a candidate that passes every rung."""
        return sum(self.config.rungs) * self.config.rung_steps

    def _init(self, seed: int) -> RunState:
        """Untrained models [replicates, 1]."""
        return init_run(self.training, seed, self.config.folds, self.feed.example)

    def run(
        self,
        candidates: Sequence[Expression],
        seed: int,
        start: RunState | None = None,
        halving: bool = True,
    ) -> ProxyRound:
        """Trains candidates beside the reference.

        Args:
          candidates: at most as many as the capacity; `encode` accepts them.
          seed: of the weights and of the batches.
          start: models [replicates, 1] to start from; fresh ones by default.
          halving: whether only the better share passes each rung.

        Raises:
          AutolossError: more candidates than the capacity; the reference turned non-finite.
        """
        if len(candidates) > self.capacity:
            raise AutolossError(
                f"{len(candidates)} candidates, expected at most the capacity of {self.capacity}"
            )
        return self.trainer.within_memory(lambda: self._run(candidates, seed, start, halving))

    def _run(
        self, candidates: Sequence[Expression], seed: int, start: RunState | None, halving: bool
    ) -> ProxyRound:
        trainer = self.trainer
        losses = [self.reference, *candidates]  # run 0 is the reference
        start = self.fresh(seed) if start is None else start
        begun = np.asarray(start.updates)
        runs = trainer.spread(start)
        # Where each run in training is.
        at = {run: trainer.slot(run) for run in range(len(losses))}
        found: dict[int, tuple[np.ndarray, int, str]] = {}  # by run: its values, steps, failure
        plans = self._plan(seed)
        reference_values: dict[int, np.ndarray] = {}  # by steps
        steps = done = 0
        for rung, blocks in enumerate(self.config.rungs):
            occupied, active = self._occupy(losses, at)
            runs = trainer.train(
                runs,
                encode(occupied),
                self._rates(),
                active,
                self.feed,
                plans[done : done + blocks],
            )
            done += blocks
            steps = done * self.config.rung_steps
            measured = trainer.evaluate(runs, active, self.feed, self._held_out)
            values = np.asarray(measured, np.float64)[:, self._counted]
            reasons = self._failures(runs, at, measured, begun)
            values[[at[run] for run in reasons]] = np.nan
            reference_values[steps] = values[at[0]]
            if not np.isfinite(reference_values[steps]).all():
                raise AutolossError(
                    f"the model trained under the reference loss {self.reference} turned "
                    f"non-finite within {steps} steps, so no reward can be measured; expected a "
                    f"learning rate it can be trained with, got {self.learning_rate:g}"
                )
            found |= {run: (values[slot], steps, reasons.get(run, "")) for run, slot in at.items()}
            if halving and rung + 1 < len(self.config.rungs):
                kept = self._survivors({run: found[run][0].mean() for run in at})
                before = np.array([at[run] for run in kept])
                at = {run: trainer.slot(place) for place, run in enumerate(kept)}
                runs = trainer.reorder(runs, trainer.by_slot(np.array(list(at.values())), before))
        outcomes = _ordered_by_rung(
            [_outcome(*found[run], reference_values[found[run][1]])
             for run in range(1, len(losses))]
        )  # fmt: skip
        best = max(at, key=lambda run: outcomes[run - 1].reward if run else 0.0)
        return ProxyRound(
            outcomes, float(reference_values[steps].mean()),
            best=trainer.take(runs, at[best]), reference=trainer.take(runs, at[0]),
        )  # fmt: skip

    def _failures(
        self, runs: Runs, at: dict[int, int], measured: np.ndarray, begun: np.ndarray
    ) -> dict[int, str]:
        """By candidate that failed, as far as the reference beside it did not: why.

        begun: updates before the round, [replicates, 1].
        """
        fault, updates = self.trainer.faults(runs)
        finite = np.isfinite(measured).all((1, 2))
        still, constant = (updates == begun).T, self._is_constant(measured)
        reasons = {}
        for run, slot in at.items():
            if run and fault[:, slot].any():
                reasons[run] = FAULTS[fault[:, slot].max()]
            elif run and not finite[slot]:
                reasons[run] = FAULTS[2]
            elif (still[slot] & ~still[at[0]]).any():
                reasons[run] = NO_UPDATE
            elif (constant[slot] & ~constant[at[0]]).any():
                reasons[run] = CONSTANT_SCORES
        return reasons

    def _occupy(
        self, losses: Sequence[Expression], at: dict[int, int]
    ) -> tuple[list[Expression], np.ndarray]:
        """The losses of all slots, and which of them a run in training has."""
        slots = [self.reference] * self.trainer.slots
        active = np.zeros(self.trainer.slots, bool)
        for run, slot in at.items():
            slots[slot], active[slot] = losses[run], True
        return slots, active

    def _survivors(self, means: dict[int, float]) -> list[int]:
        """The reference and the better share of the candidates, a NaN never among them."""
        alive = [run for run in means if run and np.isfinite(means[run])]
        count = int(np.ceil(self.config.keep * (len(means) - 1)))
        return [0, *sorted(alive, key=lambda run: (-means[run], run))[:count]]

    def _rates(self) -> np.ndarray:
        """f32[slots]: the learning rate of each."""
        return np.full(self.trainer.slots, self.learning_rate, np.float32)

    def _draw(self, seed: int) -> list[BatchPlan]:
        """The batches of every block, the same whenever the seed is."""
        size, blocks = self.config.rung_steps, sum(self.config.rungs)
        plan = draw_batches(
            seed, self.buckets, self.folds, self.config.folds, size * blocks,
            self.config.queries_per_step,
        )  # fmt: skip
        return [plan.part(b * size, (b + 1) * size) for b in range(blocks)]


def _outcome(values: np.ndarray, steps: int, reason: str, reference: np.ndarray) -> Outcome:
    differences = values - reference
    if reason:
        return Outcome(-np.inf, np.inf, float("nan"), steps, reason, differences)
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return Outcome(
        float(differences.mean()), float(error), float(values.mean()), steps, "", differences
    )


def _ordered_by_rung(outcomes: list[Outcome]) -> list[Outcome]:
    """Caps rewards, so that none that a rung stopped is above one that it let pass."""
    ordered = list(outcomes)
    cap = np.inf
    for steps in sorted({outcome.steps for outcome in outcomes}, reverse=True):
        level = [k for k, outcome in enumerate(outcomes) if outcome.steps == steps]
        for k in level:
            ordered[k] = ordered[k]._replace(reward=min(ordered[k].reward, cap))
        cap = min((r for k in level if np.isfinite(r := ordered[k].reward)), default=cap)
    return ordered
