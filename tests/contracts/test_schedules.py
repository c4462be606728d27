"""Every noise schedule, prediction and sampler of `dpo_jax.diffusion`; a new one needs its formula here first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.diffusion.draws import start
from dpo_jax.diffusion.sampling import SAMPLERS
from dpo_jax.diffusion.schedules import LEAST_ALPHA, PREDICTIONS, SCHEDULES, Signal, add_noise, convert
from tests.diffusion.gaussian import SHAPE, SPREAD, carried, exact, keys, options

RANDOM = np.random.default_rng(0)
CASES = [(sampler, schedule) for sampler in SAMPLERS for schedule in SCHEDULES]


class Formula(NamedTuple):
    """A schedule in float64, at step i of 1000; relative tolerances of float32; whether alpha^2 + sigma^2 = 1."""

    at: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    alpha: float
    sigma: float
    keeps_variance: bool = True


def linear(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    alpha2 = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))[step - 1]
    return np.sqrt(alpha2), np.sqrt(1.0 - alpha2)


def cosine(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    alpha = np.cos((step / 1000 + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)
    return (alpha := np.maximum(alpha, LEAST_ALPHA)), np.sqrt(1.0 - alpha**2)


FORMULAS = {
    "cosine": Formula(cosine, alpha=2e-5, sigma=2e-4),
    "linear": Formula(linear, alpha=2e-6, sigma=2e-6),
    "flow": Formula(lambda step: (1 - step / 1000, step / 1000), alpha=2e-5, sigma=2e-6, keeps_variance=False),
}
# What should be predicted of samples 2 and 1, noise 4 and -1; alpha 0.5 and 0.8, sigma 0.25 and 0.6.
TARGETS = {"epsilon": [4.0, -1.0], "v": [1.5, -1.4], "velocity": [2.0, -2.0]}
# Mean distance to the exact flow in 100 steps, in deviations of the data: a third above what was measured. It is what
# the steps are short of, not the code: twice as many halve it.
DISTANCES = {
    ("ddim", "flow"): 0.023,
    ("ddim", "cosine"): 0.028,
    ("ddim", "linear"): 0.052,
    ("euler", "flow"): 0.023,
    ("euler", "cosine"): 0.014,
    ("euler", "linear"): 0.024,
}


@pytest.mark.parametrize(
    ("table", "samples", "wanted"),
    [
        (SCHEDULES, FORMULAS, "FORMULAS: its formula in numpy, float64"),
        (PREDICTIONS, TARGETS, "TARGETS: what it should predict of two samples, by hand"),
        (CASES, DISTANCES, "DISTANCES: how far 100 of its steps end from the exact flow"),
    ],
    ids=["SCHEDULES", "PREDICTIONS", "SAMPLERS"],
)
def test_every_entry_has_a_sample(table: Collection, samples: Mapping, wanted: str):
    missing = [entry for entry in table if entry not in samples]
    assert not missing, f"{missing} of dpo_jax.diffusion cannot be checked; add to {wanted}"


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_its_formula(name: str):
    steps = np.arange(10, 1001, 10)
    found, wanted = SCHEDULES[name](jnp.asarray(steps, jnp.float32) / 1000), FORMULAS[name].at(steps)
    np.testing.assert_allclose(found.alpha[:-1], wanted[0][:-1], rtol=FORMULAS[name].alpha)
    np.testing.assert_allclose(found.alpha[-1], wanted[0][-1], rtol=1e-5)
    np.testing.assert_allclose(found.sigma, wanted[1], rtol=FORMULAS[name].sigma)


@pytest.mark.parametrize("name", SCHEDULES)
def test_from_the_sample_to_the_noise(name: str):
    times = jnp.linspace(0.0, 1.0, 101)
    alpha, sigma = SCHEDULES[name](times)
    assert alpha[0] == 1 and sigma[0] == 0
    assert alpha[-1] < 0.0065 and sigma[-1] > 0.99997
    assert np.all(np.diff(alpha) < 0) and np.all(np.diff(sigma) > 0)
    if FORMULAS[name].keeps_variance:  # of a sample with variance 1 the noisy one has it too
        np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, atol=2e-6)
    _, speed = jax.jvp(SCHEDULES[name], (times[1:],), (jnp.ones(100),))
    assert np.isfinite(speed).all()


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_prediction_is_its_target_by_hand_and_widens_first(kind: str):
    clean, noise = jnp.array([[2.0], [1.0]]), jnp.array([[4.0], [-1.0]])
    signal, prediction = Signal(jnp.array([0.5, 0.8]), jnp.array([0.25, 0.6])), PREDICTIONS[kind]
    np.testing.assert_allclose(add_noise(clean, noise, signal), [[2.0], [0.2]], rtol=1e-6)
    np.testing.assert_allclose(prediction.target(clean, noise, signal)[:, 0], TARGETS[kind], rtol=1e-6)
    half = clean.astype(jnp.bfloat16)
    for made in (add_noise(half, half, signal), prediction.target(half, half, signal)):
        assert made.dtype == jnp.float32
    assert [part.dtype for part in prediction.split(half, half, signal)] == [jnp.float32] * 2


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_perfect_prediction_gives_the_sample_and_the_noise_back(schedule: str, kind: str):
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


@pytest.mark.parametrize(("sampler", "schedule"), CASES)
def test_each_start_goes_where_the_exact_flow_carries_it(sampler: str, schedule: str):
    def distance(steps: int) -> jax.Array:
        found = SAMPLERS[sampler](exact("v", schedule), few, SHAPE, **options("v", schedule, steps=steps))
        return jnp.abs((found - carried(start(few, SHAPE), schedule)) / SPREAD[None]).mean()

    few = keys(64)
    coarse, fine = jax.jit(lambda: (distance(100), distance(200)))()
    assert coarse < DISTANCES[sampler, schedule]
    assert 0.4 * coarse < fine < 0.6 * coarse


@pytest.mark.parametrize(("sampler", "schedule"), CASES)
def test_it_does_not_matter_in_which_way_the_same_is_predicted(sampler: str, schedule: str):
    few = keys(16)
    sample = functools.partial(SAMPLERS[sampler], keys_B=few, shape_X=SHAPE)
    found = jax.jit(
        lambda: {kind: sample(exact(kind, schedule), **options(kind, schedule, steps=8)) for kind in PREDICTIONS}
    )()
    for kind in PREDICTIONS:
        # At the end of rectified flow the noise says nothing of the sample; from then on it does.
        tolerance = 0.3 if (kind, schedule) == ("epsilon", "flow") else 2e-4
        np.testing.assert_allclose(found[kind], found["v"], atol=tolerance, err_msg=kind)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_clipping_means_another_noise(sampler: str):
    """Rectified flow in three steps, of a network that says -9 in the second and 0 in the others."""

    def denoise(noisy, time):
        return jnp.where(jnp.abs(time - 2 / 3) < 0.1, -9.0, 0.0).reshape(-1, 1, 1) + 0.0 * noisy

    few = keys(32)
    noisy = np.asarray(start(few, SHAPE), np.float64)
    for now, says in ((1.0, 0.0), (2 / 3, -9.0), (1 / 3, 0.0)):
        clean = np.clip(noisy - now * says, -1.0, 1.0)
        noise = (noisy - (1 - now) * clean) / now
        noisy = (1 - now + 1 / 3) * clean + (now - 1 / 3) * noise
    assert np.ptp(noisy) > 0.5
    given = options("velocity", "flow", steps=3, clip=1.0)
    np.testing.assert_allclose(SAMPLERS[sampler](denoise, few, SHAPE, **given), noisy, atol=1e-5)
    with pytest.raises(ValueError, match="steps is 0"):
        SAMPLERS[sampler](denoise, few, SHAPE, **options("v", "cosine", steps=0))
