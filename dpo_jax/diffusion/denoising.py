"""Denoising errors of a network, which the losses of diffusion models compare.

Dimension key: B pairs, P members of a pair (0 chosen, 1 rejected; samples alone have P = 1), R = B P samples; behind
them a sample has any shape, written X.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from dpo_jax.diffusion.draws import Draw
from dpo_jax.diffusion.embeddings import Condition
from dpo_jax.diffusion.schedules import Prediction, Schedule, add_noise
from dpo_jax.mesh import constrain

Predict = Callable[[jax.Array, jax.Array, Condition | None], jax.Array]
"""`predict(noisy_RX, time_R, condition) -> prediction_RX`: a network with its parameters."""


def denoising_errors(prediction_RX: jax.Array, target_RX: jax.Array) -> jax.Array:
    """The mean squared difference over all axes but the first, at least float32 [R].

    Example:
        >>> import jax.numpy as jnp
        >>> [float(x) for x in denoising_errors(jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.zeros((2, 2)))]
        [2.5, 0.0]
    """
    chex.assert_equal_shape([prediction_RX, target_RX])
    wide = jnp.promote_types(prediction_RX.dtype, jnp.float32)
    return jnp.square(prediction_RX.astype(wide) - target_RX.astype(wide)).mean(axis=tuple(range(1, target_RX.ndim)))


def denoise_pairs(
    predict: Predict,
    clean_BPX: jax.Array,
    drawn: Draw,
    condition: Condition | None = None,
    *,
    schedule: Schedule,
    prediction: Prediction,
) -> tuple[jax.Array, jax.Array]:
    """The denoising error of each member of each pair, [B, P], and the clean samples that the predictions mean.

    All members of a pair get the same time, the same noise and the same condition: draws and condition have no axis P.

    Args:
        predict: the network; `condition` reaches it with a row for each sample.
        clean_BPX: the clean samples.
        drawn: time [B] and noise [B, X] of each pair.
        condition: what the pair is to show, or None.
        schedule: how much noise there is at a time.
        prediction: what the network predicts.

    Returns:
        Both at least float32; the samples are [B, P, X].
    """
    pairs, members = clean_BPX.shape[:2]
    chex.assert_shape(drawn.noise_BX, (pairs, *clean_BPX.shape[2:]))

    def shared(of_pair_BX: jax.Array) -> jax.Array:
        return jnp.repeat(of_pair_BX, members, axis=0)

    clean_RX = clean_BPX.reshape(pairs * members, *clean_BPX.shape[2:])
    time_R, noise_RX, condition = jax.tree.map(shared, (drawn.time_B, drawn.noise_BX, condition))
    signal = schedule(time_R)
    noisy_RX = add_noise(clean_RX, noise_RX, signal)
    noisy_RX = constrain(noisy_RX, "rows", *[None] * (noisy_RX.ndim - 1))
    predicted_RX = predict(noisy_RX, time_R, condition)
    errors_R = denoising_errors(predicted_RX, prediction.target(clean_RX, noise_RX, signal))
    seen_RX, _ = prediction.split(noisy_RX, predicted_RX, signal)
    return errors_R.reshape(pairs, members), seen_RX.reshape(clean_BPX.shape)
