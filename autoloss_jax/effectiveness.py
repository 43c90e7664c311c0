"""Phase II, the effectiveness test: fresh models to convergence under every loss.

Every loss gets the same: the same learning rates to choose from, the same seeds, the same batches,
the same patience. Validation queries stop the training and choose the learning rate; test queries
are read once, at the end.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from autoloss_jax.comparison import Contender, Tested, compare
from autoloss_jax.data import (
    TRANSFORMS,
    BatchPlan,
    Dataset,
    Fold,
    all_rows,
    bucket_queries,
    draw_batches,
    plan_buckets,
    plan_labels,
    scale_fold,
)
from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.programs import encode
from autoloss_jax.feed import Feed
from autoloss_jax.files import read_json, write_json
from autoloss_jax.language.expressions import Expression
from autoloss_jax.losses import HAND_DESIGNED, LOSSES
from autoloss_jax.metrics import average_precision_per_query, mrr_per_query, ndcg_per_query
from autoloss_jax.models import describe_model, make_model
from autoloss_jax.runs import RunFolder
from autoloss_jax.training import (
    RankerTraining,
    candidates_mesh,
    evaluate_runs,
    exact_score_gradient,
    init_run,
    padded_count,
    program_score_gradient,
    spread_runs,
    train_runs,
)

EFFECTIVENESS_FILE = "effectiveness.json"
TEST_METRICS: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {
    **{f"ndcg@{k}": (lambda s, y, where, k=k: ndcg_per_query(s, y, where=where, k=k))
       for k in (1, 3, 5, 10, 30)},
    "mrr": lambda s, y, where: mrr_per_query(s, y, where=where),
    "map": lambda s, y, where: average_precision_per_query(s, y, where=where),
}  # fmt: skip


@dataclass(frozen=True)
class EffectivenessConfig:
    """Settings of an effectiveness test.

    Attributes:
      model: a name of MODELS.
      features: how features are scaled, a name of TRANSFORMS.
      seed: of everything random.
      seeds: how many models of different initial weights and batches are trained.
      learning_rates: of Adam, from which validation queries choose one for each loss.
      queries_per_step: of each update.
      block_steps: updates between two looks at the validation queries.
      patience: how many looks without a better one end a training.
      max_steps: updates after which it ends anyway.
      metric_cutoff: the k of the NDCG@k that validates, and that the losses are compared by.
      empty: how queries without a relevant document count: "skip", "zero" or "one".
      max_buckets: the most length buckets; 0 chooses them by the data.
    """

    model: str = "mlp"
    features: str = "standardize"
    seed: int = 0
    seeds: int = 3
    learning_rates: tuple[float, ...] = (0.001, 0.003, 0.01)
    queries_per_step: int = 32
    block_steps: int = 20
    patience: int = 8
    max_steps: int = 600
    metric_cutoff: int = 10
    empty: str = "skip"
    max_buckets: int = 0

    def check(self) -> None:
        """Raises AutolossError for a setting out of range, naming it."""
        if self.empty not in ("skip", "zero", "one"):
            raise AutolossError(f"empty is {self.empty!r}; expected one of skip, zero, one")
        if f"ndcg@{self.metric_cutoff}" not in TEST_METRICS:
            raise AutolossError(
                f"metric_cutoff is {self.metric_cutoff}; expected 1, 3, 5, 10 or 30"
            )
        for name in ("seeds", "block_steps", "patience", "max_steps", "queries_per_step"):
            if getattr(self, name) < 1:
                raise AutolossError(f"{name} is {getattr(self, name)}, expected at least 1")
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


def contenders(
    found: Sequence[Expression], hand_designed: Sequence[str] | None = None
) -> list[Contender]:
    """Found losses, named by their place, and the hand-designed ones, all by default."""
    names = list(HAND_DESIGNED) if hand_designed is None else list(hand_designed)
    unknown = [name for name in names if name not in LOSSES]
    if unknown:
        raise AutolossError(f"unknown loss {unknown[0]!r}; expected one of {', '.join(LOSSES)}")
    hand = [Contender(name, LOSSES[name], "hand_designed") for name in names]
    return [Contender(f"found {k}", e, "found") for k, e in enumerate(found, 1)] + hand


def effectiveness_test(
    dataset: Dataset,
    expressions: Sequence[Expression],
    config: EffectivenessConfig | None = None,
    *,
    hand_designed: Sequence[str] | None = None,
    model: nn.Module | None = None,
    out: str | None = None,
    placement: str = "auto",
    on_progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Tests found losses against hand-designed ones on every fold of the data set.

    Args:
      dataset: its folds. For losses that were searched on the first fold's training queries, pass
        `clean_folds`, so that no query they were selected on is a test query.
      expressions: the found losses.
      config: the settings.
      hand_designed: names of LOSSES to compare with; all of HAND_DESIGNED by default.
      model: a Flax module that is trained, instead of the config's; it maps features
        [queries, list, features] and mask [queries, list] to scores [queries, list].
      out: the run folder; None writes nothing.
      placement: of the data, one of `feed.PLACEMENTS`; it changes no result.
      on_progress: called with a description and the share that is done.

    Returns:
      What effectiveness.json holds: `rows`, one a loss, and the `verdict`.
    """
    config = config or EffectivenessConfig()
    config.check()
    losses = contenders(expressions, hand_designed)
    if out is None:
        return run_effectiveness(
            dataset, losses, config, None, model=model, placement=placement,
            on_progress=on_progress,
        )  # fmt: skip
    settings = asdict(config)
    if model is not None:
        settings["model"] = describe_model(model)
    described = {
        "data": {"name": dataset.name, "sha256": dataset.sha256},
        "effectiveness": settings,
        "losses": [str(c.expression) for c in losses],
    }
    with RunFolder.open(out, described) as folder:
        return run_effectiveness(
            dataset, losses, config, folder, model=model, placement=placement,
            on_progress=on_progress,
        )  # fmt: skip


