"""The rounds of a search: a proposer and the proxy models it learns from improve in turns.

propose -> canonicalise, deduplicate -> screen -> train in rungs -> reward -> observe -> record
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from autoloss_jax import canaries, processes
from autoloss_jax.candidates import Candidates, Judgement
from autoloss_jax.checkpoints import decode_state, encode_state
from autoloss_jax.data import TRANSFORMS, ListBatch, Queries
from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.programs import encode
from autoloss_jax.files import write_json
from autoloss_jax.finalists import Finalist, evaluated_again, winners_curse
from autoloss_jax.language.constants import with_scaled_constants
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.grammar import from_tokens
from autoloss_jax.language.parsing import parse
from autoloss_jax.language.simplification import simplify
from autoloss_jax.losses import HAND_DESIGNED, resolve_loss
from autoloss_jax.metrics import MetricPerQuery, metric_name
from autoloss_jax.models import make_model
from autoloss_jax.profile import Profile
from autoloss_jax.proposers import known_losses, make_proposer
from autoloss_jax.proxy import Outcome, ProxyConfig, ProxyRound, ProxyTraining
from autoloss_jax.runs import FINALISTS_FILE, RunFolder
from autoloss_jax.screening import make_probe
from autoloss_jax.training import RunState

SCHEDULES = ("from_scratch", "alternating")
BARREN_ROUNDS = 100
"""After so many rounds without a loss to train, a search ends before its budget."""
CHECKPOINTS = "search"
"""The folder of a search's checkpoints, among those of the run."""
CANARY_QUERIES = 10_000
"""The canaries of a search look at about so many of its queries."""
TUNED = 8
"""Of so many of the best losses the numbers are tuned."""
TUNING_FACTORS = (0.5, 2.0)
_TRAINED = ("trained", "failed")  # the statuses of what was trained


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search.

    Attributes:
      budget: how many candidates are trained, at least; the round that reaches it is finished.
      proposer: a name of PROPOSERS.
      schedule: "from_scratch": every round starts from fresh weights, the same ones, so all
        rewards of a search compare. "alternating": models and proposer advance in turns: a round
        starts from the current models, which then go on under the round's best loss, until that no
        longer improves them; then fresh ones take their place.
      model: a name of MODELS.
      features: how features are scaled, a name of TRANSFORMS.
      seed: of everything random.
      reference: the loss that rewards are measured against, a name or a formula.
      proposals: losses proposed a round.
      max_tokens: of the longest loss.
      warm_start: whether the first round proposes the hand-designed losses too, as far as they are
        in the search grammar, so that the search begins with what is known.
      tuning_rounds: rounds after the budget in which the numbers in the best formulas are halved
        and doubled, one at a time.
      hall_of_fame: how many candidates are evaluated again, on fresh seeds, at the end.
      fresh_seeds: on how many.
      finalists: how many of them go on to the effectiveness test.
      proxy: how candidates are trained.
    """

    budget: int = 1000
    proposer: str = "hybrid"
    schedule: str = "from_scratch"
    model: str = "mlp"
    features: str = "standardize"
    seed: int = 0
    reference: str = "softmax"
    proposals: int = 128
    max_tokens: int = 24
    warm_start: bool = False
    tuning_rounds: int = 0
    hall_of_fame: int = 24
    fresh_seeds: int = 4
    finalists: int = 5
    proxy: ProxyConfig = field(default_factory=ProxyConfig)

    def check(self) -> None:
        """Raises AutolossError for a setting out of range, naming it."""
        if self.schedule not in SCHEDULES:
            raise AutolossError(
                f"unknown schedule {self.schedule!r}; expected one of {', '.join(SCHEDULES)}"
            )
        if not 0 <= self.seed < 2**31:
            raise AutolossError(f"seed is {self.seed}, expected 0 to 2**31 - 1")
        if self.features not in TRANSFORMS:
            raise AutolossError(
                f"unknown features {self.features!r}; expected one of {', '.join(TRANSFORMS)}"
            )
        make_model(self.model)
        make_proposer(self.proposer, max_tokens=self.max_tokens)
        try:
            encode([resolve_loss(self.reference)])
        except AutolossError as error:
            raise AutolossError(f"reference is refused: {error}") from error
        self.proxy.check()
        for name in ("budget", "proposals", "hall_of_fame", "fresh_seeds", "finalists"):
            if getattr(self, name) < 1:
                raise AutolossError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.tuning_rounds < 0:
            raise AutolossError(f"tuning_rounds is {self.tuning_rounds}, expected at least 0")


class SearchResult(NamedTuple):
    """What a search found: finalists, the best first, and the ledger's records."""

    finalists: list[Finalist]
    records: list[dict[str, Any]]


