"""Scorers learn a preference, take any size, are the same on eight devices, and have slopes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpo_jax.losses import preference_score
from dpo_jax.mesh import make_mesh, named_sharding
from dpo_jax.scorers.networks import ScorerSpec, make_scorer
from dpo_jax.training.state import param_shardings
from tests.diffusion.tiny import moved

RANDOM = np.random.default_rng(0)
IMAGES = ScorerSpec(channels=3, clips=False, widths=(8, 16), head_width=32)
CLIPS = ScorerSpec(channels=1, clips=True, widths=(8, 16), head_width=32)
SAMPLES = {
    IMAGES: jnp.asarray(RANDOM.normal(size=(8, 9, 7, 3)), jnp.float32),
    CLIPS: jnp.asarray(RANDOM.normal(size=(8, 4, 6, 6, 1)), jnp.float32),
}
SPECS = pytest.mark.parametrize("spec", [IMAGES, CLIPS], ids=["images", "clips"])


@functools.cache
def made(spec: ScorerSpec, dtype: str = "float32"):
    scorer = make_scorer(spec, dtype=dtype)
    return scorer, moved(jax.jit(scorer.init)(jax.random.key(0)), by=0.1)


def test_the_head_is_512_wide_behind_two_blocks():
    shapes = jax.tree.map(lambda x: x.shape, make_scorer(ScorerSpec(channels=3, clips=True)).tree.shapes)
    assert shapes["first"] == {"weight": (3, 3, 3, 3, 32), "bias": (32,)}
    assert shapes["second"] == {"weight": (3, 3, 3, 32, 64), "bias": (64,)}
    assert shapes["hidden"]["weight"] == (64, 512) and shapes["score"]["weight"] == (512, 1)


def test_by_hand():
    """One channel, kernels that copy the pixel: each block takes the largest of four neighbours."""
    scorer = make_scorer(ScorerSpec(channels=1, clips=False, widths=(1, 1), head_width=1))
    params = jax.tree.map(jnp.zeros_like, jax.jit(scorer.init)(jax.random.key(0)))
    for block in ("first", "second"):
        params[block]["weight"] = params[block]["weight"].at[1, 1].set(1.0)
    params["hidden"]["weight"] += 1.0
    params["score"] = {"weight": jnp.full((1, 1), 2.0), "bias": jnp.full((1,), 0.5)}
    image = np.zeros((1, 8, 4, 1), np.float32)
    image[0, 1, 1], image[0, 0, 0], image[0, 4:] = 3.0, 1.0, -2.0
    # 4 x 4 pixels become one: 3 above, and nothing below, where all is negative; 2 * (3 + 0) / 2 + 0.5 is the score.
    np.testing.assert_allclose(scorer.scores(params, jnp.asarray(image)), [3.5], rtol=1e-6)


@SPECS
@pytest.mark.parametrize("size", [1, 6])
def test_any_size(spec: ScorerSpec, size: int):
    scorer, params = made(spec)
    samples = jnp.ones((2, *(size + n for n in range(spec.axes)), spec.channels))
    found = jax.jit(scorer.scores)(params, samples)
    assert found.shape == (2,) and np.isfinite(found).all()


@SPECS
def test_half_precision_scores_in_float32(spec: ScorerSpec):
    (half, params), (whole, _) = made(spec, "bfloat16"), made(spec)
    found, wanted = (jax.jit(of.scores)(params, SAMPLES[spec]) for of in (half, whole))
    assert found.dtype == jnp.float32 and np.all(found != found.astype(jnp.bfloat16))  # more digits than that
    np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(wanted).max())
    slope = jax.jit(jax.grad(lambda p: half.scores(p, SAMPLES[spec]).sum()))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(slope)} == {jnp.dtype("float32")}


def test_a_clip_scorer_sees_the_order_of_frames():
    scorer, params = made(CLIPS)
    found = jax.jit(scorer.scores)(params, SAMPLES[CLIPS])
    turned = jax.jit(scorer.scores)(params, SAMPLES[CLIPS][:, jnp.array([2, 0, 3, 1])])
    assert np.abs(found - turned).max() > 1e-3


@SPECS
def test_eight_devices_equal_one(spec: ScorerSpec):
    scorer, params = made(spec)
    samples = SAMPLES[spec]
    measured = jax.value_and_grad(lambda p, x: jnp.square(scorer.scores(p, x)).mean())
    wanted = jax.jit(measured)(params, samples)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        places = param_shardings(mesh, scorer.tree)
        rows = named_sharding(mesh, ("rows", *[None] * (samples.ndim - 1)), samples.shape)
        found = jax.jit(measured, in_shardings=(places, rows))(params, samples)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)


@SPECS
def test_gradients_of_the_loss_are_slopes(spec: ScorerSpec, x64):
    scorer = make_scorer(spec, dtype="float64")
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), made(spec)[1])
    samples = jnp.asarray(RANDOM.normal(size=(4, *SAMPLES[spec].shape[1:])))

    @jax.jit
    def loss(params):
        scores = scorer.scores(params, samples)
        return preference_score(scores[:2], scores[2:], beta=2.0).mean()

    slope = jax.device_get(jax.jit(jax.grad(loss))(params))
    along = moved(jax.tree.map(np.zeros_like, params), by=1.0)
    for path, _ in jax.tree.leaves_with_path(along):
        only = jax.tree.map_with_path(lambda at, x, path=path: x if at == path else 0 * x, along)
        ends = [loss(jax.tree.map(lambda x, d, step=step: x + step * d, params, only)) for step in (1e-6, -1e-6)]
        found = sum(jax.tree.leaves(jax.tree.map(lambda d, s: (d * s).sum(), only, slope)))
        # The score's own bias has no slope: only differences count.
        np.testing.assert_allclose(found, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-9, err_msg=str(path))


def test_it_learns_what_is_preferred():
    """Bright squares anywhere over dark ones, in noise; judged on pictures of another size."""
    scorer = make_scorer(ScorerSpec(channels=1, clips=False, widths=(8, 8), head_width=16))
    params = jax.jit(scorer.init)(jax.random.key(0))

    def pictures(light: float, count: int, size: int) -> jax.Array:
        images = RANDOM.normal(size=(count, size, size, 1)) * 0.3
        for image, (top, left) in zip(images, RANDOM.integers(0, size - 3, (count, 2)), strict=True):
            image[top : top + 3, left : left + 3] += light
        return jnp.asarray(images, jnp.float32)

    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, chosen, rejected):
        def loss(params):
            return preference_score(scorer.scores(params, chosen), scorer.scores(params, rejected)).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(60):
        params, state = step(params, state, pictures(1.0, 16, 8), pictures(-1.0, 16, 8))
    chosen, rejected = (scorer.scores(params, pictures(light, 64, 11)) for light in (1.0, -1.0))
    assert (chosen > rejected).mean() > 0.9
