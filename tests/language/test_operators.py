"""Tests of the operator table: values as NumPy has them, derivatives as JAX, all finite."""

import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoloss_jax.language.expressions import apply, leaf
from autoloss_jax.language.operators import (
    LARGE,
    LEAVES,
    LOG_LARGE,
    OPERATORS,
    REDUCTIONS,
    RELATIONS,
    TINY,
)
from autoloss_jax.language.parsing import parse_expression

ORDINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "exp": np.exp,
    "log": np.log,
    "log2": np.log2,
    "sqrt": np.sqrt,
    "square": lambda x: x * x,
    "cube": lambda x: x * x * x,
    "abs": np.abs,
    "sign": np.sign,
    "sigmoid": lambda x: np.exp(-np.logaddexp(0.0, -x)),
    "softplus": lambda x: np.logaddexp(0.0, x),
    "tanh": np.tanh,
    "relu": lambda x: np.where(x > 0, x, 0.0),
    "min": np.minimum,
    "max": np.maximum,
    "stop_gradient": lambda x: x,
}
POSITIVE_ONLY = ("log", "log2", "sqrt")
CASES = pytest.mark.parametrize("name", OPERATORS)

MAGNITUDES = (0, 3e-31, 3e-30, 1e-22, 1e-10, 0.5, 1, 2, 69, 70, 1e4, 1e12, 2e15, 1e20, 1e30)
EXTREMES = np.array([sign * x for x in MAGNITUDES for sign in (1, -1)], np.float32)


def arguments(name: str, values: np.ndarray) -> tuple[jax.Array, ...]:
    """Every tuple of `values` that operator `name` takes, as one array an argument."""
    grids = np.meshgrid(*[values] * OPERATORS[name].arity, indexing="ij")
    return tuple(jnp.asarray(grid.ravel()) for grid in grids)


def derivatives(name: str, *args: jax.Array) -> tuple[jax.Array, ...]:
    """The partial derivatives by automatic differentiation of the value."""
    value = OPERATORS[name].value
    return jax.grad(lambda *xs: jnp.sum(value(*xs)), argnums=tuple(range(len(args))))(*args)


@CASES
def test_value_is_ordinary_where_the_ordinary_result_is_in_range(name):
    values = np.array([-30.0, -2.5, -1.0, -0.5, 0.25, 0.5, 1.0, 2.0, 3.0, 30.0], np.float32)
    if name in POSITIVE_ONLY:
        values = values[values > 0]
    args = arguments(name, values)
    expected = ORDINARY[name](*(np.asarray(arg, np.float64) for arg in args))
    np.testing.assert_allclose(OPERATORS[name].value(*args), expected, rtol=2e-6)


@CASES
def test_value_and_partials_are_finite_for_all_numbers_in_range(name):
    args = arguments(name, EXTREMES)
    operator = OPERATORS[name]
    value = operator.value(*args)
    limit = LARGE if name not in ("add", "sub") else 2 * LARGE
    assert np.all(np.abs(np.asarray(value)) <= limit * 1.0001)
    partials = operator.partials(*args)
    assert len(partials) == operator.arity
    for partial in partials:
        assert partial.shape == value.shape
        assert partial.dtype == value.dtype
        assert np.all(np.isfinite(partial))


def assert_partials_are_the_derivatives(name: str, *args: jax.Array) -> None:
    for partial, derivative in zip(
        OPERATORS[name].partials(*args), derivatives(name, *args), strict=True
    ):
        # 1 - tanh^2 and sigmoid * (1 - sigmoid) cancel where they saturate.
        np.testing.assert_allclose(partial, derivative, rtol=2e-5, atol=3e-7)


@CASES
@given(
    values=st.lists(
        st.floats(-40, 40, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6),
        min_size=6,
        max_size=6,
    )
)
def test_partials_are_the_derivatives_at_ordinary_numbers(name, values):
    assert_partials_are_the_derivatives(name, *arguments(name, np.array(values, np.float32)))


@CASES
def test_partials_are_the_derivatives_at_kinks_and_beyond_saturation(name):
    args = arguments(name, EXTREMES)
    if name == "div":  # where a / b**2 is out of range: the next test
        a, b = np.abs(np.asarray(args, np.float64))
        ordinary = (b <= TINY) | (a < 1e29 * b * b) & (a != LARGE * b)
        args = tuple(arg[ordinary] for arg in args)
    if name == "mul":  # exactly at LARGE one side counts as in range, the other as half
        ordinary = jnp.abs(args[0] * args[1]) != jnp.float32(LARGE)
        args = tuple(arg[ordinary] for arg in args)
    finite = [np.isfinite(derivative) for derivative in derivatives(name, *args)]
    assert np.all(finite)
    assert_partials_are_the_derivatives(name, *args)


