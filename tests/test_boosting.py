"""Exported objectives for gradient boosting: exact derivatives, and trainings that use them."""

import ast
import importlib.util
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autoloss_jax.execution.exact import compile_loss
from autoloss_jax.export import dual_numbers, export_source
from autoloss_jax.export.boosting import BOOSTING_TARGETS
from autoloss_jax.export.dual_numbers import Dual, document_scores, value_of
from autoloss_jax.export.evaluation import query_derivatives
from autoloss_jax.language.grammar import random_expressions
from autoloss_jax.language.operators import OPERATORS
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import HAND_DESIGNED, LOSSES
from autoloss_jax.metrics import ndcg

SIZES = np.array([5, 1, 3, 6, 5])
DOCUMENTS = int(SIZES.sum())

COUNTER = itertools.count()

# Where derivatives pass through more than one document of a pair, and where there are none.
CORNERS = (
    "n",
    "-(-mean_i(s_i) - (1 - n))",
    "sum_i(max_j(s_j - s_i, where=i != j and y_i >= 1 or rank_j > 2))",
    "sum_ij(y_j - s_i, where=n > 2)",
    "sum_i(mean_j(s_j, where=y_j > y_i) * discount_i)",
    "logsumexp_i(s_i ** 3) + max_i(-(s_i ** -2))",
    "sum_i(min(y_i, 1) * log(stop_gradient(relu(s_i))))",
    "sum_j(sqrt(abs(s_j)) * log2(s_j) * tanh(s_j) * sign(s_j))",
    "sum_i(gain_i / (2 + rank_i), where=1 > 2) + mean_ij(rank_i * s_j, where=rank_i > rank_j)",
    "sum_ij(square(s_i * s_j + s_i))",
    "sum_i(square(sum_j(s_i * s_j * sigmoid(s_j))))",
    "sum_ij(tanh(s_i - logsumexp_i(s_i)) * sum_j(s_j * s_i))",
    "logsumexp_j(sum_i(s_i * s_j))",
    "max_i(sum_j(exp(s_j - s_i)) * s_i)",
    "sum_ij(max(s_i, s_j) * min(s_i * y_j, s_j * 2))",
    "sum_j(sum_i(sigmoid(s_i - s_j)) * s_j / (1 + square(s_j)))",
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
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def random_losses():
    with jax.enable_x64(False):
        return random_expressions(jax.random.key(7), 24)


def example(seed=0):
    """Scores and labels [documents] of queries of SIZES."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=DOCUMENTS), rng.integers(0, 5, DOCUMENTS).astype(float)


def padded(*arrays):
    mask = np.arange(SIZES.max()) < SIZES[:, None]
    filled = []
    for array in arrays:
        filled.append(np.zeros(mask.shape))
        filled[-1][mask] = array
    return *filled, mask


def automatic(loss, scores, labels):
    """The loss of each query, and gradient and Hessian diagonal of the documents, by jax."""
    scores, labels, mask = padded(scores, labels)
    loss_fn, at = compile_loss(loss), jnp.asarray(scores)
    values = loss_fn(at, labels, where=mask, reduce_fn=None)
    gradient_fn = jax.grad(lambda s: jnp.sum(loss_fn(s, labels, where=mask, reduce_fn=None)))
    one_document = jnp.eye(mask.shape[1])[:, None, :] * jnp.ones((1, *mask.shape))
    columns = jax.vmap(lambda e: jax.jvp(gradient_fn, (at,), (e,))[1])(one_document)
    hessian = jnp.einsum("kqk->qk", columns)
    return np.asarray(values), *(np.asarray(x)[mask] for x in (gradient_fn(at), hessian))


def check(path, loss, target="lightgbm"):
    scores, labels = example()
    values, gradient, hessian = automatic(loss, scores, labels)
    module = load(path, export_source(loss, target))
    got = module.gradient_and_hessian(scores, labels, SIZES)
    for found, expected in zip(got, (gradient, hessian), strict=True):
        scale = 1e-9 * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=scale, err_msg=str(loss))
    mean = module.loss(*padded(scores, labels))
    np.testing.assert_allclose(mean, values.mean(), rtol=1e-9, atol=1e-7, err_msg=str(loss))


@pytest.mark.parametrize("name", HAND_DESIGNED)
def test_known_losses_have_exact_derivatives(tmp_path, name):
    check(tmp_path, LOSSES[name])


@pytest.mark.slow
def test_random_losses_have_exact_derivatives(tmp_path, random_losses):
    for loss in random_losses:
        check(tmp_path, loss)


@pytest.mark.parametrize("formula", CORNERS)
def test_corners_have_exact_derivatives(tmp_path, formula):
    check(tmp_path, parse(formula), "xgboost")


def test_both_targets_hold_the_same_loss(tmp_path):
    modules = [load(tmp_path, export_source("approx_ndcg", t)) for t in BOOSTING_TARGETS]
    one, other = (m.gradient_and_hessian(*example(), SIZES) for m in modules)
    np.testing.assert_array_equal(one, other)


def test_evaluation_without_export_gives_the_same(tmp_path, random_losses):
    scores, labels = example(1)
    for loss in [*LOSSES.values(), *map(parse, CORNERS), *random_losses]:
        module = load(tmp_path, export_source(loss, "xgboost"))
        expected = module.gradient_and_hessian(scores, labels, SIZES)
        *arrays, mask = padded(scores, labels)
        found = query_derivatives(loss, *arrays, mask)
        np.testing.assert_allclose(
            [found.gradient[mask], found.hessian[mask]], expected, rtol=1e-9, atol=1e-12
        )
        mean = module.loss(*arrays, mask)
        np.testing.assert_allclose(found.values.mean(), mean, rtol=1e-9, atol=1e-12)


# --- the functions against the operator table ---

# Inside, and beyond, what is defined or in range; kinks left out.
POINTS = np.array([-90.0, -2.0, -0.3, 1e-35, 0.4, 1.7, 90.0, 1e11, -1e16])
UNARY = [name for name, o in OPERATORS.items() if o.arity == 1 and name != "neg"]
PAIRS = np.array([
    [2.0, 3.0], [-1.0, 0.5], [4.0, -2.0], [1e20, 1e15], [1.0, 1e-35], [3e-20, 1e15], [1e20, 1e-15],
])  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.filterwarnings("ignore:overflow")
def test_functions_of_one_argument(name):
    operator = OPERATORS[name]
    s_i, _ = document_scores(POINTS[None])
    got = getattr(dual_numbers, operator.value.__name__)(s_i)
    np.testing.assert_allclose(value_of(got).ravel(), operator.value(POINTS), rtol=1e-12)
    first = np.asarray(operator.partials(jnp.asarray(POINTS))[0])
    if not isinstance(got, Dual):
        np.testing.assert_array_equal(first, 0.0)
        return
    np.testing.assert_allclose(np.ravel(got.first), first, rtol=1e-9, atol=1e-15)
    second = jax.vmap(jax.grad(jax.grad(operator.value)))(jnp.asarray(POINTS))
    found = np.broadcast_to(got.second, got.first.shape)
    np.testing.assert_allclose(np.ravel(found), second, rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize("name", ["mul", "div", "min", "max"])
def test_functions_of_two_arguments(name):
    """By the score of either document of a pair, the other one being given."""
    operator = OPERATORS[name]
    function = getattr(dual_numbers, operator.value.__name__)
    a, b = PAIRS.T
    for place in (0, 1):
        s_i, _ = document_scores(PAIRS[:, place][None])
        given = PAIRS[:, 1 - place][None, :, None]
        got = function(s_i, given) if place == 0 else function(given, s_i)
        np.testing.assert_allclose(got.value.ravel(), operator.value(a, b), rtol=1e-12)
        first = operator.partials(jnp.asarray(a), jnp.asarray(b))[place]
        np.testing.assert_allclose(np.ravel(got.first), first, rtol=1e-9)
        second = jax.vmap(jax.grad(jax.grad(operator.value, place), place))(a, b)
        found = np.broadcast_to(got.second, got.first.shape)
        np.testing.assert_allclose(np.ravel(found), second, rtol=1e-8, atol=1e-15)


def test_ties_share_a_choice():
    s_i, s_j = document_scores(np.array([[1.0, 1.0]]))
    for choice in (dual_numbers.maximum(s_i, s_j), dual_numbers.minimum(s_i, s_j)):
        np.testing.assert_array_equal(choice.first[:, 0, 0, 1], [0.5, 0.5])
        np.testing.assert_array_equal(choice.first[:, 0, 0, 0], [1.0, 1.0])  # one document


# --- the module ---


@pytest.mark.parametrize("target", BOOSTING_TARGETS)
def test_a_module_needs_numpy_alone(target, random_losses):
    for loss in [LOSSES["lambdarank"], *random_losses]:
        source = export_source(loss, target)
        tree = ast.parse(source)
        assert str(loss) in " ".join(ast.get_docstring(tree).split())
        roots = {
            (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert roots == {"numpy", "__future__", "collections"}
        assert max(map(len, source.splitlines())) <= 100
        named = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        assert len(named) == len(set(named))
        assert named[:3] == ["query_losses", "loss", "gradient_and_hessian"]


@pytest.fixture(scope="module")
def hinge(tmp_path_factory):
    return load(tmp_path_factory.mktemp("hinge"), export_source("pairwise_hinge", "lightgbm"))


class Data:
    """What a lightgbm.Dataset tells an objective."""

    def __init__(self, labels, group, weight=None):
        self.get_label, self.get_group, self.get_weight = (
            (lambda x=x: x) for x in (labels, group, weight)
        )


def test_each_query_weighs_the_same(hinge):
    """Twice the same query: twice the gradients, none of them divided by the number of queries."""
    scores, labels = np.array([0.0, 0.5, 1.0]), np.array([2.0, 0.0, 1.0])
    one = hinge.gradient_and_hessian(scores, labels, [3])
    # Pairs (0, 1), (0, 2) and (2, 1): margins -0.5, -1 and 0.5 are all short of 1.
    np.testing.assert_array_equal(one[0], [-2.0, 2.0, 0.0])
    two = hinge.gradient_and_hessian(np.tile(scores, 2), np.tile(labels, 2), [3, 3])
    np.testing.assert_array_equal(two, np.tile(one, 2))


def test_the_hessian_is_raised_to_where_no_step_is_too_long(hinge):
    scores, labels = np.array([0.0, 0.5, 1.0, 3.0]), np.array([2.0, 0.0, 1.0, 0.0])
    gradient, hessian = hinge.objective(scores, Data(labels, [3, 1]))
    np.testing.assert_array_equal(gradient, [-2.0, 2.0, 0.0, 0.0])
    # Made of straight lines, its own Hessian is 0.
    np.testing.assert_array_equal(hessian, [2.0, 2.0, 1e-12, 1e-12])


@pytest.mark.parametrize("target", BOOSTING_TARGETS)
def test_a_hessian_that_is_large_enough_stays(tmp_path, target):
    module = load(tmp_path, export_source("mean_i(square(s_i - y_i))", "lightgbm"))
    gradient, hessian = module.objective(np.array([0.5, 3.0]), Data(np.array([1.0, 0.0]), [2]))
    np.testing.assert_allclose(gradient, [-0.5, 3.0])  # 2 (s - y) / n
    np.testing.assert_allclose(hessian, [1.0, 3.0])  # 2 / n, and the length of the gradient


@pytest.mark.parametrize("weight", [np.array([1.0, 2.0, 2.0]), np.array([1.0, 2.0])])
def test_weights_multiply_both(hinge, weight):
    """Of documents, or of queries: the second query has two documents."""
    scores, labels = np.array([0.0, 0.0, 0.5]), np.array([1.0, 1.0, 0.0])
    gradient, hessian = hinge.objective(scores, Data(labels, np.array([1, 2]), weight))
    np.testing.assert_array_equal(gradient, [0.0, -2.0, 2.0])
    np.testing.assert_array_equal(hessian, [1e-12, 2.0, 2.0])


@pytest.mark.parametrize("group", [None, np.array([])])
def test_data_without_groups_are_refused(hinge, group):
    with pytest.raises(ValueError, match="the training data has no groups: expected how many"):
        hinge.objective(np.zeros(2), Data(np.zeros(2), group))


def test_groups_that_do_not_fit_are_refused(hinge):
    with pytest.raises(ValueError, match=r"got \(3,\), \(3,\) and groups of 2 documents"):
        hinge.gradient_and_hessian(np.zeros(3), np.zeros(3), [1, 1])


def test_lists_of_any_number_and_length(tmp_path):
    """Taken together or one by one: queries of like length share a tile."""
    module = load(tmp_path, export_source("softmax", "xgboost"))
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 40, 60)
    scores, labels = rng.normal(size=sizes.sum()), rng.integers(0, 3, sizes.sum())
    whole = module.gradient_and_hessian(scores, labels, sizes)
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        alone = module.gradient_and_hessian(scores[part], labels[part], [size] if size else [])
        np.testing.assert_allclose([x[part] for x in whole], alone, rtol=1e-9, atol=1e-12)
        start += size


# --- trainings ---


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    queries, length = 40, 8
    features = rng.normal(size=(queries * length, 4))
    utility = features[:, 0] + 0.8 * np.abs(features[:, 1]) + 0.3 * rng.normal(size=len(features))
    labels = np.digitize(utility, [0.5, 1.3, 2.0])
    return features, labels.astype(float), np.full(queries, length)


def quality(scores, labels, sizes):
    return float(ndcg(np.reshape(scores, (len(sizes), -1)), np.reshape(labels, (len(sizes), -1))))


TRAINED = ("softmax", "ranknet", "pairwise_hinge", "lambdarank", "approx_ndcg", "mse")


@pytest.mark.parametrize("name", TRAINED)
def test_lightgbm_learns_to_rank(tmp_path, data, name):
    lightgbm = pytest.importorskip("lightgbm")
    module = load(tmp_path, export_source(name, "lightgbm"))
    features, labels, sizes = data
    parameters = {"objective": module.objective, "num_leaves": 6, "verbosity": -1, "seed": 0,
                  "min_data_in_leaf": 5, "num_threads": 1, "deterministic": True}  # fmt: skip
    train = lightgbm.Dataset(features, labels, group=sizes)
    model = lightgbm.train(module.PARAMETERS | parameters, train, num_boost_round=15)
    constant = quality(np.zeros(len(labels)), labels, sizes)
    assert quality(model.predict(features), labels, sizes) > constant + 0.15


def test_lightgbm_s_ranker_gives_what_its_train_gives(tmp_path, data):
    lightgbm = pytest.importorskip("lightgbm")
    module = load(tmp_path, export_source("softmax", "lightgbm"))
    features, labels, sizes = data
    shared = module.PARAMETERS | {"num_leaves": 6, "verbosity": -1, "num_threads": 1}
    ranker = lightgbm.LGBMRanker(objective=module.ranker_objective, n_estimators=4, **shared)
    ranker.fit(features, labels, group=sizes)
    model = lightgbm.train(
        shared | {"objective": module.objective},
        lightgbm.Dataset(features, labels, group=sizes),
        num_boost_round=4,
    )
    np.testing.assert_allclose(ranker.predict(features), model.predict(features), rtol=1e-9)


@pytest.mark.parametrize("name", TRAINED)
def test_xgboost_learns_to_rank(tmp_path, data, name):
    xgboost = pytest.importorskip("xgboost")
    module = load(tmp_path, export_source(name, "xgboost"))
    features, labels, sizes = data
    train = xgboost.DMatrix(features, labels)
    train.set_group(sizes)
    parameters = module.PARAMETERS | {"max_depth": 3, "nthread": 1, "seed": 0}
    model = xgboost.train(parameters, train, num_boost_round=15, obj=module.objective)
    constant = quality(np.zeros(len(labels)), labels, sizes)
    assert quality(model.predict(train), labels, sizes) > constant + 0.15
