"""The controller: an LSTM that writes losses token by token, trained by policy gradients.

Every token is drawn from `softmax(network + log prior)` over the legal tokens of the search
grammar. The network's last layer starts at zero, so that an untrained controller is random search
by the prior. It sees the parent and the sibling of the token to be written (Petersen et al., Deep
Symbolic Regression, ICLR 2021) and the level at which that stands.

Everything here is a pure function of a `ControllerState`, a pytree of arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array

from autoloss_jax.errors import AutolossError
from autoloss_jax.language.grammar import (
    START,
    VOCABULARY,
    GrammarState,
    Level,
    advance,
    legal_tokens,
    log_prior,
    start,
)

_LARGEST_ADVANTAGE = 5.0


@dataclass(frozen=True)
class ControllerConfig:
    """Settings of the controller.

    Attributes:
      hidden: units of the LSTM.
      embedding: size of the embeddings of parent and sibling.
      learning_rate: Adam's.
      updates: gradient steps for each batch of rewards.
      max_gradient_norm: larger gradients are scaled down to it.
      entropy_weight: how much the entropy of the choices counts beside their rewards.
      entropy_decay: how much the entropy at a position counts beside that at the one before; below
        1 the first tokens, which decide the most, stay open the longest (Landajuela et al., 2021).
      estimator: one of ESTIMATORS.
      baseline_decay: of the moving average that "reinforce" compares rewards with.
      elite: the share of a batch that "risk_seeking" learns from.
      queue_size: how many of the best losses so far the priority queue holds.
      queue_weight: how much imitating them counts beside the policy gradient.
    """

    hidden: int = 64
    embedding: int = 16
    learning_rate: float = 5e-3
    updates: int = 4
    max_gradient_norm: float = 1.0
    entropy_weight: float = 0.3
    entropy_decay: float = 0.95
    estimator: str = "risk_seeking_with_queue"
    baseline_decay: float = 0.8
    elite: float = 0.1
    queue_size: int = 10
    queue_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise AutolossError(
                f"unknown estimator '{self.estimator}', expected one of {', '.join(ESTIMATORS)}"
            )
        bounds = {  # inclusive
            "hidden": (1, None), "embedding": (1, None), "updates": (1, None),
            "queue_size": (1, None), "learning_rate": (0.0, None),
            "max_gradient_norm": (0.0, None), "entropy_weight": (0.0, None),
            "queue_weight": (0.0, None), "entropy_decay": (0.0, 1.0),
            "baseline_decay": (0.0, 1.0), "elite": (0.0, 1.0),
        }  # fmt: skip
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            # The comparison is so written that NaN fails it.
            if not (value >= least and (most is None or value <= most) and value < np.inf):
                limit = f"at least {least}" if most is None else f"from {least} to {most}"
                raise AutolossError(f"controller setting {name}: expected {limit}, got {value}")


class _Network(nn.Module):
    """One step of the LSTM: what is known of the next token, to a logit for each."""

    hidden: int
    embedding: int

    @nn.compact
    def __call__(
        self, carry: tuple[Array, Array], parent: Array, sibling: Array, level: Array
    ) -> tuple[tuple[Array, Array], Array]:
        count = len(VOCABULARY)
        known = [
            nn.Embed(count + 1, self.embedding, name="parent")(parent),
            nn.Embed(count + 1, self.embedding, name="sibling")(sibling),
            jax.nn.one_hot(level, len(Level)),
        ]
        carry, output = nn.OptimizedLSTMCell(self.hidden)(carry, jnp.concatenate(known, -1))
        return carry, nn.Dense(count, kernel_init=nn.initializers.zeros)(output)


class ControllerState(NamedTuple):
    """What the controller knows; `queue_*` are ordered by reward, empty places last."""

    params: Any  # of the network
    optimizer: Any
    key: np.ndarray  # u32[...]: key data; proposal number `step` folds its number in
    step: np.ndarray  # i32[]: how many batches were proposed
    baseline: np.ndarray  # f64[]: moving average of the mean reward, NaN before the first
    queue_tokens: np.ndarray  # i32[queue_size, max_tokens]
    queue_rewards: np.ndarray  # f64[queue_size], -inf where empty


class Sample(NamedTuple):
    """A batch of losses as the controller wrote them."""

    tokens: Array  # i32[count, max_tokens], START after the end
    log_probability: Array  # f32[count]


class Likelihood(NamedTuple):
    """How the controller sees given losses; 0 after their ends."""

    log_probability: Array  # f32[count, max_tokens]: of each token, given those before it
    entropy: Array  # f32[count, max_tokens]: of the choice of each token, in nats


def _network(config: ControllerConfig) -> _Network:
    return _Network(config.hidden, config.embedding)


def _optimizer(config: ControllerConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(config.learning_rate)
    )


def _start_carry(config: ControllerConfig) -> tuple[Array, Array]:
    return jnp.zeros(config.hidden), jnp.zeros(config.hidden)


def _choice(
    params: Any, carry: tuple[Array, Array], state: GrammarState, config: ControllerConfig
) -> tuple[tuple[Array, Array], Array]:
    """The log-probabilities f32[tokens] of the next token, -inf for illegal ones."""
    top = state.open - 1
    known = (state.parents[top], state.siblings[top], state.levels[top])
    output: Any = _network(config).apply(params, carry, *known)
    carry, logits = output
    logits = jnp.where(legal_tokens(state), logits + log_prior(state), -jnp.inf)
    return carry, jax.nn.log_softmax(logits)


@partial(jax.jit, static_argnames=("count", "max_tokens", "config"))
def sample(
    params: Any, key: Array, *, count: int, max_tokens: int, config: ControllerConfig
) -> Sample:
    """Draws `count` losses, each with its log-probability."""

    def write(carry: Any, key: Array) -> tuple[Any, tuple[Array, Array]]:
        memory, state = carry
        memory, log_p = _choice(params, memory, state, config)
        token = jax.random.categorical(key, log_p)
        is_open = state.open > 0
        written = (jnp.where(is_open, token, START), jnp.where(is_open, log_p[token], 0.0))
        return (memory, advance(state, token)), written

    def one(key: Array) -> Sample:
        begin = (_start_carry(config), start(max_tokens))
        _, (tokens, log_p) = jax.lax.scan(write, begin, jax.random.split(key, max_tokens))
        return Sample(tokens.astype(jnp.int32), jnp.sum(log_p))

    return jax.vmap(one)(jax.random.split(key, count))


@partial(jax.jit, static_argnames="config")
def likelihood(params: Any, tokens: Array, *, config: ControllerConfig) -> Likelihood:
    """How likely the controller is to write complete losses, tokens i32[count, max_tokens]."""

    def read(carry: Any, token: Array) -> tuple[Any, tuple[Array, Array]]:
        memory, state = carry
        memory, log_p = _choice(params, memory, state, config)
        legal = log_p > -jnp.inf
        information = jnp.where(legal, jnp.exp(log_p) * jnp.where(legal, log_p, 0.0), 0.0)
        is_open = state.open > 0
        token = jnp.minimum(token, len(VOCABULARY) - 1)  # START indexes nothing
        chosen = jnp.where(is_open, log_p[token], 0.0)
        entropy = jnp.where(is_open, -jnp.sum(information), 0.0)
        return (memory, advance(state, token)), (chosen, entropy)

    def one(tokens: Array) -> Likelihood:
        begin = (_start_carry(config), start(tokens.shape[0]))
        return Likelihood(*jax.lax.scan(read, begin, tokens)[1])

    return jax.vmap(one)(tokens)


def init(seed: int, *, max_tokens: int, config: ControllerConfig) -> ControllerState:
    """A controller that knows nothing but the prior: what it proposes first, before it has learned,
    is what `sample_batch` draws for the seed, so that proposers begin alike and compare."""
    propose_key = jax.random.key(seed)
    init_key, _ = jax.random.split(propose_key)
    nothing = jnp.int32(START)
    params = _network(config).init(
        init_key, _start_carry(config), nothing, nothing, jnp.int32(Level.QUERY)
    )
    return ControllerState(
        params=params,
        optimizer=_optimizer(config).init(params),
        key=np.asarray(jax.random.key_data(propose_key)),
        step=np.asarray(0, np.int32),
        baseline=np.asarray(np.nan),
        queue_tokens=np.full((config.queue_size, max_tokens), START, np.int32),
        queue_rewards=np.full(config.queue_size, -np.inf),
    )


def propose(
    state: ControllerState, count: int, *, config: ControllerConfig
) -> tuple[ControllerState, np.ndarray]:
    """Draws tokens i32[count, max_tokens] from the controller."""
    key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(state.key)), int(state.step))
    max_tokens = state.queue_tokens.shape[1]
    drawn = sample(state.params, key, count=count, max_tokens=max_tokens, config=config)
    return state._replace(step=np.asarray(state.step + 1)), np.asarray(drawn.tokens)


def _reinforce(rewards: np.ndarray, baseline: float, config: ControllerConfig) -> np.ndarray:
    """Williams (1992): every loss by how much it is better than the losses of late."""
    del config
    advantages = np.clip(rewards - baseline, -_LARGEST_ADVANTAGE, _LARGEST_ADVANTAGE)
    return advantages / rewards.size


def _risk_seeking(rewards: np.ndarray, baseline: float, config: ControllerConfig) -> np.ndarray:
    """Petersen et al. (2021): the best of the batch, by how much they exceed its quantile."""
    del baseline
    excess = np.maximum(rewards - np.quantile(rewards, 1.0 - config.elite), 0.0)
    return excess / max(1.0, config.elite * rewards.size)


def _imitation_only(rewards: np.ndarray, baseline: float, config: ControllerConfig) -> np.ndarray:
    """Abolafia et al. (2018): learns from the priority queue alone."""
    del baseline, config
    return np.zeros_like(rewards)


class Estimator(NamedTuple):
    """How rewards become the weights of log-probabilities.

    `advantages` takes standardised rewards f64[count], the baseline on the same scale and the
    settings, and returns f64[count].
    """

    advantages: Callable[[np.ndarray, float, ControllerConfig], np.ndarray]
    imitates: bool  # the best so far, the priority queue


ESTIMATORS: dict[str, Estimator] = {
    "reinforce": Estimator(_reinforce, False),
    "risk_seeking": Estimator(_risk_seeking, False),
    "priority_queue": Estimator(_imitation_only, True),
    "risk_seeking_with_queue": Estimator(_risk_seeking, True),
}
"""Every policy gradient by its name in ControllerConfig."""


def standardise(rewards: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Rewards on the scale of their batch, failures made comparable.

    What is not finite gets the lowest finite reward less a margin, the standard deviation of the
    finite ones but at least 1% of the larger of 1 and their largest size. Then the mean is
    subtracted and the result divided by the standard deviation.

    Args:
      rewards: f64[count], at least one of them finite.

    Returns:
      f64[count], the mean and the deviation; a constant batch gives zeros and a deviation of 1.
    """
    finite = np.isfinite(rewards)
    known = rewards[finite]
    margin = max(float(known.std()), 0.01 * max(1.0, float(np.abs(known).max())))
    filled = np.where(finite, rewards, known.min() - margin)
    mean, deviation = float(filled.mean()), float(filled.std())
    # Of equal rewards the deviation is rounding, not zero.
    if deviation <= 1e-9 * max(1.0, abs(mean)):
        return np.zeros_like(filled), mean, 1.0
    return (filled - mean) / deviation, mean, deviation


