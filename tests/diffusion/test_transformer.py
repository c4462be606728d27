"""The network against its formula in numpy, on images and clips of any size, and what steers it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.diffusion.embeddings import Condition, Grid, TransformerSpec, positions, present
from tests.diffusion.tiny import CASES, CLASSES, CLIPS, IMAGES, LABELS, TEXT, TEXTS, TIMES, applied, made


def in_numpy(spec: TransformerSpec, params, images, times, label):
    """The formula of the paper for one image, in float64, written once more and differently."""

    def linear(x, at, inputs=1):
        weight = at["weight"].reshape(int(np.prod(at["weight"].shape[:inputs])), -1)
        return x @ weight + at["bias"].ravel()

    def silu(x):
        return x / (1 + np.exp(-x))

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    size, patch, width = images.shape[0], spec.patch, spec.width
    side = size // patch
    tokens = []
    for row in range(side):
        for column in range(side):
            cut = images[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append(cut.transpose(2, 0, 1).ravel())
    x = linear(np.array(tokens, np.float64), params["patches"])
    x += positions(Grid(1, side, side), width=width, base=spec.base)
    angles = (1000 * times - 1) * np.exp(-np.log(10000) * np.arange(128) / 127)
    waves = np.concatenate([np.cos(angles), np.sin(angles)])
    steer = linear(silu(linear(waves, params["time"]["first"])), params["time"]["second"])
    steer = silu(steer + params["condition"]["table"][label])
    for layer in range(spec.layers):
        block = jax.tree.map(lambda x, layer=layer: x[layer], params["layers"])
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = linear(steer, block["modulation"]).reshape(6, width)
        seen = norm(x) * (1 + scale) + shift
        maps = block["attention"]
        heads = [linear(seen, maps[name]).reshape(-1, spec.heads, spec.head_size) for name in ("query", "key", "value")]
        mixed = np.zeros_like(heads[0])
        for head in range(spec.heads):
            query, key, value = (of[:, head] for of in heads)
            scores = np.exp(query @ key.T / np.sqrt(spec.head_size))
            mixed[:, head] = scores / scores.sum(1, keepdims=True) @ value
        x = x + gate * linear(mixed.reshape(-1, width), maps["output"], 2)
        seen = norm(x) * (1 + mlp_scale) + mlp_shift
        x = x + mlp_gate * linear(gelu(linear(seen, block["mlp"]["up"])), block["mlp"]["down"])
    shift, scale = linear(steer, params["final_modulation"]).reshape(2, width)
    patches = linear(norm(x) * (1 + scale) + shift, params["output"]).reshape(side, side, patch, patch, -1)
    return patches.transpose(0, 2, 1, 3, 4).reshape(size, size, -1)


def test_it_is_the_formula():
    _, params = made()
    found = applied("classes")
    for row in (0, 3, 7):
        wanted = in_numpy(CLASSES, params, np.asarray(IMAGES[row]), float(TIMES[row]), int(LABELS.shown_B[row]))
        assert wanted.std() > 0.3
        np.testing.assert_allclose(found[row], wanted, atol=1e-5)


def test_an_image_is_a_clip_of_one_frame():
    diffuser, params = made()
    apply = jax.jit(diffuser.apply)
    clip = apply(params, IMAGES[:, None], TIMES, LABELS)
    np.testing.assert_allclose(clip[:, 0], apply(params, IMAGES, TIMES, LABELS), atol=1e-6)


def test_the_frames_of_a_clip_see_each_other():
    diffuser, params = made(TEXT)
    apply = jax.jit(diffuser.apply)
    changed = apply(params, CLIPS.at[:, 3].add(1.0), TIMES, TEXTS)[:, 0] - apply(params, CLIPS, TIMES, TEXTS)[:, 0]
    assert np.abs(changed).max() > 1e-3


@pytest.mark.parametrize("shape", [(2, 2, 3), (4, 10, 3), (5, 6, 4, 3)], ids=str)
def test_any_size(shape):
    diffuser, params = made()
    samples = jnp.ones((2, *shape))
    found = jax.jit(diffuser.apply)(params, samples, TIMES[:2], jax.tree.map(lambda x: x[:2], LABELS))
    assert found.shape == samples.shape and np.isfinite(found).all()


def test_time_and_condition_steer():
    for case in ("classes", "text"):
        spec, samples, condition = CASES[case]
        diffuser, params = made(spec)
        apply, found = jax.jit(diffuser.apply), applied(case)
        assert np.abs(apply(params, samples, TIMES - 0.03, condition) - found).max() > 1e-2
        other = condition._replace(shown_B=jnp.roll(condition.shown_B, 1, axis=0))
        assert np.abs(apply(params, samples, TIMES, other) - found).max() > 1e-2
        absent = condition._replace(absent_B=condition.absent_B.at[:4].set(True))
        without = apply(params, samples, TIMES, absent)
        np.testing.assert_array_equal(without[4:], found[4:])
        assert np.all(np.abs(without - found)[:4].reshape(4, -1).max(axis=1) > 1e-3)
        # Without condition it does not matter which one.
        blind = apply(params, samples, TIMES, absent._replace(shown_B=other.shown_B))
        np.testing.assert_array_equal(blind[:4], without[:4])


def test_no_class_is_the_row_behind_the_others_and_an_unknown_one_is_not_a_number():
    diffuser, params = made()
    apply = jax.jit(diffuser.apply)
    absent = apply(params, IMAGES, TIMES, Condition(LABELS.shown_B, jnp.ones(8, bool)))
    np.testing.assert_array_equal(apply(params, IMAGES, TIMES, present(jnp.full(8, 5))), absent)
    assert np.isnan(apply(params, IMAGES, TIMES, present(jnp.full(8, 6)))).all()
