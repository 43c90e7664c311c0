"""Length buckets, cross-validation folds, and the plan of which rows each training step sees.

Lists stay ragged until here. Queries of similar length share a bucket, which is padded to its
longest list, so that padding does not dominate; a training step takes some rows of every bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from autoloss_jax.data.queries import CHUNK_DOCUMENTS, ListBatch, Queries
from autoloss_jax.errors import AutolossError

PIECE_DOCUMENTS = 1 << 16
"""Rankers are evaluated on so many padded documents at a time, which bounds the memory it takes."""
_ALIGNMENT = 64  # bytes; of an array that JAX's CPU devices take without a copy
FEW_BUCKETS, MOST_BUCKETS = 3, 12
MOST_WASTE = 0.15
MANY_DOCUMENTS = 200_000
"""From so many on, `plan_buckets` adds buckets by itself until padding wastes less than that."""


@dataclass(frozen=True, eq=False)
class Buckets:
    """All queries of a set, each in one bucket, padded when read.

    A bucket's rows are its members. Only under `BucketShapes` rows without documents may follow
    them, and a bucket may have no members.
    """

    queries: Queries
    sizes: tuple[int, ...]  # the list length each bucket is padded to, increasing
    members: tuple[np.ndarray, ...]  # i64[queries]: the query at each row of the bucket
    rows: tuple[int, ...]  # of each bucket

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def num_queries(self) -> int:
        return sum(len(rows) for rows in self.members)

    @property
    def padded_documents(self) -> int:
        """Places for documents in all buckets, the padded ones included."""
        return sum(rows * size for rows, size in zip(self.rows, self.sizes, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of all batches."""
        return self.padded_documents * (4 * self.queries.num_features + 4 + 1)

    def batch(self, bucket: int, rows: np.ndarray | slice = slice(None)) -> ListBatch:
        """Rows of a bucket, all by default, as numpy arrays."""
        members, asked = self.members[bucket], np.arange(self.rows[bucket])[rows]
        has_query = asked < len(members)
        found = pad_queries(self.queries, members[asked[has_query]], self.sizes[bucket])
        return found if has_query.all() else ListBatch(*(_spread(x, has_query) for x in found))

    def pieces(self, most: int | None = None) -> Iterator[tuple[int, np.ndarray, int]]:
        """`(bucket, rows, count)` of batches that hold all queries, each in bounded memory.

        Those of a bucket have one number of rows, of which the first `count` are queries. `most`
        limits the queries, to about as many of each bucket as is its share.
        """
        share = 1.0 if most is None else min(1.0, most / self.num_queries)
        for bucket, size in enumerate(self.sizes):
            rows = int(np.ceil(share * self.rows[bucket]))
            count = min(rows, len(self.members[bucket]))
            slots = min(rows, max(1, PIECE_DOCUMENTS // size))
            for start in range(0, count, slots):
                piece = np.minimum(np.arange(start, start + slots), rows - 1)
                yield bucket, piece, min(slots, count - start)

    @property
    def batches(self) -> tuple[ListBatch, ...]:
        """One padded batch per bucket, shortest lists first; made anew at every reading."""
        return tuple(self.batch(bucket) for bucket in range(len(self)))


def _spread(array: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The rows of `array` where `places` is true, and zeros elsewhere."""
    spread = np.zeros((len(places), *array.shape[1:]), array.dtype)
    spread[places] = array
    return spread


class BucketShapes(NamedTuple):
    """Shapes that several sets of queries share, so that one compiled program serves all."""

    sizes: tuple[int, ...]  # padded list length of each bucket
    rows: tuple[int, ...]  # queries of each bucket


class BatchPlan(NamedTuple):
    """Rows of every bucket, one array per bucket; where not ``valid`` the row is a filler, 0.

    The steps of a plan are training steps, or pieces of an evaluation.
    """

    rows: tuple[np.ndarray, ...]  # i32[folds, steps, slots]
    valid: tuple[np.ndarray, ...]  # bool[folds, steps, slots]

    def part(self, start: int, stop: int) -> BatchPlan:
        """The steps from ``start`` to before ``stop``."""
        rows, valid = (tuple(x[:, start:stop] for x in part) for part in self)
        return BatchPlan(rows, valid)


def plan_buckets(lengths: Sequence[int] | np.ndarray, max_buckets: int = 0) -> tuple[int, ...]:
    """Padded list lengths of buckets with the fewest padded documents.

    Exact: dynamic programming over the distinct lengths. The last one is the longest list.

    Args:
        lengths: of all lists.
        max_buckets: how many at most. 0: three, and where there are many documents so many more
            that padding wastes less than 15 % of the places, at most 12. Every bucket is one more
            thing to compile, for seconds, which only long trainings on much data make up for.

    Raises:
        AutolossError: no lengths, a length below 1, or ``max_buckets`` below 0.

    >>> plan_buckets([3, 3, 4, 10, 11], max_buckets=2)
    (4, 11)
    """
    given = np.asarray(lengths, np.int64).reshape(-1)
    if not given.size or given.min() < 1:
        raise AutolossError("expected at least one list, each of at least one document")
    if max_buckets < 0:
        raise AutolossError(f"max_buckets is {max_buckets}, expected at least 0")
    sizes, counts = np.unique(given, return_counts=True)
    below = np.append(0, np.cumsum(counts))
    enough = given.sum() / (1 - MOST_WASTE) if given.sum() >= MANY_DOCUMENTS else np.inf
    # cost[u]: padded size of everything up to the u-th distinct length; previous[b][u]: where the
    # last bucket starts when b + 1 buckets hold it.
    cost = below[1:] * sizes
    previous = [np.zeros(len(sizes), np.int64)]
    starts = np.arange(len(sizes))
    for count in range(1, min(max_buckets or MOST_BUCKETS, len(sizes))):
        if not max_buckets and count >= FEW_BUCKETS and cost[-1] < enough:
            break
        before = np.append(0, cost[:-1])
        options = before[None, :] + (below[1:, None] - below[None, :-1]) * sizes[:, None]
        options = np.where(starts[None, :] <= starts[:, None], options, np.iinfo(np.int64).max)
        previous.append(options.argmin(axis=1))
        cost = options.min(axis=1)
    bounds, end = [], len(sizes)
    for table in reversed(previous):
        if end:
            bounds.append(int(sizes[end - 1]))
            end = int(table[end - 1])
    return tuple(reversed(bounds))


def common_shapes(parts: Sequence[Queries], max_buckets: int = 0) -> BucketShapes:
    """Shapes that hold every one of ``parts``, planned for the lists of all of them.

    Raises:
        AutolossError: as `plan_buckets` does.
    """
    sizes = plan_buckets(np.concatenate([part.lengths for part in parts]), max_buckets)
    counts = [
        np.bincount(np.searchsorted(sizes, part.lengths), minlength=len(sizes)) for part in parts
    ]
    return BucketShapes(sizes, tuple(int(count) for count in np.max(counts, axis=0)))


def bucket_queries(
    queries: Queries,
    bounds: Sequence[int] | BucketShapes | None = None,
    max_buckets: int = 0,
) -> Buckets:
    """Every query padded into the first bucket that holds it; buckets left empty are dropped.

    Args:
        queries: at least one query.
        bounds: padded list lengths, increasing; None plans them for these queries. `BucketShapes`
            fix the rows too: no bucket is dropped, and rows without documents fill it.
        max_buckets: how many to plan, as for `plan_buckets`.

    Raises:
        AutolossError: no queries; bounds that do not increase or do not hold the longest list;
            more queries than rows.
    """
    lengths = queries.lengths
    rows = None
    if isinstance(bounds, BucketShapes):
        bounds, rows = bounds
    chosen = plan_buckets(lengths, max_buckets) if bounds is None else tuple(bounds)
    if not lengths.size:
        raise AutolossError("expected at least one list, each of at least one document")
    if not chosen or chosen[0] < 1 or any(a >= b for a, b in zip(chosen, chosen[1:], strict=False)):
        raise AutolossError(f"bucket bounds {chosen}, expected increasing positive lengths")
    if chosen[-1] < lengths.max():
        raise AutolossError(
            f"bucket bounds {chosen}, expected the last to hold the longest list: {lengths.max()}"
        )
    bucket = np.searchsorted(chosen, lengths)
    members = [np.flatnonzero(bucket == b) for b in range(len(chosen))]
    counts = [len(inside) for inside in members]
    if rows is not None:
        for count, most in zip(counts, rows, strict=True):
            if count > most:
                raise AutolossError(f"{count} queries in a bucket, expected at most {most}")
        return Buckets(queries, chosen, tuple(members), rows)
    kept = [b for b, count in enumerate(counts) if count]
    sizes, held = tuple(chosen[b] for b in kept), tuple(members[b] for b in kept)
    return Buckets(queries, sizes, held, tuple(counts[b] for b in kept))


def pad_queries(queries: Queries, rows: np.ndarray, size: int) -> ListBatch:
    """The queries ``rows`` as one padded batch of list length ``size``.

    Raises:
        AutolossError: a list longer than ``size``.
    """
    lengths = queries.lengths[rows]
    if lengths.size and lengths.max() > size:
        raise AutolossError(f"a list of {lengths.max()} documents, expected at most {size}")
    mask = np.arange(size) < lengths[:, None]
    documents = (queries.offsets[rows][:, None] + np.arange(size))[mask]
    places = np.flatnonzero(mask)
    features = _aligned_zeros(mask.size, queries.num_features)
    for start in range(0, len(places), CHUNK_DOCUMENTS):
        part = slice(start, start + CHUNK_DOCUMENTS)
        features[places[part]] = queries.features[documents[part]]
    labels = np.zeros(mask.shape, np.float32)
    labels[mask] = queries.labels[documents]
    return ListBatch(features.reshape(*mask.shape, queries.num_features), labels, mask)


def _aligned_zeros(rows: int, columns: int) -> np.ndarray:
    """f32[rows, columns] from an address that CPU devices can use: they all share the array."""
    memory = np.zeros(rows * columns * 4 + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + rows * columns * 4].view(np.float32).reshape(rows, columns)


def padding_waste(buckets: Buckets) -> float:
    """The share of padded places among all places of the buckets, 0 to 1."""
    return 1 - buckets.queries.num_documents / buckets.padded_documents


def slots_per_bucket(buckets: Buckets, queries_per_step: int) -> tuple[int, ...]:
    """Rows a step takes of each bucket: its share of the rows, by largest remainder.

    At least 1 each, so the sum may exceed ``queries_per_step`` by up to the number of buckets. Rows
    without documents count, so that sets in the same shapes get the same slots.
    """
    return tuple(max(count, 1) for count in _whole_slots(buckets.rows, queries_per_step))


def rare_buckets(rows: Sequence[int], queries_per_step: int) -> tuple[int, ...]:
    """The buckets, given their rows, whose share of a step is no whole row, so that few have one.

    `draw_batches` gives them one slot, with a filler in all other steps.
    """
    return tuple(b for b, count in enumerate(_whole_slots(rows, queries_per_step)) if not count)


def _whole_slots(rows: Sequence[int], queries_per_step: int) -> list[int]:
    exact = _exact_slots(rows, queries_per_step)
    slots = np.floor(exact).astype(np.int64)
    missing = int(round(queries_per_step - slots.sum()))
    slots[np.argsort(slots - exact, kind="stable")[:missing]] += 1
    return [int(count) for count in slots]


def _exact_slots(rows: Sequence[int], queries_per_step: int) -> np.ndarray:
    sizes = np.array(rows)
    return queries_per_step * sizes / sizes.sum()


def draw_batches(
    seed: int,
    buckets: Buckets,
    folds: np.ndarray | None,
    num_folds: int,
    steps: int,
    queries_per_step: int,
) -> BatchPlan:
    """The rows of every training step, stratified by bucket: `slots_per_bucket` rows of each.

    Fold ``f`` trains on the queries with ``folds[q] != f``. In every bucket and fold the rows come
    in reshuffled epochs, so each is seen as often as any other, to within one. Where fewer rows
    than slots are left, a step takes each once and its other slots are not valid. A bucket whose
    share of a step is less than a row, by rounding none, has a slot that is valid in as many steps
    as its share says: so long lists, few as they are, are not seen more often than others.

    Args:
        seed: the same seed gives the same plan.
        buckets: the training queries.
        folds: i32[queries], the fold each query is held out in; None (with ``num_folds=1``) trains
            on all.
        num_folds, steps, queries_per_step: at least 1 each.

    Raises:
        AutolossError: a count below 1, folds that do not fit, a fold without training queries.
    """
    _check_counts(num_folds=num_folds, steps=steps, queries_per_step=queries_per_step)
    held_out = _check_folds(buckets, folds, num_folds)
    if folds is None:
        held_out = np.full(buckets.num_queries, -1)
    for fold in range(num_folds):
        if np.all(held_out == fold):
            raise AutolossError(f"fold {fold} of {num_folds} holds out every query, nothing trains")
    plans = []
    slots = _whole_slots(buckets.rows, queries_per_step)
    shares = _exact_slots(buckets.rows, queries_per_step)
    for b, (members, count, share) in enumerate(zip(buckets.members, slots, shares, strict=True)):
        training = [np.flatnonzero(held_out[members] != fold) for fold in range(num_folds)]
        seeds = [np.random.SeedSequence([seed, b, fold]) for fold in range(num_folds)]
        if count:
            drawn = [_draw_epochs(*x, steps, count) for x in zip(seeds, training, strict=True)]
        else:
            drawn = [_draw_rarely(*x, steps, share) for x in zip(seeds, training, strict=True)]
        plans.append(drawn)
    return BatchPlan(
        tuple(np.stack([rows for rows, _ in plan]) for plan in plans),
        tuple(np.stack([valid for _, valid in plan]) for plan in plans),
    )


def assign_folds(queries: Queries, num_folds: int, seed: int) -> np.ndarray:
    """i32[queries]: random cross-validation folds, balanced in size and in relevance.

    Queries with and without a relevant document are dealt out separately, one fold after the other,
    so that the sizes of two folds, and their numbers of either kind, differ by at most 1.

    Raises:
        AutolossError: ``num_folds`` below 2, or fewer queries with a relevant document than folds.
    """
    relevant = queries.has_relevant()
    if num_folds < 2:
        raise AutolossError(f"num_folds is {num_folds}, expected at least 2")
    if relevant.sum() < num_folds:
        raise AutolossError(
            f"{int(relevant.sum())} queries with a relevant document, expected at least one for "
            f"each of {num_folds} folds"
        )
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, num_folds])))
    order = generator.permutation(len(queries))
    order = order[np.argsort(~relevant[order], kind="stable")]
    folds = np.empty(len(queries), np.int32)
    folds[order] = np.arange(len(queries)) % num_folds
    return folds


def held_out_rows(buckets: Buckets, folds: np.ndarray, num_folds: int) -> BatchPlan:
    """The rows held out in each fold, i32[folds, pieces, slots], to evaluate all folds in one call.

    Raises:
        AutolossError: folds that do not fit the buckets.
    """
    held_out = _check_folds(buckets, folds, num_folds)
    groups = [
        [np.flatnonzero(held_out[members] == fold) for fold in range(num_folds)]
        for members in buckets.members
    ]
    return _in_pieces(buckets, groups, [max(map(len, folds)) for folds in groups])


def all_rows(buckets: Buckets, replicates: int = 1) -> BatchPlan:
    """Every query of the buckets, i32[replicates, pieces, slots], to evaluate on all of them."""
    groups = [[np.arange(len(members))] * replicates for members in buckets.members]
    return _in_pieces(buckets, groups, buckets.rows)


def plan_labels(
    buckets: Buckets, plan: BatchPlan, counted: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Of all rows of a plan, whether they are valid, and whether of a query with relevance.

    counted: bool[queries], what stands in the place of "with relevance".

    Both bool[folds, queries], piece by piece and there bucket by bucket: the order in which values
    of an evaluation come.
    """
    relevant = buckets.queries.has_relevant() if counted is None else counted
    exists = np.concatenate(plan.valid, axis=-1)
    has = []
    for members, count, rows in zip(buckets.members, buckets.rows, plan.rows, strict=True):
        has.append(np.append(relevant[members], np.zeros(count - len(members), bool))[rows])
    flat = exists.reshape(len(exists), -1)
    return flat, flat & np.concatenate(has, axis=-1).reshape(flat.shape)


def _in_pieces(buckets: Buckets, groups: list[list[np.ndarray]], most: Sequence[int]) -> BatchPlan:
    """A plan of the rows `groups[bucket][fold]`, at most `most[bucket]`, in few, equal pieces."""
    documents = sum(count * size for count, size in zip(most, buckets.sizes, strict=True))
    pieces = -(-documents // PIECE_DOCUMENTS)
    all_rows, all_valid = [], []
    for folds, count in zip(groups, most, strict=True):
        slots = -(-count // pieces)
        rows = np.zeros((len(folds), pieces * slots), np.int32)
        valid = np.zeros(rows.shape, bool)
        for fold, group in enumerate(folds):
            rows[fold, : len(group)], valid[fold, : len(group)] = group, True
        all_rows.append(rows.reshape(len(folds), pieces, slots))
        all_valid.append(valid.reshape(len(folds), pieces, slots))
    return BatchPlan(tuple(all_rows), tuple(all_valid))


def _draw_epochs(
    seeds: np.random.SeedSequence, rows: np.ndarray, steps: int, slots: int
) -> tuple[np.ndarray, np.ndarray]:
    """i32[steps, slots] and bool[steps, slots] from reshuffled epochs over ``rows``."""
    taken = min(slots, len(rows))
    drawn = np.zeros((steps, slots), np.int32)
    valid = np.broadcast_to(np.arange(slots) < taken, (steps, slots)).copy()
    if taken:
        generator = np.random.Generator(np.random.PCG64(seeds))
        epochs = -(-steps * taken // len(rows))
        stream = np.concatenate([generator.permutation(rows) for _ in range(epochs)])
        drawn[:, :taken] = stream[: steps * taken].reshape(steps, taken)
    return drawn, valid


def _draw_rarely(
    seeds: np.random.SeedSequence, rows: np.ndarray, steps: int, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """i32[steps, 1] and bool[steps, 1]: a row every `1 / share` steps, from a random one on."""
    start = np.random.Generator(np.random.PCG64(seeds.spawn(1)[0])).random()
    active = np.diff(np.floor(start + share * np.arange(steps + 1))) > 0
    drawn, valid = np.zeros((steps, 1), np.int32), np.zeros((steps, 1), bool)
    if active.any():
        drawn[active], valid[active] = _draw_epochs(seeds, rows, int(active.sum()), 1)
    return drawn, valid


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise AutolossError(f"{name} is {count}, expected at least 1")


def _check_folds(buckets: Buckets, folds: np.ndarray | None, num_folds: int) -> np.ndarray:
    if folds is None:
        if num_folds != 1:
            raise AutolossError(f"no folds given, expected them for num_folds={num_folds}")
        return np.zeros(buckets.num_queries, np.int64)
    held_out = np.asarray(folds, np.int64)
    if held_out.shape != (buckets.num_queries,):
        raise AutolossError(
            f"folds of shape {held_out.shape}, expected ({buckets.num_queries},): one per query"
        )
    if held_out.size and not (held_out.min() >= 0 and held_out.max() < num_folds):
        raise AutolossError(
            f"folds from {held_out.min()} to {held_out.max()}, expected 0 to {num_folds - 1}"
        )
    return held_out
