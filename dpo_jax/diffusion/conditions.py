"""What a sample is to show, and guidance: to show it more than the network would by itself.

Dimension key: B samples, E width of a text embedding; behind B a sample has any shape, written X.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax.diffusion.denoising import Predict

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
"""`denoise(noisy_BX, time_B) -> prediction_BX`: a network that knows what it is to show."""


class Condition(NamedTuple):
    """What samples are to show: classes, int32 [B], or text embeddings, float [B, E]; and which are shown nothing."""

    shown_B: jax.Array
    absent_B: jax.Array  # bool


def present(shown_B: jax.Array) -> Condition:
    """The condition of samples that are all to show something."""
    return Condition(shown_B, jnp.zeros(shown_B.shape[:1], bool))


def guided(predict: Predict, condition: Condition, *, scale: float | jax.Array) -> Denoise:
    """The prediction moved away from the one without condition: without + scale (with - without).

    Scale 1 is the condition alone, 0 none; what is above 1 shows it more, and varies less. Each step runs the network
    on twice the samples. It must have been trained without condition on some of its rows (`draws.dropped`).

    Example:
        >>> import jax.numpy as jnp
        >>> def predict(noisy_RX, time_R, condition):
        ...     return jnp.where(condition.absent_B, 1.0, 2.0)[:, None] * noisy_RX
        >>> denoise = guided(predict, present(jnp.zeros(1, jnp.int32)), scale=3.0)
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
