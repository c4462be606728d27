"""Adapters: nothing before the first step, the formula after it, dropout, float32, and the merged model."""

from __future__ import annotations

import functools

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.models.model import Model, make_model
from dpo_jax.models.spec import DecoderSpec, Gpt2Spec
from dpo_jax.networks import Adapter, Here, Linear, merge
from dpo_jax.types import Lora, Params, adapter_of, join

SIZES = {"vocabulary": 40, "width": 16, "layers": 3, "heads": 4, "head_size": 4, "mlp_width": 24, "norm_epsilon": 1e-5}
LLAMA = DecoderSpec(**SIZES, kv_heads=2, tied=True, qkv_bias=True)
GPT2 = Gpt2Spec(**SIZES, kv_heads=4, tied=True, positions=32)
MLP = (("layers", "mlp", "up"), ("layers", "mlp", "down"))
PATHS = {
    "llama": (LLAMA, tuple(("layers", "attention", name) for name in ("query", "key", "value", "output")) + MLP),
    "gpt2": (GPT2, (("layers", "attention", "qkv"), ("layers", "attention", "output"), *MLP)),
}
SLOW = pytest.mark.slow("the other family")
TOKENS = np.random.default_rng(0).integers(0, 40, (8, 12)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(12, dtype=np.int32), TOKENS.shape)
SEGMENTS = np.ones_like(TOKENS)


@functools.cache
def made(family: str, *, dropout: float = 0.4, dtype: str = "float32") -> tuple[Model, Params, Params]:
    spec, paths = PATHS[family]
    model = make_model(spec, dtype=dtype, lora=Lora(rank=3, alpha=6.0, dropout=dropout, paths=paths))
    base = jax.tree.map(lambda x: x * 4, jax.jit(model.init)(jax.random.key(0)))
    return model, base, jax.jit(model.init_adapter)(jax.random.key(1))


@jax.jit
def moved(adapter: Params) -> Params:
    """Every number of an adapter changed."""
    leaves, tree = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return tree.unflatten([x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def hidden(model: Model, params: Params, key: jax.Array | None = None) -> jax.Array:
    return jax.jit(model.apply)(params, TOKENS, POSITIONS, SEGMENTS, key)[0]


@pytest.mark.parametrize(("family", "dtype"), [("gpt2", "float32"), pytest.param("llama", "bfloat16", marks=SLOW)])
def test_a_fresh_adapter_adds_exactly_nothing(family: str, dtype: str):
    model, base, adapter = made(family, dtype=dtype)
    found = hidden(model, join(base, adapter), jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(hidden(model, base), np.float32))


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=SLOW)])
def test_it_computes_what_the_merged_weights_compute(family: str):
    model, base, adapter = made(family)
    assert model.lora
    with_it = hidden(model, join(base, moved(adapter)))
    plain = make_model(PATHS[family][0])
    np.testing.assert_allclose(with_it, hidden(plain, merge(base, moved(adapter), model.lora)), rtol=1e-4, atol=2e-4)
    assert np.abs(with_it - hidden(model, base)).max() > 0.1


def test_merging_leaves_the_base_as_it_was():
    model, base, adapter = made("llama")
    before = jax.tree.map(np.array, base)
    assert model.lora
    merged = merge(base, moved(adapter), model.lora)
    jax.tree.map(np.testing.assert_array_equal, base, before)
    assert jax.tree.structure(merged) == jax.tree.structure(base)


