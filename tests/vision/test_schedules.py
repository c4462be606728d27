"""Schedules by their papers' tables, predictions by hand and by the law that they all mean the same."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.vision.schedules import LEAST_ALPHA, PREDICTIONS, SCHEDULES, Signal, add_noise, convert, cosine, linear

RANDOM = np.random.default_rng(0)
TIMES = jnp.linspace(0.0, 1.0, 101)
KINDS = list(itertools.product(PREDICTIONS, SCHEDULES))


def test_linear_is_the_table_of_a_thousand_steps():
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha2 = np.cumprod(1.0 - beta)
    found = linear((jnp.arange(1000, dtype=jnp.float32) + 1) / 1000)
    np.testing.assert_allclose(np.asarray(found.alpha, np.float64) ** 2, alpha2, rtol=4e-6)
    np.testing.assert_allclose(np.asarray(found.sigma, np.float64) ** 2, 1.0 - alpha2, rtol=4e-6)


def test_cosine_is_the_formula_of_its_paper_up_to_its_end():
    wanted = np.cos((np.asarray(TIMES, np.float64) + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)
    found = cosine(TIMES)
    np.testing.assert_allclose(found.alpha[:-1], wanted[:-1], rtol=2e-5)
    assert wanted[-2] > LEAST_ALPHA and np.isclose(found.alpha[-1], LEAST_ALPHA)
    np.testing.assert_allclose(found.sigma[1:], np.sqrt(1 - np.asarray(found.alpha[1:], np.float64) ** 2), rtol=2e-4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_from_the_sample_to_the_noise(name: str):
    alpha, sigma = SCHEDULES[name](TIMES)
    assert alpha[0] == 1 and sigma[0] == 0
    assert alpha[-1] < 0.0065 and sigma[-1] > 0.99997
    assert np.all(np.diff(alpha) < 0) and np.all(np.diff(sigma) > 0)
    if name != "flow":  # of a sample with variance 1 the noisy one has it too
        np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, atol=2e-6)


def test_noise_and_targets_by_hand():
    # Samples 2 and 1, noise 4 and -1; alpha 0.5 and 0.8, sigma 0.25 and 0.6.
    clean, noise = jnp.array([[2.0], [1.0]]), jnp.array([[4.0], [-1.0]])
    signal = Signal(jnp.array([0.5, 0.8]), jnp.array([0.25, 0.6]))
    np.testing.assert_allclose(add_noise(clean, noise, signal), [[2.0], [0.2]], rtol=1e-6)
    wanted = {"epsilon": [[4.0], [-1.0]], "v": [[1.5], [-1.4]], "velocity": [[2.0], [-2.0]]}
    for name, target in wanted.items():
        np.testing.assert_allclose(PREDICTIONS[name].target(clean, noise, signal), target, rtol=1e-6)


@pytest.mark.parametrize(("kind", "schedule"), KINDS)
def test_a_perfect_prediction_gives_the_sample_and_the_noise_back(kind: str, schedule: str):
    clean, noise = (jnp.asarray(RANDOM.normal(size=(5, 2, 3)), jnp.float32) for _ in range(2))
    signal = SCHEDULES[schedule](jnp.array([0.001, 0.2, 0.5, 0.7, 0.9]))
    prediction = PREDICTIONS[kind]
    found = prediction.split(add_noise(clean, noise, signal), prediction.target(clean, noise, signal), signal)
    np.testing.assert_allclose(found[0], clean, atol=2e-5)
    np.testing.assert_allclose(found[1], noise, atol=2e-5)


@pytest.mark.parametrize("given", PREDICTIONS)
@pytest.mark.parametrize("wanted", PREDICTIONS)
def test_any_prediction_means_the_same_in_another_way(given: str, wanted: str):
    """Also a wrong one: it need not be reachable from any sample."""
    noisy, said = (jnp.asarray(RANDOM.normal(size=(4, 3)), jnp.float32) for _ in range(2))
    signal = SCHEDULES["cosine"](jnp.array([0.1, 0.4, 0.6, 0.9]))
    there = convert(said, noisy, signal, given=PREDICTIONS[given], wanted=PREDICTIONS[wanted])
    means = [PREDICTIONS[name].split(noisy, x, signal) for name, x in ((given, said), (wanted, there))]
    for one, other in zip(*means, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-5)
    back = convert(there, noisy, signal, given=PREDICTIONS[wanted], wanted=PREDICTIONS[given])
    np.testing.assert_allclose(back, said, atol=5e-5)


def test_half_precision_is_widened_first():
    half = jnp.asarray(RANDOM.normal(size=(2, 3)), jnp.bfloat16)
    signal = linear(jnp.array([0.3, 0.6]))
    for prediction in PREDICTIONS.values():
        assert prediction.target(half, half, signal).dtype == jnp.float32
        assert jax.tree.map(lambda x: x.dtype, prediction.split(half, half, signal)) == (jnp.float32, jnp.float32)
    assert add_noise(half, half, signal).dtype == jnp.float32
