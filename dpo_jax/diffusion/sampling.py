"""Samplers: from noise to samples, in equal steps of time from 1 to 0; guidance towards a condition.

Dimension key: B samples; behind B a sample has any shape, written X.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax.diffusion.denoising import Predict
from dpo_jax.diffusion.draws import start, step_noise
from dpo_jax.diffusion.embeddings import Condition
from dpo_jax.diffusion.schedules import Prediction, Schedule
from dpo_jax.mesh import constrain
from dpo_jax.types import Params

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
"""`denoise(noisy_BX, time_B) -> prediction_BX`: a network that knows what it is to show."""

Sampler = jax.stages.Wrapped
"""`sample(params, keys_B, condition=None, scale=None) -> samples_BX`: `make_sampler`."""


class Step(NamedTuple):
    """One step of a sampler: from `now` to `then`, float [], and what the network says of the samples at `now`."""

    number: jax.Array
    now: jax.Array
    then: jax.Array
    noisy_BX: jax.Array
    clean_BX: jax.Array
    noise_BX: jax.Array


def make_sampler(
    apply: Callable[[Params, jax.Array, jax.Array, Condition | None], jax.Array],
    shape_X: Sequence[int],
    *,
    sampler: str,
    **options: Any,
) -> Sampler:
    """Return a jitted `Sampler` of a network `apply(params, noisy_BX, time_B, condition)`.

    Each sample is a function of its key (`draws.row_keys`), whatever the others are, so that two networks can be
    compared from the same noise. `scale` is that of `guided`; None: without guidance, half the work. `sampler` is a
    name of `SAMPLERS`, and `options` are its.
    """

    def sample(
        params: Params, keys_B: jax.Array, condition: Condition | None = None, scale: jax.Array | float | None = None
    ) -> jax.Array:
        predict = functools.partial(apply, params)

        def unguided(noisy_BX: jax.Array, time_B: jax.Array) -> jax.Array:
            return predict(noisy_BX, time_B, condition)

        if scale is not None and condition is None:
            raise ValueError("guidance needs a condition to guide to")
        if scale is None or condition is None:
            return SAMPLERS[sampler](unguided, keys_B, shape_X, **options)
        return SAMPLERS[sampler](guided(predict, condition, scale=scale), keys_B, shape_X, **options)

    return jax.jit(sample)


def guided(predict: Predict, condition: Condition, *, scale: float | jax.Array) -> Denoise:
    """The prediction moved away from the one without condition: without + scale (with - without).

    Scale 1 is the condition alone, 0 none; what is above 1 shows it more, and varies less. Each step runs the network
    on twice the samples. It must have been trained without condition on some of its rows (`draws.dropped`).

    Example:
        >>> import jax.numpy as jnp
        >>> def predict(noisy_RX, time_R, condition):
        ...     return jnp.where(condition.absent_B, 1.0, 2.0)[:, None] * noisy_RX
        >>> condition = Condition(jnp.zeros(1, jnp.int32), jnp.zeros(1, bool))
        >>> denoise = guided(predict, condition, scale=3.0)
        >>> float(denoise(jnp.ones((1, 1)), jnp.ones(1))[0, 0])  # 1 + 3 (2 - 1)
        4.0

    References:
        Ho and Salimans 2022, arXiv:2207.12598, equation 6, whose w is scale - 1.
    """

    def denoise(noisy_BX: jax.Array, time_B: jax.Array) -> jax.Array:
        noisy, time, both = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), (noisy_BX, time_B, condition))
        nothing = jnp.tile(jnp.array([False, True]), time_B.shape[0])
        predicted = predict(noisy, time, both._replace(absent_B=both.absent_B | nothing))
        pairs = predicted.reshape(*time_B.shape, 2, *predicted.shape[1:])
        return pairs[:, 1] + scale * (pairs[:, 0] - pairs[:, 1])

    return denoise


def ddim(
    denoise: Denoise,
    keys_B: jax.Array,
    shape_X: Sequence[int],
    *,
    steps: int,
    schedule: Schedule,
    prediction: Prediction,
    eta: float | jax.Array = 0.0,
    clip: float | None = None,
) -> jax.Array:
    """Samples by DDIM, float32 [B, X].

    then = alpha' clean + sqrt(sigma'^2 - w^2) noise + w fresh,
    w = eta sigma' / sigma sqrt(sigma^2 - (sigma' alpha / alpha')^2).

    Args:
        denoise: the network.
        keys_B: a random key for each sample.
        shape_X: of one sample.
        steps: how many; more are closer to the distribution that the network means.
        schedule: how much noise there is at a time, as in training.
        prediction: what the network predicts.
        eta: 0 adds no fresh noise, so that a sample is a function of its start; 1 as much as DDPM does.
        clip: the clean sample is kept within [-clip, clip] in each step; None: it is not.

    References:
        Song et al. 2020, arXiv:2010.02502, equations 12 and 16.
    """

    def move(step: Step) -> jax.Array:
        now, then = schedule(step.now), schedule(step.then)
        kept = then.sigma * now.alpha / then.alpha
        # Not below 0 where time stands still, at the end of the cosine schedule.
        fresh = eta * then.sigma / now.sigma * jnp.sqrt(jnp.maximum(now.sigma**2 - kept**2, 0.0))
        rest = jnp.sqrt(jnp.maximum(then.sigma**2 - fresh**2, 0.0))
        moved_BX = then.alpha * step.clean_BX + rest * step.noise_BX
        return moved_BX + fresh * step_noise(keys_B, step.number, shape_X)

    return _walk(denoise, keys_B, shape_X, move, steps=steps, schedule=schedule, prediction=prediction, clip=clip)


def euler(
    denoise: Denoise,
    keys_B: jax.Array,
    shape_X: Sequence[int],
    *,
    steps: int,
    schedule: Schedule,
    prediction: Prediction,
    clip: float | None = None,
) -> jax.Array:
    """Samples by Euler steps along the flow, float32 [B, X]; the arguments are those of `ddim`.

    then = noisy + (t' - t) (dalpha/dt clean + dsigma/dt noise), which in rectified flow is the velocity. There it takes
    the steps of `ddim`; in schedules that bend it needs more of them.

    References:
        Liu et al. 2022, arXiv:2209.03003, section 2.
    """

    def move(step: Step) -> jax.Array:
        _, speed = jax.jvp(schedule, (step.now,), (jnp.ones_like(step.now),))
        slope_BX = speed.alpha * step.clean_BX + speed.sigma * step.noise_BX
        return step.noisy_BX + (step.then - step.now) * slope_BX

    return _walk(denoise, keys_B, shape_X, move, steps=steps, schedule=schedule, prediction=prediction, clip=clip)


SAMPLERS: dict[str, Callable[..., jax.Array]] = {"ddim": ddim, "euler": euler}


def _walk(
    denoise: Denoise,
    keys_B: jax.Array,
    shape_X: Sequence[int],
    move: Callable[[Step], jax.Array],
    *,
    steps: int,
    schedule: Schedule,
    prediction: Prediction,
    clip: float | None,
) -> jax.Array:
    """From the noise of each key through all steps."""
    if steps < 1:
        raise ValueError(f"steps is {steps}; a sample takes at least one")
    times = jnp.linspace(1.0, 0.0, steps + 1)

    def body(noisy_BX: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        now, then = times[number], times[number + 1]
        now_B = jnp.broadcast_to(now, keys_B.shape)
        clean_BX, noise_BX = prediction.split(noisy_BX, denoise(noisy_BX, now_B), schedule(now_B))
        if clip is not None:
            clean_BX = jnp.clip(clean_BX, -clip, clip)
            signal = schedule(now)
            noise_BX = (noisy_BX - signal.alpha * clean_BX) / signal.sigma  # that the clipped sample means
        return rows(move(Step(number, now, then, noisy_BX, clean_BX, noise_BX))), None

    def rows(x_BX: jax.Array) -> jax.Array:
        return constrain(x_BX, "rows", *[None] * len(shape_X))

    return jax.lax.scan(body, rows(start(keys_B, shape_X)), jnp.arange(steps))[0]
