"""The decoder: what it may see, what it shares, how it is split, how it compiles."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.mesh import make_mesh
from dpo_jax.models.decoder import make_model
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.models.stack import REMAT_POLICIES
from dpo_jax.training.state import param_shardings

SPEC = DecoderSpec(
    vocabulary=48,
    width=16,
    layers=3,
    heads=4,
    kv_heads=2,
    head_size=8,
    mlp_width=24,
    norm_epsilon=1e-5,
    tied=False,
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 48, (8, 6)))
POSITIONS = jnp.tile(jnp.arange(6), (8, 1))
SEGMENTS = jnp.ones((8, 6), jnp.int32)


def hidden(model, params, tokens=TOKENS, positions=POSITIONS, segments=SEGMENTS):
    return jax.jit(model.apply)(params, tokens, positions, segments)[0]


@pytest.fixture(scope="module")
def model():
    return make_model(SPEC)


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(model.init)(jax.random.key(0))


def test_a_token_does_not_see_what_comes_after_it(model, params):
    changed = hidden(model, params, TOKENS.at[:, 4].add(1))
    before = hidden(model, params)
    np.testing.assert_array_equal(changed[:, :4], before[:, :4])
    assert jnp.abs(changed[:, 4:] - before[:, 4:]).max() > 1e-3


def test_segments_of_a_row_equal_rows_of_their_own(model, params):
    packed = hidden(
        model, params, positions=jnp.tile(jnp.array([0, 1, 2, 0, 1, 2]), (8, 1)), segments=SEGMENTS.at[:, 3:].set(4)
    )
    apart = hidden(model, params, TOKENS[:, 3:], POSITIONS[:, :3], SEGMENTS[:, :3])
    np.testing.assert_allclose(packed[:, 3:], apart, atol=1e-5)


def test_only_relative_positions_matter(model, params):
    np.testing.assert_allclose(hidden(model, params, positions=POSITIONS + 7), hidden(model, params), atol=1e-4)
    assert jnp.abs(hidden(model, params, positions=POSITIONS * 2) - hidden(model, params)).max() > 1e-3


def gradient(params, remat):
    model = make_model(SPEC, remat=remat)
    return jax.jit(jax.grad(lambda p: model.apply(p, TOKENS, POSITIONS, SEGMENTS)[0].sum()))(params)


@pytest.fixture(scope="module")
def plain_gradient(params):
    return gradient(params, "none")


@pytest.mark.parametrize("remat", [name for name in REMAT_POLICIES if name != "none"])
def test_remat_changes_no_gradient(params, plain_gradient, remat):
    for ours, wanted in zip(jax.tree.leaves(gradient(params, remat)), jax.tree.leaves(plain_gradient), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4)


def test_bfloat16_computes_in_bfloat16_on_float32_parameters(model, params):
    narrow = make_model(SPEC, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow.shapes)} == {jnp.dtype("float32")}
    state, unembedding = jax.jit(narrow.apply)(params, TOKENS, POSITIONS, SEGMENTS)
    assert state.dtype == unembedding.weight_VD.dtype == jnp.bfloat16
    np.testing.assert_allclose(state.astype(jnp.float32), hidden(model, params), atol=0.15)


def test_tied_and_untied():
    tied = make_model(dataclasses.replace(SPEC, tied=True))
    params = jax.jit(tied.init)(jax.random.key(0))
    assert "unembedding" not in params
    unembedding = jax.jit(tied.apply)(params, TOKENS, POSITIONS, SEGMENTS)[1]
    np.testing.assert_array_equal(unembedding.weight_VD, params["embedding"])


@pytest.mark.parametrize("axes", [{"data": 2, "tensor": 2, "sequence": 2}, {"fsdp": 8}, {"tensor": 8}])
def test_on_a_mesh_it_computes_the_same(model, params, axes):
    mesh = make_mesh(**{"fsdp": 1, **axes})
    shardings = param_shardings(mesh, model.shapes, model.axes)
    with jax.set_mesh(mesh):
        split = jax.jit(model.apply, in_shardings=(shardings, None, None, None))(params, TOKENS, POSITIONS, SEGMENTS)[0]
    np.testing.assert_allclose(split, hidden(model, params), atol=1e-5)


def test_every_parameter_names_its_dimensions(model):
    ranks = jax.tree.map(lambda shape, names: len(shape.shape) == len(names), model.shapes, model.axes)
    assert all(jax.tree.leaves(ranks))
