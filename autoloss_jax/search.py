"""Phase I, the loss search."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import flax.linen as nn

from autoloss_jax import processes
from autoloss_jax.data import Dataset, Queries, fit_scaling
from autoloss_jax.finalists import Finalist, read_finalists
from autoloss_jax.language.parsing import parse
from autoloss_jax.metrics import MetricPerQuery, recorded_name
from autoloss_jax.models import describe_model, make_model
from autoloss_jax.profile import Profile
from autoloss_jax.runs import FINALISTS_FILE, RunFolder, open_run
from autoloss_jax.search_rounds import Progress, SearchConfig, SearchResult, SearchRounds


def search(
    dataset: Dataset,
    config: SearchConfig | None = None,
    *,
    model: nn.Module | None = None,
    metric: MetricPerQuery | None = None,
    out: str | None = None,
    placement: str = "auto",
    profile: Profile | None = None,
    on_round: Callable[[Progress], None] | None = None,
) -> SearchResult:
    """Searches a loss on the training queries of the data set's first fold.

    Args:
      dataset: validation and test queries are not looked at.
      config: the settings.
      model: a Flax module that is searched for, instead of the config's; it maps features
        [queries, list, features] and mask [queries, list] to scores [queries, list].
      metric: what is rewarded, instead of NDCG at the config's cutoff: a jnp function
        `metric(scores, labels, *, where) -> (values, defined)` of arrays [queries, list], giving
        two [queries]; larger values are better. `defined` may depend on labels and `where` only;
        queries on which it is False do not count. The ledger has its mean under `metric`.
      out: the run folder; a search that was interrupted there goes on. None writes nothing.
      placement: of the data, one of `feed.PLACEMENTS`; it changes no result.
      profile: takes the time of each stage, while it is `measuring`.
      on_round: called after each round.

    Raises:
      AutolossError: a setting out of range; a run folder of another configuration; a metric that
        is no such function or, with `out`, has no name.
      CanaryError: a reward could be had without ranking.
    """
    config = config or SearchConfig()
    config.check()
    train = dataset.folds[0].train
    queries = fit_scaling(train, transform=config.features).apply(train)
    if out is None:
        return run_search(
            queries, config, None, model=model, metric=metric, placement=placement,
            profile=profile, on_round=on_round,
        )  # fmt: skip
    settings = asdict(config)
    if model is not None:
        settings["model"] = describe_model(model)
    if metric is not None:
        settings["metric"] = recorded_name(metric)
    described = {"data": {"name": dataset.name, "sha256": dataset.sha256}, "search": settings}
    with open_run(out, described) as folder:
        return run_search(
            queries, config, folder, model=model, metric=metric, placement=placement,
            profile=profile, on_round=on_round,
        )  # fmt: skip


def run_search(
    queries: Queries,
    config: SearchConfig,
    folder: RunFolder | None,
    *,
    model: nn.Module | None = None,
    metric: MetricPerQuery | None = None,
    placement: str = "auto",
    profile: Profile | None = None,
    on_round: Callable[[Progress], None] | None = None,
) -> SearchResult:
    """Phase I on scaled training queries, in an open run folder.

    `model` and `metric` take the place of what the config names, see `search`.

    On several processes all call this, with the folder in the first one and None in the others.
    """
    config.check()
    done = processes.from_first(lambda: None if folder is None else _read_finished(folder))
    if done is not None:
        return _finished(done)
    rounds = SearchRounds(
        queries, config, model or make_model(config.model), metric, folder, placement, profile
    )
    rounds.resume()
    rounds.check_metric()
    while (next_round := rounds.next_round()) is not None:
        processes.stop_together()
        progress = next_round()
        if on_round is not None:
            on_round(progress)
    return rounds.finish()


def _read_finished(folder: RunFolder) -> dict[str, Any] | None:
    path = folder.path / FINALISTS_FILE
    if not path.exists():
        return None
    finalists = [[str(loss), *figures] for loss, *figures in read_finalists(path)]
    return {"finalists": finalists, "records": folder.read_ledger()}


def _finished(content: dict[str, Any]) -> SearchResult:
    finalists = [Finalist(parse(formula), *figures) for formula, *figures in content["finalists"]]
    return SearchResult(finalists, content["records"])
