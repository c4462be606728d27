"""Token and response log-probs against the plain log-softmax, in value, gradient, memory and on a mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.logprobs import batch_logps, response_logps, token_logps
from dpo_jax.mesh import make_mesh
from dpo_jax.types import PairBatch, Unembedding


def plain(hidden_RND, target_RN, unembedding: Unembedding):
    """The naive form, whole logits at once."""
    logits = unembedding.scale * jnp.einsum("rnd,vd->rnv", hidden_RND, unembedding.weight_VD)
    if unembedding.soft_cap:
        logits = unembedding.soft_cap * jnp.tanh(logits / unembedding.soft_cap)
    logits = jnp.where(jnp.arange(logits.shape[-1])[None, None] < unembedding.vocabulary, logits, -jnp.inf)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), target_RN[..., None], axis=-1)[..., 0]


def example(rows=3, scored=5, width=8, columns=40, dtype=jnp.float64, vocabulary=37):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (rows, scored, width), dtype)
    weight = jax.random.normal(keys[1], (columns, width), dtype)
    target = jax.random.randint(keys[2], (rows, scored), 0, vocabulary)
    return hidden, target, weight, jax.random.normal(keys[3], (rows, scored), dtype)


# 40 columns by 11: the last tile overlaps the one before it; 6 tokens by 3 rows: two tokens of each row in a tile
@pytest.mark.parametrize(("tile_tokens", "tile_vocabulary"), [(6, 11), (2048, 16384), (1, 1), (9, 40)])
@pytest.mark.parametrize(("vocabulary", "scale", "soft_cap"), [(40, 1.0, None), (37, 0.7, 5.0), (5, 1.0, None)])
def test_value_and_gradient_equal_the_plain_form(tile_tokens, tile_vocabulary, vocabulary, scale, soft_cap):
    with jax.enable_x64(True):
        hidden, target, weight, weights_RN = example(vocabulary=vocabulary)

        def total(form):
            def inner(hidden, weight):
                return (form(hidden, target, Unembedding(weight, vocabulary, scale, soft_cap)) * weights_RN).sum()

            return jax.jit(jax.value_and_grad(inner, (0, 1)))(hidden, weight)

        tiled = lambda *a: token_logps(*a, tile_tokens=tile_tokens, tile_vocabulary=tile_vocabulary)  # noqa: E731
        for ours, wanted in zip(jax.tree.leaves(total(tiled)), jax.tree.leaves(total(plain)), strict=True):
            np.testing.assert_allclose(ours, wanted, atol=1e-12)


def test_padding_of_the_vocabulary_gets_no_probability():
    hidden, target, weight, _ = example(dtype=jnp.float32, vocabulary=37)
    louder = weight.at[37:].mul(100.0)
    np.testing.assert_array_equal(
        token_logps(hidden, target, Unembedding(weight, 37)), token_logps(hidden, target, Unembedding(louder, 37))
    )


def test_far_out_logits_stay_finite():
    hidden, target, weight, _ = example(dtype=jnp.float32)
    value, gradient = jax.value_and_grad(lambda h: token_logps(h * 1e4, target, Unembedding(weight, 40)).sum())(hidden)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


def test_bfloat16_is_summed_in_float32():
    hidden, target, weight, _ = example(rows=1, scored=4, width=64, columns=5000, dtype=jnp.bfloat16, vocabulary=5000)
    ours = token_logps(hidden, target, Unembedding(weight, 5000), tile_vocabulary=256)
    assert ours.dtype == jnp.float32
    exact = plain(hidden.astype(jnp.float32), target, Unembedding(weight.astype(jnp.float32), 5000))
    np.testing.assert_allclose(ours, exact, atol=1e-4)


def test_response_sums_by_hand():
    # two pairs: responses 0 and 1 in row 0, 3 in row 1; -1 is padding, whose value is not even a number
    tokens = jnp.array([[-1.0, -2.0, -4.0, jnp.nan], [-8.0, -16.0, jnp.inf, jnp.nan]])
    response = jnp.array([[0, 0, 1, -1], [3, 3, -1, -1]])
    np.testing.assert_array_equal(response_logps(tokens, response, pairs=2, slots=2), [[-3.0, -4.0], [0.0, -24.0]])


def test_the_source_position_is_the_one_before_the_target():
    # A model whose hidden state at a position is the one-hot of the token there, and whose unembedding is ten times
    # the identity: after token t it says t itself with log-prob 10 - log(e^10 + V - 1).
    vocabulary, tokens = 6, jnp.array([[2, 2, 5, 5]])
    hidden = jax.nn.one_hot(tokens, vocabulary)
    batch = PairBatch(
        tokens_RT=tokens,
        positions_RT=jnp.arange(4)[None],
        segments_RT=jnp.ones((1, 4), jnp.int32),
        source_RN=jnp.array([[0, 1, 2]]),  # predict tokens 1, 2, 3
        target_RN=jnp.array([[2, 5, 5]]),
        response_RN=jnp.array([[0, 0, 0]]),
        response_tokens_BP=jnp.array([[3.0]]),
        weight_B=jnp.ones(1),
    )
    logps = batch_logps(hidden, Unembedding(10.0 * jnp.eye(vocabulary), vocabulary), batch)
    lse = jnp.log(jnp.exp(10.0) + vocabulary - 1)
    np.testing.assert_allclose(logps, [[(10 - lse) + (0 - lse) + (10 - lse)]], rtol=1e-6)


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_sharded_equals_whole(axes):
    hidden, target, weight, weights_RN = example(rows=8, columns=48, dtype=jnp.float32, vocabulary=45)

    def total(hidden, weight):
        return (token_logps(hidden, target, Unembedding(weight, 45), tile_vocabulary=12) * weights_RN).sum()

    whole = jax.value_and_grad(total, (0, 1))(hidden, weight)
    mesh = make_mesh(**{"fsdp": 1, **axes})
    with jax.set_mesh(mesh):
        split = jax.jit(jax.value_and_grad(total, (0, 1)))(hidden, weight)
    for ours, wanted in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)


def temporary_bytes(form, vocabulary=131072, tokens=2048, width=64) -> int:
    hidden = jax.ShapeDtypeStruct((1, tokens, width), jnp.float32)
    weight = jax.ShapeDtypeStruct((vocabulary, width), jnp.float32)
    target = jnp.zeros((1, tokens), jnp.int32)
    step = jax.jit(jax.grad(lambda h, w: form(h, target, Unembedding(w, vocabulary)).sum(), (0, 1)))
    return step.lower(hidden, weight).compile().memory_analysis().temp_size_in_bytes


def test_no_array_of_tokens_by_vocabulary_exists():
    # T = 2048, V = 131072: the logits alone would be 1 GiB in float32.
    logits = 2048 * 131072 * 4
    ours, naive = temporary_bytes(token_logps), temporary_bytes(plain)
    assert naive > logits
    assert ours < naive / 5, f"{ours / 2**20:.0f} MiB against {naive / 2**20:.0f} MiB"
    print(f"peak temporary memory: {ours / 2**20:.0f} MiB tiled, {naive / 2**20:.0f} MiB naive")
