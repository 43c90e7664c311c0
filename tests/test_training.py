"""Training: one run, many runs beside each other, many devices."""

import dataclasses
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autoloss_jax.data import (
    BatchPlan,
    ListBatch,
    all_rows,
    bucket_queries,
    concatenate,
    draw_batches,
    plan_labels,
    rare_buckets,
    scale_fold,
    synthetic,
)
from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.batched import program_gradient
from autoloss_jax.execution.interpreter import losses_and_gradients
from autoloss_jax.execution.programs import encode
from autoloss_jax.language.parsing import parse
from autoloss_jax.losses import LOSSES
from autoloss_jax.metrics import ndcg_per_query
from autoloss_jax.models import Linear
from autoloss_jax.training import (
    CPU_CHUNK,
    RankerTraining,
    RunState,
    candidates_mesh,
    evaluate_runs,
    exact_score_gradient,
    init_run,
    padded_count,
    program_score_gradient,
    spread_runs,
    train_runs,
)

REPLICATES, RUNS, STEPS = 2, 16, 12
RATE = 0.02
CANDIDATES = 2 * [
    LOSSES["ranknet"],
    LOSSES["mse"],
    LOSSES["softmax"],
    LOSSES["lambdarank"],
    parse("1000 * sum_ij(softplus(s_j - s_i), where=y_i > y_j)"),
    LOSSES["listnet"],
    LOSSES["approx_ndcg"],
    LOSSES["pairwise_hinge"],
]


class Small(nn.Module):
    """A tiny ranker, without the bias that every ranking loss but the pointwise ones ignores.

    Its gradient is rounding, which Adam scales up to whole steps: nothing to compare runs by.
    """

    @nn.compact
    def __call__(self, features, mask):
        del mask
        return nn.Dense(1, use_bias=False)(nn.relu(nn.Dense(4)(features)))[..., 0]


class Setting:
    """Everything a compiled training is called with, for two replicates of sixteen runs."""

    def __init__(self):
        queries = scale_fold(synthetic(num_queries=60, num_features=6, list_length=(3, 8)).folds[0])
        self.buckets = bucket_queries(queries.train, max_buckets=1)
        self.batches = jax.tree.map(jnp.asarray, self.buckets.batches)
        folds = np.arange(len(queries.train)) % REPLICATES
        self.plan = jax.tree.map(
            jnp.asarray, draw_batches(0, self.buckets, folds, REPLICATES, STEPS, 12)
        )
        self.every = all_rows(self.buckets, REPLICATES)
        _, self.counted = plan_labels(self.buckets, self.every)
        self.training = RankerTraining(Small(), program_score_gradient(), 5)
        self.start = init_run(self.training, 0, REPLICATES, self.batches[0])

    def call(self, compiled, losses, *, rates=None, active=None, states=None):
        """States and values of sixteen runs under the given losses."""
        train, evaluate, mesh = compiled
        if states is None:
            states = spread_runs(mesh, self.start, np.zeros(RUNS, int))
        rates = jnp.asarray(np.full(RUNS, RATE, np.float32) if rates is None else rates)
        active = jnp.asarray(np.ones(RUNS, bool) if active is None else active)
        states = train(states, encode(losses), rates, active, self.batches, self.plan)
        values = evaluate(states, active, self.batches, self.every)
        return jax.tree.map(np.asarray, states), np.asarray(values)


@pytest.fixture(scope="module")
def setting():
    return Setting()


@pytest.fixture(scope="module")
def compiled(setting):
    mesh = candidates_mesh(jax.devices()[:1])
    return train_runs(setting.training, mesh), evaluate_runs(setting.training, mesh), mesh


@pytest.fixture(scope="module")
def compiled_on_two(setting):
    mesh = candidates_mesh()
    assert mesh.size == 2
    return train_runs(setting.training, mesh), evaluate_runs(setting.training, mesh), mesh


@pytest.fixture(scope="module")
def result(setting, compiled):
    return setting.call(compiled, CANDIDATES)


def assert_same(given, expected):
    """Bit for bit, NaN included."""
    jax.tree.map(np.testing.assert_array_equal, given, expected)


