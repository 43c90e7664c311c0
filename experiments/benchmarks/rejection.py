"""What a search refuses before training, what that saves, and what good it costs.

    python experiments/benchmarks/rejection.py --out rejection.json

A search with the default settings is run and its ledger counted. Then losses that it refused after
screening, and copies that it gave another's reward, are trained after all, beside as many that it
trained: on common weights and batches, without rungs. A refused loss is *good* if its reward is
above that of nine in ten of the trained ones. Hand-designed losses are screened too: none may be
refused.
"""

from collections import Counter
from typing import Any

import _timing
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

import autoloss_jax as al
from autoloss_jax.data import fit_scaling
from autoloss_jax.files import write_json
from autoloss_jax.language.expressions import Expression
from autoloss_jax.losses import HAND_DESIGNED, LOSSES, resolve_loss
from autoloss_jax.models import make_model
from autoloss_jax.profile import Profile
from autoloss_jax.proxy import ProxyTraining
from autoloss_jax.screening import make_probe, screen

_DATA = flags.DEFINE_string("data", None, "As autoloss takes it; synthetic queries by default.")
_BUDGET = flags.DEFINE_integer("budget", 500, "Candidates trained by the search.", 1)
_PROPOSER = flags.DEFINE_string("proposer", al.SearchConfig().proposer, "Of the search.")
_SAMPLE = flags.DEFINE_integer("sample", 120, "Losses of each kind that are trained.", 2)
_SEED = flags.DEFINE_integer("seed", 0, "Of the search and of the samples.", 0)
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")

GOOD = 0.9
SAME = "same gradient"
UNTRAINABLE = ("no batched program", "it does not depend on both")


def _reason(record: dict[str, Any]) -> str:
    """Of a ledger's record, in general."""
    text: str = record["reason"].split(":")[0]
    return text or record["status"]


def _sampled(losses: list[str], generator: np.random.Generator) -> list[Expression]:
    distinct = list(dict.fromkeys(losses))
    chosen = generator.choice(len(distinct), min(_SAMPLE.value, len(distinct)), replace=False)
    return [al.parse(distinct[k]) for k in sorted(chosen)]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    dataset = al.load_dataset(_DATA.value) if _DATA.value else al.synthetic()
    train = dataset.folds[0].train
    config = al.SearchConfig(budget=_BUDGET.value, proposer=_PROPOSER.value, seed=_SEED.value)
    profile = Profile()
    with profile.measuring():
        records = al.search(dataset, config, profile=profile).records
    by_reason: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_reason.setdefault(_reason(record), []).append(record)

    generator = np.random.default_rng([_SEED.value, 6])
    queries = fit_scaling(train).apply(train)
    proxy = ProxyTraining(
        queries, make_model(config.model), resolve_loss(config.reference), config.proxy,
        _SAMPLE.value, config.seed,
    )  # fmt: skip
    rewards: dict[str, np.ndarray] = {}
    for reason, found in by_reason.items():
        if found[0]["status"] in ("trained", "rejected") and not reason.startswith(UNTRAINABLE):
            losses = _sampled([r["formula"] for r in found], generator)
            outcomes = proxy.run(losses, 3_000_003 + _SEED.value, halving=False).outcomes
            rewards[reason] = np.array([o.reward for o in outcomes])
    limit = float(np.quantile(rewards["trained"], GOOD))
    report = {
        "machine": _timing.machine(),
        "settings": {f.name: f.value for f in (_DATA, _BUDGET, _PROPOSER, _SAMPLE, _SEED)},
        "proposals": len(records),
        "rows": [
            {"reason": reason, "status": found[0]["status"], "share": len(found) / len(records)}
            | _trained_after_all(rewards.get(reason), limit)
            for reason, found in sorted(by_reason.items(), key=lambda item: -len(item[1]))
        ],
        "copies": _copies(by_reason.get(SAME, []), proxy, generator),
        "hand_designed_refused": _hand_designed(train),
        "time": _time(profile, records),
    }
    show(report)
    if _OUT.value:
        write_json(_OUT.value, report)


