"""Every loss over a mesh of eight devices, and with pairs that are not real: the same as on one device without them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dpo_jax import losses
from dpo_jax.losses import AlphaDPOState, RunningMean
from tests.contracts.loss_cases import CASES, PAIRS, WARM, Batch, Case, named, on_device, random_batch

WHOLE = [case for case in CASES if case.reads_others]
APART = [case for case in CASES if not case.reads_others]
WEIGHTS = np.linspace(0.5, 1.5, PAIRS)  # tells apart losses that came back in another order
REAL = np.array([True, False, True, True, False, True, True, True])
SPLIT, SAME = PartitionSpec("data"), PartitionSpec()


def mesh(kind: AxisType = AxisType.Auto) -> Mesh:
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


def graded(losses_of: Callable[[Batch], jax.Array], batch: Batch, weights: Any) -> tuple[jax.Array, Any]:
    """Losses, and the gradient of their weighted sum by the policy's log-probs; a weight of 0 leaves a loss out."""

    def total(chosen: jax.Array, rejected: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = losses_of(batch._replace(chosen=chosen, rejected=rejected))
        return jnp.where(weights != 0, weights * found, 0).sum(), found

    gradient, found = jax.grad(total, (0, 1), has_aux=True)(batch.chosen, batch.rejected)
    return found, gradient


def equal(ours: Any, expected: Any) -> None:
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
@pytest.mark.parametrize("case", WHOLE, ids=named)
def test_shard_map_with_an_axis_name_equals_one_device(case: Case, masked: bool, x64):
    """Value and gradient, the gradient taken around shard_map and inside of it."""
    batch, weights = on_device(random_batch(20, np.float64)), jnp.asarray(WEIGHTS * (REAL if masked else 1.0))
    where = jnp.asarray(REAL) if masked else jnp.ones(PAIRS, bool)

    def of_shard(part: Batch, where: jax.Array) -> jax.Array:
        return case.losses(part, where=where, axis_name="data")

    over = partial(jax.shard_map, mesh=mesh())

    @jax.jit
    def all_three(batch: Batch, where: jax.Array, weights: jax.Array) -> Any:
        sharded = over(of_shard, in_specs=(SPLIT, SPLIT), out_specs=SPLIT)
        inside = over(
            lambda part, where, weights: graded(lambda b: of_shard(b, where), part, weights),
            in_specs=(SPLIT, SPLIT, SPLIT),
            out_specs=SPLIT,
        )
        single = graded(lambda b: case.losses(b, where=where if masked else None), batch, weights)
        return single, graded(lambda b: sharded(b, where), batch, weights), inside(batch, where, weights)

    single, outside, inside = all_three(batch, where, weights)
    assert any(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(single[1]))
    equal(outside, single)
    equal(inside, single)


def test_losses_that_look_at_one_pair_need_no_axis_name(x64):
    batch = on_device(random_batch(21, np.float64))

    def every(part: Batch) -> dict[str, jax.Array]:
        return {case.name: case.losses(part, **case.options) for case in APART}

    sharded = jax.jit(jax.shard_map(every, mesh=mesh(), in_specs=SPLIT, out_specs=SPLIT))(batch)
    for name, expected in jax.jit(every)(batch).items():
        np.testing.assert_allclose(sharded[name], expected, rtol=1e-12, err_msg=name)


EXPLICIT = pytest.param(AxisType.Explicit, marks=pytest.mark.slow("all losses compiled once more"), id="explicit")


@pytest.mark.parametrize("kind", [pytest.param(AxisType.Auto, id="auto"), EXPLICIT])
def test_batch_split_over_a_mesh_equals_the_whole(kind: AxisType, x64):
    """All losses at once under jit, their inputs sharded over the pairs, and the mesh set: value and gradient."""
    batch, weights, real = on_device(random_batch(22, np.float64)), jnp.asarray(WEIGHTS), jnp.asarray(REAL)

    def every(batch: Batch, weights: jax.Array, real: jax.Array) -> dict[str, Any]:
        masked = jnp.where(real, weights, 0)
        found = {case.name: graded(partial(case.losses, where=real), batch, masked) for case in WHOLE}
        # One gradient for all that look at one pair: each is a sum over the mesh of what lies on one device.
        sums = graded(lambda b: sum(case.losses(b) / size for case, size in sizes), batch, weights)
        return found | {"the others": sums} | {case.name: case.losses(batch) for case in APART}

    # As large as each other, so that none is lost beside SPPO's squares.
    sizes = [(case, float(jnp.abs(case.losses(batch)).max())) for case in APART]
    expected = jax.jit(every)(batch, weights, real)
    devices = mesh(kind)
    with jax.set_mesh(devices):
        placed = jax.device_put((batch, weights, real), NamedSharding(devices, SPLIT))
        found = jax.device_get(jax.jit(every)(*placed))
    for name, value in expected.items():
        for one, other in zip(jax.tree.leaves(found[name]), jax.tree.leaves(value), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13, err_msg=name)


def garbage(batch: Batch, junk: float) -> Batch:
    """The batch with `junk` in all pairs that are not real."""
    return Batch(*(jnp.where(REAL, array, junk) for array in batch[:-1]), batch.desirable)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", WHOLE, ids=named)
def test_what_is_not_real_does_not_leak(case: Case, junk: float, x64):
    """Losses and gradients of the real pairs are those of a batch that holds nothing else."""
    filter_none = {"filter_fraction": 0.0} if case.name == "beta_dpo" else {}  # lots fall otherwise in another batch
    batch = on_device(random_batch(23, np.float64))
    weights = WEIGHTS * REAL
    found, gradients = graded(
        partial(case.losses, where=jnp.asarray(REAL), **filter_none), garbage(batch, junk), jnp.asarray(weights)
    )
    alone = jax.tree.map(lambda array: array[REAL], batch)
    expected, alone_gradients = graded(partial(case.losses, **filter_none), alone, jnp.asarray(weights[REAL]))
    equal([found[REAL], *(g[REAL] for g in gradients)], [expected, *alone_gradients])


@pytest.mark.parametrize("name", list(losses.STATEFUL))
def test_the_state_after_a_masked_or_split_batch_is_that_of_the_real_pairs(name: str, x64):
    case = next(case for case in CASES if case.function.__name__ == name)
    batch = on_device(random_batch(24, np.float64))

    def state_after(batch: Batch, **keywords: Any) -> AlphaDPOState:
        return case.call(case.function, batch, state=WARM, **keywords)[1]

    alone = state_after(jax.tree.map(lambda array: array[REAL], batch))
    equal(state_after(garbage(batch, np.nan), where=jnp.asarray(REAL)), alone)
    of_shard = jax.shard_map(
        lambda b, real: state_after(b, where=real, axis_name="data"),
        mesh=mesh(),
        in_specs=(SPLIT, SPLIT),
        out_specs=SAME,
    )
    equal(jax.jit(of_shard)(garbage(batch, np.nan), jnp.asarray(REAL)), alone)


def test_lots_fall_only_on_real_pairs(x64):
    batch = garbage(on_device(random_batch(25, np.float64)), np.nan)
    for seed in range(5):
        found, _ = losses.beta_dpo(
            batch.policy, batch.reference, WARM, key=jax.random.key(seed), filter_fraction=0.4, where=jnp.asarray(REAL)
        )
        # Of 6 real pairs int(6 * 0.6) = 3 are drawn.
        assert (found[~REAL] == 0).all() and (found[REAL] > 0).sum() == 3


def test_no_real_pair_at_all_gives_no_nan():
    batch, nothing = on_device(random_batch(26)), jnp.zeros(PAIRS, bool)
    for case in WHOLE:
        assert np.isfinite(case.losses(batch, where=nothing)).all(), case.name
    for value in (
        losses.mismatched_kl(batch.chosen, batch.frozen_chosen, where=nothing),
        losses.diffusion_baseline(batch.chosen, batch.frozen_chosen, where=nothing),
        *jax.tree.leaves(losses.running_mean(batch.chosen, RunningMean(), where=nothing)),
    ):
        assert value == 0


@pytest.mark.parametrize("function", [losses.mismatched_kl, losses.diffusion_baseline])
def test_means_over_the_batch_are_the_same_on_shards_and_without_what_is_not_real(function: Any, x64):
    batch = on_device(random_batch(27, np.float64))
    batch = batch if function is losses.mismatched_kl else batch._replace(chosen=batch.frozen_chosen - 0.7)
    expected = function(batch.chosen[REAL], batch.frozen_chosen[REAL])
    dirty = garbage(batch, np.inf)
    of_shard = jax.shard_map(
        lambda b, real: function(b.chosen, b.frozen_chosen, where=real, axis_name="data"),
        mesh=mesh(),
        in_specs=(SPLIT, SPLIT),
        out_specs=SAME,
    )
    equal(jax.jit(of_shard)(dirty, jnp.asarray(REAL)), expected)
    equal(function(dirty.chosen, dirty.frozen_chosen, where=jnp.asarray(REAL)), expected)
    # They are constants to whoever trains on them.
    gradient = jax.grad(lambda logps: function(logps, batch.frozen_chosen))(batch.chosen)
    np.testing.assert_array_equal(gradient, 0.0)


def test_running_mean_over_shards(x64):
    values, start = jnp.asarray(random_batch(28, np.float64).chosen), RunningMean(np.float64(2.0), np.float64(5.0))
    dirty = jnp.where(REAL, values, jnp.nan)
    of_shard = jax.shard_map(
        lambda v, real, state: losses.running_mean(v, state, where=real, axis_name="data"),
        mesh=mesh(),
        in_specs=(SPLIT, SPLIT, SAME),
        out_specs=SAME,
    )
    expected = (2.0 * 5 + values[REAL].sum()) / 11
    mean, state = jax.jit(of_shard)(dirty, jnp.asarray(REAL), jax.tree.map(jnp.asarray, start))
    equal([mean, *state], [expected, expected, 11.0])