@pytest.mark.parametrize("family", PATHS)
def test_the_formula_by_hand(family: str):
    """One map of one layer: x W + b + alpha / rank x A B."""
    model, base, adapter = made(family)
    path = PATHS[family][1][0]
    one, thin = base, moved(adapter)
    for name in path:
        one, thin = one[name], thin[name]
    layer = 1
    linear = Linear(nnx.Rngs(params=0), {"embed": 16}, {"heads": 4}, layers=3)
    assert isinstance(model.module(join(base, adapter)).layers.attention.output.adapter, Adapter)
    a, b = thin["adapter"]["a"][layer], thin["adapter"]["b"][layer].reshape(3, -1)
    x = np.random.default_rng(1).standard_normal((1, 2, 16)).astype(np.float32)
    state = {"weight": one["weight"][layer].reshape(16, -1), "bias": one["bias"][layer].reshape(-1)}
    linear.adapter = Adapter(nnx.Rngs(params=0), linear, Lora(3, 6.0, 0.0, ()), 0)
    graphdef, _ = nnx.split(linear)
    found = nnx.merge(graphdef, {**state, "adapter": {"a": a, "b": b}})(jnp.asarray(x), Here(jnp.int32(layer)))
    wanted = x @ np.asarray(state["weight"]) + np.asarray(state["bias"]) + 2.0 * (x @ np.asarray(a) @ np.asarray(b))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_dropout_is_drawn_by_the_key_for_each_layer_and_map():
    model, base, adapter = made("llama")
    params = join(base, moved(adapter))
    one, again, other, none = (hidden(model, params, key) for key in (*map(jax.random.key, (0, 0, 1)), None))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01 and np.abs(one - none).max() > 0.01

    linear = Linear(nnx.Rngs(params=0), {"embed": 1000}, {"mlp": 1000}, layers=1, with_bias=False)
    x = jnp.ones((1, 4, 1000))

    def dropped(number: int, layer: int) -> np.ndarray:
        adapter = Adapter(nnx.Rngs(params=0), linear, Lora(1000, 1000.0, 0.4, ()), number)
        same = jnp.eye(1000)
        found = adapter._product(x, same, same, Here(jnp.int32(layer), jax.random.key(0)))
        return np.asarray(found[0])

    first = dropped(0, 0)
    assert set(np.unique(first)) == {0.0, np.float32(1 / 0.6)}
    assert abs((first == 0).mean() - 0.4) < 0.04  # five standard deviations
    for number, layer in ((0, 1), (1, 0)):
        assert abs(((first == 0) & (dropped(number, layer) == 0)).mean() - 0.16) < 0.04


def test_the_start_of_peft():
    """A is uniform within 1 / sqrt(inputs), B is zero."""
    model, _, adapter = made("llama")
    thin = adapter["layers"]["attention"]["output"]["adapter"]
    a = np.asarray(thin["a"])
    assert a.shape == (3, 4, 4, 3) and thin["b"].shape == (3, 3, 16) and not np.any(thin["b"])
    assert 0.2 < np.abs(a).max() <= 0.25 and abs(a.mean()) < 0.05 and len(np.unique(a)) == a.size
    assert model.adapter and jax.tree.map(lambda x: (x.shape, x.dtype), adapter) == jax.tree.map(
        lambda x: (x.shape, x.dtype), model.adapter.shapes
    )


def test_the_tree_comes_apart_as_it_was_joined():
    model, base, adapter = made("gpt2")
    joined = join(base, adapter)
    assert jax.tree.structure(adapter_of(joined)) == jax.tree.structure(adapter) and not adapter_of(base)
    assert jax.tree.leaves(adapter_of(joined))[0] is jax.tree.leaves(adapter)[0]
    assert model.trained is model.adapter and make_model(GPT2).trained.shapes == model.shapes


@pytest.mark.slow("a gradient of its own")
def test_gradients_of_an_adapter_are_float32_before_devices_sum_them():
    """What was bfloat16 once has a short mantissa still."""
    model, base, adapter = made("llama", dtype="bfloat16")

    def loss(adapter: Params) -> jax.Array:
        return (model.apply(join(base, adapter), TOKENS, POSITIONS, SEGMENTS)[0].astype(jnp.float32) ** 2).sum()

    for gradient in jax.tree.leaves(jax.jit(jax.grad(loss))(moved(adapter))):
        assert np.mean(gradient == gradient.astype(jnp.bfloat16)) < 0.05


@pytest.mark.slow("five programs")
def test_what_is_not_trained_is_held_in_the_dtype_of_its_use():
    model, _, _ = made("gpt2", dtype="bfloat16")
    held = model.held_dtypes()
    assert held["layers"]["mlp"]["up"] == {"weight": jnp.bfloat16, "bias": jnp.bfloat16}
    assert held["layers"]["mlp_norm"] == {"scale": jnp.float32, "bias": jnp.float32} == held["final_norm"]
    model, base, adapter = made("llama", dtype="bfloat16")
    as_held = jax.tree.map(jnp.asarray, base, model.held_dtypes())
    params = join(base, moved(adapter))
    np.testing.assert_array_equal(
        *(np.asarray(hidden(model, p), np.float32) for p in (params, join(as_held, adapter_of(params))))
    )
