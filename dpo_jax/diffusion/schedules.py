"""Noise schedules, kinds of prediction, and the conversion of one into another.

Time is continuous: t = 0 is the clean sample, t = 1 the noisiest. One form then serves cosine, linear and rectified
flow, and any number of sampling steps. The published models count 1000 steps from 0: step i is t = (i + 1) / 1000.

A noisy sample is alpha(t) clean + sigma(t) noise.

Dimension key: B samples; behind it a sample has any shape, written X.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

STEPS = 1000
"""Into how many steps published models divide time."""

LEAST_ALPHA = 0.006
"""Where the cosine schedule stops, about where the linear one does: a predicted noise is divided by alpha."""


class Signal(NamedTuple):
    """Shares of the sample and of the noise in a noisy sample; float, [B] each."""

    alpha: jax.Array
    sigma: jax.Array


Schedule = Callable[[jax.Array], Signal]
"""Time in [0, 1], float [B], to the share of sample and noise."""


def cosine(t_B: jax.Array) -> Signal:
    """The share of the sample falls like a cosine; alpha^2 + sigma^2 = 1.

    alpha = cos(a(t)) / cos(a(0)), a(t) = (t + 0.008) / 1.008 pi / 2, and never below `LEAST_ALPHA`.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(x), 4) for x in cosine(jnp.array([0.0, 0.5, 1.0])).alpha]
        [1.0, 0.7027, 0.006]

    References:
        Nichol and Dhariwal 2021, arXiv:2102.09672, equation 17.
    """
    first = 0.008 / 1.008 * math.pi / 2
    angle_B = first + t_B / 1.008 * (math.pi / 2)
    # sin(a - b) sin(a + b) is cos(b)^2 - cos(a)^2 without the cancellation at small t.
    variance_B = jnp.sin(angle_B - first) * jnp.sin(angle_B + first) / math.cos(first) ** 2
    variance_B = jnp.minimum(variance_B, 1.0 - LEAST_ALPHA**2)
    return Signal(jnp.maximum(jnp.cos(angle_B) / math.cos(first), LEAST_ALPHA), jnp.sqrt(variance_B))


def linear(t_B: jax.Array) -> Signal:
    """The variance added in each step grows linearly, from 1e-4 to 0.02 in 1000 steps; alpha^2 + sigma^2 = 1.

    alpha^2 = prod_{j <= i} (1 - beta_j) at t = (i + 1) / 1000. Between and at the steps the sum of log(1 - beta_j) is
    an integral by the midpoint rule, which agrees with the product to float32's precision.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(x), 6) for x in linear(jnp.array([0.001, 1.0])).alpha ** 2]
        [0.9999, 4e-05]

    References:
        Ho et al. 2020, arXiv:2006.11239, section 4.
    """
    first, last = 1e-4, 0.02
    slope = (last - first) / (STEPS - 1)

    def integral(beta: jax.Array | float) -> jax.Array | float:
        """Integral of -log(1 - beta), as a series: the closed form cancels."""
        return beta**2 / 2 + beta**3 / 6 + beta**4 / 12 + beta**5 / 20

    start = first - slope / 2
    log_alpha2_B = -(integral(start + slope * STEPS * t_B) - integral(start)) / slope
    return Signal(jnp.exp(log_alpha2_B / 2), jnp.sqrt(-jnp.expm1(log_alpha2_B)))


def flow(t_B: jax.Array) -> Signal:
    """A straight line from the sample to the noise: alpha = 1 - t, sigma = t.

    Example:
        >>> import jax.numpy as jnp
        >>> [float(x[0]) for x in flow(jnp.array([0.25]))]
        [0.75, 0.25]

    References:
        Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747.
    """
    return Signal(1.0 - t_B, t_B)


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "linear": linear, "flow": flow}


def add_noise(clean_BX: jax.Array, noise_BX: jax.Array, signal: Signal) -> jax.Array:
    """The noisy samples, [B, X], at least float32."""
    chex.assert_equal_shape([clean_BX, noise_BX])
    return _spread(signal.alpha, clean_BX) * _wide(clean_BX) + _spread(signal.sigma, clean_BX) * _wide(noise_BX)


class Prediction(NamedTuple):
    """A kind of prediction of a network.

    `target(clean, noise, signal)` is what the prediction should be; `split(noisy, prediction, signal)` gives the clean
    sample and the noise that the prediction means. All of shape [B, X].
    """

    target: Callable[[jax.Array, jax.Array, Signal], jax.Array]
    split: Callable[[jax.Array, jax.Array, Signal], tuple[jax.Array, jax.Array]]


def _noise_itself(clean_BX: jax.Array, noise_BX: jax.Array, signal: Signal) -> jax.Array:
    return _wide(noise_BX)


def _split_epsilon(noisy_BX: jax.Array, noise_BX: jax.Array, signal: Signal) -> tuple[jax.Array, jax.Array]:
    """Clean sample and noise; at the end of rectified flow, where alpha is 0, there is nothing to divide."""
    noise_BX = _wide(noise_BX)
    alpha = jnp.maximum(_spread(signal.alpha, noise_BX), LEAST_ALPHA)
    return (_wide(noisy_BX) - _spread(signal.sigma, noise_BX) * noise_BX) / alpha, noise_BX


def _v(clean_BX: jax.Array, noise_BX: jax.Array, signal: Signal) -> jax.Array:
    return _spread(signal.alpha, noise_BX) * _wide(noise_BX) - _spread(signal.sigma, clean_BX) * _wide(clean_BX)


def _split_v(noisy_BX: jax.Array, v_BX: jax.Array, signal: Signal) -> tuple[jax.Array, jax.Array]:
    noisy_BX, v_BX = _wide(noisy_BX), _wide(v_BX)
    alpha, sigma = _spread(signal.alpha, v_BX), _spread(signal.sigma, v_BX)
    length2 = alpha**2 + sigma**2
    return (alpha * noisy_BX - sigma * v_BX) / length2, (sigma * noisy_BX + alpha * v_BX) / length2


def _velocity(clean_BX: jax.Array, noise_BX: jax.Array, signal: Signal) -> jax.Array:
    return _wide(noise_BX) - _wide(clean_BX)


def _split_velocity(noisy_BX: jax.Array, velocity_BX: jax.Array, signal: Signal) -> tuple[jax.Array, jax.Array]:
    noisy_BX, velocity_BX = _wide(noisy_BX), _wide(velocity_BX)
    alpha, sigma = _spread(signal.alpha, velocity_BX), _spread(signal.sigma, velocity_BX)
    clean_BX = (noisy_BX - sigma * velocity_BX) / (alpha + sigma)
    return clean_BX, clean_BX + velocity_BX


PREDICTIONS: dict[str, Prediction] = {
    "epsilon": Prediction(_noise_itself, _split_epsilon),
    "v": Prediction(_v, _split_v),
    "velocity": Prediction(_velocity, _split_velocity),
}
"""epsilon: the noise; v: alpha noise - sigma clean (arXiv:2202.00512); velocity: noise - clean (rectified flow)."""


def convert(
    prediction_BX: jax.Array, noisy_BX: jax.Array, signal: Signal, *, given: Prediction, wanted: Prediction
) -> jax.Array:
    """Convert a prediction into one of another kind, [B, X].

    Example:
        >>> import jax.numpy as jnp
        >>> signal = flow(jnp.array([0.5]))  # noisy = 0.5 clean + 0.5 noise: 2 and 4 make 3
        >>> epsilon, noisy = jnp.array([[4.0]]), jnp.array([[3.0]])
        >>> float(convert(epsilon, noisy, signal, given=PREDICTIONS["epsilon"], wanted=PREDICTIONS["velocity"])[0, 0])
        2.0
    """
    return wanted.target(*given.split(noisy_BX, prediction_BX, signal), signal)


def _spread(share_B: jax.Array, like_BX: jax.Array) -> jax.Array:
    """A number for each sample, with as many axes as the samples."""
    chex.assert_shape(share_B, like_BX.shape[:1])
    return share_B.reshape(-1, *[1] * (like_BX.ndim - 1))


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
