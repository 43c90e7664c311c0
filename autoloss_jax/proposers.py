"""What proposes losses to a search: random sampling, regularised evolution, the controller.

All speak one language, pairs of pure functions in the manner of optax: `propose` draws complete
losses of the search grammar as tokens, `observe` learns from their rewards. States are pytrees of
arrays of fixed shapes, so a search can stop after any call and go on from a file.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from autoloss_jax import controller
from autoloss_jax.controller import ControllerConfig
from autoloss_jax.errors import AutolossError
from autoloss_jax.language.grammar import START, sample_tokens
from autoloss_jax.language.mutations import MUTATIONS, are_complete, replace_subtree

LEAST_TOKENS = 4
"""Shorter losses cannot hold both a score and a label: `mean_i(s_i * y_i)` has four."""


class Proposer(NamedTuple):
    """A way to propose losses; every function is pure and every state a pytree of arrays."""

    init: Callable[[int], Any]
    """From a seed, 0 to 2**32 - 1, to the first state; the same seed proposes the same losses."""

    propose: Callable[[Any, int], tuple[Any, np.ndarray]]
    """From a state and a count to the next state and tokens i32[count, max_tokens], complete losses
    with START after their ends."""

    observe: Callable[[Any, np.ndarray, np.ndarray], tuple[Any, dict[str, float]]]
    """From a state, complete losses i32[count, max_tokens], proposed or not, and their rewards
    f64[count] to the next state and what to log. A reward that is not finite stands for a loss that
    was rejected or failed: the worst there is."""


class RandomState(NamedTuple):
    """Where a sequence of random numbers stands."""

    seed: np.ndarray  # u32[]
    step: np.ndarray  # i32[]: how many batches were proposed


def _random_state(seed: int) -> RandomState:
    return RandomState(np.asarray(seed, np.uint32), np.asarray(0, np.int32))


def _sample(seed: np.ndarray, step: np.ndarray, count: int, max_tokens: int) -> np.ndarray:
    """Batch number `step` of losses by the prior."""
    key = jax.random.fold_in(jax.random.key(int(seed)), int(step))
    return np.asarray(sample_tokens(key, count, max_tokens).tokens)


def random_proposer(*, max_tokens: int = 24, **settings: Any) -> Proposer:
    """Draws every loss by the grammar's prior and learns nothing: the yardstick. No settings."""
    _check_names(settings, ())

    def propose(state: RandomState, count: int) -> tuple[RandomState, np.ndarray]:
        tokens = _sample(state.seed, state.step, count, max_tokens)
        return state._replace(step=np.asarray(state.step + 1)), tokens

    def observe(
        state: RandomState, tokens: np.ndarray, rewards: np.ndarray
    ) -> tuple[RandomState, dict[str, float]]:
        del tokens, rewards
        return state, {}

    return _checked(Proposer(_random_state, propose, observe), max_tokens)


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

    random: RandomState
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


def _breed(
    state: EvolutionState, count: int, max_tokens: int, config: EvolutionConfig
) -> np.ndarray:
    """`count` legal children, new ones as far as that succeeds within a few attempts."""
    seed, step = state.random
    rng = np.random.default_rng([int(seed), int(step)])
    donors = _sample(seed, step, count, max_tokens)
    children = donors.copy()  # who never succeeds stays a random loss
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


def evolution_proposer(*, max_tokens: int = 24, **settings: Any) -> Proposer:
    """Regularised evolution (Real et al., AAAI 2019) with typed mutations.

    The first losses are drawn by the prior, until the population is full. Then children of
    tournament winners take the places of the oldest. `settings` are those of EvolutionConfig.
    """
    config = _config(EvolutionConfig, settings)

    def init(seed: int) -> EvolutionState:
        return EvolutionState(
            random=_random_state(seed),
            tokens=np.full((config.population, max_tokens), START, np.int32),
            rewards=np.full(config.population, -np.inf),
            births=np.zeros(config.population, np.int64),
        )

    def propose(state: EvolutionState, count: int) -> tuple[EvolutionState, np.ndarray]:
        seed, step = state.random
        if np.all(state.births > 0):
            tokens = _breed(state, count, max_tokens, config)
        else:
            tokens = _sample(seed, step, count, max_tokens)
        return state._replace(random=RandomState(seed, np.asarray(step + 1))), tokens

    def observe(
        state: EvolutionState, tokens: np.ndarray, rewards: np.ndarray
    ) -> tuple[EvolutionState, dict[str, float]]:
        born = np.flatnonzero(np.isfinite(rewards))
        numbers = state.births.max() + 1 + np.arange(born.size)
        everyone = (
            np.concatenate([state.tokens, tokens[born]]),
            np.concatenate([state.rewards, rewards[born]]),
            np.concatenate([state.births, numbers]),
        )
        youngest = np.argsort(-everyone[2], kind="stable")[: config.population]
        state = EvolutionState(state.random, *(x[youngest] for x in everyone))
        living = state.rewards[state.births > 0]
        if not living.size:
            return state, {"living": 0.0}
        return state, {"living": float(living.size), "living_mean": float(living.mean())}

    return _checked(Proposer(init, propose, observe), max_tokens)


