"""The end of a search: its best losses on fresh seeds, and those of them that go on to the test."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from autoloss_jax.errors import AutolossError
from autoloss_jax.language.expressions import Expression
from autoloss_jax.language.parsing import parse_stored
from autoloss_jax.proxy import Outcome
from autoloss_jax.runs import read_result


class Finalist(NamedTuple):
    """A loss of the hall of fame after its evaluation on fresh seeds."""

    expression: Expression
    reward: float
    reward_se: float
    selection_reward: float  # what it was selected by, which luck has inflated
    found_as: str  # its formula in the ledger, idle parts included

    def described(self) -> dict[str, Any]:
        """As finalists.json has it."""
        described = self._asdict()
        expression = described.pop("expression")
        return {"formula": str(expression), "size": expression.size} | described


def evaluated_again(
    losses: Sequence[Expression],
    records: Sequence[Mapping[str, Any]],
    outcomes: Sequence[Sequence[Outcome]],
) -> list[Finalist]:
    """The losses with their rewards on fresh seeds, the best by a lower confidence bound first.

    Args:
      losses: the hall of fame.
      records: what the ledger says of each.
      outcomes: of each fresh seed the outcomes of all losses.

    Returns:
      Those that did not fail on any seed.
    """
    fame = []
    for c, (loss, record) in enumerate(zip(losses, records, strict=True)):
        differences = np.mean([seed[c].differences for seed in outcomes], axis=0)
        error = differences.std(ddof=1) / np.sqrt(len(differences))
        if np.isfinite(error):
            fame.append(
                Finalist(
                    loss,
                    reward=float(differences.mean()),
                    reward_se=float(error),
                    selection_reward=record["reward"],
                    found_as=record["formula"],
                )
            )
    return sorted(fame, key=lambda f: -(f.reward - f.reward_se))


def winners_curse(fame: Sequence[Finalist]) -> dict[str, Any]:
    """What the hall of fame earned when it was selected, and earns on fresh seeds; and says it.

    Its members were selected for being good and for being lucky; luck does not come again. (Who are
    the finalists is chosen afterwards, so all members are counted.)
    """
    if not fame:
        return {"losses": 0, "selection_reward": None, "reward": None}
    selected, again = (
        float(np.mean([getattr(f, name) for f in fame])) for name in ("selection_reward", "reward")
    )
    logging.info(
        "winner's curse: the %d best were selected with a mean reward of %+.4f; on fresh seeds it "
        "is %+.4f", len(fame), selected, again,
    )  # fmt: skip
    return {"losses": len(fame), "selection_reward": selected, "reward": again}


def read_finalists(path: Path) -> list[Finalist]:
    """The finalists of a finalists.json.

    Raises:
      AutolossError: it is damaged, or one of them is no loss; names it.
    """
    content = read_result(path)
    try:
        return [
            Finalist(
                loss, float(row["reward"]), float(row["reward_se"]), float(row["selection_reward"]),
                str(row.get("found_as", row["formula"])),
            )
            for loss, row in zip(stored_losses(path, content), content["finalists"], strict=True)
        ]  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise AutolossError(f"{path} is damaged: expected finalists, but {error!s}") from error


def stored_losses(path: Path, content: Mapping[str, Any]) -> list[Expression]:
    """The losses in the content of a finalists.json.

    Raises:
      AutolossError: one of them is no loss; names it.
    """
    rows = enumerate(content["finalists"], start=1)
    return [parse_stored(row.get("formula"), f"{path}, finalist {k}") for k, row in rows]
