"""Rankers: what a score may depend on."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autoloss_jax.errors import AutolossError
from autoloss_jax.models import MLP, MODELS, Attention, Linear, describe_model, make_model

FEATURES = 3


RANKERS = {"linear": Linear(), "mlp": MLP((4,)), "attention": Attention(4, heads=2)}


@pytest.fixture(scope="module", params=RANKERS.values(), ids=RANKERS.keys())
def ranker(request):
    """A model with weights, as a compiled function of features and mask."""
    model = request.param
    key = jax.random.key(0)
    params = model.init(key, jnp.zeros((1, 2, FEATURES)), jnp.ones((1, 2), bool))
    return jax.jit(lambda features, mask: model.apply(params, features, mask))


@pytest.fixture(scope="module")
def lists():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 5, FEATURES)).astype(np.float32)
    mask = np.arange(5) < np.array([[5], [3]])
    return features, mask


def test_scores_have_the_shape_of_the_mask(ranker, lists):
    assert ranker(*lists).shape == (2, 5)


def test_permuting_documents_permutes_their_scores(ranker, lists):
    features, mask = lists
    order = np.array([2, 0, 1, 3, 4])  # keeps the padding of the second list in place
    expected = np.asarray(ranker(features, mask))[:, order]
    np.testing.assert_allclose(ranker(features[:, order], mask[:, order]), expected, atol=1e-5)


def test_padding_never_influences_a_document(ranker, lists):
    features, mask = lists
    wild = np.where(mask[..., None], features, np.float32(1e4))
    given, other = np.asarray(ranker(features, mask)), np.asarray(ranker(wild, mask))
    np.testing.assert_array_equal(given[mask], other[mask])
    longer = np.pad(features, [(0, 0), (0, 3), (0, 0)]), np.pad(mask, [(0, 0), (0, 3)])
    np.testing.assert_allclose(np.asarray(ranker(*longer))[:, :5][mask], given[mask], atol=1e-5)


def test_a_list_without_documents_has_finite_scores(ranker):
    scores = ranker(jnp.zeros((1, 4, FEATURES)), jnp.zeros((1, 4), bool))
    assert np.isfinite(scores).all()


def test_linear_is_a_scalar_product():
    model = Linear()
    params = {"params": {"Dense_0": {"kernel": jnp.array([[1.0], [2.0], [3.0]])}}}
    scores = model.apply(params, jnp.array([[[1.0, 1.0, 1.0], [0.0, 0.0, -1.0]]]), None)
    np.testing.assert_allclose(scores, [[6.0, -3.0]])


def test_models_by_name():
    for name in MODELS:
        assert type(make_model(name)) is MODELS[name]
    own = MLP((2,))
    assert make_model(own) is own
    with pytest.raises(AutolossError, match="unknown model 'svm'; expected one of linear, mlp"):
        make_model("svm")


class Activated(nn.Module):
    activation: Callable = nn.tanh


def test_a_description_names_the_attributes_and_no_place_in_memory():
    assert "MLP" in describe_model(MLP((8, 4)))
    assert "hidden = (8, 4)" in describe_model(MLP((8, 4)))
    assert describe_model(MLP((8, 4))) != describe_model(MLP((8,)))
    assert "tanh" in describe_model(Activated())
    assert "0x" not in describe_model(Activated())
    assert "\n" not in describe_model(Activated())
