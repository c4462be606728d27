"""The step: exact accumulation, updates by hand, one compilation, the same on every mesh."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpo_jax.mesh import make_mesh, named_sharding
from dpo_jax.training.optimizer import adamw, make_schedule
from dpo_jax.training.state import create_state, param_shardings, state_shardings
from dpo_jax.training.step import make_step
from dpo_jax.types import Mean, Objective, Tree

AXES = {"matrix": ("embed", "mlp"), "scale": ("embed",)}
SHAPES = {
    "matrix": jax.ShapeDtypeStruct((8, 16), jnp.float32),
    "scale": jax.ShapeDtypeStruct((8,), jnp.float32),
}
TREE = Tree(SHAPES, AXES)


class Rows(NamedTuple):
    """A toy batch: rows with a number of tokens each."""

    inputs: jax.Array  # [A, R, 8]
    tokens: jax.Array  # [A, R]


def forward(params, frozen, batch, key):
    return jnp.tanh((batch.inputs * params["scale"][None]) @ params["matrix"]).sum(-1)


def weighted(value_R, batch, knobs, counts, memory, key):
    value_R = value_R * batch.tokens
    metrics = {"value": Mean(value_R.sum(), batch.tokens.sum())}
    return knobs.get("beta", 1.0) * value_R.sum() / counts["tokens"], metrics, memory


def weigh(batch):
    return {"tokens": batch.tokens.sum()}


OBJECTIVE = Objective(weigh, forward, weighted)


def parameters():
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape.shape).astype(np.float32) for name, shape in SHAPES.items()}


def batch(micro_batches: int) -> Rows:
    random = np.random.default_rng(1)
    inputs = random.normal(size=(8, 8)).astype(np.float32)
    tokens = np.array([1, 9, 2, 2, 30, 1, 1, 4], np.float32)  # unequal on purpose
    return Rows(inputs.reshape(micro_batches, -1, 8), tokens.reshape(micro_batches, -1))


def train(
    steps=3,
    *,
    axes=None,
    micro_batches=1,
    knobs=None,
    schedule=("constant", 0),
    objective=OBJECTIVE,
    loss_state=(),
    with_frozen=False,
    **options,
):
    mesh = make_mesh(**(axes or {}))
    with jax.set_mesh(mesh):
        optimizer = adamw(AXES, **options)
        beside = param_shardings(mesh, TREE) if with_frozen else None
        shardings = state_shardings(mesh, TREE, optimizer, loss_state=loss_state, frozen=beside)
        params = jax.device_put(parameters(), shardings.params)
        frozen = jax.device_put(parameters(), beside) if with_frozen else None
        state = create_state(params, optimizer, shardings, seed=0, loss_state=loss_state, frozen=frozen)
        rows = batch(micro_batches)
        step = make_step(
            objective,
            optimizer,
            make_schedule(schedule[0], warmup_steps=schedule[1], steps=steps),
            shardings=shardings,
            batch_shardings=Rows(
                *(named_sharding(mesh, (None, "rows") + (None,) * (x.ndim - 2), x.shape) for x in rows)
            ),
        )
        history = []
        for number in range(steps):
            state, metrics = step(state, rows, {"learning_rate": 0.1, **((knobs or {}) and knobs(number))})
            history.append(jax.device_get(metrics))
        return jax.device_get(state), history, step


def test_micro_batches_of_unequal_tokens_add_up_exactly():
    (whole, history, _), (parts, in_parts, _) = train(), train(micro_batches=2)
    for ours, wanted in zip(
        jax.tree.leaves((parts.params, in_parts)), jax.tree.leaves((whole.params, history)), strict=True
    ):
        np.testing.assert_allclose(ours, wanted, rtol=2e-5, atol=1e-6)


def ranked(value_R, batch, knobs, counts, memory, key):
    """Compares all rows with each other, and remembers their mean: a loss that micro-batches cannot add up to."""
    rank_R = jnp.argsort(jnp.argsort(value_R)).astype(jnp.float32)
    noise_R = jax.random.normal(key, value_R.shape)
    seen = 0.5 * memory + 0.5 * jax.lax.stop_gradient(value_R.mean())
    loss = ((value_R * (rank_R + noise_R - seen)) ** 2).sum() / counts["tokens"]
    return loss, {"value": Mean(value_R.sum(), batch.tokens.sum())}, seen


def test_a_loss_on_the_whole_batch_is_the_same_in_micro_batches():
    objective = Objective(weigh, forward, ranked, whole_batch=True)
    start = np.float32(3.0)
    whole, history, _ = train(objective=objective, loss_state=start)
    parts, in_parts, step = train(objective=objective, loss_state=start, micro_batches=4, axes={"data": 2, "fsdp": 4})
    assert not np.allclose(whole.loss_state, start) and step._cache_size() == 1
    for ours, wanted in zip(
        jax.tree.leaves((parts.params, parts.loss_state, in_parts)),
        jax.tree.leaves((whole.params, whole.loss_state, history)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, wanted, rtol=2e-5, atol=1e-6)


def test_what_is_remembered_is_updated_once_a_step():
    objective = Objective(weigh, forward, lambda *inputs: (*weighted(*inputs)[:2], inputs[4] + 1), whole_batch=True)
    for micro_batches in (1, 4):
        assert train(objective=objective, loss_state=np.float32(0.0), micro_batches=micro_batches)[0].loss_state == 3


def test_an_objective_of_parts_remembers_nothing():
    objective = Objective(weigh, forward, lambda *inputs: (*weighted(*inputs)[:2], inputs[4] + 1))
    assert train(objective=objective, loss_state=np.float32(0.0), micro_batches=4)[0].loss_state == 0


def test_chance_is_the_same_in_both_passes():
    def noisy(params, frozen, batch, key):
        value_R = forward(params, frozen, batch, key)
        return value_R * jax.random.normal(key, value_R.shape)

    (one, in_one, _), (two, in_two, _) = (
        train(objective=Objective(weigh, noisy, weighted, whole_batch=whole), micro_batches=4)
        for whole in (False, True)
    )
    for ours, wanted in zip(jax.tree.leaves((two.params, in_two)), jax.tree.leaves((one.params, in_one)), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=2e-5, atol=1e-6)


def test_chance_is_another_in_each_step_and_micro_batch():
    def drawn(params, frozen, batch, key):
        return jnp.full(batch.tokens.shape, jax.random.normal(key)) + 0.0 * forward(params, frozen, batch, key)

    def shown(value_R, batch, knobs, counts, memory, key):
        metrics = {"draw": Mean(value_R[0], jnp.ones(())), "square": Mean(value_R[0] ** 2, jnp.ones(()))}
        return value_R.sum(), metrics, memory

    _, history, _ = train(objective=Objective(weigh, drawn, shown), micro_batches=4)
    draws = [row["draw"] for row in history]
    assert len(set(map(float, draws))) == 3
    assert all(row["square"] - row["draw"] ** 2 > 1e-3 for row in history)  # the variance over micro-batches


def test_frozen_parameters_stay_and_move_when_they_are_told():
    def apart(params, frozen, batch, key):
        return forward(params, None, batch, key) - forward(frozen, None, batch, key)

    state, history, _ = train(objective=Objective(weigh, apart, weighted), with_frozen=True)
    np.testing.assert_array_equal(state.frozen["matrix"], parameters()["matrix"])
    nothing = pytest.approx(0.0, abs=1e-7)  # XLA may add up the two equal sums in different orders (jax 0.12 does)
    assert history[0]["loss"] == nothing and abs(history[1]["loss"]) > 1e-3 and abs(history[2]["loss"]) > 1e-3

    def refresh(params, frozen, done):
        return jax.tree.map(lambda p, f: jnp.where(done == 2, p, f), params, frozen)

    state, history, _ = train(objective=Objective(weigh, apart, weighted, refresh=refresh), with_frozen=True)
    assert abs(history[1]["loss"]) > 1e-3 and history[2]["loss"] == nothing
    assert not np.array_equal(state.frozen["matrix"], parameters()["matrix"])


@pytest.mark.parametrize("axes", [{"data": 8, "fsdp": 1}, {"tensor": 4, "fsdp": 2}])
def test_eight_devices_equal_plain_optax_on_one(axes):
    rows = Rows(*(x[0] for x in batch(1)))
    params, optimizer = parameters(), optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1, weight_decay=0.0))
    memory, losses = optimizer.init(params), []
    counts = {"tokens": rows.tokens.sum()}
    for _ in range(3):
        loss, gradient = jax.value_and_grad(
            lambda p: weighted(forward(p, None, rows, None), rows, {}, counts, (), None)[0]
        )(params)
        update, memory = optimizer.update(gradient, memory, params)
        params = optax.apply_updates(params, update)
        losses.append((loss, optax.tree.norm(gradient)))
    state, history, _ = train(axes=axes, clip_norm=0.5)
    np.testing.assert_allclose([(m["loss"], m["grad_norm"]) for m in history], losses, rtol=1e-5)
    for name in params:
        np.testing.assert_allclose(state.params[name], params[name], rtol=1e-4, atol=1e-5)


def test_knobs_do_not_recompile_and_act():
    _, history, step = train(knobs=lambda number: {"beta": 1.0 + number, "learning_rate": 0.0})
    assert step._cache_size() == 1
    # with a learning rate of 0 nothing moves, so the loss is proportional to beta
    np.testing.assert_allclose([m["loss"] for m in history], history[0]["loss"] * np.array([1, 2, 3]), rtol=1e-6)


def test_the_schedule_starts_at_the_first_step():
    _, history, _ = train(schedule=("linear", 0))
    np.testing.assert_allclose([m["learning_rate"] for m in history], [0.1, 0.1 * 2 / 3, 0.1 / 3], rtol=1e-6)


def test_each_seed_has_a_key_of_its_own():
    optimizer = adamw(AXES)
    shardings = state_shardings(make_mesh(fsdp=8), TREE, optimizer)
    keys = [
        create_state(jax.device_put(parameters(), shardings.params), optimizer, shardings, seed=s).key for s in (0, 1)
    ]
    assert not np.array_equal(*keys)


def test_weight_decay_acts_on_matrices_only():
    state, _, _ = train(steps=1, knobs=lambda number: {"beta": 0.0}, weight_decay=0.5)
    # no gradient: matrix <- matrix - lr * decay * matrix
    np.testing.assert_allclose(state.params["matrix"], parameters()["matrix"] * (1 - 0.1 * 0.5), rtol=1e-6)
    np.testing.assert_array_equal(state.params["scale"], parameters()["scale"])


def test_moments_lie_where_their_parameters_lie():
    mesh = make_mesh(fsdp=8)
    optimizer = adamw(AXES, clip_norm=1.0)
    shardings = state_shardings(mesh, TREE, optimizer)
    with jax.set_mesh(mesh):
        state = create_state(jax.device_put(parameters(), shardings.params), optimizer, shardings, seed=0)
    sharded = [x for x in jax.tree.leaves(state.optimizer) if x.shape == (8, 16)]
    assert len(sharded) == 2  # first and second moment
    assert all(x.sharding.shard_shape(x.shape) == (1, 16) for x in sharded)


def test_the_old_state_is_donated():
    mesh = make_mesh(fsdp=1, data=8)
    optimizer = adamw(AXES)
    shardings = state_shardings(mesh, TREE, optimizer)
    rows = batch(1)
    with jax.set_mesh(mesh):
        state = create_state(jax.device_put(parameters(), shardings.params), optimizer, shardings, seed=0)
        step = make_step(
            OBJECTIVE,
            optimizer,
            make_schedule("constant", warmup_steps=0, steps=1),
            shardings=shardings,
            batch_shardings=None,
        )
        memory = step.lower(state, rows, {"learning_rate": 0.1}).compile().memory_analysis()
    state_bytes = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes == state_bytes


@pytest.mark.parametrize(
    ("name", "warmup", "wanted"),
    [
        ("constant", 0, [1, 1, 1, 1, 1]),
        ("constant", 2, [0, 0.5, 1, 1, 1]),
        ("linear", 0, [1, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 1, [0, 1, 0.75, 0.5, 0.25]),
        ("cosine", 1, [0, 1, (1 + np.cos(np.pi / 4)) / 2, 0.5, (1 + np.cos(3 * np.pi / 4)) / 2]),
    ],
)
def test_schedules_by_hand(name, warmup, wanted):
    schedule = make_schedule(name, warmup_steps=warmup, steps=5)
    np.testing.assert_allclose([schedule(jnp.asarray(step)) for step in range(5)], wanted, atol=1e-6)


def test_a_bfloat16_first_moment_by_hand():
    """mu is kept rounded, nu is not; the update itself is computed from what is not rounded yet."""
    gradient = np.linspace(0.1, 0.9, 128).astype(np.float32).reshape(8, 16)
    optimizer = adamw({"matrix": AXES["matrix"]}, beta1=0.9, beta2=0.99, moment_dtype="bfloat16")
    params = {"matrix": jnp.zeros((8, 16))}
    state = optimizer.init(params)
    mu = nu = np.zeros((8, 16), np.float32)
    for step in (1, 2):
        direction, state = optimizer.update({"matrix": jnp.asarray(gradient)}, state, params)
        wide, nu = 0.9 * mu + 0.1 * gradient, 0.99 * nu + 0.01 * gradient**2
        wanted = -(wide / (1 - 0.9**step)) / (np.sqrt(nu / (1 - 0.99**step)) + 1e-8)
        mu = wide.astype(jnp.bfloat16).astype(np.float32)
        np.testing.assert_allclose(direction["matrix"], wanted, rtol=1e-5)
    (moments,) = (part for part in state if isinstance(part, optax.ScaleByAdamState))
    assert moments.mu["matrix"].dtype == jnp.bfloat16 and moments.nu["matrix"].dtype == jnp.float32
    np.testing.assert_array_equal(moments.mu["matrix"].astype(jnp.float32), mu)


@pytest.mark.parametrize(
    ("where", "micro_batches", "whole"),
    [("loss", 4, True), ("loss", 1, False), ("gradient", 4, False), ("gradient", 4, True), ("parameters", 1, False)],
)
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(where: str, micro_batches: int, whole: bool):
    @jax.custom_vjp
    def poisoned(x, bad):
        return x

    poisoned.defvjp(lambda x, bad: (x, bad), lambda bad, g: (jnp.where(bad > 0, jnp.inf, g), None))

    def bad_loss(value_R, batch, knobs, counts, memory, key):
        loss, metrics, _ = weighted(value_R, batch, knobs, counts, memory, key)
        bad = knobs["bad"]
        now = {"loss": jnp.where(bad > 0, jnp.nan, loss), "gradient": poisoned(loss, bad), "parameters": loss}[where]
        return now, metrics, memory + 1

    def harmed(params, frozen, batch, key):
        return forward(params, None, batch, key) - forward(frozen, None, batch, key)

    def refresh(params, frozen, done):
        return params

    good = {"bad": -1.0}
    knobs = [good, {"bad": 1.0}, good]
    if where == "parameters":
        knobs = [good, {"bad": 1.0, "learning_rate": jnp.inf}, good]  # parameters go off, and every step after them
    objective = Objective(weigh, harmed, bad_loss, whole_batch=whole, refresh=refresh)
    options = {
        "objective": objective,
        "micro_batches": micro_batches,
        "loss_state": np.float32(0.0),
        "with_frozen": True,
    }
    state, history, step = train(3, knobs=lambda number: knobs[number], **options)
    if where == "parameters":
        assert [int(row["skipped_steps"]) for row in history] == [0, 0, 1]
        return
    assert [int(row["skipped_steps"]) for row in history] == [0, 1, 1] and step._cache_size() == 1
    assert not np.isfinite(history[1]["loss"] + history[1]["grad_norm"])
    wanted, _, _ = train(2, knobs=lambda number: good, **options)
    # the same two updates, with the skipped batch between them; only the bias correction counts updates, not steps
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        if ours.shape != ():
            np.testing.assert_array_equal(ours, theirs)
    assert state.step == 3 and wanted.step == 2 and state.skipped == 1