def merge_queue(
    state: ControllerState, tokens: np.ndarray, rewards: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The queue's tokens and rewards after a batch: the best of both, ordered by reward.

    Of a loss that comes again the latest reward counts, so that no lucky measurement stays. Of
    losses with exactly the same reward, which are one loss written in several ways, only the
    shortest stays, so that the queue holds different ones.
    """
    tokens = np.concatenate([tokens, state.queue_tokens])
    rewards = np.concatenate([rewards, state.queue_rewards])
    _, newest = np.unique(tokens, axis=0, return_index=True)
    newest = np.sort(newest[np.isfinite(rewards[newest])])
    length = np.sum(tokens[newest] != START, axis=1)
    ordered = newest[np.lexsort((newest, length, -rewards[newest]))]
    _, first = np.unique(-rewards[ordered], return_index=True)
    best = ordered[first][: state.queue_rewards.size]
    queue_tokens = np.full_like(state.queue_tokens, START)
    queue_rewards = np.full_like(state.queue_rewards, -np.inf)
    queue_tokens[: best.size] = tokens[best]
    queue_rewards[: best.size] = rewards[best]
    return queue_tokens, queue_rewards


@partial(jax.jit, static_argnames="config")
def _update(
    params: Any,
    optimizer: Any,
    tokens: Array,
    weights: Array,
    entropy_weights: Array,
    *,
    config: ControllerConfig,
) -> tuple[Any, Any, dict[str, Array]]:
    """Gradient steps on `-sum(weights * log p) - entropy_weight * sum(entropy_weights * entropy)`.

    All losses of tokens [losses, max_tokens] must be complete, those of weight 0 too.
    """
    decay = config.entropy_decay ** jnp.arange(tokens.shape[1])

    def objective(params: Any) -> tuple[Array, dict[str, Array]]:
        seen = likelihood(params, tokens, config=config)
        entropy = entropy_weights @ (seen.entropy @ decay)
        loss = -(weights @ jnp.sum(seen.log_probability, -1)) - config.entropy_weight * entropy
        return loss, {"loss": loss, "entropy": entropy}

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], dict[str, Array]]:
        params, optimizer = carry
        gradients, metrics = jax.grad(objective, has_aux=True)(params)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        changes, optimizer = _optimizer(config).update(gradients, optimizer, params)
        return (optax.apply_updates(params, changes), optimizer), metrics

    (params, optimizer), metrics = jax.lax.scan(
        step, (params, optimizer), None, length=config.updates
    )
    return params, optimizer, jax.tree.map(lambda x: x[0], metrics)


def observe(
    state: ControllerState, tokens: np.ndarray, rewards: np.ndarray, *, config: ControllerConfig
) -> tuple[ControllerState, dict[str, float]]:
    """Learns from rewards f64[count] of complete losses i32[count, max_tokens].

    Rewards that are not finite stand for failures (see `standardise`); if all failed, nothing is
    learned. Returns the new state and, of the first gradient step, loss, entropy and gradient norm.
    """
    if not np.isfinite(rewards).any():
        return state, {}
    estimator = ESTIMATORS[config.estimator]
    standard, mean, deviation = standardise(rewards)
    baseline = mean if np.isnan(state.baseline) else float(state.baseline)
    advantages = estimator.advantages(standard, (baseline - mean) / deviation, config)
    queue_tokens, queue_rewards = merge_queue(state, tokens, rewards)
    weight = config.queue_weight if estimator.imitates else 0.0
    filled = queue_rewards > -np.inf
    weights = np.concatenate([advantages, weight * filled / filled.sum()])
    entropy_weights = np.repeat([1.0 / rewards.size, 0.0], [rewards.size, filled.size])
    params, optimizer, metrics = _update(
        state.params,
        state.optimizer,
        # Empty places hold no loss that could be read, so the best one stands there, at weight 0.
        np.concatenate([tokens, np.where(filled[:, None], queue_tokens, queue_tokens[0])]),
        weights.astype(np.float32),
        entropy_weights.astype(np.float32),
        config=config,
    )
    decay = config.baseline_decay
    state = state._replace(
        params=params,
        optimizer=optimizer,
        baseline=np.asarray(decay * baseline + (1.0 - decay) * mean),
        queue_tokens=queue_tokens,
        queue_rewards=queue_rewards,
    )
    logged = {name: float(value) for name, value in metrics.items()}
    return state, logged | {"queue_best": float(queue_rewards[0])}
