"""How training reaches its queries: resident on the device, or streamed from host memory.

A compiled function takes `(batches, plan)`: padded buckets, and the rows of them it works on.
*Resident*, all buckets lie on the device. *Streamed*, every call gets small buckets of just the
rows its plan names, and the plan in their numbering; they are gathered, scaled and transferred
while the call before is at work. One transfer serves all candidates. Both give the same bits.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from autoloss_jax import processes
from autoloss_jax.data import BatchPlan, Buckets, ListBatch
from autoloss_jax.errors import AutolossError
from autoloss_jax.training import RunState, fetch, local_copy, replicate

PLACEMENTS = ("auto", "resident", "streamed")
DEVICE_SHARE = 0.5
"""Data may take so much of a device's memory; the rest is for training."""
HOST_BYTES = 1 << 30
"""Data may take so much on CPU devices: their memory is the host's, which has the features already.
They all use one copy.
"""

Batches = tuple[ListBatch, ...]


class Feed:
    """The queries of some buckets, for compiled functions.

    Attributes:
      buckets: the queries.
      resident: whether they lie on the devices.
    """

    def __init__(self, buckets: Buckets, mesh: Mesh, placement: str = "auto") -> None:
        """Transfers the buckets if they are to be resident.

        Raises:
          AutolossError: another placement than those of PLACEMENTS.
        """
        check_placement(placement)
        self.buckets = buckets
        # One answer for all processes: it decides how often they meet.
        self.resident = placement == "resident" or (
            placement == "auto" and processes.from_first(lambda: fits(buckets, mesh))
        )
        self._mesh = mesh
        self._batches: Batches = ()
        if self.resident:
            self._batches = tuple(
                replicate(mesh, buckets.batch(bucket)) for bucket in range(len(buckets))
            )
        else:
            logging.info(
                "%d queries (%.1f GB padded) are streamed from host memory",
                buckets.num_queries, buckets.nbytes / 1e9,
            )  # fmt: skip

    @property
    def example(self) -> ListBatch:
        """One query, for its shape."""
        return self.buckets.batch(0, slice(1))

    def blocks(
        self, plans: Iterable[BatchPlan], *, shared: bool = False
    ) -> Iterator[tuple[Batches, BatchPlan]]:
        """`(batches, plan)` on the devices, for each plan.

        Streamed, the next block is on its way when one is handed out. Ask for the next one only
        when the work on the last is done (`jax.block_until_ready`), else blocks pile up.
        `shared`: all replicates of a plan have the same rows, so that a block is as much smaller.
        """
        if self.resident:
            for plan in plans:
                yield self._batches, replicate(self._mesh, plan)
            return
        with ThreadPoolExecutor(1, "feed") as pool:
            ahead: Future[tuple[Batches, BatchPlan]] | None = None
            for plan in plans:
                following = pool.submit(self._load, plan, shared)
                if ahead is not None:
                    yield ahead.result()
                ahead = following
            if ahead is not None:
                yield ahead.result()

    def evaluate(
        self, evaluate: Callable[..., Any], states: RunState, active: Any, plan: BatchPlan
    ) -> np.ndarray:
        """f32[runs, replicates, queries]: what `evaluate_runs` gives for a plan.

        NaN for all queries of a replicate where a score was not finite.
        """
        pieces = plan.rows[0].shape[1]
        plans = [plan] if self.resident else [plan.part(k, k + 1) for k in range(pieces)]
        shared = all((rows == rows[:1]).all() for rows in plan.rows)
        blocks = self.blocks(plans, shared=shared)
        values = [fetch(evaluate(states, active, *block)) for block in blocks]
        joined = np.concatenate(values, axis=-1)
        return np.where(np.isnan(joined).any(-1, keepdims=True), np.nan, joined)

    def lists(self, most: int | None = None) -> Iterator[tuple[ListBatch, int]]:
        """The batches of `Buckets.pieces`, on one device of this process, and their real rows."""
        for bucket, rows, count in self.buckets.pieces(most):
            yield self._rows(bucket, rows), count

    def _rows(self, bucket: int, rows: np.ndarray) -> ListBatch:
        if self.resident:
            whole = local_copy(self._batches[bucket])
            return whole if len(rows) == len(whole.mask) else ListBatch(*(x[rows] for x in whole))
        return ListBatch(*map(jnp.asarray, self.buckets.batch(bucket, rows)))

    def _load(self, plan: BatchPlan, shared: bool = False) -> tuple[Batches, BatchPlan]:
        """The rows that a plan names, each once, and the plan in their numbering."""
        batches, rows = [], []
        for bucket, given in enumerate(plan.rows):
            wanted, places = np.unique(given, return_inverse=True)
            # A fixed number of rows, for one compilation; further ones are never looked at.
            most = given[0].size if shared else given.size
            count = min(most, self.buckets.rows[bucket])
            wanted = np.append(wanted, np.repeat(wanted[:1], count - len(wanted)))
            batches.append(self.buckets.batch(bucket, wanted))
            rows.append(places.reshape(given.shape).astype(np.int32))
        return replicate(self._mesh, (tuple(batches), BatchPlan(tuple(rows), plan.valid)))


def check_placement(placement: str) -> None:
    """Raises AutolossError for another placement than those of PLACEMENTS."""
    if placement not in PLACEMENTS:
        raise AutolossError(
            f"unknown data placement {placement!r}; expected one of {', '.join(PLACEMENTS)}"
        )


def fits(buckets: Buckets, mesh: Mesh) -> bool:
    """Whether buckets may be resident: within DEVICE_SHARE of the memory of a device.

    A CPU device reports no memory of its own: there HOST_BYTES are the limit.
    """
    stats = mesh.local_devices[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return buckets.nbytes <= DEVICE_SHARE * stats["bytes_limit"]
    return buckets.nbytes <= HOST_BYTES
