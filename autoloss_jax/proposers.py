"""What proposes losses to a search: random sampling, evolution, the controller, and a hybrid.

All speak one language, pairs of pure functions in the manner of optax: `propose` draws complete
losses of the search grammar as tokens, `observe` learns from their rewards. States are pytrees of
arrays of fixed shapes, so a search can stop after any call and go on from a file.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from autoloss_jax import controller, evolution
from autoloss_jax.controller import ControllerConfig, ControllerState
from autoloss_jax.errors import AutolossError
from autoloss_jax.evolution import EvolutionConfig, EvolutionState
from autoloss_jax.language.grammar import START, sample_batch, to_tokens
from autoloss_jax.language.mutations import are_complete
from autoloss_jax.losses import HAND_DESIGNED, LOSSES

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


def random_proposer(*, max_tokens: int = 24, **settings: Any) -> Proposer:
    """Draws every loss by the grammar's prior and learns nothing: the yardstick. No settings."""
    _check_names(settings, ())

    def init(seed: int) -> RandomState:
        return RandomState(np.asarray(seed, np.uint32), np.asarray(0, np.int32))

    def propose(state: RandomState, count: int) -> tuple[RandomState, np.ndarray]:
        tokens = sample_batch(int(state.seed), int(state.step), count, max_tokens)
        return state._replace(step=np.asarray(state.step + 1)), tokens

    def observe(
        state: RandomState, tokens: np.ndarray, rewards: np.ndarray
    ) -> tuple[RandomState, dict[str, float]]:
        del tokens, rewards
        return state, {}

    return _checked(Proposer(init, propose, observe), max_tokens)


def _learner(module: ModuleType, config: Any, max_tokens: int) -> Proposer:
    """The `init`, `propose` and `observe` of a module, under a configuration."""
    return _checked(
        Proposer(
            partial(module.init, max_tokens=max_tokens, config=config),
            partial(module.propose, config=config),
            partial(module.observe, config=config),
        ),
        max_tokens,
    )


def evolution_proposer(*, max_tokens: int = 24, **settings: Any) -> Proposer:
    """Regularised evolution; `settings` are those of EvolutionConfig.

    The first losses are drawn by the prior, until the population is full. Then children of
    tournament winners take the places of the oldest.
    """
    return _learner(evolution, _config(EvolutionConfig, settings), max_tokens)


def controller_proposer(*, max_tokens: int = 24, **settings: Any) -> Proposer:
    """The LSTM controller; `settings` are those of ControllerConfig."""
    return _learner(controller, _config(ControllerConfig, settings), max_tokens)


@dataclass(frozen=True)
class HybridConfig:
    """Settings of the hybrid.

    Attributes:
      controller: of the controller.
      evolution: of the evolution.
      bred: the share of each batch that evolution breeds; the controller writes the rest.
    """

    controller: ControllerConfig = field(default_factory=ControllerConfig)
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)
    bred: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.bred <= 1.0:
            raise AutolossError(f"hybrid setting bred: expected from 0 to 1, got {self.bred}")


class HybridState(NamedTuple):
    """Both have seen every loss and its reward."""

    controller: ControllerState
    evolution: EvolutionState


def hybrid_proposer(*, max_tokens: int = 24, **settings: Any) -> Proposer:
    """The controller and evolution, each learning from what the other found.

    In the manner of Mundhenk et al. (Symbolic Regression via Neural-Guided Genetic Programming
    Population Seeding, NeurIPS 2021): what the controller writes fills the population, and is what
    mutations and crossover draw new parts from; the children are rewarded beside its own losses,
    and the best of all are what it learns from. `settings` are those of HybridConfig.
    """
    config = _config(HybridConfig, settings)

    def init(seed: int) -> HybridState:
        return HybridState(
            controller.init(seed, max_tokens=max_tokens, config=config.controller),
            evolution.init(seed, max_tokens=max_tokens, config=config.evolution),
        )

    def propose(state: HybridState, count: int) -> tuple[HybridState, np.ndarray]:
        own = count - round(config.bred * count)
        writer, written = controller.propose(state.controller, count, config=config.controller)
        breeder, children = evolution.propose(
            state.evolution, count - own, config=config.evolution, donors=written[own:]
        )
        return HybridState(writer, breeder), np.concatenate([written[:own], children])

    def observe(
        state: HybridState, tokens: np.ndarray, rewards: np.ndarray
    ) -> tuple[HybridState, dict[str, float]]:
        writer, learned = controller.observe(
            state.controller, tokens, rewards, config=config.controller
        )
        breeder, bred = evolution.observe(state.evolution, tokens, rewards, config=config.evolution)
        return HybridState(writer, breeder), learned | bred

    return _checked(Proposer(init, propose, observe), max_tokens)


def _check_names(settings: Iterable[str], known: Sequence[str]) -> None:
    for name in settings:
        if name not in known:
            raise AutolossError(
                f"unknown proposer setting '{name}', expected {_one_of(known) if known else 'none'}"
            )


def _config(kind: type, settings: dict[str, Any]) -> Any:
    _check_names(settings, [f.name for f in fields(kind)])
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


def known_losses(max_tokens: int) -> np.ndarray:
    """The hand-designed losses of the search grammar, tokens i32[losses, max_tokens]."""
    rows = []
    for name in HAND_DESIGNED:
        try:
            tokens = to_tokens(LOSSES[name])
        except AutolossError:  # a number or a condition that a search does not draw
            continue
        if len(tokens) <= max_tokens:
            rows.append(tokens + [START] * (max_tokens - len(tokens)))
    table = np.array(rows, np.int32).reshape(-1, max_tokens)
    return table[np.asarray(are_complete(table))]


PROPOSERS: dict[str, Callable[..., Proposer]] = {
    "random": random_proposer,
    "evolution": evolution_proposer,
    "controller": controller_proposer,
    "hybrid": hybrid_proposer,
}
"""Every proposer by name."""


def make_proposer(name: str, *, max_tokens: int = 24, **settings: Any) -> Proposer:
    """A proposer by its name.

    Args:
      name: one of PROPOSERS.
      max_tokens: the length of the longest loss, at least 4.
      **settings: fields of EvolutionConfig, ControllerConfig or HybridConfig; "random" has none.

    Raises:
      AutolossError: an unknown name or setting, or one out of its range.
    """
    if name not in PROPOSERS:
        raise AutolossError(f"unknown proposer '{name}', expected {_one_of(PROPOSERS)}")
    return PROPOSERS[name](max_tokens=max_tokens, **settings)