def test_division_by_a_number_whose_square_underflows():
    a, b = jnp.float32(0.0), jnp.float32(1e-25)
    for partials in (OPERATORS["div"].partials(a, b), derivatives("div", a, b)):
        np.testing.assert_allclose(partials[0], 1e25, rtol=1e-6)
        assert partials[1] == 0.0
    # 1 / b**2 is out of float32's range; the next number keeps what follows free of infinities.
    assert OPERATORS["div"].partials(jnp.float32(1.0), b)[1] == -jnp.finfo(jnp.float32).max


@pytest.mark.parametrize(
    "name, args, value, partials",
    [
        ("div", (1.0, 0.0), 0.0, (0.0, 0.0)),
        ("div", (0.0, 0.0), 0.0, (0.0, 0.0)),
        ("div", (1e30, -1e-4), -LARGE, (0.0, 0.0)),
        ("mul", (1e20, 1e20), LARGE, (0.0, 0.0)),
        ("mul", (-1e20, 1e20), -LARGE, (0.0, 0.0)),
        ("square", (-1e20,), LARGE, (0.0,)),
        ("cube", (-1e20,), -LARGE, (0.0,)),
        ("exp", (1e4,), LARGE, (0.0,)),
        ("exp", (-1e4,), 0.0, (0.0,)),
        ("log", (0.0,), -LOG_LARGE, (0.0,)),
        ("log", (-5.0,), -LOG_LARGE, (0.0,)),
        ("log2", (0.0,), -LOG_LARGE / np.log(2), (0.0,)),
        ("sqrt", (0.0,), 0.0, (0.0,)),
        ("sqrt", (-4.0,), 0.0, (0.0,)),
        ("abs", (0.0,), 0.0, (0.0,)),
        ("relu", (0.0,), 0.0, (0.0,)),
        ("sign", (-3.0,), -1.0, (0.0,)),
        ("softplus", (1e4,), 1e4, (1.0,)),
        ("softplus", (0.0,), np.log(2), (0.5,)),
        ("sigmoid", (-1e4,), 0.0, (0.0,)),
        ("tanh", (1e4,), 1.0, (0.0,)),
        ("min", (2.0, 2.0), 2.0, (0.5, 0.5)),
        ("max", (2.0, 2.0), 2.0, (0.5, 0.5)),
        ("max", (3.0, 2.0), 3.0, (1.0, 0.0)),
        ("min", (3.0, 2.0), 2.0, (0.0, 1.0)),
        ("stop_gradient", (3.0,), 3.0, (0.0,)),
    ],
)
def test_protected_and_saturated_points(name, args, value, partials):
    args = tuple(jnp.float32(x) for x in args)
    np.testing.assert_allclose(OPERATORS[name].value(*args), value, rtol=2e-6)
    np.testing.assert_allclose(OPERATORS[name].partials(*args), partials)
    np.testing.assert_allclose(derivatives(name, *args), partials)


def test_what_just_fits_into_range_is_ordinary():
    f = jnp.float32
    assert OPERATORS["div"].value(f(1.0), f(2 * TINY)) == f(0.5 / TINY)
    np.testing.assert_allclose(OPERATORS["exp"].value(f(69.0)), np.exp(69.0), rtol=1e-5)
    np.testing.assert_allclose(OPERATORS["log"].value(f(2 * TINY)), np.log(2 * TINY), rtol=1e-6)


@CASES
def test_the_spelling_takes_every_argument_and_parses_back(name):
    operator = OPERATORS[name]
    assert operator.name == name
    fields = [field for _, field, _, _ in string.Formatter().parse(operator.python) if field]
    assert fields == ["0", "1"][: operator.arity]
    latex = [field for _, field, _, _ in string.Formatter().parse(operator.latex) if field]
    assert latex == fields
    expression = apply(name, *(leaf("s_i"), leaf("y_j"))[: operator.arity])
    assert parse_expression(str(expression)) == expression
    assert str(expression) == operator.python.format("s_i", "y_j")


@CASES
def test_the_table_states_the_domain_and_commutativity_truly(name):
    operator = OPERATORS[name]
    assert operator.domain
    assert operator.precedence in (1, 2, 3, 4, 5)
    a, b = np.float32(2.0), np.float32(-3.0)
    exchangeable = operator.arity == 2 and operator.value(a, b) == operator.value(b, a)
    assert operator.commutative == exchangeable


def test_names_are_unique_across_the_tables():
    names = [*OPERATORS, *LEAVES, *REDUCTIONS, *RELATIONS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_remove_their_indices(name):
    reduction = REDUCTIONS[name]
    assert reduction.name == name == f"{reduction.kind}_{''.join(sorted(reduction.indices))}"
    pair = apply("sub", leaf("s_i"), leaf("s_j"))
    assert pair.indices == {"i", "j"}
    assert apply(name, pair).indices == {"i", "j"} - reduction.indices
    assert reduction.latex.format("i").count("{i}") == 1


@pytest.mark.parametrize("name", LEAVES)
def test_leaves_carry_the_index_in_their_name(name):
    assert LEAVES[name].name == name
    assert LEAVES[name].indices == set(name.partition("_")[2].replace("dcg", ""))
    assert LEAVES[name].meaning
    assert LEAVES[name].latex
