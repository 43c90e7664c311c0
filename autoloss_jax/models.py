"""Rankers: Flax modules that map the documents of a query to scores."""

import re
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from autoloss_jax.errors import AutolossError


class Linear(nn.Module):
    """A linear ranker, `s = w @ x`, without bias, which no ranking could see.

    Call with features f32[queries, list, features] and mask bool[queries, list]; returns scores
    f32[queries, list]. So do all rankers.
    """

    @nn.compact
    def __call__(self, features: Array, mask: Array) -> Array:
        del mask  # Documents are scored one by one.
        return nn.Dense(1, use_bias=False)(features)[..., 0]


class MLP(nn.Module):
    """A multilayer perceptron on each document alone.

    Attributes:
      hidden: the widths of the hidden layers.
    """

    hidden: Sequence[int] = (64, 32)

    @nn.compact
    def __call__(self, features: Array, mask: Array) -> Array:
        del mask  # Documents are scored one by one.
        for width in self.hidden:
            features = nn.relu(nn.Dense(width)(features))
        return nn.Dense(1)(features)[..., 0]


class Attention(nn.Module):
    """A listwise ranker: the documents of a list attend to each other (Pobrotyn et al., 2020).

    The output is a multilayer perceptron's score of the document and of what it attended to.

    Attributes:
      width: of the documents' representation.
      heads: attention heads, a divisor of `width`.
      blocks: self-attention blocks.
    """

    width: int = 32
    heads: int = 2
    blocks: int = 1

    @nn.compact
    def __call__(self, features: Array, mask: Array) -> Array:
        documents = nn.relu(nn.Dense(self.width)(features))
        pairs = mask[..., None, None, :] & mask[..., None, :, None]
        for _ in range(self.blocks):
            attended = nn.MultiHeadDotProductAttention(self.heads)(
                nn.LayerNorm()(documents), mask=pairs
            )
            documents = documents + attended
            hidden = nn.relu(nn.Dense(2 * self.width)(nn.LayerNorm()(documents)))
            documents = documents + nn.Dense(self.width)(hidden)
        return jnp.where(mask, nn.Dense(1)(nn.LayerNorm()(documents))[..., 0], 0.0)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": Linear,
    "mlp": MLP,
    "attention": Attention,
}
"""The rankers of the command line, by name."""


def describe_model(model: nn.Module) -> str:
    """A module with its attributes, in one line that is the same in every process."""
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(model))  # where a function lies in memory
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("#"))


def make_model(model: str | nn.Module) -> nn.Module:
    """The ranker of a name of MODELS; a user's own Flax module is returned as it is."""
    if isinstance(model, nn.Module):
        return model
    if model not in MODELS:
        raise AutolossError(f"unknown model {model!r}; expected one of {', '.join(MODELS)}")
    return MODELS[model]()
