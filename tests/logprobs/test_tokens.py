"""Token log-probs against the plain log-softmax, in value, gradient, memory and on a mesh."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.logprobs import token_kl, token_log_sum_sq, token_logps
from dpo_jax.logprobs.tiling import cut_tokens
from dpo_jax.mesh import make_mesh, named_sharding
from dpo_jax.planning.hlo import Collective, collectives, parse
from dpo_jax.types import Unembedding
from tests.logprobs import naive
from tests.logprobs.naive import LOGITS_BYTES, TOKENS, VOCABULARY, assert_trees_close, example, temporary_bytes


def value_and_gradient(form, unembedding: tuple):
    """Of a weighted sum of log-probs; `unembedding`: vocabulary, scale and soft cap."""
    hidden, target, weight, weights_RN = example(vocabulary=unembedding[0])

    def total(hidden, weight):
        return (form(hidden, target, Unembedding(weight, *unembedding)) * weights_RN).sum()

    return jax.jit(jax.value_and_grad(total, (0, 1)))(hidden, weight)


plain_form = functools.cache(functools.partial(value_and_gradient, naive.token_logps))
PLAIN, CAPPED, FEW = (40, 1.0, None), (37, 0.7, 5.0), (5, 1.0, None)


# 40 columns by 7: the last tile overlaps the one before it; 6 tokens by 3 rows: two tokens of each row in a tile
@pytest.mark.parametrize(
    ("tile_tokens", "tile_vocabulary", "unembedding"),
    [(6, 7, PLAIN), (6, 7, CAPPED), (6, 7, FEW), (2048, 16384, CAPPED), (1, 1, FEW), (1, 1, CAPPED), (9, 40, PLAIN)],
)
def test_value_and_gradient_equal_the_plain_form(x64, tile_tokens, tile_vocabulary, unembedding):
    tiled = functools.partial(token_logps, tile_tokens=tile_tokens, tile_vocabulary=tile_vocabulary)
    assert_trees_close(value_and_gradient(tiled, unembedding), plain_form(unembedding), atol=1e-12)


def test_padding_of_the_vocabulary_gets_no_probability():
    hidden, target, weight, _ = example(dtype=jnp.float32, vocabulary=37)
    louder = weight.at[37:].mul(100.0)
    np.testing.assert_array_equal(
        token_logps(hidden, target, Unembedding(weight, 37)), token_logps(hidden, target, Unembedding(louder, 37))
    )


def test_other_shapes_are_refused():
    hidden, target, weight, _ = example(dtype=jnp.float32)
    for other in (
        (hidden, target[:1], Unembedding(weight, 40)),
        (hidden, target, Unembedding(weight[:, :1], 40)),
    ):
        with pytest.raises(AssertionError):
            token_logps(*other)


def test_far_out_logits_stay_finite():
    hidden, target, weight, _ = example(dtype=jnp.float32)
    total = jax.jit(jax.value_and_grad(lambda h: token_logps(h * 1e4, target, Unembedding(weight, 40)).sum()))
    value, gradient = total(hidden)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


def test_bfloat16_is_summed_in_float32():
    hidden, target, weight, _ = example(rows=1, scored=4, width=64, columns=5000, dtype=jnp.bfloat16, vocabulary=5000)
    ours = token_logps(hidden, target, Unembedding(weight, 5000), tile_vocabulary=256)
    assert ours.dtype == jnp.float32
    exact = naive.token_logps(hidden.astype(jnp.float32), target, Unembedding(weight.astype(jnp.float32), 5000))
    np.testing.assert_allclose(ours, exact, atol=1e-4)


@pytest.mark.parametrize("axes", [{"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_sharded_equals_whole(axes):
    hidden, target, weight, weights_RN = example(rows=8, columns=48, dtype=jnp.float32, vocabulary=45)

    def total(hidden, weight):
        return (token_logps(hidden, target, Unembedding(weight, 45), tile_vocabulary=12) * weights_RN).sum()

    whole = jax.jit(jax.value_and_grad(total, (0, 1)))(hidden, weight)
    with jax.set_mesh(make_mesh(**{"fsdp": 1, **axes})):
        split = jax.jit(jax.value_and_grad(total, (0, 1)))(hidden, weight)
    assert_trees_close(split, whole, rtol=1e-5, atol=1e-5)


def test_no_array_of_tokens_by_vocabulary_exists():
    target = jnp.zeros((1, TOKENS), jnp.int32)

    def gradient(form):
        return jax.grad(lambda h, w: form(h, target, Unembedding(w, VOCABULARY)).sum(), (0, 1))

    ours, plain = temporary_bytes(gradient(token_logps)), temporary_bytes(gradient(naive.token_logps))
    assert plain > LOGITS_BYTES
    assert ours < plain / 5, f"{ours / 2**20:.0f} MiB against {plain / 2**20:.0f} MiB"
    print(f"peak temporary memory: {ours / 2**20:.0f} MiB tiled, {plain / 2**20:.0f} MiB naive")


def test_tiles_are_those_of_one_device():
    hidden_RND = jnp.zeros((8, 64, 4))
    assert cut_tokens(hidden_RND, 32).shape == (16, 8 * 4, 4)
    with jax.set_mesh(make_mesh(fsdp=8)):
        assert cut_tokens(hidden_RND, 32).shape == (2, 8 * 32, 4)
        assert cut_tokens(hidden_RND[:6], 32).shape == (13, 6 * 5, 4)  # rows that are not split


@pytest.mark.parametrize(("axes", "tensor"), [({"fsdp": 8}, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 2)])
def test_devices_add_the_gradient_of_the_head_up_once_a_tile_of_the_vocabulary(axes, tensor):
    """However many tiles of tokens there are: a sum over devices for each took 2 TiB of a step of an 8B model."""
    mesh, (rows, scored, width, columns) = make_mesh(**axes), (8, 256, 64, 512)
    struct = lambda shape, dtype, *names: jax.ShapeDtypeStruct(  # noqa: E731
        shape, dtype, sharding=named_sharding(mesh, names, shape)
    )
    hidden = struct((rows, scored, width), jnp.float32, "rows", None, None)
    target = struct((rows, scored), jnp.int32, "rows", None)
    weight = struct((columns, width), jnp.float32, "vocab", "embed")

    def found(tile_tokens: int) -> dict[str, Collective]:
        def total(hidden, weight, target):
            unembedding = Unembedding(weight, columns)
            return token_logps(hidden, target, unembedding, tile_tokens=tile_tokens, tile_vocabulary=128).sum()

        with jax.set_mesh(mesh):
            text = jax.jit(jax.grad(total, (0, 1))).lower(hidden, weight, target).compile().as_text()
        traffic = collectives(parse(text), devices=8)
        assert not traffic.uncounted
        return {f"{each.kind} {each.chips}": each for each in traffic.collectives}

    few, many = found(256), found(8)
    over_rows = f"all-reduce {8 // tensor}"
    assert few[over_rows].bytes == many[over_rows].bytes < 2.1 * 4 * columns * width


def test_logits_without_a_weight_give_what_a_weight_of_one_gives(x64):
    hidden, target, weight_VD, weights_RN = example(vocabulary=40)
    logits = hidden @ weight_VD.T
    other = logits[..., ::-1]

    def all_three(logits: jax.Array, weight: jax.Array | None) -> jax.Array:
        same = Unembedding(weight, 40)
        return jnp.stack(
            [
                (token_logps(logits, target, same) * weights_RN).sum(),
                (token_kl(logits, same, other, same) * weights_RN).sum(),
                (token_log_sum_sq(logits, same) * weights_RN).sum(),
            ]
        )

    for compute in (all_three, jax.jacrev(all_three)):
        np.testing.assert_allclose(compute(logits, None), compute(logits, jnp.eye(40)), rtol=1e-12, atol=1e-12)