def controller_proposer(*, max_tokens: int = 24, **settings: Any) -> Proposer:
    """The LSTM controller; `settings` are those of ControllerConfig."""
    config = _config(ControllerConfig, settings)
    return _checked(
        Proposer(
            partial(controller.init, max_tokens=max_tokens, config=config),
            partial(controller.propose, config=config),
            partial(controller.observe, config=config),
        ),
        max_tokens,
    )


def _check_names(settings: Iterable[str], known: Sequence[str]) -> None:
    for name in settings:
        if name not in known:
            raise AutolossError(
                f"unknown proposer setting '{name}', expected {_one_of(known) if known else 'none'}"
            )


def _config(kind: type, settings: dict[str, Any]) -> Any:
    _check_names(settings, [field.name for field in fields(kind)])
    return kind(**settings)


def _one_of(names: Iterable[str]) -> str:
    return f"one of {', '.join(names)}"


def _checked(proposer: Proposer, max_tokens: int) -> Proposer:
    """The same proposer, with its input checked and what is common to all logged."""
    if max_tokens < LEAST_TOKENS:
        raise AutolossError(f"expected max_tokens of at least {LEAST_TOKENS}, got {max_tokens}")

    def init(seed: int) -> Any:
        if not 0 <= seed < 2**32:
            raise AutolossError(f"expected a seed from 0 to 2**32 - 1, got {seed}")
        return proposer.init(seed)

    def propose(state: Any, count: int) -> tuple[Any, np.ndarray]:
        if count < 1:
            raise AutolossError(f"expected to propose at least 1 loss, got {count}")
        return proposer.propose(state, count)

    def observe(
        state: Any, tokens: np.ndarray, rewards: np.ndarray
    ) -> tuple[Any, dict[str, float]]:
        tokens, rewards = np.asarray(tokens, np.int32), np.asarray(rewards, np.float64)
        if rewards.ndim != 1 or not rewards.size or tokens.shape != (rewards.size, max_tokens):
            raise AutolossError(
                f"expected tokens [count, {max_tokens}] and rewards [count] of at least one loss, "
                f"got {tokens.shape} and {rewards.shape}"
            )
        wrong = np.flatnonzero(~np.asarray(are_complete(tokens)))
        if wrong.size:
            raise AutolossError(
                f"row {wrong[0]} of the observed tokens is not a complete loss of the search "
                f"grammar: {tokens[wrong[0]].tolist()}"
            )
        finite = rewards[np.isfinite(rewards)]
        metrics = {"failed": 1.0 - finite.size / rewards.size}
        if finite.size:
            metrics |= {"reward_mean": float(finite.mean()), "reward_max": float(finite.max())}
        state, learned = proposer.observe(
            state, tokens, np.where(np.isfinite(rewards), rewards, -np.inf)
        )
        return state, metrics | learned

    return Proposer(init, propose, observe)


PROPOSERS: dict[str, Callable[..., Proposer]] = {
    "random": random_proposer,
    "evolution": evolution_proposer,
    "controller": controller_proposer,
}
"""Every proposer by name."""


def make_proposer(name: str, *, max_tokens: int = 24, **settings: Any) -> Proposer:
    """A proposer by its name.

    Args:
      name: one of PROPOSERS.
      max_tokens: the length of the longest loss, at least 4.
      **settings: fields of EvolutionConfig or ControllerConfig; "random" has none.

    Raises:
      AutolossError: an unknown name or setting, or one out of its range.
    """
    if name not in PROPOSERS:
        raise AutolossError(f"unknown proposer '{name}', expected {_one_of(PROPOSERS)}")
    return PROPOSERS[name](max_tokens=max_tokens, **settings)
