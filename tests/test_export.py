"""Exported losses against the exact path, executed as the modules a user would paste."""

import ast
import importlib.util
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.exact import compile_loss
from autoloss_jax.export import (
    TARGETS,
    export_latex,
    export_mathml,
    export_source,
    write_best_loss,
)
from autoloss_jax.language.expressions import apply, leaf, literal
from autoloss_jax.language.grammar import random_expressions
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import HAND_DESIGNED, LOSSES

COUNTER = itertools.count()

# What the grammar draws rarely or never.
CORNERS = (
    "1",
    "n",
    "max_dcg",
    "2 + exp(3) * n",
    "1e300 * n - 3",
    "mean_i(s_i / 2)",
    "-(-mean_i(s_i) - (1 - n))",
    "sum_i(max_j(s_j - s_i, where=i != j and y_i >= 1 or rank_j > 2))",
    "sum_ij(y_j - s_i, where=n > 2)",
    "sum_i(mean_j(s_j, where=y_j > y_i) * discount_i)",
    "logsumexp_i(s_i ** 3) + max_i(-(s_i ** -2))",
    "sum_i(min(y_i, 1) * log(stop_gradient(relu(s_i))))",
    "sum_j(sqrt(abs(s_j)) * log2(s_j) * tanh(s_j) * sign(s_j))",
    " + ".join(["sum_ij(sigmoid(s_i - s_j) * (gain_i - gain_j), where=y_i > y_j)"] * 3),
    "sum_ij(softplus((s_i - s_j) * (y_i - y_j)) / (1 + softplus((s_i - s_j) * (y_i - y_j))))",
    "sum_i(gain_i / (2 + rank_i), where=1 > 2) + mean_ij(rank_i * s_j, where=rank_i > rank_j)",
)


def load(path, source):
    """The module in a new file, imported."""
    file = path / f"exported_{next(COUNTER)}.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _double_precision():
    """So that an ill-conditioned formula does not blur a comparison."""
    with jax.enable_x64(True):
        yield