def at(tree, run):
    return jax.tree.map(lambda x: x[:, run], tree)


def mean_ndcg(setting, values):
    """f64[runs]: over all queries with a relevant document, in both replicates."""
    return np.asarray(values, np.float64)[:, setting.counted].mean(1)


# --- what training does ---


def test_training_under_a_known_loss_raises_ndcg(setting, compiled, result):
    nothing = np.zeros(RUNS, np.float32)
    _, before = setting.call(compiled, CANDIDATES, rates=nothing)
    gain = mean_ndcg(setting, result[1]) - mean_ndcg(setting, before)
    assert (gain > 0.0).all(), gain
    assert gain.mean() > 0.02
    assert result[0].alive.all()


def test_one_run_alone_is_the_same_run_among_many(setting, result):
    """`train` knows no axes but its own; `train_runs` adds the others and changes no result."""
    program = jax.tree.map(lambda x: x[0], encode([LOSSES["mse"]]))
    state = jax.tree.map(lambda x: x[1, 0], setting.start)
    plan = jax.tree.map(lambda x: x[1], setting.plan)
    alone = jax.jit(setting.training.train)(state, program, RATE, setting.batches, plan)
    among = jax.tree.map(lambda x: x[1, 1], result[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), alone, among)


def test_the_exact_path_trains_the_same_model(setting, result):
    exact = RankerTraining(Small(), exact_score_gradient(LOSSES["ranknet"]), 5)
    state = jax.tree.map(lambda x: x[0, 0], setting.start)
    plan = jax.tree.map(lambda x: x[0], setting.plan)
    alone = jax.jit(exact.train)(state, None, RATE, setting.batches, plan)
    among = jax.tree.map(lambda x: x[0, 0], result[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), alone, among)


def test_values_are_the_ndcg_of_the_trained_model(setting, result):
    states, values = result
    params = jax.tree.map(lambda x: x[1, 3], states.params)
    expected = []
    for batch in setting.batches:
        scores = setting.training.model.apply(params, batch.features, batch.mask)
        expected.append(ndcg_per_query(scores, batch.labels, where=batch.mask, k=5)[0])
    np.testing.assert_allclose(values[3, 1], np.concatenate(expected), atol=1e-5)


def test_a_loss_is_not_rewarded_for_its_scale(result):
    """1000 * loss: equal up to the rounding of one division, which 12 steps hardly enlarge."""
    jax.tree.map(
        lambda x: np.testing.assert_allclose(x[:, 0], x[:, 4], rtol=1e-3, atol=1e-4),
        result[0].params,
    )
    (doubled,) = program_score_gradient()(
        jax.tree.map(lambda x: x[0], encode([parse("1000 * sum_i(y_i * s_i)")])),
        [jnp.zeros((1, 2))], [jnp.array([[1.0, 0.0]])], [jnp.ones((1, 2), bool)],
    )  # fmt: skip
    np.testing.assert_allclose(doubled, [[1000.0, 0.0]])


def test_a_power_of_two_changes_no_bit(setting, compiled, result):
    """Dividing by the largest entry removes it without any rounding."""
    scaled = [parse(f"1024 * ({loss})") if k in (0, 1) else loss
              for k, loss in enumerate(CANDIDATES)]  # fmt: skip
    states, _ = setting.call(compiled, scaled)
    for run in (0, 1):
        assert_same(at(states.params, run), at(result[0].params, run))


def test_queries_that_are_not_valid_contribute_nothing(setting):
    """A plan whose other slots are fillers trains as one that never had those slots."""
    model = RankerTraining(Linear(), exact_score_gradient(LOSSES["softmax"]), 5)
    batch = setting.batches[:1]
    state = model.init(jax.random.key(1), batch[0])
    rows = jnp.array([[0, 1, 2, 3]])
    wild = (ListBatch(batch[0].features.at[2:].set(1e30), *batch[0][1:]),)
    some = BatchPlan((rows,), (jnp.array([[True, True, False, False]]),))
    few = BatchPlan((rows[:, :2],), (jnp.ones((1, 2), bool),))
    expected = model.train(state, None, 0.1, batch, few)
    for given in (batch, wild):
        trained = model.train(state, None, 0.1, given, some)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), trained, expected)
    fillers = BatchPlan((rows,), (jnp.zeros((1, 4), bool),))
    assert_same(model.train(state, None, 0.1, batch, fillers), state)
    held = BatchPlan((jnp.array([[0, 1]]),), (jnp.array([[True, False]]),))
    assert model.evaluate(state, batch, held)[0, 1] == 0.0


