"""Quality measures by hand and by what they should tell apart; weights against scikit-learn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.scorers.quality import (
    METRICS,
    OF_IMAGES,
    contrast,
    fit_weights,
    flicker,
    measured,
    motion_smoothness,
    quality_scores,
    saturation,
    sharpness,
    temporal_consistency,
)

RANDOM = np.random.default_rng(0)
CLIPS = jnp.asarray(RANDOM.uniform(size=(3, 4, 6, 5, 3)), jnp.float32)


def moving(*, jitter: int) -> jax.Array:
    """A bright square that moves one pixel a frame, and jumps up and down by `jitter`."""
    clip = np.zeros((1, 8, 16, 16, 1), np.float32)
    for frame in range(8):
        top = 6 + jitter * (frame % 2)
        clip[0, frame, top : top + 4, frame : frame + 4] = 1.0
    return jnp.asarray(clip)


def test_temporal_measures_by_hand():
    # Two pixels over three frames: 0, 0.4, 0.4 and 1, 1, 0.4.
    clip = jnp.array([[0.0, 1.0], [0.4, 1.0], [0.4, 0.4]]).reshape(1, 3, 1, 2, 1)
    np.testing.assert_allclose(temporal_consistency(clip), [(0.16 + 0 + 0 + 0.36) / 4], rtol=1e-6)
    # Frames are 0.5, 0.7, 0.4 bright.
    np.testing.assert_allclose(flicker(clip), [(0.2 + 0.3) / 2], rtol=1e-5)
    # The middle frame should be 0.2 and 0.7.
    np.testing.assert_allclose(motion_smoothness(clip), [1 - (0.2 + 0.3) / 2], rtol=1e-6)


def test_jitter_is_noticed_and_is_no_flicker():
    calm, nervous = moving(jitter=0), moving(jitter=2)
    assert temporal_consistency(nervous) > 2 * temporal_consistency(calm)
    assert motion_smoothness(nervous) < motion_smoothness(calm)
    np.testing.assert_allclose(flicker(nervous), 0.0, atol=1e-7)
    blinking = calm * jnp.where(jnp.arange(8) % 2, 0.5, 1.0).reshape(1, 8, 1, 1, 1)
    assert flicker(blinking) > 0.02


def test_still_pictures_by_hand():
    image = np.zeros((1, 3, 4, 3), np.float32)
    image[0, 1, 1] = 1.0  # white: Laplacians inside are -4 and 1, variance 2.5^2
    np.testing.assert_allclose(sharpness(jnp.asarray(image)), [6.25], rtol=1e-5)
    np.testing.assert_allclose(saturation(jnp.asarray(image)), [0.0])  # black and white
    np.testing.assert_allclose(contrast(jnp.asarray(image)), [np.sqrt(1 / 12 - 1 / 144)], rtol=1e-5)
    blurred = jnp.asarray(image[:, :, :-1] + image[:, :, 1:]) / 2
    assert sharpness(blurred) < sharpness(jnp.asarray(image))


@pytest.mark.parametrize("name", METRICS)
def test_ranges_batches_and_slopes(name: str):
    metric = METRICS[name]
    both = jax.jit(lambda x: (metric(x), jax.grad(lambda x: metric(x).sum())(x)))
    found, _ = both(CLIPS)
    assert found.shape == (3,) and found.dtype == jnp.float32
    np.testing.assert_allclose(both(CLIPS[jnp.array([1, 1, 1])])[0], found[1], rtol=1e-6)
    for clip in (np.zeros_like(CLIPS), np.ones_like(CLIPS), np.round(CLIPS)):
        value, slope = both(clip)
        assert np.all((value >= 0) & (value <= (16 if name == "sharpness" else 1))) and np.isfinite(slope).all()
    assert jax.eval_shape(metric, CLIPS.astype(jnp.bfloat16)).dtype == jnp.float32
    if name in OF_IMAGES:
        images = jax.jit(metric)
        frames = jnp.stack([images(CLIPS[:, frame]) for frame in range(4)])
        np.testing.assert_allclose(metric(CLIPS[:, :1]), frames[0], rtol=1e-6)
        np.testing.assert_allclose(found, frames.mean(axis=0), rtol=1e-5)
    else:
        with pytest.raises(ValueError, match="a clip of 1 frames"):
            metric(CLIPS[:, 0])


def test_scores_are_weighted_sums():
    weights = {"flicker": -2.0, "contrast": 0.5}
    wanted = -2.0 * flicker(CLIPS) + 0.5 * contrast(CLIPS)
    np.testing.assert_allclose(quality_scores(CLIPS, weights), wanted, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(quality_scores)(CLIPS, weights), wanted, rtol=1e-5)
    with pytest.raises(ValueError, match=r"quality metric 'flickr' is unknown\. Did you mean 'flicker'"):
        quality_scores(CLIPS, {"flickr": 1.0})
    with pytest.raises(ValueError, match="takes the weight of one metric at least"):
        quality_scores(CLIPS, {})
    with pytest.raises(ValueError, match="2 channels: luminance knows grey"):
        contrast(CLIPS[..., :2])


def test_fitted_weights_are_those_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    chosen, rejected = (RANDOM.normal(size=(60, 3)) * [1.0, 0.01, 50.0] for _ in range(2))
    better = (chosen - rejected) @ [1.0, 100.0, 0.0] + RANDOM.logistic(size=60) > 0
    chosen, rejected = np.where(better[:, None], chosen, rejected), np.where(better[:, None], rejected, chosen)
    difference = chosen - rejected
    scale = np.sqrt(np.square(difference).mean(axis=0))
    both, labels = np.concatenate([difference, -difference]) / scale, np.repeat([1, 0], 60)
    for ridge in (0.1, 1.0, 10.0):
        # Each pair stands there twice, so half as much of it is to be trusted.
        theirs = LogisticRegression(C=0.5 / ridge, fit_intercept=False, tol=1e-10, max_iter=1000).fit(both, labels)
        found = fit_weights(jnp.asarray(chosen), jnp.asarray(rejected), ridge=ridge)
        np.testing.assert_allclose(found * scale, theirs.coef_[0], rtol=1e-3, atol=1e-4)
    assert found[0] > 0 and found[1] > 10 * found[0]


def test_weights_order_held_out_clips_and_what_never_differs_has_none():
    metrics = ("temporal_consistency", "saturation")
    calm, nervous = moving(jitter=0), moving(jitter=2)
    noise = [jnp.asarray(RANDOM.normal(size=calm.shape) * 0.05, jnp.float32) for _ in range(8)]
    chosen = jnp.concatenate([measured(calm + x, metrics) for x in noise])
    rejected = jnp.concatenate([measured(nervous + x, metrics) for x in noise])
    weights = fit_weights(chosen, rejected, ridge=0.1)
    assert weights[0] < -1 and weights[1] == 0
    by_name = dict(zip(metrics, weights, strict=True))
    assert quality_scores(moving(jitter=0), by_name) > quality_scores(moving(jitter=1), by_name)