def example(seed=0):
    """Scores, labels and mask; one query has a single document and one none at all."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(4, 5))
    labels = rng.integers(0, 5, size=(4, 5)).astype(float)
    return scores, labels, np.arange(5) < np.array([5, 3, 1, 0])[:, None]


def value_and_gradient(loss, scores, labels, mask):
    value, gradient = jax.value_and_grad(lambda s: loss(s, labels, where=mask))(jnp.asarray(scores))
    return np.asarray(value), np.asarray(gradient)


@pytest.fixture(scope="module")
def random_losses():
    with jax.enable_x64(False):
        return random_expressions(jax.random.key(7), 200)


@pytest.mark.parametrize("name", HAND_DESIGNED)
def test_jax_source_has_the_exact_values_and_gradients(tmp_path, name):
    module = load(tmp_path, export_source(name, "jax"))
    exact = value_and_gradient(compile_loss(LOSSES[name]), *example())
    for got, expected in zip(value_and_gradient(module.loss, *example()), exact, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("formula", CORNERS)
def test_corners_of_the_language(tmp_path, formula):
    scores, labels, mask = example(1)
    expected, gradient = value_and_gradient(compile_loss(formula), scores, labels, mask)
    in_jax = load(tmp_path, export_source(formula, "jax")).loss
    got = value_and_gradient(in_jax, scores, labels, mask)
    np.testing.assert_allclose(got[0], expected, rtol=1e-9)
    np.testing.assert_allclose(got[1], gradient, rtol=1e-9, atol=1e-12)
    in_numpy = load(tmp_path, export_source(formula, "numpy")).loss
    np.testing.assert_allclose(in_numpy(scores, labels, mask), expected, rtol=1e-6)


def test_random_losses_in_jax_and_numpy(tmp_path, random_losses):
    scores, labels, mask = example(2)
    for number, loss in enumerate(random_losses):
        expected = np.asarray(compile_loss(loss)(scores, labels, where=mask))
        got = load(tmp_path, export_source(loss, "numpy")).loss(scores, labels, mask)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9, err_msg=str(loss))
        if number % 4 == 0:  # these consist of the exact path's own functions
            got = load(tmp_path, export_source(loss, "jax")).loss(scores, labels, mask)
            np.testing.assert_allclose(got, expected, rtol=1e-9, err_msg=str(loss))


@pytest.mark.parametrize("name", HAND_DESIGNED)
def test_torch_source_of_known_losses(tmp_path, name):
    torch = pytest.importorskip("torch")
    check_torch(torch, tmp_path, LOSSES[name])


def test_torch_source_of_other_losses(tmp_path, random_losses):
    torch = pytest.importorskip("torch")
    for loss in [*map(parse, CORNERS), *random_losses[:60]]:
        check_torch(torch, tmp_path, loss)


def check_torch(torch, path, loss):
    scores, labels, mask = example(3)
    value, gradient = value_and_gradient(compile_loss(loss), scores, labels, mask)
    given = torch.tensor(scores, requires_grad=True)
    got = load(path, export_source(loss, "torch")).loss(
        given, torch.tensor(labels), torch.tensor(mask)
    )
    np.testing.assert_allclose(got.detach().numpy(), value, rtol=1e-6, atol=1e-9, err_msg=str(loss))
    if got.requires_grad:
        got.backward()
    found = np.zeros_like(scores) if given.grad is None else given.grad.numpy()
    np.testing.assert_allclose(found, gradient, rtol=1e-5, atol=1e-8, err_msg=str(loss))


@pytest.mark.parametrize("target", ["jax", "numpy"])
def test_one_list_of_documents_and_no_mask(tmp_path, target):
    loss = load(tmp_path, export_source("ranknet", target)).loss
    # Pairs (0, 1) and (0, 2) count; 2 outranks 1 only in scores.
    expected = math.log1p(math.exp(2.0 - 1.0)) + math.log1p(math.exp(0.0 - 1.0))
    np.testing.assert_allclose(loss([1.0, 2.0, 0.0], [1, 0, 0]), expected, rtol=1e-6)


@pytest.mark.parametrize("target", ["jax", "numpy"])
def test_padding_and_queries_without_documents_count_nothing(tmp_path, target):
    loss = load(tmp_path, export_source("mse", target)).loss
    scores, labels = np.array([[2.0, np.nan], [5.0, 5.0]]), np.zeros((2, 2))
    one_document = np.array([[True, False], [False, False]])
    np.testing.assert_allclose(loss(scores, labels, one_document), 4.0)
    assert loss(scores, labels, np.zeros((2, 2), bool)) == 0.0


@pytest.mark.parametrize("target", ["jax", "numpy"])
@pytest.mark.parametrize("name", ["unique_softmax", "softmax", "rank_cosine", "mse"])
def test_extreme_scores_stay_finite_as_in_the_exact_path(tmp_path, target, name):
    loss = load(tmp_path, export_source(name, target)).loss
    scores, labels = np.array([[1e4, -1e4, 0.0]]), np.array([[0.0, 2.0, 1.0]])
    expected = compile_loss(LOSSES[name])(scores, labels)
    np.testing.assert_allclose(loss(scores, labels), expected, rtol=1e-5)


@pytest.mark.parametrize("target", ["jax", "numpy"])
def test_shapes_that_differ_are_refused_by_the_exported_module(tmp_path, target):
    loss = load(tmp_path, export_source("mse", target)).loss
    message = re.escape(
        "scores, labels and where must have one shape, [..., list]: got (3,), (1,) and (3,)"
    )
    with pytest.raises(ValueError, match=message):
        loss(np.zeros(3), np.zeros(1))


@pytest.mark.parametrize("target", ["jax", "numpy", "torch"])
def test_a_module_says_what_it_is_and_needs_its_target_only(random_losses, target):
    for loss in [*LOSSES.values(), *random_losses]:
        source = export_source(loss, target)
        tree = ast.parse(source)
        assert str(loss) in " ".join(ast.get_docstring(tree).split())
        imported = {
            name.split(".")[0]
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [node.module] if isinstance(node, ast.ImportFrom) else [node.names[0].name]
            )
        }
        assert imported <= {target, "math"}
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert functions[-1] == "loss"
        assert len(functions) == len(set(functions))
        assert max(map(len, source.splitlines())) <= 100
        assert "jnp" not in source or target == "jax"


def test_repeated_parts_are_computed_once():
    pair = "softplus((s_i - s_j) * (y_i - y_j))"
    body = export_source(f"sum_ij({pair} / (1 + {pair}))", "jax").rpartition("def loss")[2]
    assert body.count("softplus(multiply") == 1


def test_every_target_is_listed_in_the_message_for_an_unknown_one():
    expected = "jax, torch, numpy, latex, lightgbm, xgboost"
    with pytest.raises(AutolossError, match=f"'cuda': expected one of {expected}"):
        export_source("mse", "cuda")
    assert ", ".join(TARGETS) == expected


def test_a_free_index_or_another_type_is_refused():
    with pytest.raises(AutolossError, match="expected no free index, got i"):
        export_source(apply("square", leaf("s_i")), "jax")
    with pytest.raises(AutolossError, match="expected a loss, an Expression or its text"):
        export_source(3.0, "jax")


@pytest.mark.parametrize(
    ("formula", "latex"),
    [
        ("mean_i(square(s_i - y_i))",
         r"\operatorname*{mean}_{i} \left({\left(s_i - y_i\right)}^2\right)"),
        ("sum_i(s_i ** 2 * gain_i)", r"\sum_{i} {s_i}^2 \cdot g_i"),
        ("sum_i(s_i + y_i) + n", r"\sum_{i} \left(s_i + y_i\right) + n"),
        ("sum_i(s_i) * n", r"\left(\sum_{i} s_i\right) \cdot n"),
        ("n * sum_i(s_i)", r"n \cdot \sum_{i} s_i"),
        ("-sum_i(s_i * y_i) / max_dcg", r"\frac{-\sum_{i} s_i \cdot y_i}{\mathrm{DCG}^*}"),
        ("n - (n - 1)", r"n - \left(n - 1\right)"),
        ("n * (n + 1)", r"n \cdot \left(n + 1\right)"),
        ("(n * 2) ** 3", r"{\left(n \cdot 2\right)}^3"),
        ("n * -2", r"n \cdot -2"),
        ("1e-7 * n", r"1 \cdot 10^{-7} \cdot n"),
        ("sum_i(sum_j(s_j, where=i != j and y_j >= 1))",
         r"\sum_{i} \sum_{j :\, i \ne j \wedge y_j \ge 1} s_j"),
        ("abs(n) / sqrt(n)", r"\frac{\left|n\right|}{\sqrt{n}}"),
    ],
)  # fmt: skip
def test_latex(formula, latex):
    assert export_source(formula, "latex") == latex


def test_latex_and_mathml_of_every_loss_are_balanced(random_losses):
    for loss in [*LOSSES.values(), *random_losses, *map(parse, CORNERS)]:
        latex = export_latex(loss)
        assert latex.count("{") == latex.count("}")
        assert latex.count(r"\left") == latex.count(r"\right")
        assert_balanced(export_mathml(loss))


def assert_balanced(markup):
    open_tags = []
    for closing, tag in re.findall(r"<(/?)(\w+)[^>]*>", markup):
        if closing:
            assert open_tags.pop() == tag
        else:
            open_tags.append(tag)
    assert open_tags == []


def test_mathml_names_leaves_and_conditions():
    markup = export_mathml(parse("sum_ij(rank_i * log2(s_j), where=y_i > y_j) / max_dcg"))
    assert "<msub><mi>\N{GREEK SMALL LETTER RHO}</mi><mi>i</mi></msub>" in markup
    assert "<mo>&gt;</mo>" in markup
    assert "DCG" in markup


def test_best_loss_is_a_module_below_its_comment(tmp_path):
    path = tmp_path / "best_loss.py"
    header = ["NDCG@10 0.51 on test queries", 'two\nlines """ raise SystemExit', ""]
    write_best_loss(path, "ranknet", header)
    lines = path.read_text().splitlines()
    assert lines[:5] == [
        "# -*- coding: utf-8 -*-", "# NDCG@10 0.51 on test queries", "# two",
        '# lines """ raise SystemExit', "#",
    ]  # fmt: skip
    module = load(tmp_path, path.read_text())
    assert module.__doc__.startswith("A ranking loss:")
    assert float(module.loss([1.0, 0.0], [1.0, 0.0])) == pytest.approx(math.log1p(math.exp(-1.0)))


def test_a_literal_loss_is_a_number(tmp_path):
    assert float(load(tmp_path, export_source(literal(2.5), "numpy")).loss([0.0], [0.0])) == 2.5


def test_the_power_of_a_fraction_has_brackets():
    latex = export_source("mean_i(square(s_i / (1 + y_i)))", "latex")
    assert r"{\left(\frac{s_i}{1 + y_i}\right)}^2" in latex
