"""Charts: where points come to lie, and what the figures compute."""

import re

import numpy as np
import pytest

from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import LOSSES
from autoloss_jax.report.figures.charts import (
    Chart,
    Curve,
    Mark,
    chart_svg,
    robust_range,
    ticks,
)
from autoloss_jax.report.figures.fields import GRID, gradient_field, order_ndcg
from autoloss_jax.report.figures.intervals import interval_axis, interval_scale, interval_svg
from autoloss_jax.report.figures.queries import MAX_BARS, differences_svg, sorted_bars
from autoloss_jax.report.figures.search import (
    MAX_DOTS,
    Sized,
    front_chart,
    pareto_front,
    search_curve,
)
from autoloss_jax.report.figures.shapes import DIFFERENCES, loss_shape
from autoloss_jax.statistics import win_tie_loss


def curve_points(svg, style):
    path = re.search(rf'class="curve {style}" d="([^"]*)"', svg)[1]
    return [tuple(map(float, p.split())) for p in re.findall(r"[ML]([-\d.]+ [-\d.]+)", path)]


def test_a_line_spans_the_chart_less_its_margin():
    svg = chart_svg(Chart("t", "x", "y", [Curve([(0.0, 0.0), (10.0, 1.0)], "first")]))
    (x0, y0), (x1, y1) = curve_points(svg, "first")
    # The inner box is 378 by 232 at (86, 12); a range is wider than its data by 5% at each end.
    assert (x0, x1) == pytest.approx((86 + 378 * 0.05 / 1.1, 464 - 378 * 0.05 / 1.1), abs=0.06)
    assert (y0, y1) == pytest.approx((244 - 232 * 0.05 / 1.1, 12 + 232 * 0.05 / 1.1), abs=0.06)


def test_a_point_without_value_breaks_the_line_and_a_huge_one_stays_drawable():
    points = [(0.0, 0.0), (1.0, np.nan), (2.0, 1.0), (3.0, 1e30)]
    svg = chart_svg(Chart("t", "x", "y", [Curve(points, "first")], y_range=(0.0, 1.0)))
    path = re.search(r'class="curve first" d="([^"]*)"', svg)[1]
    assert path.count("M") == 2
    assert "-4000.0" in path
    assert "nan" not in svg


def test_labels_are_escaped_and_equal_values_have_a_range():
    svg = chart_svg(Chart("<t>", "<x>", "&", [Curve([(1.0, 2.0)], "first")]))
    assert "<x>" not in svg
    assert "&lt;t&gt;" in svg


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-5, 5, [-4, -2, 0, 2, 4]), (0.0, 0.031, [0, 0.01, 0.02, 0.03]), (-1, 0.1, [-1, -0.5, 0])],
)  # fmt: skip
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_an_interval_is_placed_on_the_shared_scale():
    svg = interval_svg((0.5, 0.25, 0.75), (0.0, 1.0), 0.5, "found", "half")
    # 200 of 240 units between margins of 20.
    assert 'cx="120.0"' in svg
    assert "M70.0 7v8m0-4H170.0" in svg
    assert "M120.0 0v22" in svg
    assert 'aria-label="half"' in svg
    assert "mark" not in interval_svg((0.5, 0.25, 0.75), (0.0, 1.0), None, "found", "half")
    axis = interval_axis((0.0, 1.0))
    assert re.findall(r">([^<]+)</text>", axis) == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert 'x="60.0"' in axis  # 0.2


def test_the_scale_of_intervals_includes_what_must_be_seen():
    assert interval_scale([(0.5, 0.25, 0.75)], [0.0]) == pytest.approx((-0.0375, 0.7875))
    assert interval_scale([], [0.0])[0] < 0.0


def test_a_robust_range_leaves_out_the_lowest():
    low, high = robust_range([-100.0, *np.linspace(0.0, 1.0, 99)])
    assert -1.2 < low < 0.0
    assert 1.0 < high < 1.2
    assert robust_range([0.0, 1.0]) == pytest.approx((-0.05, 1.05))