def clean_folds(dataset: Dataset) -> Dataset:
    """The folds of whose test queries none trains or validates in the first fold."""
    first = dataset.folds[0]
    seen = {*first.train.query_ids, *first.validation.query_ids}
    rest = [fold for fold in dataset.folds[1:] if not seen & set(fold.test.query_ids)]
    return Dataset(dataset.name, (first, *rest), dataset.sha256)


def run_effectiveness(
    dataset: Dataset,
    losses: Sequence[Contender],
    config: EffectivenessConfig,
    folder: RunFolder | None,
    *,
    model: nn.Module | None = None,
    placement: str = "auto",
    on_progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Phase II in an open run folder; `model` overrides the config's."""
    config.check()
    path = None if folder is None else folder.path / EFFECTIVENESS_FILE
    if path is not None and path.exists():
        return read_json(path)
    if not any(c.kind == "hand_designed" for c in losses):
        raise AutolossError("expected at least one hand-designed loss to compare with")
    ranker = model or make_model(config.model)
    report = on_progress or (lambda text, share: None)
    folds: list[list[Tested]] = []
    defined: list[dict[str, np.ndarray]] = []
    for number, fold in enumerate(dataset.folds):

        def tell(share: float, number: int = number, name: str = fold.name) -> None:
            report(f"fold {name}", (number + share) / len(dataset.folds))

        test = _FoldTest(scale_fold(fold, config.features), ranker, config, placement)
        folds.append(test.run(losses, tell))
        defined.append(test.defined())
    result = compare(
        losses,
        folds,
        defined,
        metric=f"ndcg@{config.metric_cutoff}",
        empty=config.empty,
        seed=config.seed,
    )
    result |= {"folds": [fold.name for fold in dataset.folds], "seeds": config.seeds}
    if path is not None:
        write_json(path, result)
    return result


class _FoldTest:
    """Trains and evaluates all losses on one fold."""

    def __init__(
        self, fold: Fold, model: nn.Module, config: EffectivenessConfig, placement: str = "auto"
    ) -> None:
        for role, queries in (("validation", fold.validation), ("test", fold.test)):
            if not queries.has_relevant().any():
                raise AutolossError(
                    f"{fold.name}: no {role} query has a relevant document, expected at least one"
                )
        self.config = config
        self.model = model
        self.mesh = candidates_mesh()
        train = bucket_queries(fold.train, max_buckets=config.max_buckets)
        self.train = Feed(train, self.mesh, placement)
        lengths = np.concatenate([fold.validation.lengths, fold.test.lengths])
        bounds = plan_buckets(lengths, config.max_buckets)
        self.validation = Feed(bucket_queries(fold.validation, bounds), self.mesh, placement)
        self.test = Feed(bucket_queries(fold.test, bounds), self.mesh, placement)

    def run(self, losses: Sequence[Contender], tell: Callable[[float], None]) -> list[Tested]:
        """Losses that fit a batched program side by side, each other one by the exact path."""
        fitting = [k for k, c in enumerate(losses) if _fits(c.expression)]
        others = [k for k in range(len(losses)) if k not in fitting]
        found: dict[int, Tested] = {}
        groups = ([fitting] if fitting else []) + [[k] for k in others]
        for done, group in enumerate(groups):

            def part(share: float, done: int = done) -> None:
                tell((done + share) / len(groups))

            expressions = [losses[k].expression for k in group]
            found |= dict(
                zip(group, self._converge(expressions, group == fitting, part), strict=True)
            )
        return [found[k] for k in range(len(losses))]

    def _converge(
        self, losses: Sequence[Expression], batched: bool, tell: Callable[[float], None]
    ) -> list[Tested]:
        """Trains losses x learning rates x seeds until none gets better on validation."""
        config, rates = self.config, self.config.learning_rates
        gradient = program_score_gradient if batched else exact_score_gradient(losses[0])
        training = RankerTraining(self.model, gradient, config.metric_cutoff)
        train, evaluate = train_runs(training, self.mesh), evaluate_runs(training, self.mesh)
        count = len(losses) * len(rates)
        runs = padded_count(count, self.mesh)
        padded = np.minimum(np.arange(runs), count - 1)
        programs = encode([losses[k] for k in padded // len(rates)]) if batched else None
        each_rate = jnp.asarray(np.array(rates, np.float32)[padded % len(rates)])
        start = init_run(training, config.seed, config.seeds, self.train.example)
        states = spread_runs(self.mesh, start, np.zeros(runs, int))
        best, best_value = (
            jax.tree.map(jnp.copy, states.params),
            np.full((config.seeds, runs), -np.inf),
        )
        best_step = np.zeros((config.seeds, runs), int)
        every = all_rows(self.validation.buckets, config.seeds)
        _, counted = plan_labels(self.validation.buckets, every)
        for step in range(config.block_steps, config.max_steps + 1, config.block_steps):
            going = step - best_step.max(0) <= config.patience * config.block_steps
            going &= np.arange(runs) < count
            if not going.any():
                break
            active = jnp.asarray(going)
            for block in self.train.blocks([self._plan(step)]):
                states = jax.block_until_ready(train(states, programs, each_rate, active, *block))
            values = self.validation.evaluate(evaluate, states, active, every)
            means = np.array([values[:, s][:, counted[s]].mean(1)
                              for s in range(config.seeds)], np.float64)  # fmt: skip
            better = (np.nan_to_num(means, nan=-np.inf) > best_value) & going
            best_value = np.where(better, means, best_value)
            best_step = np.where(better, step, best_step)
            best = _choose(better, states.params, best)
            tell(step / config.max_steps)
        return [
            self._test(best, best_value, best_step, range(k * len(rates), (k + 1) * len(rates)))
            for k in range(len(losses))
        ]

    def _plan(self, step: int) -> BatchPlan:
        """The batches of one block, different for every seed."""
        config = self.config
        plans = [
            draw_batches(
                (config.seed + 1) * 7919 + step * 101 + s, self.train.buckets, None, 1,
                config.block_steps, config.queries_per_step,
            )
            for s in range(config.seeds)
        ]  # fmt: skip
        return jax.tree.map(lambda *x: np.concatenate(x), *plans)

    def _test(
        self, params: Any, values: np.ndarray, steps: np.ndarray, runs: Sequence[int]
    ) -> Tested:
        """Chooses the learning rate on validation, and reads the test queries."""
        chosen = max(runs, key=lambda run: values[:, run].mean())
        if not np.isfinite(values[:, chosen]).all():  # every rate lost a seed: nothing to show
            return Tested(float("nan"), [], float("-inf"), {})
        seeds = []
        for s in range(self.config.seeds):
            one = jax.tree.map(lambda x, s=s: x[s, chosen], params)
            seeds.append(_measure(self.model, one, self.test))
        test = {name: np.mean([seed[name] for seed in seeds], axis=0) for name in TEST_METRICS}
        rate = self.config.learning_rates[runs.index(chosen)]
        return Tested(rate, steps[:, chosen].tolist(), float(values[:, chosen].mean()), test)

    def defined(self) -> dict[str, np.ndarray]:
        """bool[queries] by metric: where it is defined, on the test queries."""
        flags: dict[str, list[np.ndarray]] = {name: [] for name in TEST_METRICS}
        for batch, count in self.test.lists():
            for name, metric in TEST_METRICS.items():
                defined = metric(batch.labels, batch.labels, batch.mask)[1]
                flags[name].append(np.asarray(defined)[:count])
        return {name: np.concatenate(parts) for name, parts in flags.items()}


def _fits(expression: Expression) -> bool:
    try:
        encode([expression])
    except AutolossError:
        return False
    return True


@jax.jit
def _choose(better: jax.Array, new: Any, old: Any) -> Any:
    def pick(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(better.shape + (1,) * (new.ndim - 2)), new, old)

    return jax.tree.map(pick, new, old)


def _measure(model: nn.Module, params: Any, queries: Feed) -> dict[str, np.ndarray]:
    """f64[queries] by metric."""
    values: dict[str, list[np.ndarray]] = {name: [] for name in TEST_METRICS}
    for batch, count in queries.lists():
        scores = _scores(model, params, batch.features, batch.mask)
        for name, metric in TEST_METRICS.items():
            found = np.asarray(metric(scores, batch.labels, batch.mask)[0], np.float64)
            values[name].append(found[:count])
    return {name: np.concatenate(parts) for name, parts in values.items()}


@partial(jax.jit, static_argnums=0)
def _scores(model: nn.Module, params: Any, features: jax.Array, mask: jax.Array) -> jax.Array:
    scores: Any = model.apply(params, features, mask)
    return scores
