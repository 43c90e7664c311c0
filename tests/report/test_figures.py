"""Charts: where points come to lie, and what the figures compute."""

import re

import numpy as np
import pytest

from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import LOSSES
from autoloss_jax.report.charts import Chart, Curve, chart_svg, interval_svg, robust_range, ticks
from autoloss_jax.report.figures import DIFFERENCES, MAX_DOTS, loss_shape, search_curve


def curve_points(svg, style):
    path = re.search(rf'class="curve {style}" d="([^"]*)"', svg)[1]
    return [tuple(map(float, p.split())) for p in re.findall(r"[ML]([-\d.]+ [-\d.]+)", path)]


def test_a_line_spans_the_chart_less_its_margin():
    svg = chart_svg(Chart("t", "x", "y", [Curve([(0.0, 0.0), (10.0, 1.0)], "first")]))
    (x0, y0), (x1, y1) = curve_points(svg, "first")
    # The inner box is 402 by 232 at (68, 12); a range is wider than its data by 5% at each end.
    assert (x0, x1) == pytest.approx((68 + 402 * 0.05 / 1.1, 470 - 402 * 0.05 / 1.1), abs=0.06)
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
    svg = interval_svg(0.5, 0.25, 0.75, (0.0, 1.0), 0.5, "found")
    # 188 of 200 units between margins of 6.
    assert 'cx="100.0"' in svg
    assert "M53.0 7v8m0-4H147.0" in svg
    assert "M100.0 0v22" in svg
    assert "mark" not in interval_svg(0.5, 0.25, 0.75, (0.0, 1.0), None, "found")


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