def _trained_after_all(rewards: np.ndarray | None, limit: float) -> dict[str, Any]:
    if rewards is None:
        return {"trained_after_all": 0}
    finite = rewards[np.isfinite(rewards)]
    return {
        "trained_after_all": len(rewards),
        "good": int(np.sum(rewards > limit)),
        "above_reference": int(np.sum(rewards > 0)),
        "best": float(finite.max()) if finite.size else None,
    }


def _copies(
    records: list[dict[str, Any]], proxy: ProxyTraining, generator: np.random.Generator
) -> dict[str, Any]:
    """Losses of the same gradient on the probe, trained beside the loss whose reward they got."""
    pairs = [(r["formula"], r["reason"].removeprefix(f"{SAME}: ")) for r in records]
    chosen = generator.permutation(len(pairs))[: proxy.capacity // 2]
    losses = [al.parse(text) for k in chosen for text in pairs[k]]
    if not losses:
        return {"pairs": 0}
    outcomes = proxy.run(losses, 3_000_003 + _SEED.value, halving=False).outcomes
    rewards = np.array([o.reward for o in outcomes]).reshape(-1, 2)
    both = rewards[np.isfinite(rewards).all(1)]
    differences = np.abs(both[:, 0] - both[:, 1])
    return {
        "pairs": len(rewards),
        "within_0.001": int(np.sum(differences < 0.001)),
        "median_difference": float(np.median(differences)),
        "largest_difference": float(differences.max()),
    }


def _hand_designed(train: Any) -> list[str]:
    losses = [LOSSES[name] for name in HAND_DESIGNED]
    verdicts = screen(losses, make_probe(train, _SEED.value))
    return [name for name, verdict in zip(HAND_DESIGNED, verdicts, strict=True) if verdict.reason]


def _time(profile: Profile, records: list[dict[str, Any]]) -> dict[str, float]:
    """Processor seconds of judging, and of training what was not trained at the same cost each."""
    of = profile.processor_seconds
    statuses = Counter(record["status"] for record in records)
    trained = statuses["trained"] + statuses["failed"]
    distinct = {
        r["formula"] for r in records
        if r["status"] in ("rejected", "duplicate") and r["reason"] != "seen before"
        and not r["reason"].startswith(UNTRAINABLE)
    }  # fmt: skip
    each = (of["training"] + of["evaluation"]) / profile.trained
    return {
        "judging": of["rejection"] + of["deduplication"],
        "training": (of["training"] + of["evaluation"]) * trained / profile.trained,
        "saved": each * len(distinct),
    }


def show(report: dict[str, Any]) -> None:
    console = Console(width=120)
    table = Table(title=f"What became of {report['proposals']:,} proposals")
    for heading in ("status", "reason", "share", "trained after all", "good", "best reward"):
        table.add_column(heading)
    for row in report["rows"]:
        count = row["trained_after_all"]
        cells = ["", "", ""]
        if count:
            best = "all failed" if row["best"] is None else f"{row['best']:+.4f}"
            cells = [str(count), f"{row['good']} ({row['good'] / count:.1%})", best]
        table.add_row(row["status"], row["reason"], f"{row['share']:.1%}", *cells)
    console.print(table)
    copies, time = report["copies"], report["time"]
    if copies["pairs"]:
        console.print(
            f"{copies['within_0.001']} of {copies['pairs']} copies earn what the loss earns that "
            f"they copy, within 0.001; the median difference is {copies['median_difference']:.2g}, "
            f"the largest {copies['largest_difference']:.2g}"
        )
    refused = ", ".join(report["hand_designed_refused"]) or "none"
    console.print(f"hand-designed losses refused: {refused}")
    console.print(
        f"processor seconds: {time['judging']:.1f} of judging, {time['training']:.1f} of training, "
        f"{time['saved']:.1f} of training saved"
    )


if __name__ == "__main__":
    app.run(main)
