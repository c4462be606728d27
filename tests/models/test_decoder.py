"""The decoder: what it may see, what it shares, how it is split, how it compiles."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.mesh import make_mesh
from dpo_jax.models.model import make_model
from dpo_jax.models.spec import DecoderSpec, Gpt2Spec
from dpo_jax.networks import REMAT_POLICIES
from dpo_jax.training.state import param_shardings

SIZES = {"vocabulary": 48, "width": 16, "layers": 3, "heads": 4, "mlp_width": 24, "norm_epsilon": 1e-5}
SPEC = DecoderSpec(**SIZES, kv_heads=2, head_size=8, tied=False)
SPECS = {"llama": SPEC, "gpt2": Gpt2Spec(**SIZES, kv_heads=4, head_size=4, tied=True, positions=8)}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 48, (8, 6)))
POSITIONS = jnp.tile(jnp.arange(6), (8, 1))
SEGMENTS = jnp.ones((8, 6), jnp.int32)


def hidden(model, params, tokens=TOKENS, positions=POSITIONS, segments=SEGMENTS):
    return jax.jit(model.apply)(params, tokens, positions, segments)[0]


@functools.cache
def made(family):
    """The model and its parameters, all of them random: biases and norms too."""
    model = make_model(SPECS[family])
    leaves, tree = jax.tree.flatten(jax.jit(model.init)(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return model, tree.unflatten(
        [x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    )


@pytest.fixture(scope="module")
def model():
    return made("llama")[0]


@pytest.fixture(scope="module")
def params():
    return made("llama")[1]


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


@functools.cache
def gradient(family, remat):
    model = make_model(SPECS[family], remat=remat)
    total = jax.jit(jax.grad(lambda params: model.apply(params, TOKENS, POSITIONS, SEGMENTS)[0][..., 0].sum()))
    return total(made(family)[1])


FURTHER = pytest.mark.slow("further gradients")


@pytest.mark.parametrize(
    ("family", "remat"), [("llama", "dots"), *(pytest.param(name, "full", marks=FURTHER) for name in SPECS)]
)
def test_remat_changes_no_gradient(family, remat):
    wanted = gradient(family, "none")
    for ours, theirs in zip(jax.tree.leaves(gradient(family, remat)), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_every_policy_of_remat_is_compared():
    assert {"none", "dots", "full"} == set(REMAT_POLICIES)


@pytest.mark.parametrize("family", SPECS)
def test_bfloat16_computes_in_bfloat16_on_float32_parameters(family):
    model, params = made(family)
    narrow = make_model(SPECS[family], dtype=jnp.bfloat16)
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


@pytest.mark.parametrize(
    ("family", "axes"),
    [
        ("llama", {"fsdp": 8}),
        ("llama", {"tensor": 8}),
        ("llama", {"data": 2, "tensor": 2, "sequence": 2}),
        ("gpt2", {"data": 2, "tensor": 2, "sequence": 2}),
    ],
)
def test_on_a_mesh_it_computes_the_same(family, axes):
    model, params = made(family)
    mesh = make_mesh(**{"fsdp": 1, **axes})
    shardings = param_shardings(mesh, model.tree)
    with jax.set_mesh(mesh):
        split = jax.jit(model.apply, in_shardings=(shardings, None, None, None))(params, TOKENS, POSITIONS, SEGMENTS)[0]
    np.testing.assert_allclose(split, hidden(model, params), atol=1e-5)


@pytest.mark.parametrize("family", SPECS)
def test_every_parameter_names_its_dimensions(family):
    model = make_model(dataclasses.replace(SPECS[family], tied=False))
    ranks = jax.tree.map(lambda shape, names: len(shape.shape) == len(names), model.shapes, model.axes)
    assert all(jax.tree.leaves(ranks))
