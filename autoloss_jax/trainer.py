"""Training any number of runs, as many at once as memory holds.

The runs of a call are the *candidate batch*. It is as large as there are runs, and halved when the
devices' memory does not hold it: before it happens, as the compiler's analysis predicts it, and
when it happens anyway. What was begun is then done again from its start, with the runs in several
batches one after the other. Chunks of runs, and so all results, stay the same.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from autoloss_jax import processes
from autoloss_jax.data import BatchPlan
from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.programs import Programs
from autoloss_jax.feed import Feed
from autoloss_jax.memory import free_memory, is_out_of_memory, needed_memory
from autoloss_jax.profile import Profile
from autoloss_jax.training import (
    RankerTraining,
    RunState,
    candidates_mesh,
    chunk_size,
    evaluate_runs,
    fetch,
    padded_count,
    place_runs,
    reorder_runs,
    spread_runs,
    take_runs,
    train_runs,
)

Result = TypeVar("Result")
Runs = list[RunState]
"""All runs, [replicates, batch] for each batch; several batches rest in the host's memory."""


class OutOfMemory(Exception):
    """The candidate batch does not fit; `within_memory` halves it."""


class Trainer:
    """Trains and evaluates runs on all devices.

    A run has a *slot*. Slots are counted batch by batch, and cover all batches: `slots` of them.

    Attributes:
      mesh: the devices.
      batch: the candidate batch, how many runs are trained at once.
      count: how many runs there are to be, at most.
    """

    def __init__(
        self, training: RankerTraining, count: int, *, mesh: Mesh | None = None,
        profile: Profile | None = None,
    ) -> None:  # fmt: skip
        self.training = training
        self.count = count
        self.mesh = candidates_mesh() if mesh is None else mesh
        self.batch = padded_count(count, training, self.mesh)
        self._profile = profile or Profile()
        self._train = train_runs(training, self.mesh)
        self._evaluate = evaluate_runs(training, self.mesh)
        self._fitting: set[tuple[str, int]] = set()  # what was found to fit: a name and a batch

    @property
    def slots(self) -> int:
        """How many slots all batches have together."""
        return -(-self.count // self.batch) * self.batch

    def slot(self, place: int) -> int:
        """The slot of a place: the first few are in one batch, in turn on each of its devices."""
        batch, place = divmod(place, self.batch)
        devices = self.mesh.size
        each = self.batch // devices
        return batch * self.batch + place % devices * each + place // devices

    def by_slot(self, slots: np.ndarray, of_runs: np.ndarray) -> np.ndarray:
        """What runs have, [..., runs], laid out by their slots, [..., slots]: 0 where none is."""
        laid_out = np.zeros((*of_runs.shape[:-1], self.slots), of_runs.dtype)
        laid_out[..., slots] = of_runs
        return laid_out

    def chunks_of(self, active: np.ndarray) -> int:
        """How many chunks the busiest device trains of each batch, together: what a step costs.

        active: bool[slots].
        """
        shape = len(active) // self.batch, self.mesh.size, -1, chunk_size(self.training, self.mesh)
        return int(active.reshape(shape).any(-1).sum(-1).max(-1).sum())

    # --- memory ---

    def within_memory(self, work: Callable[[], Result]) -> Result:
        """What `work` returns; when memory runs out the batch is halved and it begins again.

        Raises:
          AutolossError: not even the smallest batch fits.
        """
        while True:
            try:
                return work()
            except (OutOfMemory, MemoryError, jax.errors.JaxRuntimeError) as error:
                if not isinstance(error, OutOfMemory) and not is_out_of_memory(error):
                    raise
                self._halve(error)

    def _halve(self, error: BaseException) -> None:
        chunk = chunk_size(self.training, self.mesh)
        least = chunk * self.mesh.size
        reason = str(error).partition("\n")[0]
        if self.batch == least:
            raise AutolossError(
                f"out of memory with {least} runs at once, the fewest there can be ({chunk} on "
                f"each of {self.mesh.size} devices): {reason}. Expected a smaller model, fewer "
                "queries a step, or data that is streamed"
            ) from error
        before, self.batch = self.batch, padded_count(self.batch // 2, self.training, self.mesh)
        logging.warning(
            "out of memory: the candidate batch is halved, from %d to %d runs, and what they were "
            "at is done again (%s)", before, self.batch, reason,
        )  # fmt: skip

    def _check_memory(self, name: str, function: Any, arguments: tuple[Any, ...]) -> None:
        """Raises OutOfMemory if the program is predicted not to fit; compiles it at the same time.

        Each batch size is asked about once.
        """
        if (name, self.batch) in self._fitting:
            return
        with self._profile.stage("compilation"):
            need = needed_memory(function.lower(*arguments).compile())
        free = free_memory(self.mesh.local_devices[0])
        if need is not None and free is not None and need > free:
            raise OutOfMemory(
                f"{name} needs {_megabytes(need)} on each device, and {_megabytes(free)} are free"
            )
        self._fitting.add((name, self.batch))

    def _call(self, name: str, function: Any, *arguments: Any) -> Any:
        """`function(*arguments)`; if it does not fit the memory of one process, all of them see it.

        Raises OutOfMemory.
        """
        failure = ""
        result = None
        try:
            self._check_memory(name, function, arguments)
            with self._profile.stage(name):
                result = jax.block_until_ready(function(*arguments))
        except (OutOfMemory, MemoryError, jax.errors.JaxRuntimeError) as error:
            if not isinstance(error, OutOfMemory) and not is_out_of_memory(error):
                raise
            failure = str(error) or type(error).__name__
        failures = processes.gather(failure)
        if any(failures):
            raise OutOfMemory(next(filter(None, failures)))
        return result

    # --- runs ---

    def spread(self, states: Any, order: np.ndarray | None = None) -> Runs:
        """The runs `order` of states that every process has, one for every slot.

        By default the first one in all slots.
        """
        order = np.zeros(self.slots, int) if order is None else order
        return [self._rest(spread_runs(self.mesh, states, order[part])) for part in self._parts()]

    def gather(self, runs: list[Any]) -> Any:
        """Runs, or parts of states, [replicates, slots] in the host's memory of every process."""
        batches = [jax.tree.map(fetch, self._wake(states)) for states in runs]
        return jax.tree.map(lambda *x: np.concatenate(x, 1), *batches)

    def train(
        self, runs: Runs, losses: Programs | None, rates: np.ndarray, active: np.ndarray,
        feed: Feed, plans: Sequence[BatchPlan],
    ) -> Runs:  # fmt: skip
        """The runs after the blocks of `plans`.

        Args:
          runs: are used up.
          losses: of every slot; None where all train under the exact loss of the training.
          rates, active: of every slot. A batch or chunk without an active slot rests, and beside
            one that is active a slot that is not costs no loss.
        """
        runs = list(runs)
        losses = None if losses is None else losses.only(active)
        arrays = jax.tree.map(np.asarray, (losses, rates, active))
        placed = [self._place(arrays, part) for part in self._parts()]
        for block in feed.blocks(plans):
            for k, part in enumerate(self._parts()):
                if active[part].any():
                    states = self._wake(runs[k])
                    runs[k] = self._rest(
                        self._call("training", self._train, states, *placed[k], *block)
                    )
        return runs

    def evaluate(self, runs: Runs, active: np.ndarray, feed: Feed, plan: BatchPlan) -> np.ndarray:
        """f32[slots, replicates, queries]: the values of `evaluate_runs`, NaN where not active."""

        def evaluate(*arguments: Any) -> Any:
            return self._call("evaluation", self._evaluate, *arguments)

        values: list[np.ndarray | None] = []
        for states, part in zip(runs, self._parts(), strict=True):
            if not active[part].any():
                values.append(None)
                continue
            placed = self._place(active, part)
            values.append(feed.evaluate(evaluate, self._wake(states), placed, plan))
        known = next(v for v in values if v is not None)
        return np.concatenate([np.full_like(known, np.nan) if v is None else v for v in values])

    def faults(self, runs: Runs) -> tuple[np.ndarray, np.ndarray]:
        """i32[replicates, slots] each: places in FAULTS, and how many updates there were."""
        both = [(fetch(states.fault), fetch(states.updates)) for states in runs]
        fault, updates = (np.concatenate(x, 1) for x in zip(*both, strict=True))
        return fault, updates

    def reorder(self, runs: list[Any], order: np.ndarray) -> list[Any]:
        """Runs, or parts of states, of the slots `order`, one for every slot."""
        if len(runs) == 1:
            return [reorder_runs(self.mesh, runs[0], order)]
        # Several batches meet on the host only, for no device may hold them all.
        return self.spread(self.gather(runs), order)

    def choose(self, better: np.ndarray, runs: list[Any], others: list[Any]) -> list[Any]:
        """Runs, or parts of states, where bool[replicates, slots] is true, or the others."""
        chosen = []
        for part, new, old in zip(self._parts(), runs, others, strict=True):
            mask = spread_runs(self.mesh, better[:, part], np.arange(self.batch))
            chosen.append(self._rest(_choose(mask, self._wake(new), self._wake(old))))
        return chosen

    def take(self, runs: list[Any], slot: int) -> Any:
        """A slot's run, or a part of its state, [replicates, 1], as numpy in every process."""
        batch, place = divmod(slot, self.batch)
        return take_runs(self.mesh, self._wake(runs[batch]), [place])

    def _rest(self, states: Any) -> Any:
        """Moves a batch out of the devices' memory, if there are others that need it."""
        return _to_memory(states, "pinned_host") if self.batch < self.slots else states

    def _wake(self, states: Any) -> Any:
        return _to_memory(states, "device") if self.batch < self.slots else states

    def _place(self, arrays: Any, part: slice) -> Any:
        """The slots `part` of arrays, on the devices."""
        return place_runs(self.mesh, jax.tree.map(lambda x: x[part], arrays))

    def _parts(self) -> Iterator[slice]:
        """The slots of each batch."""
        return (slice(k, k + self.batch) for k in range(0, self.slots, self.batch))


def _to_memory(states: Any, kind: str) -> Any:
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind(kind)), states)


@jax.jit
def _choose(better: jax.Array, new: Any, old: Any) -> Any:
    def pick(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(better.shape + (1,) * (new.ndim - 2)), new, old)

    return jax.tree.map(pick, new, old)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
