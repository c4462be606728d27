"""GPT-2: its norm by hand, its positions and their limit, what it shares with the decoder: mesh, remat, cache."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dpo_jax.errors import UserError
from dpo_jax.mesh import make_mesh
from dpo_jax.models.decoder import make_model
from dpo_jax.models.gpt2 import Gpt2Spec, LayerNorm
from dpo_jax.models.sampling import generate, make_sampler
from dpo_jax.training.state import param_shardings

SPEC = Gpt2Spec(
    vocabulary=48,
    width=16,
    layers=3,
    heads=4,
    kv_heads=4,
    head_size=4,
    mlp_width=24,
    norm_epsilon=1e-5,
    tied=True,
    positions=8,
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 48, (8, 6)))
POSITIONS = jnp.tile(jnp.arange(6), (8, 1))
SEGMENTS = jnp.ones((8, 6), jnp.int32)


@pytest.fixture(scope="module")
def model():
    return make_model(SPEC)


@pytest.fixture(scope="module")
def params(model):
    """Random ones, biases and norms too."""
    leaves, tree = jax.tree.flatten(jax.jit(model.init)(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def hidden(model, params, positions=POSITIONS, tokens=TOKENS):
    return jax.jit(model.apply)(params, tokens, positions, SEGMENTS)[0]


def test_layer_norm_by_hand():
    # 1, 3, 5, 7 around their mean 4: -3, -1, 1, 3 with variance 5, and 4 more are epsilon: divided by 3.
    norm = LayerNorm((4,), "embed", epsilon=4.0)
    nnx.update(norm, {"scale": jnp.array([3.0, 3.0, 3.0, 6.0]), "bias": jnp.array([0.0, 10.0, 0.0, 0.0])})
    np.testing.assert_allclose(norm(jnp.array([[[1.0, 3.0, 5.0, 7.0]]]))[0, 0], [-3.0, 9.0, 1.0, 6.0], rtol=1e-6)


def test_positions_are_learned(model, params):
    shifted = hidden(model, params, POSITIONS + 2)
    assert jnp.abs(shifted - hidden(model, params)).max() > 1e-2
    rolled = params | {"positions": jnp.roll(params["positions"], 2, axis=0)}
    np.testing.assert_allclose(hidden(model, rolled, POSITIONS + 2), hidden(model, params), atol=1e-5)


def test_a_position_beyond_the_table_is_never_its_last_row(model, params):
    beyond = hidden(model, params, POSITIONS.at[:, 5].set(8))
    assert jnp.isnan(beyond[:, 5]).all() and jnp.isfinite(hidden(model, params, POSITIONS.at[:, 5].set(7))).all()


def test_a_cache_longer_than_the_table_is_refused(model, params):
    sampler = make_sampler(model, max_new_tokens=5, stop_tokens=())
    prompts = [np.arange(4, dtype=np.int32)]
    generate(sampler, params, prompts, key=jax.random.key(0), batch_rows=1)  # the last token is not fed back: 8
    with pytest.raises(UserError, match="may have 9 tokens together, but the model has learned only 8 positions"):
        generate(sampler, params, [np.arange(5, dtype=np.int32)], key=jax.random.key(0), batch_rows=1)


def test_in_parts_over_a_cache_it_computes_the_same(model, params):
    cache = model.empty_cache(8, 6)
    extend = jax.jit(model.extend)
    first, _, cache = extend(params, TOKENS[:, :3], POSITIONS[:, :3], cache)
    rest, _, _ = extend(params, TOKENS[:, 3:], POSITIONS[:, 3:], cache)
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), hidden(model, params), atol=1e-5)


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"data": 2, "tensor": 2, "sequence": 2}])
def test_on_a_mesh_it_computes_the_same(model, params, axes):
    mesh = make_mesh(**{"fsdp": 1, **axes})
    shardings = param_shardings(mesh, model.shapes, model.axes)
    with jax.set_mesh(mesh):
        split = jax.jit(model.apply, in_shardings=(shardings, None, None, None))(params, TOKENS, POSITIONS, SEGMENTS)[0]
    np.testing.assert_allclose(split, hidden(model, params), atol=1e-5)


def test_remat_changes_no_gradient(model, params):
    def gradient(model):
        return jax.jit(jax.grad(lambda p: model.apply(p, TOKENS, POSITIONS, SEGMENTS)[0][..., 0].sum()))(params)

    again, wanted = gradient(make_model(SPEC, remat="full")), gradient(model)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), again, wanted)


def test_every_parameter_names_its_dimensions_and_the_head_may_be_its_own(model):
    untied = make_model(dataclasses.replace(SPEC, tied=False))
    assert set(untied.shapes) - set(model.shapes) == {"unembedding"}
    ranks = jax.tree.map(lambda shape, names: len(shape.shape) == len(names), untied.shapes, untied.axes)
    assert all(jax.tree.leaves(ranks))


def test_bfloat16_computes_in_bfloat16(model, params):
    narrow = make_model(SPEC, dtype=jnp.bfloat16)
    state, unembedding = jax.jit(narrow.apply)(params, TOKENS, POSITIONS, SEGMENTS)
    assert state.dtype == unembedding.weight_VD.dtype == jnp.bfloat16
    np.testing.assert_allclose(state.astype(jnp.float32), hidden(model, params), atol=0.2)
