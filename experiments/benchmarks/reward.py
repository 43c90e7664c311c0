"""How well the reward of a search foretells how good a loss is, and what each of its parts adds.

    python experiments/benchmarks/reward.py --out reward.json

The losses are every so-manieth of those that a search trained, ordered by its reward: from the
worst to the best it knows. How good they are says Phase II: models to convergence on the same
training queries, the metric on many test queries, the mean of two tests with different seeds. The
same losses are rewarded anew, on fresh seeds, in several ways: at other learning rates, longer or
shorter; with weights and batches of their own instead of common ones; on one held-out part instead
of cross-validation; by a lower confidence bound, or shrunk; on several seeds.

For each way the table has the rank correlation (Spearman, 1904) with Phase II over all losses and
over the better half of them, and what would be lost by keeping its best five instead of the five
that are best. Intervals are bootstraps over the losses. `Phase II again` is one test against the
other: no reward can foretell more than that repeats.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import _timing
import numpy as np
from _rewards import RESAMPLES, rank_correlation, setting_name
from _tasks import TASKS
from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

import autoloss_jax as al
from autoloss_jax.data import Dataset, Fold, concatenate, fit_scaling, make_dataset
from autoloss_jax.errors import AutolossError
from autoloss_jax.files import write_json
from autoloss_jax.language.expressions import Expression
from autoloss_jax.losses import resolve_loss
from autoloss_jax.metrics import MetricPerQuery
from autoloss_jax.models import make_model
from autoloss_jax.proxy import Outcome, ProxyConfig, ProxyTraining

_DATA = flags.DEFINE_string("data", None, "As `autoloss` takes it; synthetic queries by default.")
_TASK = flags.DEFINE_enum("task", None, list(TASKS), "One of the planted tasks, instead of data.")
_TRAINED = flags.DEFINE_integer(
    "train_queries", 0, "So many of the data train, a third as many validate, the rest test.", 0
)
_BUDGET = flags.DEFINE_integer("budget", 400, "Candidates trained by the search.", 1)
_LOSSES = flags.DEFINE_integer("losses", 48, "Losses that are looked at.", 10)
_SEEDS = flags.DEFINE_integer("seeds", 4, "Fresh seeds of the rewards.", 2)
_MODEL = flags.DEFINE_string("model", "mlp", "By name.")
_RATE = flags.DEFINE_float("learning_rate", 0.0, "Of the search, and of what is varied.", 0.0)
_RATES = flags.DEFINE_list(
    "learning_rates", ["0.003", "0.01", "0.03", "0.1"], "Of the rewards, and of Phase II."
)
_BLOCKS = flags.DEFINE_list(
    "blocks", ["1", "3", "6"], "Lengths of proxy runs, in blocks of rung_steps; 3 is the search's."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the search and of what follows.", 0)
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")

SETTINGS = (
    _TASK, _TRAINED, _BUDGET, _LOSSES, _SEEDS, _MODEL, _RATE, _RATES, _BLOCKS, _SEED,
)  # fmt: skip
SYNTHETIC_QUERIES = 2500
TRAINED_QUERIES = 360
"""Of the synthetic ones, as many as the default has of them."""
KEPT = 5


class Rewards(NamedTuple):
    """Proxy runs of one learning rate and length, by seed and loss."""

    differences: np.ndarray  # f64[seeds, losses, queries]: to the reference
    values: np.ndarray  # f64[seeds, losses]: the metric itself


def studied_dataset() -> Dataset:
    """One fold: a task, or data whose queries may be divided anew."""
    if _TASK.value:
        return TASKS[_TASK.value].dataset(_TASK.value, _SEED.value)
    if not _DATA.value:
        fold = al.synthetic(num_queries=SYNTHETIC_QUERIES, seed=_SEED.value).folds[0]
        return with_many_test_queries("synthetic", fold, _TRAINED.value or TRAINED_QUERIES)
    dataset = al.load_dataset(_DATA.value)
    if _TRAINED.value:
        return with_many_test_queries(dataset.name, dataset.folds[0], _TRAINED.value)
    return Dataset(dataset.name, dataset.folds[:1], dataset.sha256)


def with_many_test_queries(name: str, fold: Fold, trained: int) -> Dataset:
    """All queries of a fold, in random order: some train, a third as many validate, the rest test.

    Raises AutolossError if none are left to test.
    """
    queries = concatenate([fold.train, fold.validation, fold.test])
    validated = trained + max(1, trained // 3)
    if validated >= len(queries):
        raise AutolossError(
            f"--train_queries {trained}: with a third as many for validation none of the "
            f"{len(queries)} queries of {name} are left to test"
        )
    order = np.random.default_rng([_SEED.value, 6]).permutation(len(queries))
    parts = [queries.select(part) for part in np.split(order, [trained, validated])]
    return make_dataset(name, [Fold("Fold1", *parts)])


def _proxy_config() -> ProxyConfig:
    return ProxyConfig(learning_rate=_RATE.value)


def _learning_rates() -> tuple[float, ...]:
    return tuple(map(float, _RATES.value))


def settings_to_measure(chosen: tuple[float, int]) -> list[tuple[float, int]]:
    """Learning rates and blocks of proxy runs, those of the search first."""
    varied = itertools.product(_learning_rates(), map(int, _BLOCKS.value))
    return [chosen, *(setting for setting in varied if setting != chosen)]


def sampled_losses(dataset: Dataset, metric: MetricPerQuery | None) -> list[Expression]:
    """Of what a search trained, every so-manieth by reward."""
    config = al.SearchConfig(
        budget=_BUDGET.value, model=_MODEL.value, seed=_SEED.value, proxy=_proxy_config()
    )
    records = [
        r for r in al.search(dataset, config, metric=metric).records if r["status"] == "trained"
    ]
    ordered = sorted(records, key=lambda r: (r["steps"], r["reward"]))
    places = np.unique(np.linspace(0, len(ordered) - 1, _LOSSES.value).round().astype(int))
    return [al.parse(ordered[place]["formula"]) for place in places]


def rewards(proxy: ProxyTraining, losses: list[Expression]) -> Rewards:
    """On fresh seeds, without rungs."""
    runs: list[list[Outcome]] = [
        proxy.run(losses, 2_000_003 + _SEED.value + k, halving=False).outcomes
        for k in range(_SEEDS.value)
    ]
    return Rewards(
        np.array([[o.differences for o in outcomes] for outcomes in runs]),
        np.array([[o.ndcg for o in outcomes] for outcomes in runs]),
    )


def ways(
    measured: Mapping[tuple[float, int], Rewards], chosen: tuple[float, int], held_out: np.ndarray
) -> dict[str, np.ndarray]:
    """By its name, a reward f64[repetitions, losses] for each loss; the first is the search's.

    measured: by learning rate and blocks, `chosen` those of the search. held_out: bool[queries],
    those of one part of the cross-validation.
    """
    default = measured[chosen]
    seeds, count, queries = default.differences.shape
    means = default.differences.mean(2)
    errors = default.differences.std(2, ddof=1) / np.sqrt(queries)
    # Loss c with the seed c + k, for each k: no two neighbours share their weights and batches.
    own = (np.arange(count) + np.arange(seeds)[:, None]) % seeds
    found = {f"as the search: {setting_name(*chosen)}": means}
    for key, runs in measured.items():
        if key != chosen:
            found[setting_name(*key)] = runs.differences.mean(2)
    found |= {
        "seeds of their own, not paired": default.values[own, np.arange(count)],
        "seeds of their own, paired with a reference each": means[own, np.arange(count)],
        "one held-out part of three": default.differences[:, :, held_out].mean(2),
        "less its standard error": means - errors,
        "shrunk by its standard error": np.array(
            [_shrunk(m, e) for m, e in zip(means, errors, strict=True)]
        ),
        "mean of two seeds": (means[0::2] + means[1::2]) / 2,
        f"mean of {seeds} seeds": means.mean(0, keepdims=True),
    }
    return found


def _shrunk(means: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Empirical Bayes (Efron and Morris, 1973): towards the mean of all, by each one's error."""
    finite = np.isfinite(means)
    spread = max(means[finite].var() - np.square(errors[finite]).mean(), 0.0)
    centre = means[finite].mean()
    return centre + (means - centre) * spread / (spread + np.square(errors))