@pytest.fixture(scope="module")
def rare_setting():
    """Buckets of which the last has a query in few steps, and a plan in which fold 0 has some."""
    queries = scale_fold(synthetic(num_queries=60, num_features=6, list_length=(3, 4)).folds[0])
    long = synthetic(num_queries=10, num_features=6, list_length=(9, 9)).folds[0].test
    buckets = bucket_queries(concatenate([queries.train, long]))
    rare = rare_buckets(buckets.rows, 6)
    plan = draw_batches(0, buckets, np.arange(buckets.num_queries) % 2, 2, STEPS, 6)
    return buckets, rare, plan


def train_on(rare_setting, score_gradient, rare):
    buckets, _, plan = rare_setting
    training = RankerTraining(Small(), score_gradient, 5, rare=rare)
    mesh = candidates_mesh(jax.devices()[:1])
    start = init_run(training, 0, 2, buckets.batch(0))
    states = spread_runs(mesh, start, np.zeros(CPU_CHUNK, int))
    each = (
        encode(CANDIDATES[:CPU_CHUNK]),
        np.full(CPU_CHUNK, RATE, np.float32),
        np.ones(CPU_CHUNK, bool),
    )
    return jax.block_until_ready(train_runs(training, mesh)(states, *each, buckets.batches, plan))


def test_a_rare_bucket_is_computed_only_where_a_step_has_a_query_of_it(rare_setting):
    _, rare, plan = rare_setting
    here = plan.valid[2].sum()
    assert rare == (2,) and 0 < here < plan.valid[2].size / 2
    computed = []

    def score_gradient(loss, scores, labels, masks):
        jax.debug.callback(lambda *x: computed.append(len(x)), *(m.any() for m in masks))
        return exact_score_gradient(LOSSES["mse"])(loss, scores, labels, masks)

    skipping = train_on(rare_setting, score_gradient, rare)
    jax.effects_barrier()
    # The other two go through the loss together, in every step of both replicates.
    assert set(computed) == {1, 2}
    assert computed.count(1) * 2 * STEPS == computed.count(2) * here
    expected = train_on(rare_setting, exact_score_gradient(LOSSES["mse"]), ())
    assert skipping.alive.all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), skipping, expected)


@pytest.mark.slow
def test_skipping_a_rare_bucket_changes_no_candidate(rare_setting):
    skipping = train_on(rare_setting, program_score_gradient(), rare_setting[1])
    expected = train_on(rare_setting, program_score_gradient(), ())
    assert skipping.alive.all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), skipping, expected)


# --- runs side by side ---


def test_slot_and_neighbours_change_no_bit(setting, compiled, result):
    order = np.random.default_rng(0).permutation(RUNS)
    states, values = setting.call(compiled, [CANDIDATES[k] for k in order])
    assert_same(states, jax.tree.map(lambda x: x[:, order], result[0]))
    assert_same(values, result[1][order])


def test_a_run_that_explodes_is_frozen_and_disturbs_nobody(setting, compiled, result):
    rates = np.full(RUNS, RATE, np.float32)
    rates[2] = 1e38
    states, values = setting.call(compiled, CANDIDATES, rates=rates)
    assert not states.alive[:, 2].any()
    assert np.isnan(values[2]).all()
    others = np.flatnonzero(np.arange(RUNS) != 2)
    assert_same(at(states, others), at(result[0], others))
    assert_same(values[others], result[1][others])
    # It stays as it was when it turned non-finite, however long the others train on.
    again, values = setting.call(compiled, CANDIDATES, states=spread_runs(
        compiled[-1], RunState(*(jax.tree.map(jnp.asarray, x) for x in states)),
        np.arange(RUNS)))  # fmt: skip
    assert_same(at(again, 2), at(states, 2))
    assert np.isnan(values[2]).all()


