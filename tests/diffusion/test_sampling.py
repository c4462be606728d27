"""Samplers and guidance: with the exact denoiser of a known Gaussian they give that Gaussian."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.diffusion.draws import start, step_noise
from dpo_jax.diffusion.embeddings import Condition, present
from dpo_jax.diffusion.sampling import SAMPLERS, ddim, guided, make_sampler
from dpo_jax.diffusion.schedules import SCHEDULES
from dpo_jax.mesh import make_mesh, named_sharding
from tests.diffusion.gaussian import MEAN, SHAPE, SPREAD, carried, exact, keys, of_data, options


@pytest.mark.slow("thousands of samples in hundreds of steps")
def test_mean_and_variance_are_those_of_the_data():
    """Of 4096 samples three standard errors are 0.047 deviations for the mean and 0.033 for the deviation."""
    many = keys(4096)
    found = jax.jit(lambda: ddim(exact("v", "cosine"), many, SHAPE, **options("v", "cosine", steps=600, eta=0.5)))()
    np.testing.assert_allclose((found.mean(axis=0) - MEAN) / SPREAD, 0.0, atol=0.055)
    np.testing.assert_allclose(found.std(axis=0) / SPREAD, 1.0, atol=0.055)


def test_only_eta_above_0_adds_fresh_noise():
    """With it a sample is no longer that of its start, but still that of its key."""
    few = keys(64)

    def sampled(eta):
        return ddim(exact("v", "cosine"), few, SHAPE, **options("v", "cosine", steps=20, eta=eta))

    apart = jnp.abs((sampled(1.0) - carried(start(few, SHAPE), "cosine")) / SPREAD[None])
    assert apart.mean() > 0.5
    np.testing.assert_array_equal(sampled(1.0), sampled(1.0))


def test_in_rectified_flow_ddim_and_euler_take_the_same_steps():
    few, given = keys(4), options("velocity", "flow", steps=5)
    one, other = (SAMPLERS[name](exact("velocity", "flow"), few, SHAPE, **given) for name in ("ddim", "euler"))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_clipping_keeps_each_guess_within_bounds():
    few, given = keys(64), options("epsilon", "linear", steps=20)
    found = ddim(exact("epsilon", "linear"), few, SHAPE, **given, clip=0.6)
    assert np.abs(found).max() <= 0.6 + 1e-5
    np.testing.assert_allclose(found[:, 1, 0], 0.6, atol=1e-5)  # its mean is 2
    free = ddim(exact("epsilon", "linear"), few, SHAPE, **given)
    np.testing.assert_allclose(ddim(exact("epsilon", "linear"), few, SHAPE, **given, clip=1e3), free, atol=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_how_much_fresh_noise_by_hand(schedule: str):
    """Any amount would give the same mean and variance: equation 16 of the paper, where the network says v = 0."""
    few, eta = keys(8), 0.8
    noisy = np.asarray(start(few, SHAPE), np.float64)
    alpha, sigma = (np.asarray(share, np.float64) for share in SCHEDULES[schedule](jnp.array([1.0, 0.5, 0.0])))
    for step in range(2):
        clean, noise = (share[step] * noisy / (alpha[step] ** 2 + sigma[step] ** 2) for share in (alpha, sigma))
        fresh = eta * sigma[step + 1] / sigma[step] * np.sqrt(1 - (alpha[step] / alpha[step + 1]) ** 2)
        noisy = alpha[step + 1] * clean + np.sqrt(sigma[step + 1] ** 2 - fresh**2) * noise
        noisy += fresh * np.asarray(step_noise(few, step, SHAPE))
    given = options("v", schedule, steps=2, eta=eta)
    np.testing.assert_allclose(ddim(lambda noisy, time: 0.0 * noisy, few, SHAPE, **given), noisy, atol=1e-5)


def by_class(params, noisy, time, condition):
    """Class c has mean c; nothing has mean -1; all with deviation 1."""
    mean = jnp.where(condition.absent_B, -1.0, params * condition.shown_B)
    return jax.vmap(
        lambda mean, x, t: of_data(mean.reshape(1, 1), jnp.ones((1, 1)), "v", "cosine", x[None], t[None])[0]
    )(mean, noisy, time)


def test_guidance_moves_away_from_no_condition():
    """Of Gaussians with one variance the prediction is linear in the mean: -1 + 3 (c + 1)."""
    sample = make_sampler(by_class, SHAPE, sampler="ddim", **options("v", "cosine", steps=100))
    few, classes = keys(16), jnp.arange(16) % 3
    for scale in (0.0, 1.0, 3.0):
        mean = (-1 + scale * (classes + 1)).astype(jnp.float32).reshape(-1, 1, 1)
        found = sample(jnp.ones(()), few, present(classes), scale)
        wanted = jax.vmap(lambda m, z: carried(z[None], "cosine", m.reshape(1, 1), jnp.ones((1, 1)))[0])(
            mean, start(few, SHAPE)
        )
        np.testing.assert_allclose(found, wanted, atol=0.05)
    np.testing.assert_allclose(
        sample(jnp.ones(()), few, present(classes), 1.0), sample(jnp.ones(()), few, present(classes)), atol=1e-4
    )
    assert sample._cache_size() == 2  # with guidance and without: its scale is traced


def test_who_is_absent_already_is_not_guided():
    condition = Condition(jnp.array([1, 1]), jnp.array([True, False]))
    noisy, time = jnp.ones((2, 1, 1)), jnp.full(2, 0.5)
    free = by_class(1.0, noisy, time, condition._replace(absent_B=jnp.array([True, True])))
    found = guided(functools.partial(by_class, 1.0), condition, scale=4.0)(noisy, time)
    np.testing.assert_allclose(found[0], free[0], rtol=1e-6)
    assert np.abs(found[1] - free[1]).min() > 0.1


def test_a_sample_is_that_of_its_key_on_any_mesh_and_in_any_batch():
    sample = make_sampler(by_class, SHAPE, sampler="ddim", **options("v", "cosine", steps=5, eta=1.0))
    few, condition = keys(16), present(jnp.arange(16) % 3)
    wanted = sample(jnp.ones(()), few, condition, 2.0)
    some = jax.tree.map(lambda x: x[4:7], (few, condition))
    np.testing.assert_allclose(sample(jnp.ones(()), *some, 2.0), wanted[4:7], atol=1e-5)
    mesh = make_mesh(data=2, fsdp=4)
    with jax.set_mesh(mesh):
        split = jax.tree.map(lambda x: jax.device_put(x, named_sharding(mesh, ("rows",), x.shape)), (few, condition))
        found = sample(jnp.ones(()), *split, 2.0)
        assert found.sharding.is_equivalent_to(named_sharding(mesh, ("rows", None, None), found.shape), 3)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_guidance_needs_a_condition():
    with pytest.raises(ValueError, match="guidance needs a condition"):
        make_sampler(by_class, SHAPE, sampler="euler", **options("v", "flow", steps=2))(1.0, keys(2), None, 2.0)
