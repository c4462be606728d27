"""All of it together: a diffuser learns two kinds of pictures, and then to prefer one of them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpo_jax.diffusion.denoising import denoise_pairs
from dpo_jax.diffusion.diffuser import make_diffuser
from dpo_jax.diffusion.draws import draw, dropped, row_keys
from dpo_jax.diffusion.embeddings import Condition, TransformerSpec
from dpo_jax.diffusion.sampling import make_sampler
from dpo_jax.diffusion.schedules import PREDICTIONS, SCHEDULES
from dpo_jax.losses import diffusion_dpo
from dpo_jax.objectives.diffusion import moved_average

RANDOM = np.random.default_rng(0)
SHAPE = (4, 4, 1)
SPEC = TransformerSpec(
    channels=1, patch=2, base=2, layers=1, heads=2, head_size=8, mlp_width=32, classes=2
)  # class 1 has a bright corner
FORM = {"schedule": SCHEDULES["flow"], "prediction": PREDICTIONS["velocity"]}
WORDS = jnp.asarray(RANDOM.integers(0, 2**32, (64, 4)), jnp.uint32)
CLASSES = jnp.arange(64) % 2


def pictures(lights: np.ndarray) -> jax.Array:
    """One light over all of a picture; the corner of class 1 is 2 brighter."""
    images = lights[:, None, None, None] + RANDOM.normal(size=(len(lights), *SHAPE)) * 0.1
    images[np.asarray(CLASSES) == 1, 0, 0] += 2.0
    return jnp.asarray(images, jnp.float32)


@pytest.mark.slow("whole commands")
def test_it_learns_pictures_and_then_a_preference():
    diffuser, optimizer = make_diffuser(SPEC), optax.adam(3e-3)
    # Half of them dark, half light, whatever the class.
    data = pictures(np.where(np.arange(64) % 4 < 2, -0.7, 0.7))
    chosen, rejected = pictures(np.full(64, 0.7)), pictures(np.full(64, -0.7))

    def errors(params, clean_BPX, epoch):
        keys = row_keys(WORDS, seed=0, epoch=epoch)
        condition = Condition(CLASSES, dropped(keys, rate=0.1))
        predict = functools.partial(diffuser.apply, params)
        return denoise_pairs(predict, clean_BPX, draw(keys, SHAPE), condition, **FORM)[0]

    def train(params, loss, steps):
        @jax.jit
        def step(params, average, state, epoch):
            updates, state = optimizer.update(jax.grad(loss)(params, epoch), state)
            params = optax.apply_updates(params, updates)
            return params, moved_average(average, params, epoch + 1, decay=0.95), state

        average, state = params, optimizer.init(params)
        for epoch in range(steps):
            params, average, state = step(params, average, state, epoch)
        return average

    base = train(jax.jit(diffuser.init)(jax.random.key(0)), lambda p, e: errors(p, data[:, None], e).mean(), 500)
    pairs = jnp.stack([chosen, rejected], axis=1)
    policy = train(base, lambda p, e: diffusion_dpo(errors(p, pairs, e), errors(base, pairs, e), beta=20.0).mean(), 40)

    sample = make_sampler(diffuser.apply, SHAPE, sampler="euler", steps=20, **FORM)
    keys, condition = row_keys(WORDS, seed=1, epoch=0), Condition(CLASSES, jnp.zeros(64, bool))
    before, after = (np.asarray(sample(params, keys, condition, 1.5)) for params in (base, policy))
    light = [np.median(images, axis=(1, 2, 3)) for images in (before, after)]
    assert 0.3 < (light[0] > 0).mean() < 0.7 and np.abs(light[0]).mean() > 0.5  # both kinds, little between them
    assert (light[1] > 0).mean() > 0.8
    corner = after[:, 0, 0, 0] - light[1]
    assert corner[CLASSES == 1].mean() > corner[CLASSES == 0].mean() + 1.0  # what it is to show it still shows