def test_a_run_that_its_last_update_made_non_finite_has_no_value(setting):
    training = RankerTraining(Linear(), exact_score_gradient(LOSSES["softmax"]), 5)
    state = training.init(jax.random.key(0), setting.batches[0])
    one = jax.tree.map(lambda x: x[0, :1], setting.plan)
    state = training.train(state, None, jnp.float32(3e38), setting.batches, one)
    every = jax.tree.map(lambda x: x[0], setting.every)
    assert np.isnan(training.evaluate(state, setting.batches, every)).all()


def test_inactive_chunks_are_left_unchanged(setting, compiled, result):
    active = np.arange(RUNS) >= CPU_CHUNK
    states, values = setting.call(compiled, CANDIDATES, active=active)
    expected = jax.tree.map(lambda x: np.repeat(np.asarray(x), CPU_CHUNK, 1), setting.start)
    assert_same(at(states, slice(CPU_CHUNK)), expected)
    assert np.isnan(values[:CPU_CHUNK]).all()
    assert_same(at(states, slice(CPU_CHUNK, None)), at(result[0], slice(CPU_CHUNK, None)))
    assert_same(values[CPU_CHUNK:], result[1][CPU_CHUNK:])


def test_replicates_differ_in_weights_and_queries(result):
    leaf = jax.tree.leaves(result[0].params)[1]
    assert not np.array_equal(leaf[0], leaf[1])


# --- devices ---


def test_devices_change_nothing(setting, compiled_on_two, result):
    """Two devices, and one alone, agree bit for bit.

    They hold different losses in the same place, so were gradients summed over the devices (as of
    parameters made inside `shard_map`), the runs would come out very differently.
    """
    half = RUNS // 2
    order = np.r_[:half, half - 1 : -1 : -1]
    states, values = setting.call(compiled_on_two, [CANDIDATES[k] for k in order])
    back = np.arange(RUNS)[::-1][:half]  # the runs of the first device, on the second
    assert_same(at(states, slice(half)), at(states, back))
    assert_same(values[:half], values[back])
    assert_same(states, at(result[0], order))
    assert_same(values, result[1][order])


def test_no_device_waits_for_another(setting, compiled_on_two):
    train, evaluate, mesh = compiled_on_two
    states, active = spread_runs(mesh, setting.start, np.zeros(RUNS, int)), jnp.ones(RUNS, bool)
    lowered = train.lower(
        states, encode(CANDIDATES), jnp.full(RUNS, RATE, jnp.float32), active, setting.batches,
        setting.plan,
    )  # fmt: skip
    for part in (lowered, evaluate.lower(states, active, setting.batches, setting.every)):
        compiled = part.compile().as_text()
        collectives = r"all-reduce|all-gather|all-to-all|collective|reduce-scatter"
        assert re.findall(collectives, compiled) == []
        assert "num_partitions=2" in compiled


def test_later_calls_compile_nothing(setting, compiled_on_two):
    train, _, mesh = compiled_on_two
    states = spread_runs(mesh, setting.start, np.zeros(RUNS, int))
    rest = (setting.batches, setting.plan)
    sizes = []
    for losses, order in ((CANDIDATES, np.arange(RUNS)), (CANDIDATES[::-1], np.arange(RUNS)[::-1]),
                          ([LOSSES["mse"]] * RUNS, np.zeros(RUNS, int))):  # fmt: skip
        states = train(
            states, encode(losses), jnp.full(RUNS, RATE, jnp.float32), jnp.ones(RUNS, bool), *rest
        )
        sizes.append(train._cache_size())
        states = spread_runs(mesh, states, order)
    states = train(
        states, encode(CANDIDATES), jnp.full(RUNS, RATE, jnp.float32), jnp.zeros(RUNS, bool), *rest
    )
    # At most one entry: jax may drop a cached program, in a long session, but must not add one.
    assert max(*sizes, train._cache_size()) <= 1