def test_the_best_so_far_rises_in_steps_and_low_rewards_are_counted():
    records = [{"reward": r, "round": k // 2} for k, r in enumerate([0.1, 0.0, 0.3, 0.2, 0.3, 0.2])]
    curve = search_curve(records, "reward")
    best = [y for _, y in curve_points(curve.svg, "best")]
    assert len(set(best)) == 2
    assert len(curve_points(curve.svg, "mean")) == 3
    assert curve.hidden == 0
    many = [{"reward": float(k % 7), "round": None} for k in range(4 * MAX_DOTS)]
    many[5]["reward"] = -1e6
    curve = search_curve(many, "reward")
    assert curve.hidden == 1
    assert curve.svg.count('class="dot"') <= MAX_DOTS


def test_one_trained_candidate_is_enough():
    assert "<svg" in search_curve([{"reward": 0.5}], "reward").svg


def test_ranknet_of_two_documents_is_softplus_of_minus_the_difference():
    shape = loss_shape(LOSSES["ranknet"])
    scale = 1.0 / (1.0 + np.exp(-5.0))  # the steepest slope, at d = -5
    np.testing.assert_allclose(shape.slopes, -1.0 / (1.0 + np.exp(DIFFERENCES)) / scale, atol=1e-5)
    values = np.log1p(np.exp(-DIFFERENCES))
    np.testing.assert_allclose(shape.values, (values - values[-1]) / scale, atol=1e-5)


def test_a_loss_without_gradient_has_no_shape():
    assert loss_shape(parse("sum_i(y_i)")) is None


def test_a_mark_has_a_name_and_an_interval_inside_the_chart():
    marks = [Mark(1.0, 0.5, "found", "<one>", 0.0, 9.0), Mark(2.0, 0.25, "found", "two")]
    svg = chart_svg(Chart("t", "x", "y", marks=marks, y_range=(0.0, 1.0)))
    assert "<title>&lt;one&gt;</title>" in svg
    assert svg.count("<circle") == 2
    # The box reaches from 12 to 244; the upper end, at 9, is cut off there.
    assert "244.0h8m-4 0V12.0" in svg


def test_the_pareto_front_has_what_nothing_smaller_reaches():
    values = {"b": (3, 0.2), "worse": (3, 0.1), "no better": (5, 0.2), "smallest": (2, -0.5),
              "best": (9, 0.3), "again": (9, 0.3)}  # fmt: skip
    losses = [Sized(*pair, name) for name, pair in values.items()]
    assert [loss.name for loss in pareto_front(losses)] == ["smallest", "b", "best"]
    chart = front_chart(losses, [], "reward", "title")
    assert [x for x, _ in curve_points(chart.svg, "best")][-1] == max(
        x for x, _ in curve_points(chart.svg, "best")
    )
    heights = [y for _, y in curve_points(chart.svg, "best")]
    assert heights == sorted(heights, reverse=True)  # svg's y points down
    assert len(set(heights)) == 3


def test_queries_are_won_tied_and_lost():
    assert win_tie_loss(np.array([0.5, 1e-9, 0.0, -1e-9, -0.1, -0.2])) == (1, 3, 2)


def test_bars_are_sorted_and_many_become_quantiles():
    assert sorted_bars(np.array([0.1, -0.2, 0.3])).tolist() == [0.3, 0.1, -0.2]
    many = np.linspace(-1.0, 1.0, 10 * MAX_BARS)
    bars = sorted_bars(many)
    assert len(bars) == MAX_BARS
    assert (bars[0], bars[-1]) == (1.0, -1.0)
    assert np.median(bars) == pytest.approx(0.0, abs=0.01)


def test_gains_stand_above_zero_and_losses_below():
    svg = differences_svg(np.array([0.5, 0.25, 0.0, -0.25]), "difference", "title")
    gain, loss = curve_points(svg, "gain"), curve_points(svg, "loss")
    zero = gain[0][1]
    assert loss[0][1] == zero
    assert {y < zero for _, y in gain[1:-1]} == {True}
    assert {y > zero for _, y in loss[1:-1]} == {True}
    assert loss[0][0] - gain[-1][0] == pytest.approx((gain[-1][0] - gain[0][0]) / 2, abs=0.2)
    only_ties = differences_svg(np.zeros(3), "difference", "title")
    assert "curve gain" not in only_ties and "curve loss" not in only_ties


def test_ndcg_of_every_order_of_three_documents():
    ideal = 3 + 1 / np.log2(3)
    assert order_ndcg((0, 1, 2)) == 1.0
    assert order_ndcg((1, 0, 2)) == pytest.approx((1 + 3 / np.log2(3)) / ideal)
    assert order_ndcg((2, 1, 0)) == pytest.approx((1 / np.log2(3) + 3 / 2) / ideal)


def test_mse_pushes_to_the_differences_of_the_labels():
    # Its gradient is linear: descent in each difference d is towards d = 1, the labels' difference.
    field = gradient_field(LOSSES["mse"])
    assert field.across.shape == (len(GRID), len(GRID))
    assert np.hypot(field.across, field.up).max() == pytest.approx(1.0)
    np.testing.assert_allclose(field.across[3] / field.across[3, 0], (1 - GRID) / (1 - GRID[0]),
                               atol=1e-5)  # fmt: skip
    np.testing.assert_allclose(field.up[:, 3], field.across[3], atol=1e-5)


def test_a_loss_without_gradient_has_no_field():
    assert gradient_field(parse("sum_i(y_i)")) is None
