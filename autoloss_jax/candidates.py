"""The candidates of a search: what became of every formula that was proposed.

A formula is judged once. Its equals, by canonical form or by the direction of their gradient, share
its reward; formulas that cannot be a useful loss are refused before any model is trained.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.programs import unfit
from autoloss_jax.language.ablations import ablations
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.grammar import depends_on_data
from autoloss_jax.language.parsing import parse, parse_stored
from autoloss_jax.losses import HAND_DESIGNED, LOSSES
from autoloss_jax.metrics import MetricPerQuery
from autoloss_jax.profile import Profile
from autoloss_jax.screening import SAME_DIRECTION, Directions, Probe, Screening, screen


class Judgement(NamedTuple):
    """What became of a proposed loss, in the ledger's words; "" is one yet to be trained."""

    status: str
    reason: str


class Candidates:
    """Every formula proposed so far, with its reward: -inf for one rejected or failed."""

    def __init__(
        self, probe: Probe, profile: Profile | None = None, metric: MetricPerQuery | None = None
    ) -> None:
        """`metric`: what is rewarded, instead of NDCG."""
        self._probe, self._metric = probe, metric
        self._profile = profile or Profile()
        self._rewards: dict[Expression, float] = {}
        self._directions = Directions()

    def judge(self, losses: Sequence[Expression]) -> dict[Expression, Judgement]:
        """Judges canonical losses; those without a status are to be trained and then learned."""
        judged: dict[Expression, Judgement] = {}
        new: list[Expression] = []
        for loss in dict.fromkeys(losses):
            if loss in self._rewards:
                judged[loss] = Judgement("duplicate", "seen before")
                continue
            reason = _refusal(loss)
            judged[loss] = Judgement("rejected" if reason else "", reason)
            if not reason:
                new.append(loss)
        for loss, verdict in zip(new, self._screen(new), strict=True):
            twin = None if verdict.reason else self._directions.find(verdict.direction)
            if verdict.reason:
                judged[loss] = Judgement("rejected", verdict.reason)
            elif twin is not None:
                judged[loss] = Judgement("duplicate", _SAME + twin)
            else:
                self._directions.add(str(loss), verdict.direction)
        for loss, judgement in judged.items():
            if judgement.status == "rejected":
                self._rewards[loss] = -np.inf
        return judged

    def learn(self, rewards: Mapping[Expression, float]) -> None:
        """Takes the rewards of trained losses."""
        self._rewards |= rewards

    def share(self, judged: Mapping[Expression, Judgement]) -> None:
        """Gives those of the same gradient the reward of the loss they equal."""
        for loss, judgement in judged.items():
            if judgement.reason.startswith(_SAME):
                twin = parse(judgement.reason.removeprefix(_SAME))
                self._rewards[loss] = self._rewards[twin]

    def reward(self, loss: Expression) -> float:
        """The reward of a loss that was judged and, if it had to be, learned."""
        return self._rewards[loss]

    def hand_designed(self, losses: Sequence[Expression]) -> list[str | None]:
        """For each loss, the hand-designed one whose gradient it shares, if there is one."""
        known = Directions()
        names = list(HAND_DESIGNED)
        for name, verdict in zip(names, self._screen([LOSSES[n] for n in names]), strict=True):
            known.add(name, verdict.direction)
        return [known.find(verdict.direction) for verdict in self._screen(losses)]

    def without_idle_parts(self, losses: Sequence[Expression]) -> list[Expression]:
        """Each loss less the parts whose removal leaves the direction of its gradient as it is.

        One part after the other goes, first the one without which the formula is shortest.
        """
        directions = [verdict.direction for verdict in self._screen(losses)]
        shortened = list(losses)
        places: Sequence[int] = range(len(losses))
        while places:
            options = [
                (place, ablation.expression)
                for place in places
                for ablation in ablations(shortened[place])
                if not _refusal(ablation.expression)
            ]
            verdicts = self._screen([loss for _, loss in options])
            shorter: dict[int, Expression] = {}
            for (place, loss), verdict in zip(options, verdicts, strict=True):
                same = verdict.direction @ directions[place] >= SAME_DIRECTION
                if same and (place not in shorter or loss.size < shorter[place].size):
                    shorter[place] = loss
            for place, loss in shorter.items():
                shortened[place] = loss
            places = list(shorter)
        return shortened

    def _screen(self, losses: Sequence[Expression]) -> list[Screening]:
        with self._profile.stage("rejection"):
            return screen(losses, self._probe, self._metric)

    def restore(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Knows again what a ledger's records say. Raises AutolossError for what it cannot say."""
        trained = []
        for number, record in enumerate(records, start=1):
            place = f"ledger.jsonl, line {number}"
            loss, reward = parse_stored(record.get("formula"), place), record.get("reward")
            if isinstance(reward, bool) or not isinstance(reward, int | float | None):
                raise AutolossError(f"{place}: reward is {reward!r}, expected a number or null")
            self._rewards[loss] = -np.inf if reward is None else reward
            if record.get("status") in ("trained", "failed"):
                trained.append(loss)
        for loss, verdict in zip(trained, self._screen(trained), strict=True):
            self._directions.add(str(loss), verdict.direction)


_SAME = "same gradient: "


def _refusal(loss: Expression) -> str:
    """Why a formula is refused unseen, "" if it is not."""
    if not depends_on_data(loss):
        return "it does not depend on both scores and labels"
    reason = unfit(loss)
    return f"no batched program: {reason}" if reason else ""
