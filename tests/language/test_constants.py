"""Formulas that differ in one of their numbers."""

import pytest

from autoloss_jax.language.constants import with_scaled_constants
from autoloss_jax.language.parsing import parse


@pytest.mark.parametrize(
    "text, expected",
    [
        ("sum_i(s_i * y_i)", []),
        ("sum_ij(relu(1 - (s_i - s_j)), where=y_i > 0)",
         ["sum_ij(relu(0.5 - (s_i - s_j)), where=y_i > 0)",
          "sum_ij(relu(2 - (s_i - s_j)), where=y_i > 0)"]),
        ("sum_i(s_i * 3) / 5 + 1",
         ["sum_i(s_i * 1.5) / 5 + 1", "sum_i(s_i * 6) / 5 + 1", "sum_i(s_i * 3) / 2.5 + 1",
          "sum_i(s_i * 3) / 10 + 1", "sum_i(s_i * 3) / 5 + 0.5", "sum_i(s_i * 3) / 5 + 2"]),
    ],
)  # fmt: skip
def test_one_number_at_a_time_is_scaled(text, expected):
    assert with_scaled_constants(parse(text), (0.5, 2.0)) == [parse(e) for e in expected]