def figures(reward: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Means over the repetitions of a reward f64[repetitions, losses]; failed losses are worst."""
    filled = np.where(np.isfinite(reward), reward, -np.inf)
    better = truth >= np.median(truth)
    best = np.sort(truth)[::-1][:KEPT].mean()
    kept = [truth[np.argsort(-row, kind="stable")[:KEPT]].mean() for row in filled]
    return {
        "all": float(np.mean([rank_correlation(row, truth) for row in filled])),
        "better_half": float(
            np.mean([rank_correlation(row[better], truth[better]) for row in filled])
        ),
        "lost": float(best - np.mean(kept)),
    }


def with_intervals(
    rewards: Mapping[str, np.ndarray], truth: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Figures with 95 % intervals; and their differences to the first, resampled together."""
    generator = np.random.default_rng([_SEED.value, 5])
    draws = generator.integers(0, truth.size, (RESAMPLES, truth.size))
    resampled = {
        name: [figures(reward[:, draw], truth[draw]) for draw in draws]
        for name, reward in rewards.items()
    }
    first = next(iter(rewards))
    rows = {}
    for name, reward in rewards.items():
        rows[name] = figures(reward, truth)
        for key in ("all", "better_half"):
            drawn = np.array([f[key] for f in resampled[name]])
            gained = drawn - np.array([f[key] for f in resampled[first]])
            rows[name] |= {
                f"{key}_interval": np.percentile(drawn, [2.5, 97.5]).tolist(),
                f"{key}_gain_interval": np.percentile(gained, [2.5, 97.5]).tolist(),
            }
    return rows


def phase_two(
    dataset: Dataset, losses: list[Expression], seed: int, metric: MetricPerQuery | None
) -> np.ndarray:
    """The mean test metric of each loss, -inf for one that could not be trained."""
    config = al.EffectivenessConfig(
        model=_MODEL.value,
        seed=seed,
        seeds=2,
        confirmation_seeds=0,
        learning_rates=_learning_rates(),
    )
    content = al.effectiveness_test(
        dataset, losses, config, hand_designed=["softmax"], metric=metric
    )
    rows = {row["name"]: row for row in content["rows"]}
    tested = [rows[f"found {k}"]["test"] for k in range(1, len(losses) + 1)]
    return np.array([t[content["metric"]]["mean"] if t else -np.inf for t in tested])


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    dataset = studied_dataset()
    metric = TASKS[_TASK.value].metric if _TASK.value else None
    losses = sampled_losses(dataset, metric)
    logging.info("%d losses to be rewarded and tested", len(losses))
    train = dataset.folds[0].train
    queries = fit_scaling(train).apply(train)
    config = _proxy_config()

    def proxy_with(config: ProxyConfig) -> ProxyTraining:
        return ProxyTraining(
            queries, make_model(_MODEL.value), resolve_loss("softmax"), config, len(losses),
            _SEED.value, metric=metric,
        )  # fmt: skip

    proxy = proxy_with(config)
    chosen = (proxy.learning_rate, sum(config.rungs))
    measured = {}
    for rate, blocks in settings_to_measure(chosen):
        one_rung = dataclasses.replace(config, learning_rate=rate, rungs=(blocks,))
        measured[rate, blocks] = rewards(proxy_with(one_rung), losses)
        logging.info("rewarded: %s", setting_name(rate, blocks))
    # Values lie part by part, the queries of the first part first.
    held_out = np.arange(measured[chosen].differences.shape[2]) < int(
        np.sum(queries.has_relevant() & (proxy.folds == 0))
    )
    tests = np.array(
        [phase_two(dataset, losses, 1_000 + _SEED.value + k, metric) for k in range(2)]
    )
    known = np.isfinite(tests).all(0)
    truth = tests.mean(0)
    of_ways = {name: x[:, known] for name, x in ways(measured, chosen, held_out).items()}
    report = {
        "machine": _timing.machine(),
        "settings": {f.name: f.value for f in SETTINGS} | {"data": dataset.name},
        "losses": [str(loss) for loss in losses],
        "truth": [float(t) if k else None for t, k in zip(truth, known, strict=True)],
        "tested": int(known.sum()),
        "phase_two_again": {
            "all": rank_correlation(*tests[:, known]),
            "better_half": rank_correlation(*tests[:, known & (truth >= np.median(truth[known]))]),
        },
        "rows": with_intervals(of_ways, truth[known]),
    }
    show(report)
    if _OUT.value:
        write_json(_OUT.value, report)


def show(report: dict[str, Any]) -> None:
    table = Table(title=f"Reward against Phase II, {report['tested']} losses")
    for heading in ("reward", "all losses", "the better half", f"lost by its best {KEPT}"):
        table.add_column(heading)
    for name, row in report["rows"].items():
        cells = [
            f"{row[key]:.2f} [{row[f'{key}_interval'][0]:.2f}, {row[f'{key}_interval'][1]:.2f}]"
            for key in ("all", "better_half")
        ]
        table.add_row(name, *cells, f"{row['lost']:.4f}")
    again = report["phase_two_again"]
    table.add_row("Phase II again", f"{again['all']:.2f}", f"{again['better_half']:.2f}", "")
    Console(width=120).print(table)


if __name__ == "__main__":
    app.run(main)
