"""Regularised evolution of losses (Real et al., AAAI 2019) with typed mutations and crossover.

A population of losses, of which the oldest die. Parents are the winners of tournaments; children
take the places of the oldest. Everything here is a pure function of an `EvolutionState`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from autoloss_jax.errors import AutolossError
from autoloss_jax.language.grammar import START, sample_batch
from autoloss_jax.language.mutations import MUTATIONS, are_complete, replace_subtree


@dataclass(frozen=True)
class EvolutionConfig:
    """Settings of regularised evolution.

    Attributes:
      population: how many losses live; when one is born the oldest dies.
      tournament: how many compete to be a parent.
      crossover: the share of children with two parents.
      fresh: the share of children drawn by the prior, without parents.
    """

    population: int = 128
    tournament: int = 16
    crossover: float = 0.3
    fresh: float = 0.1

    def __post_init__(self) -> None:
        for name in ("population", "tournament"):
            if getattr(self, name) < 1:
                raise AutolossError(
                    f"evolution setting {name}: expected at least 1, got {getattr(self, name)}"
                )
        for name in ("crossover", "fresh"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise AutolossError(
                    f"evolution setting {name}: expected from 0 to 1, got {getattr(self, name)}"
                )


class EvolutionState(NamedTuple):
    """The living, in no order. Who was rejected or failed is not born."""

    seed: np.ndarray  # u32[]
    step: np.ndarray  # i32[]: how many batches were proposed
    tokens: np.ndarray  # i32[population, max_tokens], START where nobody is
    rewards: np.ndarray  # f64[population], -inf where nobody is
    births: np.ndarray  # i64[population]: the number of the birth, from 1 on; 0 where nobody is


def _child(
    rng: np.random.Generator, state: EvolutionState, donor: np.ndarray, config: EvolutionConfig
) -> list[int] | None:
    """A child of parents from tournaments; the donor is a random loss."""
    living = np.flatnonzero(state.births > 0)

    def parent() -> np.ndarray:
        rivals = living[rng.integers(living.size, size=config.tournament)]
        return state.tokens[rivals[np.argmax(state.rewards[rivals])]]

    kind = rng.random()
    if kind < config.fresh:
        return donor[donor != START].tolist()
    if kind < config.fresh + config.crossover:
        return replace_subtree(rng, parent(), parent())
    mutate = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
    return mutate(rng, parent(), donor)


_MOST_ATTEMPTS = 8


def _breed(state: EvolutionState, donors: np.ndarray, config: EvolutionConfig) -> np.ndarray:
    """As many legal children as donors, new ones as far as that succeeds within a few attempts."""
    count, max_tokens = donors.shape
    rng = np.random.default_rng([int(state.seed), int(state.step)])
    children = donors.copy()  # who never succeeds stays a donor
    known = {row.tobytes() for row in state.tokens}
    open_places = np.arange(count)
    for _ in range(_MOST_ATTEMPTS):
        attempt = np.full((count, max_tokens), START, np.int32)
        for place in open_places:
            child = _child(rng, state, donors[int(rng.integers(count))], config)
            if child is not None and len(child) <= max_tokens:
                attempt[place, : len(child)] = child
        legal = np.asarray(are_complete(attempt))
        for place in open_places[legal[open_places]]:
            if attempt[place].tobytes() not in known:
                known.add(attempt[place].tobytes())
                children[place] = attempt[place]
                open_places = open_places[open_places != place]
        if not open_places.size:
            break
    return children


def init(seed: int, *, max_tokens: int, config: EvolutionConfig) -> EvolutionState:
    """An empty population."""
    return EvolutionState(
        seed=np.asarray(seed, np.uint32),
        step=np.asarray(0, np.int32),
        tokens=np.full((config.population, max_tokens), START, np.int32),
        rewards=np.full(config.population, -np.inf),
        births=np.zeros(config.population, np.int64),
    )


def propose(
    state: EvolutionState, count: int, *, config: EvolutionConfig, donors: np.ndarray | None = None
) -> tuple[EvolutionState, np.ndarray]:
    """Donors until the population is full, then children, tokens i32[count, max_tokens].

    donors: complete losses i32[count, max_tokens], from which mutations take what is new; drawn by
    the grammar's prior by default.
    """
    if donors is None:
        donors = sample_batch(int(state.seed), int(state.step), count, state.tokens.shape[1])
    tokens = _breed(state, donors, config) if np.all(state.births > 0) else donors
    return state._replace(step=np.asarray(state.step + 1)), tokens


def observe(
    state: EvolutionState, tokens: np.ndarray, rewards: np.ndarray, *, config: EvolutionConfig
) -> tuple[EvolutionState, dict[str, float]]:
    """Takes in complete losses with their rewards f64[count]; who failed is not born."""
    born = np.flatnonzero(np.isfinite(rewards))
    numbers = state.births.max() + 1 + np.arange(born.size)
    everyone = (
        np.concatenate([state.tokens, tokens[born]]),
        np.concatenate([state.rewards, rewards[born]]),
        np.concatenate([state.births, numbers]),
    )
    youngest = np.argsort(-everyone[2], kind="stable")[: config.population]
    state = EvolutionState(state.seed, state.step, *(x[youngest] for x in everyone))
    living = state.rewards[state.births > 0]
    if not living.size:
        return state, {"living": 0.0}
    return state, {"living": float(living.size), "living_mean": float(living.mean())}
