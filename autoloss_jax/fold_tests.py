"""What each fold shows of every loss: its trainings, then its test queries, read once.

Validation queries also say which found and which hand-designed loss a user would take. These two
are trained again on many fresh seeds, the *confirmation*: a few seeds leave as much unknown about
their difference as the test queries do, and two losses at one learning rate each are cheap.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from autoloss_jax.comparison import Contender, Tested, chosen_by_validation
from autoloss_jax.convergence import (
    Converged,
    EffectivenessConfig,
    FoldData,
    FoldShapes,
    LossGroup,
    group_losses,
)
from autoloss_jax.data import Dataset, Fold
from autoloss_jax.evaluation import EvaluationQueries
from autoloss_jax.feed import Feed
from autoloss_jax.gbdt import train_lambdamart
from autoloss_jax.interruption import PartCheckpoints
from autoloss_jax.language.expressions import Expression
from autoloss_jax.metrics import MetricPerQuery, metric_name
from autoloss_jax.runs import RunFolder
from autoloss_jax.training import candidates_mesh

LAMBDAMART = Contender("lambdamart", None, "reference")
_FRESH = 1_000_003
"""What is added to the seed for the confirmation."""


class FoldTests:
    """The trainings of an effectiveness test, fold by fold, and what they share.

    Attributes:
      max_label: the top of the grades, which expected reciprocal rank is relative to.
    """

    def __init__(
        self, dataset: Dataset, config: EffectivenessConfig, model: nn.Module,
        metric: MetricPerQuery | None, folder: RunFolder | None, placement: str,
        on_progress: Callable[[str, float], None] | None,
    ) -> None:  # fmt: skip
        self._dataset, self._config, self._model, self._metric = dataset, config, model, metric
        self._folder, self._on_progress = folder, on_progress
        self.max_label = _highest_label(dataset)
        self._shapes = FoldShapes.of(dataset.folds, config.max_buckets)
        self._mesh = candidates_mesh()
        self._placement = placement
        # The last fold that was trained on: its number, its queries, those of the test laid out.
        self._loaded: tuple[int, FoldData, EvaluationQueries] | None = None
        self._lots = -(-config.confirmation_seeds // config.seeds)
        self._parts = 0  # begun so far, over all folds
        self._trainings = self._done = 0  # of all that there are to be

    def all_losses(self, losses: Sequence[Contender]) -> list[list[Tested]]:
        """By fold, what it shows of each loss, and then of the reference, if there is one."""
        config = self._config
        groups = self._groups([c.expression for c in losses if c.expression is not None], config)
        confirmed = 2 * self._lots * config.seeds * any(c.kind == "found" for c in losses)
        folds = range(len(self._dataset.folds))
        self._trainings = len(folds) * (sum(group.trainings for group in groups) + confirmed)
        return [self._test_fold(f, groups, config) for f in folds]

    def confirmation(
        self, losses: Sequence[Contender], folds: Sequence[Sequence[Tested]]
    ) -> list[list[Tested]] | None:
        """By fold, what fresh seeds show of the two losses that validation chooses.

        They are tested in lots of as many seeds as the test has, each lot as the test tests: a loss
        is done when none of a lot's models has become better for a while.
        """
        found, hand_designed = chosen_by_validation(losses, folds)
        if not self._lots or found is None:
            return None
        pair = [e for k in (found, hand_designed) if (e := losses[k].expression) is not None]
        tested = []
        for f, fold in enumerate(folds):
            rates = [fold[k].learning_rate for k in (found, hand_designed)]
            about = f"confirmed at {rates[0]:g} and {rates[1]:g}: "
            lots = []
            for lot in range(self._lots):
                fresh = replace(
                    self._config, seed=(self._config.seed + _FRESH + lot) % 2**31,
                    lambdamart=False, dump_scores=False,
                )  # fmt: skip
                groups = self._groups(pair, fresh, rates)
                lots.append(self._test_fold(f, groups, fresh, "confirmation, ", about))
            tested.append([_merged(of_loss) for of_loss in zip(*lots, strict=True)])
        return tested

    def _groups(
        self, losses: Sequence[Expression], config: EffectivenessConfig,
        rates: Sequence[float] | None = None,
    ) -> list[LossGroup]:  # fmt: skip
        return group_losses(
            losses, self._model, config, self._mesh, self._shapes.train, self._metric, rates
        )

    def _data(self, number: int) -> tuple[FoldData, EvaluationQueries]:
        """The queries of a fold, and those of its test; they stay until another's are asked for."""
        if self._loaded is None or self._loaded[0] != number:
            self._loaded = None  # before the next one takes its place in memory
            fold, features = self._dataset.folds[number], self._config.features
            data = FoldData(fold, self._shapes, features, self._mesh, self._placement)
            test = EvaluationQueries(data.test.buckets, self.max_label, self._metric)
            self._loaded = number, data, test
        return self._loaded[1:]

    def _test_fold(
        self, number: int, groups: Sequence[LossGroup], config: EffectivenessConfig,
        stage: str = "", about: str = "",
    ) -> list[Tested]:  # fmt: skip
        """Trains every group on a fold, then reads its test queries; the reference comes last.

        What the checkpoints know of a part is not done again: a part is known by its number and by
        `about` and its losses. `stage` is what progress is told of.
        """
        fold, metric = self._dataset.folds[number], self._metric
        names = [about + "; ".join(map(str, group.losses)) for group in groups]
        names += [LAMBDAMART.name] * config.lambdamart
        parts = [
            PartCheckpoints(self._folder, part, losses, config.max_steps // config.block_steps)
            for part, losses in enumerate(names, start=self._parts)
        ]
        self._parts += len(parts)
        trainings = sum(group.trainings for group in groups)

        def tell(share: float) -> None:
            if self._on_progress is not None:
                done = self._done + share * trainings
                self._on_progress(f"{stage}fold {fold.name}", done / self._trainings)

        stored = {k: part.tested() for k, part in enumerate(parts)}
        known = {k: tested for k, tested in stored.items() if tested is not None}
        missing = [k for k in stored if k not in known]
        if missing:
            data, test = self._data(number)
        name = metric_of(config, metric)

        def test_part(k: int) -> list[Tested]:
            if k == len(groups):
                validation = EvaluationQueries(data.validation.buckets, self.max_label, metric)
                reference = [_test_lambdamart(fold, validation, test, config, name)]
                tell(1.0)
                return reference
            converged = groups[k].converge(
                data, parts[k], lambda share: tell((k + share) / len(parts))
            )
            return [
                _read_test(groups[k].model, one, data.test, test, config, name) for one in converged
            ]

        for k in missing:
            known[k] = test_part(k)
            parts[k].finish(known[k])
        self._done += trainings
        found: dict[int, Tested] = {}
        for k, group in enumerate(groups):
            found |= zip(group.places, known[k], strict=True)
        reference = known[len(groups)] if config.lambdamart else []
        return [found[place] for place in range(len(found))] + reference


def _merged(lots: Sequence[Tested]) -> Tested:
    """What lots of equally many seeds showed of one loss, as one test of all their seeds."""
    failed = [lot for lot in lots if not lot.test]
    if failed:
        return failed[0]
    return lots[0]._replace(
        steps=[step for lot in lots for step in lot.steps],
        converged=all(lot.converged for lot in lots),
        validation=float(np.mean([lot.validation for lot in lots])),
        test={name: np.mean([lot.test[name] for lot in lots], axis=0) for name in lots[0].test},
        by_seed=np.concatenate([lot.by_seed for lot in lots if lot.by_seed is not None]),
    )


def metric_of(config: EffectivenessConfig, metric: MetricPerQuery | None) -> str:
    """Of what the losses are compared by."""
    return metric_name(metric) if metric else f"ndcg@{config.metric_cutoff}"


def _highest_label(dataset: Dataset) -> float:
    """The top of the grades, which expected reciprocal rank is relative to."""
    parts = (part for f in dataset.folds for part in (f.train, f.validation, f.test))
    return max(float(part.labels.max()) for part in parts)


def _read_test(
    model: nn.Module,
    converged: Converged,
    feed: Feed,
    test: EvaluationQueries,
    config: EffectivenessConfig,
    metric: str,
) -> Tested:
    rate, steps, enough, validation, params, reason = converged
    tested = Tested(rate, steps, enough, validation, test={}, reason=reason)
    if params is None:
        return tested
    scores = []
    for s in range(config.seeds):
        one = jax.tree.map(lambda x, s=s: x[s], params)
        padded = (_scores(model, one, batch.features, batch.mask) for batch, _ in feed.lists())
        scores.append(test.flatten(padded))
    return _measured(tested, np.stack(scores), test, config, metric)


def _test_lambdamart(
    fold: Fold,
    validation: EvaluationQueries,
    test: EvaluationQueries,
    config: EffectivenessConfig,
    metric: str,
) -> Tested:
    reference = train_lambdamart(
        fold, validation, metric=metric, seed=config.seed, seeds=config.seeds,
    )  # fmt: skip
    settings = reference.settings
    tested = Tested(
        settings["learning_rate"], reference.trees, reference.converged, reference.validation,
        test={}, settings=settings,
    )  # fmt: skip
    return _measured(tested, reference.scores, test, config, metric)


def _measured(
    tested: Tested,
    scores: np.ndarray,
    test: EvaluationQueries,
    config: EffectivenessConfig,
    metric: str,
) -> Tested:
    """With the figures of scores f32[seeds, documents], and the scores themselves if wanted."""
    seeds = [test.measure(of_seed) for of_seed in scores]
    figures = {name: np.mean([seed[name] for seed in seeds], axis=0) for name in seeds[0]}
    return tested._replace(
        test=figures,
        by_seed=np.stack([seed[metric] for seed in seeds]),
        scores=scores if config.dump_scores else None,
    )


@partial(jax.jit, static_argnums=0)
def _scores(model: nn.Module, params: Any, features: jax.Array, mask: jax.Array) -> jax.Array:
    scores: Any = model.apply(params, features, mask)
    return scores
