"""What an interrupted effectiveness test goes on from.

The test has *parts*, counted over all folds: on each fold every group of losses, and the reference.
Of a part that is finished its figures are kept; of the one that is training, the models, every now
and then. On several processes all call what is here, and the first one has the files.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from autoloss_jax import processes
from autoloss_jax.checkpoints import Checkpoints, decode_state, encode_state
from autoloss_jax.comparison import Tested
from autoloss_jax.runs import RunFolder

TRAINING, TESTED = "test", "tested"
"""The folders of the checkpoints of trainings and of finished parts, among those of the run."""
SECONDS = 10.0
"""At least so long after one checkpoint of a training comes the next."""
SHARE = 0.02
"""At most so much of a training's time goes into its checkpoints."""


class PartCheckpoints:
    """The checkpoints of one part of a test; without a run folder nothing is kept."""

    def __init__(self, folder: RunFolder | None, part: int, losses: str, blocks: int) -> None:
        """part: its number; losses: which ones it tests; blocks: how many it trains at most."""
        self._part, self._losses, self._blocks = part, losses, blocks
        self._training = folder and folder.checkpoints(TRAINING)
        self._finished = folder and folder.checkpoints(TESTED, kept=None)
        self._is_kept = processes.from_first(lambda: folder is not None)
        self._saved_at, self._cost = time.monotonic(), 0.0

    # --- a part that is finished ---

    def tested(self) -> list[Tested] | None:
        """What the part has shown; None if it is not finished."""

        def read(finished: Checkpoints) -> dict[str, Any] | None:
            state = finished.read(self._part)
            return {"state": encode_state(state["tested"])} if self._is_own(state) else None

        found = processes.from_first(lambda: self._finished and read(self._finished))
        if not found:
            return None
        state = decode_state(found["state"])
        return [_as_tested(state[str(k)]) for k in range(len(state))]

    def finish(self, tested: list[Tested]) -> None:
        """Keeps what the part has shown."""
        if self._finished:
            states = [_as_state(one) for one in tested]
            self._finished.save(self._part, {"losses": self._losses, "tested": states})

    # --- a part that is training ---

    def latest(self, template: Any) -> tuple[int, Any] | None:
        """After how many blocks the part's training was saved, and as what; None if it was not."""

        def read(training: Checkpoints) -> dict[str, Any] | None:
            saved = training.latest({"losses": "", "runs": template})
            if saved is None:
                return None
            number, state = saved
            block = number - self._part * self._blocks
            if not 0 < block <= self._blocks or not self._is_own(state):  # of an earlier part
                return None
            return {"block": block, "state": encode_state(state["runs"])}

        found = processes.from_first(lambda: self._training and read(self._training))
        if not found:
            return None
        logging.info("the training goes on after block %d", found["block"])
        return found["block"], decode_state(found["state"], template)

    def offer(self, block: int, state: Callable[[], Any]) -> None:
        """Saves what `state` returns, if it is time."""

        def is_time() -> bool:
            return time.monotonic() - self._saved_at >= max(SECONDS, self._cost / SHARE)

        if self._is_kept and processes.from_first(is_time):
            self.save(block, state)

    def save(self, block: int, state: Callable[[], Any]) -> None:
        """Saves what `state` returns as the training after so many blocks, from 1 on."""
        if not self._is_kept or not block:
            return
        started = time.monotonic()
        content = state()  # in every process, for each has a part of it
        if self._training:
            number = self._part * self._blocks + block
            self._training.save(number, {"losses": self._losses, "runs": content})
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - started

    def _is_own(self, state: dict[str, Any] | None) -> bool:
        """Whether a checkpoint is of these losses: the finalists may have been found again."""
        if state is not None and state["losses"] != self._losses:
            logging.warning("a checkpoint of part %d is of other losses: not used", self._part)
            return False
        return state is not None


def _as_state(tested: Tested) -> dict[str, Any]:
    """Dicts as lists of items: a checkpoint does not keep the order of keys."""
    items = {"test": [*tested.test.items()], "settings": [*(tested.settings or {}).items()]}
    return tested._asdict() | items | {"steps": np.array(tested.steps, int)}


def _as_tested(state: dict[str, Any]) -> Tested:
    test, settings = (
        {item["0"]: item["1"] for item in (items[str(k)] for k in range(len(items)))}
        for items in (state["test"], state["settings"])
    )
    steps = state["steps"].tolist()
    return Tested(**state | {"test": test, "settings": settings or None, "steps": steps})
