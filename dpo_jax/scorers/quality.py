"""Measures of images and clips without a network, and scores made of them, with weights fitted to preferences.

Colours are in [0, 1].

All measures have finite gradients everywhere, so that they can be terms of a loss where pixels have gradients.

Dimension key: B samples or pairs, F frames, H height, W width, C channels, M metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import chex
import jax
import jax.numpy as jnp

from dpo_jax.errors import nearest

_STEPS = 30  # Newton's method doubles the digits in each; far fewer are needed


def temporal_consistency(clips_BFHWC: jax.Array) -> jax.Array:
    """Mean squared difference of neighbouring frames, [B], in [0, 1]; lower is smoother, 0 stands still.

    mean (x_{f+1} - x_f)^2.

    Example:
        >>> import jax.numpy as jnp
        >>> clip = jnp.array([0.0, 0.5, 0.5]).reshape(1, 3, 1, 1, 1)
        >>> float(temporal_consistency(clip)[0])  # (0.25 + 0) / 2
        0.125
    """
    clips = _frames(clips_BFHWC, 2)
    return jnp.square(clips[:, 1:] - clips[:, :-1]).mean(axis=(1, 2, 3, 4))


def flicker(clips_BFHWC: jax.Array) -> jax.Array:
    """Mean change of brightness from frame to frame, [B], in [0, 1]; lower is steadier.

    mean |l_{f+1} - l_f|, l_f the mean luminance of a frame. What only moves does not flicker.

    Example:
        >>> import jax.numpy as jnp
        >>> clip = jnp.array([0.2, 0.7, 0.2]).reshape(1, 3, 1, 1, 1)
        >>> round(float(flicker(clip)[0]), 6)
        0.5
    """
    light_BF = luminance(_frames(clips_BFHWC, 2)).mean(axis=(2, 3))
    return jnp.abs(light_BF[:, 1:] - light_BF[:, :-1]).mean(axis=1)


def motion_smoothness(clips_BFHWC: jax.Array) -> jax.Array:
    """Nearness of each frame to the mean of its neighbours, [B], in [0, 1]; higher is smoother, 1 fades evenly.

    1 - mean |x_f - (x_{f-1} + x_{f+1}) / 2|.

    Example:
        >>> import jax.numpy as jnp
        >>> clip = jnp.array([0.0, 0.5, 0.0]).reshape(1, 3, 1, 1, 1)
        >>> float(motion_smoothness(clip)[0])  # 1 - |0.5 - 0|
        0.5
    """
    clips = _frames(clips_BFHWC, 3)
    return 1.0 - jnp.abs(clips[:, 1:-1] - (clips[:, :-2] + clips[:, 2:]) / 2).mean(axis=(1, 2, 3, 4))


def sharpness(images: jax.Array) -> jax.Array:
    """Variance of the Laplacian of luminance, [B], in [0, 16]; of a clip the mean over frames. Noise is sharp too.

    Laplacian = up + down + left + right - 4 x, inside the border. Images are at least 3 x 3.

    Example:
        >>> import jax.numpy as jnp
        >>> board = (jnp.arange(4)[:, None] + jnp.arange(4)[None, :]) % 2.0
        >>> float(sharpness(board.reshape(1, 4, 4, 1))[0])  # 4 and -4
        16.0
    """
    x = luminance(images)
    if min(x.shape[2:]) < 3:
        raise ValueError(f"sharpness of {x.shape[2]} x {x.shape[3]} pixels: it takes 3 x 3")
    inside = x[..., 1:-1, 1:-1]
    around = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    return (around - 4.0 * inside).var(axis=(2, 3)).mean(axis=1)


def saturation(images: jax.Array) -> jax.Array:
    """Mean saturation, [B], in [0, 1]: 0 is grey, 1 pure colours.

    mean (max - min) / max over the channels of each pixel; black has none.

    Example:
        >>> import jax.numpy as jnp
        >>> pixels = jnp.array([[0.8, 0.2, 0.4], [0.5, 0.5, 0.5]]).reshape(1, 1, 2, 3)
        >>> float(saturation(pixels)[0])  # (0.75 + 0) / 2
        0.375
    """
    x = _clips(images)
    most, least = x.max(axis=-1), x.min(axis=-1)
    return jnp.where(most > 0, (most - least) / jnp.where(most > 0, most, 1.0), 0.0).mean(axis=(1, 2, 3))


def contrast(images: jax.Array) -> jax.Array:
    """Standard deviation of luminance over a frame, [B], in [0, 0.5]; of a clip the mean over frames.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(contrast(jnp.array([0.2, 0.8]).reshape(1, 1, 2, 1))[0]), 4)
        0.3
    """
    variance_BF = luminance(images).var(axis=(2, 3))
    # The root has no slope at 0: a frame of one colour would have gradients that are not numbers.
    return jnp.where(variance_BF > 0, jnp.sqrt(jnp.where(variance_BF > 0, variance_BF, 1.0)), 0.0).mean(axis=1)


def brightness(images: jax.Array) -> jax.Array:
    """Mean luminance, [B], in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(brightness(jnp.array([1.0, 0.0, 0.0]).reshape(1, 1, 1, 3))[0]), 3)  # red
        0.299
    """
    return luminance(images).mean(axis=(1, 2, 3))


def luminance(images: jax.Array) -> jax.Array:
    """Luminance of each pixel, at least float32 [B, F, H, W]: 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601).

    Raises:
        ValueError: neither 1 nor 3 channels.
    """
    x = _clips(images)
    if x.shape[-1] not in (1, 3):
        raise ValueError(f"{x.shape[-1]} channels: luminance knows grey (1) and red, green, blue (3)")
    shares = (1.0,) if x.shape[-1] == 1 else (0.299, 0.587, 0.114)
    return sum((share * x[..., channel] for channel, share in enumerate(shares)), start=jnp.zeros((), x.dtype))


METRICS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "temporal_consistency": temporal_consistency,
    "flicker": flicker,
    "motion_smoothness": motion_smoothness,
    "sharpness": sharpness,
    "saturation": saturation,
    "contrast": contrast,
    "brightness": brightness,
}
"""Name -> images [B, H, W, C] or clips [B, F, H, W, C] to [B]. The first three need clips."""

OF_IMAGES = ("sharpness", "saturation", "contrast", "brightness")
"""Those that images have too."""


def measured(samples: jax.Array, names: Sequence[str]) -> jax.Array:
    """Measure samples by several metrics, side by side in this order, [B, M].

    Raises:
        ValueError: an unknown metric.
    """
    for name in names:
        if name not in METRICS:
            raise ValueError(f"quality metric {name!r} is unknown. {nearest(name, METRICS)}")
    return jnp.stack([METRICS[name](samples) for name in names], axis=1)


def quality_scores(samples: jax.Array, weights: Mapping[str, float | jax.Array]) -> jax.Array:
    """The weighted sum of metrics, [B]. A weight below 0 asks for less, of flicker say.

    Example:
        >>> import jax.numpy as jnp
        >>> image = jnp.array([0.2, 0.8]).reshape(1, 1, 2, 1)
        >>> round(float(quality_scores(image, {"brightness": 2.0, "contrast": -1.0})[0]), 5)  # 2 * 0.5 - 0.3
        0.7

    Raises:
        ValueError: an unknown metric, or none.
    """
    if not weights:
        raise ValueError(f"a quality score takes the weight of one metric at least. Allowed: {', '.join(METRICS)}.")
    return jnp.tensordot(measured(samples, list(weights)), jnp.stack([jnp.asarray(w) for w in weights.values()]), 1)


def fit_weights(
    metrics_chosen_BM: jax.Array, metrics_rejected_BM: jax.Array, *, ridge: float | jax.Array = 1.0
) -> jax.Array:
    """The weights under which preferences are likeliest, float32 [M], by logistic regression on differences.

    min_w sum_B log(1 + exp(-d u)) + ridge / 2 u^2, d = (chosen - rejected) / scale, u = w scale.

    `scale` is the root mean square of each difference, so that `ridge` treats metrics of any unit alike. A metric that
    never differs gets weight 0. The weighted sum is in nats: the logistic function of a difference of two of them is
    the probability of the preference (Bradley and Terry).

    Args:
        metrics_chosen_BM: of what was preferred, see `measured`.
        metrics_rejected_BM: of what was not.
        ridge: pull to 0, > 0; small trusts few pairs, large wants many. Without it clear preferences have no maximum.

    Example:
        >>> import jax.numpy as jnp
        >>> chosen, rejected = jnp.array([[3.0, 5.0], [1.0, 2.0]]), jnp.array([[1.0, 5.0], [2.0, 2.0]])
        >>> [round(float(w), 4) for w in fit_weights(chosen, rejected)]  # the first is larger twice as far
        [0.1336, 0.0]
    """
    chex.assert_equal_shape([metrics_chosen_BM, metrics_rejected_BM])
    chex.assert_rank(metrics_chosen_BM, 2)
    difference_BM = jnp.asarray(metrics_chosen_BM, jnp.float32) - jnp.asarray(metrics_rejected_BM, jnp.float32)
    scale_M = jnp.sqrt(jnp.square(difference_BM).mean(axis=0))
    scale_M = jnp.where(scale_M > 0, scale_M, 1.0)
    difference_BM /= scale_M[None]

    def newton(_: int, weights_M: jax.Array) -> jax.Array:
        wrong_B = jax.nn.sigmoid(-difference_BM @ weights_M)
        slope_M = ridge * weights_M - wrong_B @ difference_BM
        bend_MM = (difference_BM.T * (wrong_B * (1.0 - wrong_B))[None]) @ difference_BM
        bend_MM += ridge * jnp.eye(len(weights_M))
        return weights_M - jnp.linalg.solve(bend_MM, slope_M)

    return jax.lax.fori_loop(0, _STEPS, newton, jnp.zeros_like(scale_M)) / scale_M


def _clips(images: jax.Array) -> jax.Array:
    """Images as clips of one frame, at least float32."""
    chex.assert_rank(images, {4, 5})
    x = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    return x[:, None] if x.ndim == 4 else x


def _frames(clips_BFHWC: jax.Array, least: int) -> jax.Array:
    x = _clips(clips_BFHWC)
    if x.shape[1] < least:
        raise ValueError(f"a clip of {x.shape[1]} frames: this measure takes {least}")
    return x
