"""Run folders to report on, written by hand."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest

from autoloss_jax.losses import LOSSES

FOUND = (
    "sum_ij(softplus(s_j - s_i) * sqrt(gain_i - gain_j) * discount_j, where=y_i > y_j) / max_dcg"
)
QUERIES, EMPTY = 1240, 61


def estimate(mean, half=0.012):
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half}


def row(name, kind, mean, formula, p=None):
    difference = None if p is None else estimate(mean - 0.4713, 0.006)
    test = {f"ndcg@{k}": estimate(mean + shift) for k, shift in ((10, 0), (1, -0.09), (30, 0.07))}
    return {
        "name": name, "formula": formula, "kind": kind, "learning_rate": [0.01, 0.003, 0.01],
        "test": test | {"mrr": estimate(mean + 0.3), "map": estimate(mean - 0.05)},
        "p_value": p, "p_value_corrected": None if p is None else min(1.0, 6 * p),
        "t_p_value": p, "difference": difference, "effect_size": 0.1,
        "wins": 600, "ties": 79, "losses": 500,
    }  # fmt: skip


def effectiveness():
    means = {"softmax": 0.4688, "lambdarank": 0.4713, "approx_ndcg": 0.4654, "ranknet": 0.4601,
             "mse": 0.4411}  # fmt: skip
    rows = [
        row(n, "hand_designed", m, str(LOSSES[n]), 1.0 if n == "lambdarank" else 0.02)
        for n, m in means.items()
    ]
    rows[1]["difference"] = estimate(0.0, 0.0)
    rows += [
        row("found 1", "found", 0.4791, FOUND, 0.0001),
        row("found 2", "found", 0.47, FOUND, 0.4),
    ]
    rows.append(row("lambdamart", "reference", 0.4302, None, 1e-9) | {"settings": [{"trees": 90}]})
    verdict = (
        "The best found loss is better than lambdarank, the hand-designed loss that validation "
        "chooses: test NDCG@10 +0.0078 (95 % interval -0.0018 to +0.0138)."
    )
    return {
        "rows": rows, "verdict": verdict, "best_hand_designed": "lambdarank",
        "best_found": "found 1", "empty": "skip", "queries": QUERIES, "empty_queries": EMPTY,
        "folds": ["Fold1", "Fold2", "Fold3"], "seeds": 5, "metric": "ndcg@10", "failed": [],
    }  # fmt: skip


def confirmation(mean, p):
    """What 24 fresh seeds showed: how much better found 1 is than lambdarank."""
    found, other = (
        row("found 1", "found", 0.47 + mean, FOUND, p),
        row("lambdarank", "hand_designed", 0.47, None),
    )
    del found["p_value_corrected"]
    found["difference"] = estimate(mean, 0.0125)
    return {"seeds": 24, "failed": {}, "found": found, "hand_designed": other}


def finalists():
    formulas = [FOUND, "sum_i(gain_i * logsumexp_j(s_j - s_i))", str(LOSSES["ranknet"])]
    return [
        {"formula": f, "size": 15 - 3 * k, "reward": 0.0121 - 0.004 * k, "reward_se": 0.0031,
         "selection_reward": 0.0243 - 0.005 * k}
        for k, f in enumerate(formulas)
    ]  # fmt: skip


def ablation():
    """What the ablation of found 1 measured: of three parts one matters, one is not trained."""
    matters, chance, idle = (
        {"removed": f"`{removed}`", "formula": left, "cosine": cosine, "outcome": outcome,
         "reason": "", "test": estimate(0.47 + mean), "learning_rate": [0.01],
         "difference": estimate(mean, 0.006), "p_value": p / 3, "p_value_corrected": p}
        for removed, left, cosine, outcome, mean, p in (
            ("discount_j", str(LOSSES["lambdarank"]), 0.71, "worse", -0.0123, 0.0004),
            ("max_dcg", str(LOSSES["ranknet"]), 0.93, "not shown", 0.0012, 0.61),
            ("sqrt around gain_i - gain_j", str(LOSSES["ranknet"]), 0.99, "same", 0.0, 1.0),
        )
    )  # fmt: skip
    measured = ("test", "learning_rate", "difference", "p_value", "p_value_corrected")
    idle |= {"reason": "the gradient points the same way"} | dict.fromkeys(measured)
    nearest = {"name": "lambdarank", "cosine": 0.88, "formula": str(LOSSES["lambdarank"]),
               "difference": estimate(-0.004, 0.006), "p_value": 0.2}  # fmt: skip
    return {
        "formula": FOUND, "whole": {"test": estimate(0.4766)}, "nearest": nearest,
        "ablations": [matters, chance, idle], "metric": "ndcg@10", "empty": "skip",
        "queries": QUERIES, "empty_queries": EMPTY,
        "verdict": "By NDCG@10 the loss is worse without `discount_j` (-0.0123).",
    }  # fmt: skip


def ledger(count=400):
    rng = random.Random(0)
    reasons = {"duplicate": ["same canonical form", "same gradient: mean_i(s_i)"],
               "rejected": ["label-free", "zero gradient", "does not raise NDCG on free scores"],
               "failed": ["not finite after 12 steps"]}  # fmt: skip
    losses = [FOUND, *(str(LOSSES[n]) for n in ("softmax", "ranknet", "lambdarank", "mse"))]
    records = []
    for k in range(count):
        status = rng.choices(["trained", *reasons], [0.45, 0.3, 0.23, 0.02])[0]
        reward = None
        if status == "trained":
            reward = min(0.024, rng.gauss(-0.06 + 0.00012 * k, 0.03)) - (0.4 if k % 29 == 0 else 0)
        records.append({
            "index": k, "round": k // 25, "formula": losses[k % 5], "status": status,
            "reason": None if status == "trained" else rng.choice(reasons[status]),
            "reward": reward, "reward_se": reward and 0.004, "ndcg": reward and 0.4 + reward,
            "steps": 200 if k % 2 else 60, "seconds": 0.4,
        })  # fmt: skip
    return records


def per_query(names, shift=0.0):
    """Figures of 1,179 queries with a relevant document and 61 without."""
    rng = np.random.default_rng(1)
    values = rng.beta(1.5, 1.2, QUERIES) + rng.laplace(0.0, 0.05, (len(names), QUERIES))
    values[names.index("found 1")] += 0.01 + shift
    values = np.clip(values, 0.0, 1.0)
    values[:, :EMPTY] = np.nan
    ids = [f"Fold{1 + k % 3}/{1000 + k}" for k in range(QUERIES)]
    return {"names": np.array(names), "query_ids": np.array(ids), "values": values,
            "defined": np.isfinite(values[0])}  # fmt: skip


def config(sha256="9f2c" * 16, **search):
    settings = {
        "search": {"seed": 7, "budget": 400, "proposer": "controller", "schedule": "from_scratch",
                   "model": "mlp", "reference": "softmax"} | search,
        "effectiveness": {"seed": 7, "learning_rates": [0.001, 0.01]},
        "data": {"sha256": sha256},
    }  # fmt: skip
    fingerprint = {"versions": {"python": "3.11.7", "jax": "0.10.2"}, "device": "cpu",
                   "local_devices": 2, "cpu": {"model": "Some CPU"}}  # fmt: skip
    return {"config": settings, "fingerprint": fingerprint, "created": "2026-03-02T10:12:44+00:00",
            "command": "autoloss run --data MSLR/Fold1 --out runs/mlp --seed 7 --budget 400",
            "data_name": "MSLR/Fold1"}  # fmt: skip


LOG = """\
2026-03-02 10:12:44,000 INFO writing to runs/mlp: MSLR
2026-03-02 10:14:44,500 INFO search: round 3
a line of another kind
2026-03-02 12:00:00,000 INFO going on in runs/mlp: MSLR
2026-03-02 12:04:12,000 INFO test: done
"""


def write_folder(folder, **files):
    """A run folder; the keywords are its files.

    config, ledger, per_query, log, ablation (in a folder of its own), and other JSON files.
    """
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(files.pop("config", config())))
    records = files.pop("ledger", None)
    if records is not None:
        (folder / "ledger.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    arrays = files.pop("per_query", None)
    if arrays is not None:
        np.savez(folder / "per_query.npz", **arrays)
    log = files.pop("log", None)
    if log is not None:
        (folder / "run.log").write_text(log)
    if "ablation" in files:
        (folder / "ablation").mkdir()
        (folder / "ablation" / "ablation.json").write_text(json.dumps(files.pop("ablation")))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_full(folder, shift=0.0, **settings):
    """A finished run with all its files."""
    tested = effectiveness()
    return write_folder(
        folder,
        config=config(**settings),
        ledger=ledger(),
        finalists={"finalists": finalists(), "reference": "softmax", "empty": "skip",
                   "rediscovered": ["ranknet"]},
        effectiveness=tested,
        per_query=per_query([r["name"] for r in tested["rows"]], shift),
        log=LOG,
    )  # fmt: skip


@pytest.fixture(scope="session")
def example():
    """The functions above."""
    return SimpleNamespace(
        FOUND=FOUND, LOG=LOG, ablation=ablation, config=config, confirmation=confirmation,
        effectiveness=effectiveness, estimate=estimate,
        finalists=finalists, ledger=ledger, per_query=per_query, row=row,
        write_folder=write_folder, write_full=write_full,
    )  # fmt: skip


@pytest.fixture
def full(tmp_path):
    return write_full(tmp_path / "mlp")
