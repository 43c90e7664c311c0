"""LambdaMART, the reference of the effectiveness test: gradient-boosted trees, by LightGBM.

What a practitioner would try first (Burges, "From RankNet to LambdaRank to LambdaMART", 2010; Ke et
al., "LightGBM", 2017). It is tuned on the validation queries as the losses are: by the same
tie-aware metric, which also stops the boosting. LightGBM's own metric would not do, since it breaks
ties by the order of the file, and a model of few trees has many.
"""

import itertools
import os
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from autoloss_jax.data import Fold, Queries
from autoloss_jax.errors import AutolossError
from autoloss_jax.evaluation import EvaluationQueries

GRID: dict[str, tuple[float, ...]] = {
    "learning_rate": (0.03, 0.1),
    "num_leaves": (7, 31),
    "min_data_in_leaf": (20, 100),
}
"""Every combination is trained with every seed; the best mean on validation queries is taken."""

MAX_TREES = 1000
PATIENCE = 50
"""Trees without a better value on validation queries that end the boosting."""

_FEW_DOCUMENTS = 100_000
"""Up to so many one thread is faster than several that wait for each other after every leaf."""

_FIXED: dict[str, Any] = {
    "objective": "lambdarank",
    "metric": "None",  # it is given as a function
    # Seeds act through these draws; without them all models would be the same one.
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    # The same bits every time, on any number of threads.
    "deterministic": True,
    "force_row_wise": True,
    "feature_pre_filter": False,  # which would hold for one min_data_in_leaf only
    "verbosity": -1,
}


class LambdaMART(NamedTuple):
    """Trained models of one setting, one a seed."""

    settings: dict[str, Any]  # the chosen combination of GRID
    trees: list[int]  # of each seed's model
    converged: bool  # whether patience ended all boostings, and not MAX_TREES
    validation: float  # mean of the metric over seeds and queries
    scores: np.ndarray  # f32[seeds, documents] of the test queries


def import_lightgbm() -> ModuleType:
    """LightGBM. Raises AutolossError if it is not installed, or cannot be loaded."""
    try:
        import lightgbm
    except (ImportError, OSError) as error:  # OSError: its OpenMP library is missing
        raise AutolossError(
            "lambdamart needs LightGBM, which is not installed: pip install 'autoloss_jax[gbdt]' "
            f"({error})"
        ) from error
    return lightgbm


def train_lambdamart(
    fold: Fold, validation: EvaluationQueries, *, metric: str, seed: int, seeds: int
) -> LambdaMART:
    """Trains LambdaMART on a fold and scores its test queries.

    Args:
      fold: its features as they are: trees see no difference under monotone scaling.
      validation: the fold's validation queries.
      metric: the one that validates, a name of METRICS.
      seed, seeds: of the first model, and how many there are.

    Raises:
      AutolossError: LightGBM is not installed, refuses the data, or labels are not whole numbers.
    """
    lightgbm = import_lightgbm()
    labels = np.concatenate([fold.train.labels, fold.validation.labels])
    if np.any(labels != np.round(labels)):
        raise AutolossError(
            f"{fold.name}: lambdamart needs labels that are whole numbers, got "
            f"{labels[labels != np.round(labels)][0]}"
        )
    # The gain 2^y - 1 of the metrics; LightGBM's own table ends at label 30.
    fixed = _FIXED | {"label_gain": [2**y - 1 for y in range(int(labels.max()) + 1)]}
    fixed["num_threads"] = 1 if fold.train.num_documents <= _FEW_DOCUMENTS else os.cpu_count() or 1

    def dataset(queries: Queries, reference: Any = None) -> Any:
        return lightgbm.Dataset(
            np.asarray(queries.features), queries.labels, group=queries.lengths,
            reference=reference, params=fixed, free_raw_data=False,
        )  # fmt: skip

    def value(predicted: np.ndarray, _: Any) -> tuple[str, float, bool]:
        figures = validation.measure(predicted.astype(np.float32), (metric,))[metric]
        return metric, float(np.nanmean(figures)), True

    train = dataset(fold.train)
    held_out = dataset(fold.validation, train)
    best: tuple[float, dict[str, Any], list[Any]] | None = None
    try:
        for choice in itertools.product(*GRID.values()):
            settings = dict(zip(GRID, choice, strict=True))
            models = [
                lightgbm.train(
                    fixed | settings | {"seed": seed + s}, train, MAX_TREES,
                    valid_sets=[held_out], valid_names=["validation"], feval=value,
                    callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
                )
                for s in range(seeds)
            ]  # fmt: skip
            mean = float(np.mean([model.best_score["validation"][metric] for model in models]))
            if best is None or mean > best[0]:
                best = mean, settings, models
        assert best is not None
        mean, settings, models = best
        scores = [
            model.predict(np.asarray(fold.test.features), num_iteration=model.best_iteration)
            for model in models
        ]
    except lightgbm.basic.LightGBMError as error:
        raise AutolossError(f"{fold.name}: LightGBM refuses the data: {error}") from error
    trees = [model.best_iteration for model in models]
    converged = max(trees) + PATIENCE <= MAX_TREES
    return LambdaMART(settings, trees, converged, mean, np.array(scores, np.float32))
