"""Phase II, the effectiveness test: fresh models to convergence under every loss.

Every loss gets the same: the same learning rates to choose from, the same seeds, the same batches,
the same patience. Validation queries stop the training and choose the learning rate; test queries
are read once, at the end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging

from autoloss_jax import processes
from autoloss_jax.comparison import Contender, Tested, compare, dumped_scores, per_query
from autoloss_jax.convergence import (
    Converged,
    EffectivenessConfig,
    FoldData,
    FoldShapes,
    LossGroup,
    check_truncation,
    group_losses,
)
from autoloss_jax.data import Dataset, Fold
from autoloss_jax.errors import AutolossError
from autoloss_jax.evaluation import EvaluationQueries
from autoloss_jax.feed import Feed, check_placement
from autoloss_jax.files import write_arrays, write_json
from autoloss_jax.gbdt import train_lambdamart
from autoloss_jax.interruption import PartCheckpoints
from autoloss_jax.language.expressions import Expression
from autoloss_jax.losses import HAND_DESIGNED, LOSSES
from autoloss_jax.metrics import MetricPerQuery, metric_name, recorded_name
from autoloss_jax.models import describe_model, make_model
from autoloss_jax.runs import (
    EFFECTIVENESS_FILE,
    PER_QUERY_FILE,
    TEST_SCORES_FILE,
    RunFolder,
    open_run,
    read_result,
)
from autoloss_jax.training import candidates_mesh

LAMBDAMART = Contender("lambdamart", None, "reference")


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
    metric: MetricPerQuery | None = None,
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
      metric: what validates and what the losses are compared by, instead of NDCG at the config's
        cutoff; a function as `search` takes it. Its figures stand under its name.
      out: the run folder; None writes nothing.
      placement: of the data, one of `feed.PLACEMENTS`; it changes no result.
      on_progress: called with a description and the share that is done.

    Returns:
      What effectiveness.json holds: `rows`, one a loss, and the `verdict`.
    """
    config = config or EffectivenessConfig()
    config.check()
    losses = contenders(expressions, hand_designed)
    formulas = [c.expression for c in losses if c.expression is not None]
    check_truncation(formulas, config.truncation_level)
    if out is None:
        return run_effectiveness(
            dataset, losses, config, None, model=model, metric=metric, placement=placement,
            on_progress=on_progress,
        )  # fmt: skip
    settings = asdict(config)
    if model is not None:
        settings["model"] = describe_model(model)
    if metric is not None:
        settings["metric"] = recorded_name(metric)
    described = {
        "data": {"name": dataset.name, "sha256": dataset.sha256},
        "effectiveness": settings,
        "losses": [str(c.expression) for c in losses],
    }
    with open_run(out, described) as folder:
        return run_effectiveness(
            dataset, losses, config, folder, model=model, metric=metric, placement=placement,
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
    metric: MetricPerQuery | None = None,
    placement: str = "auto",
    on_progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Phase II in an open run folder; `model` and `metric` override the config's.

    On several processes all call this, with the folder in the first one and None in the others.
    """
    config.check()
    done = processes.from_first(lambda: None if folder is None else _read_finished(folder))
    if done is not None:
        return done
    if not any(c.kind == "hand_designed" for c in losses):
        raise AutolossError("expected at least one hand-designed loss to compare with")
    if config.dump_scores and not processes.from_first(lambda: folder is not None):
        raise AutolossError("dump_scores is True, expected a run folder (out) to write them to")
    check_placement(placement)
    _check_relevance(dataset)
    max_label = _highest_label(dataset)
    shapes = FoldShapes.of(dataset.folds, config.max_buckets)
    mesh = candidates_mesh()
    groups = group_losses(
        [c.expression for c in losses if c.expression is not None],
        model or make_model(config.model),
        config,
        mesh,
        shapes.train,
        metric,
    )
    contenders = [*losses, LAMBDAMART] if config.lambdamart else list(losses)
    tested = ["; ".join(str(losses[k].expression) for k in group.places) for group in groups]
    tested += [LAMBDAMART.name] * config.lambdamart
    parts = len(tested)  # of each fold
    folds = []
    for number, fold in enumerate(dataset.folds):

        def tell(share: float, number: int = number, name: str = fold.name) -> None:
            if on_progress is not None:
                on_progress(f"fold {name}", (number + share) / len(dataset.folds))

        checkpoints = [
            PartCheckpoints(
                folder, number * parts + k, names, config.max_steps // config.block_steps
            )
            for k, names in enumerate(tested)
        ]
        data = partial(FoldData, fold, shapes, config.features, mesh, placement)
        folds.append(_test_fold(fold, data, max_label, groups, config, metric, checkpoints, tell))
    result = compare(
        contenders,
        folds,
        metric=_name(config, metric),
        empty=config.empty,
        seed=config.seed,
    )
    result |= {
        "folds": [fold.name for fold in dataset.folds],
        "seeds": config.seeds,
        "truncation_level": config.truncation_level,
        "err_max_label": max_label,
    }
    _warn_of_limits(result["rows"], config)
    if folder is not None:
        _write(folder, dataset, config, contenders, folds, result)
    return result


def _warn_of_limits(rows: Sequence[Mapping[str, Any]], config: EffectivenessConfig) -> None:
    """Says where the settings may have kept losses from being better."""
    unfinished = [row["name"] for row in rows if not row["converged"]]
    if unfinished:
        logging.warning(
            "max_steps %d ended trainings under %s before %d looks without a better one did: with "
            "a higher one they may become better",
            config.max_steps, ", ".join(unfinished), config.patience,
        )  # fmt: skip
    rates = config.learning_rates
    chosen = [rate for row in rows for rate in row["learning_rate"] or () if rate in rates]
    for end, word in ((min(rates), "lowest"), (max(rates), "highest")):
        if len(rates) > 1 and 2 * chosen.count(end) > len(chosen):
            logging.warning(
                "the %s learning rate, %g, did best in %d of %d trainings: with %s ones losses may "
                "become better", word, end, chosen.count(end), len(chosen), f"{word[:-3]}er",
            )  # fmt: skip


def _name(config: EffectivenessConfig, metric: MetricPerQuery | None) -> str:
    """Of what the losses are compared by."""
    return metric_name(metric) if metric else f"ndcg@{config.metric_cutoff}"


def _read_finished(folder: RunFolder) -> dict[str, Any] | None:
    path = folder.path / EFFECTIVENESS_FILE
    if not path.exists():
        return None
    content: dict[str, Any] = read_result(path)
    return content


def _write(
    folder: RunFolder,
    dataset: Dataset,
    config: EffectivenessConfig,
    losses: Sequence[Contender],
    folds: Sequence[Sequence[Tested]],
    result: dict[str, Any],
) -> None:
    """The files of the test; the last one marks it as finished."""
    tests = [fold.test for fold in dataset.folds]
    names = [f"{fold.name}/{name}" for fold in dataset.folds for name in fold.test.query_ids]
    write_arrays(folder.path / PER_QUERY_FILE, per_query(result, losses, folds, names))
    if config.dump_scores:
        lengths = np.concatenate([test.lengths for test in tests])
        documents = {
            "query_ids": np.array(names),
            "offsets": np.append(0, np.cumsum(lengths)),
            "labels": np.concatenate([test.labels for test in tests]),
        }
        scores = dumped_scores(result, losses, folds)
        write_arrays(folder.path / TEST_SCORES_FILE, scores | documents)
    write_json(folder.path / EFFECTIVENESS_FILE, result)


def _check_relevance(dataset: Dataset) -> None:
    for fold in dataset.folds:
        for role, queries in (("validation", fold.validation), ("test", fold.test)):
            if not queries.has_relevant().any():
                raise AutolossError(
                    f"{fold.name}: no {role} query has a relevant document, expected at least one"
                )


def _highest_label(dataset: Dataset) -> float:
    """The top of the grades, which expected reciprocal rank is relative to."""
    parts = (part for f in dataset.folds for part in (f.train, f.validation, f.test))
    return max(float(part.labels.max()) for part in parts)


def _test_fold(
    fold: Fold,
    load: Callable[[], FoldData],
    max_label: float,
    groups: Sequence[LossGroup],
    config: EffectivenessConfig,
    metric: MetricPerQuery | None,
    checkpoints: Sequence[PartCheckpoints],
    tell: Callable[[float], None],
) -> list[Tested]:
    """Trains every group on the fold, then reads its test queries; the reference comes last.

    What the checkpoints know of a part is not done again.
    """
    stored = {k: part.tested() for k, part in enumerate(checkpoints)}
    known = {k: tested for k, tested in stored.items() if tested is not None}
    missing = [k for k in stored if k not in known]
    if missing:
        data = load()
        test = EvaluationQueries(data.test.buckets, max_label, metric)

    name = _name(config, metric)

    def test_part(k: int) -> list[Tested]:
        if k == len(groups):
            validation = EvaluationQueries(data.validation.buckets, max_label, metric)
            reference = [_test_lambdamart(fold, validation, test, config, name)]
            tell(1.0)
            return reference
        converged = groups[k].converge(
            data, checkpoints[k], lambda share: tell((k + share) / len(checkpoints))
        )
        return [
            _read_test(groups[k].model, one, data.test, test, config, name) for one in converged
        ]

    for k in missing:
        known[k] = test_part(k)
        checkpoints[k].finish(known[k])
    found: dict[int, Tested] = {}
    for k, group in enumerate(groups):
        found |= zip(group.places, known[k], strict=True)
    reference = known[len(groups)] if config.lambdamart else []
    return [found[place] for place in range(len(found))] + reference


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