def test_runs_are_padded_to_fill_every_device(compiled, compiled_on_two):
    training = RankerTraining(Small(), program_score_gradient(), 5)
    for mesh, counts in ((compiled[-1], [4, 4, 8]), (compiled_on_two[-1], [8, 8, 16])):
        runs = (1, CPU_CHUNK * mesh.size, CPU_CHUNK * mesh.size + 1)
        assert [padded_count(n, training, mesh) for n in runs] == counts
        alone = dataclasses.replace(training, cpu_chunk=1)
        assert padded_count(1, alone, mesh) == mesh.size
        assert padded_count(2, alone, mesh) == 2


def test_start_is_not_used_up(setting, compiled):
    """Donation is of the spread copy: the models a caller starts from stay readable."""
    setting.call(compiled, CANDIDATES)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(setting.start.params))


# --- the gradient of one program ---


ALONE = jax.jit(program_gradient)
MAPPED = jax.jit(jax.vmap(program_gradient, in_axes=(0, 0, None, None)))


@pytest.fixture(scope="module")
def lists():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 4, 5)).astype(np.float32)
    labels = rng.integers(0, 3, (4, 5)).astype(np.float32)
    mask = np.arange(5) < np.array([[5], [3], [1], [0]])
    return jnp.asarray(scores), jnp.asarray(labels), jnp.asarray(mask)


def test_mapped_program_gradients_are_those_of_each_candidate(lists):
    scores, labels, mask = lists
    programs = encode(CANDIDATES[:3])
    mapped = MAPPED(programs, scores, labels, mask)
    for c in range(3):
        alone = ALONE(jax.tree.map(lambda x, c=c: x[c], programs), scores[c], labels, mask)
        np.testing.assert_allclose(mapped[c], alone, rtol=1e-6, atol=1e-7)


def test_scores_that_all_candidates_share(lists):
    scores, labels, mask = lists
    programs = encode(CANDIDATES[:3])
    mapped = jax.jit(jax.vmap(program_gradient, (0, None, None, None)))
    shared = mapped(programs, scores[0], labels, mask)
    np.testing.assert_array_equal(
        shared, MAPPED(programs, jnp.stack([scores[0]] * 3), labels, mask)
    )


def test_truncated_gradients_map_over_candidates_and_lengths(lists):
    scores, labels, mask = lists
    programs = encode([LOSSES["ranknet"], LOSSES["softmax"], LOSSES["mse"]])
    gradient = program_score_gradient(truncation_level=2)
    mapped = jax.jit(jax.vmap(gradient, (0, 0, None, None)))
    buckets = [scores, scores[:, 1:, :3]], [labels, labels[1:, :3]], [mask, mask[1:, :3]]
    long, short = mapped(programs, *buckets)
    losses = jax.jit(partial(losses_and_gradients, truncation_level=2))
    np.testing.assert_allclose(
        long, losses(programs, scores, labels, mask)[1], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(short, long[:, 1:, :3], rtol=1e-5, atol=1e-6)
    whole = MAPPED(programs, scores, labels, mask)
    assert (np.abs(whole - long).max((1, 2)) > 1e-3).tolist() == [True, True, False]
    # Equal trainings are compiled once.
    assert program_score_gradient(2) is gradient


def test_mapped_labels_are_refused(lists):
    scores, labels, mask = lists
    with pytest.raises(AutolossError, match="candidates that share their queries"):
        jax.vmap(program_gradient, (0, 0, 0, None))(
            encode(CANDIDATES[:3]), scores, jnp.stack([labels] * 3), mask
        )


class Unmasked(nn.Module):
    """A user's model that gives padding no finite score."""

    @nn.compact
    def __call__(self, features, mask):
        return jnp.where(mask, nn.Dense(1)(features)[..., 0], -jnp.inf)


def test_a_model_may_give_padding_any_score(setting):
    training = RankerTraining(Unmasked(), exact_score_gradient(LOSSES["softmax"]), 5)
    state = training.init(jax.random.key(0), setting.batches[0])
    plan = jax.tree.map(lambda x: x[0, :2], setting.plan)
    trained = training.train(state, None, RATE, setting.batches, plan)
    assert trained.alive
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(trained.params))
    assert not np.array_equal(trained.params["params"]["Dense_0"]["kernel"],
                              state.params["params"]["Dense_0"]["kernel"])  # fmt: skip
