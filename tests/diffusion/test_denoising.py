"""Draws depend on seed, row and epoch alone; both members of a pair see the same; errors are sums in any order."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.diffusion.denoising import denoise_pairs, denoising_errors
from dpo_jax.diffusion.draws import draw, dropped, row_keys, start, step_noise
from dpo_jax.diffusion.schedules import PREDICTIONS, SCHEDULES, add_noise
from dpo_jax.mesh import make_mesh, named_sharding
from dpo_jax.types import row_words

RANDOM = np.random.default_rng(0)
IDS = [hashlib.md5(str(number).encode()).hexdigest() for number in range(8)]
SHAPE = (4, 4, 3)
CLEAN = jnp.asarray(RANDOM.normal(size=(8, 2, *SHAPE)), jnp.float32)


def keys(ids=IDS, seed=0, epoch=0):
    return row_keys(row_words(ids), seed=seed, epoch=epoch)


def errors(predict, clean, drawn, condition=None, schedule="cosine", kind="epsilon"):
    options = {"schedule": SCHEDULES[schedule], "prediction": PREDICTIONS[kind]}
    return denoise_pairs(predict, clean, drawn, condition, **options)[0]


def test_a_draw_is_that_of_its_row_whatever_the_batch():
    whole = draw(keys(), SHAPE)
    some = draw(keys([IDS[5], IDS[2]]), SHAPE)
    np.testing.assert_array_equal(some.time_B, whole.time_B[jnp.array([5, 2])])
    np.testing.assert_array_equal(some.noise_BX, whole.noise_BX[jnp.array([5, 2])])


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, *({"ids": n} for n in range(0, 32, 8))], ids=str)
def test_seed_epoch_and_each_word_of_the_row_id_matter(other):
    if "ids" in other:  # one digit of one word of each id
        place = other["ids"]
        other = {"ids": [row[:place] + f"{int(row[place], 16) ^ 1:x}" + row[place + 1 :] for row in IDS]}
    one, two = draw(keys(), SHAPE), draw(keys(**other), SHAPE)
    assert np.all(one.time_B != two.time_B)
    assert np.all(np.asarray(one.noise_BX != two.noise_BX).reshape(8, -1).mean(axis=1) > 0.9)


def test_draws_for_different_ends_have_nothing_in_common():
    noises = [draw(keys(), SHAPE).noise_BX, start(keys(), SHAPE), *(step_noise(keys(), n, SHAPE) for n in range(2))]
    together = np.corrcoef([np.ravel(noise) for noise in noises])
    assert np.abs(together - np.eye(4)).max() < 0.15  # 384 numbers: 3 standard deviations


def test_they_have_the_distribution_they_should():
    words = jnp.asarray(RANDOM.integers(0, 2**32, (4000, 4)), jnp.uint32)
    many = row_keys(words, seed=0, epoch=0)
    time, noise = draw(many, (2,))
    assert time.min() >= 0.001 and time.max() <= 1
    np.testing.assert_allclose(np.quantile(time, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.03)
    np.testing.assert_allclose([noise.mean(), noise.std()], [0.0, 1.0], atol=0.04)
    np.testing.assert_allclose(dropped(many, rate=0.1).mean(), 0.1, atol=0.02)


def test_seed_and_epoch_are_traced():
    made = jax.jit(lambda seed, epoch: draw(row_keys(row_words(IDS), seed=seed, epoch=epoch), SHAPE))
    np.testing.assert_array_equal(made(3, 4).noise_BX, draw(keys(seed=3, epoch=4), SHAPE).noise_BX)
    made(5, 6)
    assert made._cache_size() == 1


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_both_members_see_the_same_time_and_noise(kind: str):
    """The noisy samples of a pair are told apart only by their clean ones."""
    seen = {}

    def predict(noisy, time, condition):
        seen.update(noisy=noisy, time=time, condition=condition)
        return jnp.zeros_like(noisy)

    drawn = draw(keys(), SHAPE)
    found = errors(predict, CLEAN, drawn, {"of": jnp.arange(8)}, kind=kind)
    noisy_BP = seen["noisy"].reshape(CLEAN.shape)
    np.testing.assert_array_equal(seen["time"].reshape(8, 2), np.stack([drawn.time_B] * 2, axis=1))
    np.testing.assert_array_equal(seen["condition"]["of"].reshape(8, 2), np.stack([np.arange(8)] * 2, axis=1))
    signal = SCHEDULES["cosine"](drawn.time_B)
    for member in range(2):
        wanted = add_noise(CLEAN[:, member], drawn.noise_BX, signal)
        np.testing.assert_allclose(noisy_BP[:, member], wanted, atol=1e-6)
        target = PREDICTIONS[kind].target(CLEAN[:, member], drawn.noise_BX, signal)
        np.testing.assert_allclose(found[:, member], np.square(target).mean(axis=(1, 2, 3)), rtol=1e-5)


def test_a_pair_of_the_same_sample_has_no_margin():
    """Of different noise it would: the difference of the errors is then noise."""
    twice = jnp.repeat(CLEAN[:, :1], 2, axis=1)
    found = errors(lambda noisy, time, _: jnp.tanh(noisy), twice, draw(keys(), SHAPE))
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    swapped = errors(lambda noisy, time, _: jnp.tanh(noisy), CLEAN[:, ::-1], draw(keys(), SHAPE))
    unswapped = errors(lambda noisy, time, _: jnp.tanh(noisy), CLEAN, draw(keys(), SHAPE))
    np.testing.assert_array_equal(swapped[:, ::-1], unswapped)


def test_errors_by_hand():
    # 1, 2, 3, 4 against 0: (1 + 4 + 9 + 16) / 4; against itself nothing.
    x = jnp.array([[[1.0, 2.0], [3.0, 4.0]]] * 2)
    np.testing.assert_allclose(denoising_errors(x, jnp.stack([jnp.zeros((2, 2)), x[1]])), [7.5, 0.0])


@pytest.mark.parametrize("axes", [(0, 1, 2, 3, 4), (0, 4, 2, 1, 3), (0, 3, 1, 4, 2)])
def test_the_order_of_reduction_does_not_matter(axes):
    """Axes swapped, folded into one, or summed one after the other with different sizes."""
    one, two = (jnp.asarray(RANDOM.normal(size=(3, 2, 5, 4, 3)), jnp.float32) for _ in range(2))
    wanted = np.square(np.asarray(one, np.float64) - np.asarray(two, np.float64)).mean(axis=(1, 2, 3, 4))
    turned = denoising_errors(one.transpose(axes), two.transpose(axes))
    folded = denoising_errors(one.transpose(axes).reshape(3, -1), two.transpose(axes).reshape(3, -1))
    np.testing.assert_allclose(turned, wanted, rtol=1e-6)
    np.testing.assert_allclose(folded, wanted, rtol=1e-6)


def test_errors_of_half_precision_are_summed_in_float32():
    x = jnp.full((1, 4096), 1.0, jnp.bfloat16).at[0, 0].set(16.0)
    found = denoising_errors(x, jnp.zeros_like(x))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [(4095 + 256) / 4096], rtol=1e-6)


def test_eight_devices_draw_and_err_as_one():
    def measured(clean, words):
        drawn = draw(row_keys(words, seed=0, epoch=2), SHAPE)
        return drawn.noise_BX, errors(lambda noisy, time, _: jnp.tanh(noisy), clean, drawn)

    words = jnp.asarray(row_words(IDS))
    wanted = jax.jit(measured)(CLEAN, words)
    mesh = make_mesh(data=2, fsdp=4)
    with jax.set_mesh(mesh):
        places = [named_sharding(mesh, ("rows", *[None] * (x.ndim - 1)), x.shape) for x in (CLEAN, words)]
        found = jax.jit(measured, in_shardings=places)(CLEAN, words)
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-6)