class Progress(NamedTuple):
    """What a search reports after each round."""

    trained: int
    budget: int
    round: int
    best_formula: str
    best_reward: float
    metrics: dict[str, float]


class _Tried(NamedTuple):
    """What became of the losses of a round."""

    losses: list[Expression]  # canonical
    judged: dict[Expression, Judgement]
    trained: dict[Expression, dict[str, Any]]  # what the ledger says of those that were trained
    seconds: float


class SearchRounds:
    """A search in progress: what is known, and how a round changes it."""

    def __init__(
        self, queries: Queries, config: SearchConfig, model: nn.Module,
        metric: MetricPerQuery | None, folder: RunFolder | None, placement: str,
        profile: Profile | None,
    ) -> None:  # fmt: skip
        self.config = config
        self.folder = folder
        self.profile = profile or Profile()
        self.reference = resolve_loss(config.reference)
        capacity = max(config.proposals, config.hall_of_fame)
        self.metric = metric
        self.proxy = ProxyTraining(
            queries, model, self.reference, config.proxy, capacity, config.seed, placement, metric,
            self.profile,
        )  # fmt: skip
        self.proposer = make_proposer(config.proposer, max_tokens=config.max_tokens)
        self.proposer_state = self.proposer.init(config.seed)
        self.rounds = self.tuning_rounds = 0
        self.candidates = Candidates(make_probe(queries, config.seed), self.profile, metric)
        self.records: list[dict[str, Any]] = []
        # The models of the alternating schedule, how good they are, and how many came before.
        self.models: RunState | None = None
        self.models_ndcg = -np.inf
        self.lifetime = 0
        self.canaries_passed = False

    @property
    def trained(self) -> int:
        """Candidates trained so far."""
        return sum(record["status"] in _TRAINED for record in self.records)

    @property
    def barren_rounds(self) -> int:
        """Rounds since one trained a candidate."""
        fruitful = (r["round"] for r in reversed(self.records) if r["status"] in _TRAINED)
        return self.rounds - 1 - next(fruitful, -1)

    # --- one round ---

    def next_round(self) -> Callable[[], Progress] | None:
        """What is to be done next; None when all rounds are done."""
        barren = self.barren_rounds >= BARREN_ROUNDS
        if not self.tuning_rounds and self.trained < self.config.budget and not barren:
            return self.propose
        if self.tuning_rounds < self.config.tuning_rounds:
            return self.tune
        if self.trained < self.config.budget:
            logging.warning(
                "stopped after %d of %d candidates: %d rounds in a row proposed no new loss",
                self.trained, self.config.budget, BARREN_ROUNDS,
            )  # fmt: skip
        return None

    def propose(self) -> Progress:
        """Tries what the proposer proposes, which learns from it."""
        started = time.monotonic()
        with self.profile.stage("sampling"):
            proposer_state, tokens = self.proposer.propose(
                self.proposer_state, self.config.proposals
            )
            if self.config.warm_start and not self.rounds:
                known = known_losses(self.config.max_tokens)[: len(tokens)]
                tokens = np.concatenate([known, tokens[len(known) :]])
            losses = [from_tokens(row) for row in tokens]
        tried = self._try(losses, started)
        rewards = np.array([self.candidates.reward(loss) for loss in tried.losses])
        with self.profile.stage("update"):
            self.proposer_state, metrics = self.proposer.observe(proposer_state, tokens, rewards)
        self._record(tried)
        return self._progress(metrics, tried.seconds)

    def tune(self) -> Progress:
        """Tries the best losses with other numbers in them."""
        started = time.monotonic()
        losses = [
            changed
            for record in self._best_first()[:TUNED]
            for changed in with_scaled_constants(parse(record["formula"]), TUNING_FACTORS)
        ]
        tried = self._try(losses[: self.config.proposals], started)
        self.tuning_rounds += 1
        self._record(tried)
        return self._progress({}, tried.seconds)

    def _try(self, losses: Sequence[Expression], started: float) -> "_Tried":
        """Judges, trains and rewards losses."""
        with self.profile.stage("deduplication"):
            losses = [simplify(loss) for loss in losses]
            judged = self.candidates.judge(losses)
        fresh = [loss for loss, judgement in judged.items() if not judgement.status]
        processes.agree(f"list of candidates in round {self.rounds}", [str(x) for x in fresh])
        outcomes = self._train(fresh).outcomes if fresh else []
        self.profile.trained += len(fresh)
        seconds = time.monotonic() - started
        trained = {
            loss: _trained(outcome, seconds / len(fresh), self.metric is not None)
            for loss, outcome in zip(fresh, outcomes, strict=True)
        }
        self.candidates.learn({loss: o.reward for loss, o in zip(fresh, outcomes, strict=True)})
        self.candidates.share(judged)
        return _Tried(losses, judged, trained, seconds)

    def _train(self, fresh: list[Expression]) -> ProxyRound:
        """Trains a round's losses, from where the schedule says."""
        alternating = self.config.schedule == "alternating"
        seed = self.config.seed + (self.rounds if alternating else 0)
        if alternating and self.models is None:
            self.models = self.proxy.fresh(self.config.seed + self.lifetime)
        result = self.proxy.run(fresh, seed, start=self.models if alternating else None)
        if not self.canaries_passed:
            self.check_model(result.reference)
        if alternating:
            best = max([o.ndcg for o in result.outcomes
                        if o.steps == self.proxy.full_steps and np.isfinite(o.ndcg)]
                       + [result.reference_ndcg])  # fmt: skip
            if best > self.models_ndcg:
                self.models, self.models_ndcg = result.best, best
            else:
                self.models, self.models_ndcg = None, -np.inf
                self.lifetime += 1
        return result

    def _record(self, tried: "_Tried") -> None:
        """Writes the ledger's records of a round, one a proposal, and a checkpoint."""
        losses, judged, trained, _ = tried
        entries = []
        for index, loss in enumerate(losses, len(self.records)):
            reward = self.candidates.reward(loss)
            entry = {
                "index": index,
                "round": self.rounds,
                "formula": str(loss),
                **judged[loss]._asdict(),
                "reward": reward if np.isfinite(reward) else None,
                "reward_se": None,
                "ndcg": None,
                "steps": 0,
                "seconds": 0.0,
            }
            # The same formula again, in the same round, is a duplicate of the first.
            entries.append(entry | trained.pop(loss, {}))
            judged[loss] = Judgement("duplicate", "seen before")
        self.records += entries
        self.rounds += 1
        if self.folder is not None:
            self.folder.append(entries)
            self.folder.checkpoints(CHECKPOINTS).save(self.rounds, self._state())

    def _fully_trained(self) -> list[dict[str, Any]]:
        """The records of the candidates that passed every rung: only their rewards compare."""
        return [
            r for r in self.records
            if r["status"] == "trained" and r["steps"] == self.proxy.full_steps
        ]  # fmt: skip

    def _best_first(self) -> list[dict[str, Any]]:
        """Those records by a lower confidence bound."""
        return sorted(self._fully_trained(), key=lambda r: (-_confident(r), r["index"]))

    def _progress(self, metrics: dict[str, float], seconds: float) -> Progress:
        full = self._fully_trained()
        best: dict[str, Any] = max(full, key=_confident, default={"formula": "", "reward": -np.inf})
        counts = {s: sum(r["status"] == s and r["round"] == self.rounds - 1 for r in self.records)
                  for s in ("trained", "duplicate", "rejected", "failed")}  # fmt: skip
        return Progress(
            self.trained, self.config.budget, self.rounds, best["formula"], best["reward"],
            metrics | {"seconds": seconds} | counts,
        )  # fmt: skip

    # --- stopping and going on ---

    def _state(self) -> dict[str, Any]:
        models = self.models if self.models is not None else self.proxy.fresh(self.config.seed)
        return {
            "records": len(self.records),
            "tuning_rounds": self.tuning_rounds,
            "proposer": self.proposer_state,
            "models": jax.tree.map(np.asarray, models),
            "has_models": self.models is not None,
            "models_ndcg": float(self.models_ndcg),
            "lifetime": self.lifetime,
        }

    def resume(self) -> None:
        """Goes on from the folder's last checkpoint, if there is one."""
        saved = processes.from_first(self._read_saved)
        if saved is None:
            return
        state = decode_state(saved["state"], self._state())
        self.rounds, self.records = saved["round"], saved["records"]
        self.tuning_rounds = int(state["tuning_rounds"])
        self.proposer_state = state["proposer"]
        self.models = jax.tree.map(jnp.asarray, state["models"]) if state["has_models"] else None
        self.models_ndcg, self.lifetime = float(state["models_ndcg"]), int(state["lifetime"])
        self.candidates.restore(self.records)
        logging.info("resumed after round %d: %d candidates trained", self.rounds, self.trained)

    def _read_saved(self) -> dict[str, Any] | None:
        """What the folder knows of this search; what is not in a checkpoint is done again."""
        if self.folder is None:
            return None
        found = self.folder.checkpoints(CHECKPOINTS).latest(self._state())
        self.folder.truncate_ledger(0 if found is None else found[1]["records"])
        if found is None:
            return None
        return {
            "round": found[0],
            "state": encode_state(found[1]),
            "records": self.folder.read_ledger(),
        }

    # --- the end ---

    def finish(self) -> SearchResult:
        """Evaluates the hall of fame, without idle parts, on fresh seeds; names the finalists."""
        fame, rediscovered = self._hall_of_fame()
        losses = self.candidates.without_idle_parts([parse(r["formula"]) for r in fame])
        outcomes = [
            self.proxy.run(losses, 1_000_003 + self.config.seed + k, halving=False).outcomes
            for k in range(self.config.fresh_seeds)
        ]
        self.profile.trained += len(losses) * self.config.fresh_seeds
        again = evaluated_again(losses, fame, outcomes)
        curse, finalists = winners_curse(again), again[: self.config.finalists]
        if self.folder is not None:
            described = self._describe(finalists)
            described |= {"hall_of_fame": curse, "rediscovered": rediscovered}
            write_json(self.folder.path / FINALISTS_FILE, described)
        return SearchResult(finalists, self.records)

    def _hall_of_fame(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The best records, by a lower confidence bound, and the hand-designed losses among them.

        A loss whose gradient points where a hand-designed one's does is not a find.
        """
        best = self._best_first()[: self.config.hall_of_fame + len(HAND_DESIGNED)]
        equal = self.candidates.hand_designed([parse(record["formula"]) for record in best])
        fame = [record for record, name in zip(best, equal, strict=True) if name is None]
        rediscovered = [name for name in equal if name is not None]
        if rediscovered:
            logging.info("rediscovered among the best: %s", ", ".join(rediscovered))
        return fame[: self.config.hall_of_fame], rediscovered

    def _describe(self, finalists: list[Finalist]) -> dict[str, Any]:
        cutoff = self.config.proxy.metric_cutoff
        return {
            "finalists": [finalist.described() for finalist in finalists],
            "reference": self.config.reference,
            "metric": metric_name(self.metric) if self.metric else f"ndcg@{cutoff}",
            "empty": "skip",
            "learning_rate": self.proxy.learning_rate,
            "candidates_trained": self.trained,
        }  # fmt: skip

    # --- canaries ---

    def _canary_batches(self) -> list[ListBatch]:
        return [
            ListBatch(*(np.asarray(x)[:count] for x in batch))
            for batch, count in self.proxy.feed.lists(CANARY_QUERIES)
        ]

    def check_metric(self) -> None:
        """The canary that needs no model. Raises CanaryError."""
        canaries.check_constant_scores(self.proxy.metric, self._canary_batches())

    def check_model(self, reference: RunState) -> None:
        """The canaries of a trained model, the reference's. Raises CanaryError."""
        params = jax.tree.map(lambda x: x[0, 0], reference.params)
        score = partial(_score, self.proxy.training.model, params)
        batches = self._canary_batches()
        canaries.check_document_order(self.proxy.metric, score, batches)
        canaries.check_permuted_labels(self.proxy.metric, score, batches)
        self.canaries_passed = True
        logging.info("canaries passed: constant scores, document order, permuted labels")


@partial(jax.jit, static_argnums=0)  # operation by operation, each would be compiled by itself
def _score(model: nn.Module, params: Any, features: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.asarray(model.apply(params, features, mask))


def _confident(record: dict[str, Any]) -> float:
    """A lower confidence bound of a trained record's reward."""
    return record["reward"] - record["reward_se"]


def _trained(outcome: Outcome, seconds: float, own_metric: bool) -> dict[str, Any]:
    failed = not np.isfinite(outcome.reward)
    return {
        "status": "failed" if failed else "trained",
        "reason": outcome.reason,
        "reward": None if failed else outcome.reward,
        "reward_se": None if failed else outcome.reward_se,
        "metric" if own_metric else "ndcg": None if failed else outcome.ndcg,
        "steps": outcome.steps,
        "seconds": round(seconds, 4),
    }
