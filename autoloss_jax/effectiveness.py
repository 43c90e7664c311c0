"""Phase II, the effectiveness test: fresh models to convergence under every loss.

Every loss gets the same: the same learning rates to choose from, the same seeds, the same batches,
the same patience. Validation queries stop the training and choose the learning rate; test queries
are read once, at the end. The two losses that validation queries choose, of the found and of the
hand-designed ones, are trained again on many fresh seeds, on which the verdict rests.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import flax.linen as nn
import numpy as np
from absl import logging

from autoloss_jax import processes
from autoloss_jax.comparison import (
    Contender,
    Tested,
    compare,
    confirmed_rows,
    dumped_scores,
    per_query,
)
from autoloss_jax.convergence import (
    EffectivenessConfig,
    check_truncation,
)
from autoloss_jax.data import Dataset
from autoloss_jax.errors import AutolossError
from autoloss_jax.feed import check_placement
from autoloss_jax.files import write_arrays, write_json
from autoloss_jax.fold_tests import LAMBDAMART, FoldTests, metric_of
from autoloss_jax.language.expressions import Expression
from autoloss_jax.losses import HAND_DESIGNED, LOSSES
from autoloss_jax.metrics import MetricPerQuery, recorded_name
from autoloss_jax.models import describe_model, make_model
from autoloss_jax.runs import (
    EFFECTIVENESS_FILE,
    PER_QUERY_FILE,
    TEST_SCORES_FILE,
    RunFolder,
    open_run,
    read_result,
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
    test = FoldTests(
        dataset, config, model or make_model(config.model), metric, folder, placement, on_progress
    )
    folds = test.all_losses(losses)
    confirmed = test.confirmation(losses, folds)
    contenders = [*losses, LAMBDAMART] if config.lambdamart else list(losses)
    result = compare(
        contenders,
        folds,
        metric=metric_of(config, metric),
        empty=config.empty,
        seed=config.seed,
        confirmed=confirmed,
    )
    result |= {
        "folds": [fold.name for fold in dataset.folds],
        "seeds": config.seeds,
        "truncation_level": config.truncation_level,
        "err_max_label": test.max_label,
    }
    _warn_of_limits(result["rows"], confirmed_rows(result["confirmation"]), config)
    if folder is not None:
        _write(folder, dataset, config, contenders, folds, confirmed, result)
    return result


def _warn_of_limits(
    rows: Sequence[Mapping[str, Any]],
    fresh: Sequence[Mapping[str, Any]],
    config: EffectivenessConfig,
) -> None:
    """Says where the settings may have kept losses from being better; `fresh`: on fresh seeds."""
    unfinished = [row["name"] for row in rows if not row["converged"]]
    unfinished += [f"{row['name']} on fresh seeds" for row in fresh if not row["converged"]]
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
    confirmed: Sequence[Sequence[Tested]] | None,
    result: dict[str, Any],
) -> None:
    """The files of the test; the last one marks it as finished."""
    tests = [fold.test for fold in dataset.folds]
    names = [f"{fold.name}/{name}" for fold in dataset.folds for name in fold.test.query_ids]
    write_arrays(folder.path / PER_QUERY_FILE, per_query(result, losses, folds, names, confirmed))
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
