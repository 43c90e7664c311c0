"""Tables for the terminal, and how numbers are worded."""

import numpy as np
import pytest
from rich.console import Console

from autoloss_jax.report import effectiveness_table, finalists_table, wording


def printed(table):
    console = Console(width=140, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_losses_stand_in_the_order_of_their_test_metric():
    rows = [
        {"name": "low", "kind": "hand_designed", "test": {"ndcg@10": {"mean": 0.4}},
         "learning_rate": 0.01},
        {"name": "none", "kind": "reference", "learning_rate": None},
        {"name": "[red]high", "kind": "found", "learning_rate": [0.1, 0.01], "p_value": 0.04,
         "test": {"ndcg@10": {"mean": 0.5, "ci_low": 0.45, "ci_high": 0.55}},
         "difference": {"mean": 0.1, "ci_low": -0.01, "ci_high": 0.21}},
    ]  # fmt: skip
    text = printed(
        effectiveness_table({"rows": rows, "verdict": "high wins", "empty": "zero",
                             "best_hand_designed": "low"})
    )  # fmt: skip
    assert text.index("high wins") < text.index("[red]high") < text.rindex(" low ")
    assert text.rindex(" low ") < text.index("none")
    for part in ("0.5000 [0.4500, 0.5500]", "+0.1000 [−0.0100, +0.2100]", "0.040", "0.1, 0.01",
                 "count as 0", "difference to low"):  # fmt: skip
        assert part in text


def test_figures_of_fresh_seeds_come_last(example):
    content = example.effectiveness() | {"confirmation": example.confirmation(-0.02, 0.0123)}
    lines = printed(effectiveness_table(content)).splitlines()
    found, other = (
        next(line for line in lines if f"{name}, 24 fresh seeds" in line)
        for name in ("found 1", "lambdarank")
    )
    assert lines.index(other) == lines.index(found) + 1 > len(content["rows"])
    for part in ("0.4500", "−0.0200 [−0.0325, −0.0075]", "0.012"):
        assert part in found
    assert "0.4700" in other


def test_finalists_as_object_and_as_list():
    row = {"formula": "mean_i(s_i)", "size": 2, "reward": -0.01, "reward_se": 0.002,
           "selection_reward": 0.03}  # fmt: skip
    content = {"finalists": [row], "reference": "softmax", "empty": "skip"}
    text = printed(finalists_table(content))
    for part in (
        "document are left out",
        "mean_i(s_i)",
        "−0.0100",
        "0.0020",
        "+0.0300",
        "NDCG@10 to softmax",
    ):
        assert part in text
    assert "mean_i(s_i)" in printed(finalists_table([row]))
    assert "Finalists" in printed(finalists_table([]))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.1235"), (-1, "−1.0000"), (None, "–"), (np.nan, "–"), (True, "–"), ("1", "–")],
)
def test_a_number_or_a_dash(value, text):
    assert wording.number(value) == text


def test_an_interval_needs_both_ends():
    assert wording.interval({"mean": 0.5, "ci_low": 0.4}) == "0.5000"
    assert wording.interval(0.25, signed=True) == "+0.2500"
    assert wording.interval(None) == "–"


def test_the_corrected_p_value_is_preferred():
    assert wording.p_value({"p_value": 0.01, "p_value_corrected": 0.05}) == "0.050"
    assert wording.p_value({"p_value": 0.0004}) == "< 0.001"
    assert wording.p_value({}) == "–"


def test_learning_rates_of_folds():
    assert wording.rates([0.01, 0.01]) == "0.01"
    assert wording.rates([0.01, 0.003]) == "0.01, 0.003"
    assert wording.rates(None) == "–"
    assert wording.rates([]) == "–"


@pytest.mark.parametrize(
    ("empty", "meaning"), [("skip", "left out"), ("zero", "count as 0"), ("one", "count as 1")]
)
def test_the_convention_for_empty_queries_is_named(empty, meaning):
    sentence = wording.empty_convention({"empty": empty, "queries": 10, "empty_queries": 2})
    assert meaning in sentence
    assert "2 of 10 test queries" in sentence


def test_truncated_losses_are_named_as_such():
    effectiveness = {"rows": [], "empty": "skip"}
    assert wording.truncation({"truncation_level": 0}) == wording.truncation({}) == ""
    told = effectiveness_table({**effectiveness, "truncation_level": 30}).caption
    assert "trained truncated" in str(told) and "the first 30 by current scores" in str(told)
    assert "truncated" not in str(effectiveness_table(effectiveness).caption)


def test_reasons_are_counted_by_frequency_without_the_trained():
    records = [{"status": "rejected", "reason": "flat"}] * 2 + [{"status": "failed"}]
    records.append({"status": "trained", "reason": "none"})
    assert wording.reason_counts(records) == [
        ("rejected", "flat", 2),
        ("failed", "no reason recorded", 1),
    ]
    counts = wording.status_counts([*records, {"status": "novel"}])
    assert counts == {"duplicate": 0, "rejected": 2, "failed": 1, "trained": 1, "novel": 1}


def test_wins_ties_and_losses_or_a_dash():
    assert wording.wins_ties_losses({"wins": 1200, "ties": 0, "losses": 3}) == "1,200 / 0 / 3"
    assert wording.wins_ties_losses({}) == "–"


@pytest.mark.parametrize(
    ("fingerprint", "text"),
    [
        ({"device": "cpu", "local_devices": 2, "cpu": {"model": "Some CPU"}}, "2 × cpu, Some CPU"),
        ({"device": "NVIDIA H100", "local_devices": 1}, "NVIDIA H100"),
        ({}, ""),
        (None, ""),
    ],
)
def test_the_device_as_far_as_it_is_recorded(fingerprint, text):
    assert wording.device({"fingerprint": fingerprint}) == text
