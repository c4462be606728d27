"""The scalar head: by value in every layout, in float32, on every family, with an adapter and without."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.data.batches import padded
from dpo_jax.data.layouts import LAYOUTS, Shape, fill, find_sequences, place_runs
from dpo_jax.data.tokens import sizes_of
from dpo_jax.models.attention import kernels
from dpo_jax.models.heads import RewardModel, last_rewards, make_reward_model, trunk_of
from dpo_jax.models.spec import DecoderSpec, Gpt2Spec, LayerKind
from dpo_jax.types import Lora, PairBatch, Params, TokenRow, join

SLOW = pytest.mark.slow("the other families")
WIDTH = 16
SIZES = {"vocabulary": 40, "width": WIDTH, "layers": 2, "heads": 4, "head_size": 4, "mlp_width": 24}
SPECS = {
    "llama": DecoderSpec(**SIZES, kv_heads=2, norm_epsilon=1e-5, tied=False),
    "window": DecoderSpec(**SIZES, kv_heads=2, norm_epsilon=1e-5, tied=True, kinds=(LayerKind(1e4, 3),)),
    "gpt2": Gpt2Spec(**SIZES, kv_heads=4, norm_epsilon=1e-5, tied=False, positions=32),
}
ADAPTED = {"llama": (("layers", "mlp", "up"),), "gpt2": (("layers", "attention", "qkv"),)}
RANDOM = np.random.default_rng(0)
PROMPTS, RESPONSES = (3, 1, 6), ((4, 2), (1, 5), (2, 1))  # lengths; a response may be one token
ROWS = [
    TokenRow(f"{i}", *(part[0], tuple(part[1:])))
    for i, lengths in enumerate((p, *r) for p, r in zip(PROMPTS, RESPONSES, strict=True))
    for part in [[RANDOM.integers(0, 40, length).astype(np.int32) for length in lengths]]
]


def batch(length: int = 16, scored: int = 8, **more: int) -> PairBatch:
    return padded(ROWS, length=length, scored=scored, **more)


@functools.cache
def made(family: str, dtype: str) -> tuple[RewardModel, Params]:
    model = make_reward_model(SPECS[family], dtype=dtype)
    params = {**jax.jit(model.trunk.init)(jax.random.key(0)), **model.init_head(jax.random.key(1))}
    return model, jax.tree.map(lambda x: x * 4, params)


@functools.partial(jax.jit, static_argnames="made_as")
def jitted(params: Params, arrays: PairBatch, made_as: tuple[str, str]) -> jax.Array:
    return made(*made_as)[0].rewards(params, arrays)


def rewards(family: str, params: Params, arrays: PairBatch) -> np.ndarray:
    return np.asarray(jitted(params, arrays, (family, "float32")))


def laid_out(name: str, pairs: list[TokenRow] = ROWS, *, rows: int | None = None, length: int = 24) -> PairBatch:
    """Pairs in a layout; several in a row of the batch where it packs. With `rows`, always of one shape."""
    layout = LAYOUTS[name]
    places = place_runs(layout, *layout.lengths(sizes_of(pairs)), length=length)
    shape = Shape(rows, length, 20) if rows else Shape(places.rows, length, places.scored + 2)
    return fill(layout, pairs, places, shape=shape, pairs=5 if rows else len(pairs))


def masked() -> list[TokenRow]:
    """Rows of which only the first token of each response is scored."""
    return [row._replace(masks=tuple(np.arange(len(ids)) < 1 for ids in row.responses)) for row in ROWS]


def test_it_is_the_head_times_the_last_hidden_state():
    hidden_RTD = jnp.asarray(RANDOM.normal(size=(6, 16, WIDTH)), jnp.float32)
    weight_D = jnp.asarray(RANDOM.normal(size=WIDTH), jnp.float32)
    last = [p + n - 1 for p, of_pair in zip(PROMPTS, RESPONSES, strict=True) for n in of_pair]  # 6, 4, 1, 5, 7, 6
    wanted = [hidden_RTD[row, place] @ weight_D for row, place in enumerate(last)]
    found = last_rewards(hidden_RTD, weight_D, batch())
    np.testing.assert_allclose(found, np.reshape(wanted, (3, 2)), rtol=1e-6)
    slope = jax.grad(lambda hidden: last_rewards(hidden, weight_D, batch())[1, 0])(hidden_RTD)
    wanted_RTD = np.zeros_like(hidden_RTD)
    wanted_RTD[2, 1] = weight_D  # one token behind a prompt of one token
    np.testing.assert_array_equal(slope, wanted_RTD)


@pytest.mark.parametrize("rows", [ROWS, masked()], ids=["scored", "masked"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_last_token_is_found_in_every_layout(layout: str, rows: list[TokenRow]):
    """Each response ends in a token of its own, whose hidden state is its number."""
    ends = [ids.copy() for row in rows for ids in row.responses]
    for number, response in enumerate(ends):
        response[-1] = 100 + number
    pairs = [row._replace(responses=tuple(ends[2 * n : 2 * n + 2])) for n, row in enumerate(rows)]
    arrays = laid_out(layout, pairs)
    assert len(arrays.tokens_RT) == {"padded": 6, "packed": 2, "shared": 2}[layout]
    if layout == "packed":  # the longest stands first, not the first
        assert np.any(np.diff(arrays.source_RN[0][arrays.response_RN[0] >= 0]) < 0)
    hidden_RTD = jnp.asarray(arrays.tokens_RT, jnp.float32)[..., None]
    np.testing.assert_array_equal(last_rewards(hidden_RTD, jnp.ones(1), arrays), 100 + np.arange(6).reshape(3, 2))


def test_attention_that_must_know_the_sequences_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "CUDNN_IMPLEMENTATION", "xla")  # jax.nn's own form, with the same arguments
    arrays = laid_out("shared")
    arrays = arrays._replace(sequences=find_sequences(np.asarray(arrays.segments_RT), [(1, 6, 16)]))
    model, (_, params) = make_reward_model(SPECS["window"], attention="cudnn"), made("window", "float32")
    found = jax.jit(model.rewards)(params, arrays)
    np.testing.assert_allclose(found, rewards("window", params, arrays), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["window", *(pytest.param(each, marks=SLOW) for each in ("llama", "gpt2"))])
def test_neither_padding_nor_packing_changes_a_reward(family: str):
    _, params = made(family, "float32")
    wanted = rewards(family, params, batch())
    assert wanted.shape == (3, 2) and np.ptp(wanted) > 1
    for arrays in (batch(24, 20, pairs=5, row_multiple=16), laid_out("packed", rows=16), laid_out("shared", rows=16)):
        np.testing.assert_allclose(rewards(family, params, arrays)[:3], wanted, rtol=1e-4, atol=1e-4)
    turned = [row._replace(responses=row.responses[::-1]) for row in ROWS]
    swapped = rewards(family, params, padded(turned, length=16, scored=8))
    np.testing.assert_allclose(swapped, wanted[:, ::-1], rtol=1e-4, atol=1e-4)


def test_every_token_of_the_response_counts_and_nothing_behind_it():
    _, params = made("llama", "float32")
    arrays = batch()
    wanted = rewards("llama", params, arrays)
    for place, moves in ((0, True), (5, True), (6, True), (7, False)):  # the first response ends at place 6
        tokens_RT = arrays.tokens_RT.copy()
        tokens_RT[0, place] += 1
        found = rewards("llama", params, arrays._replace(tokens_RT=tokens_RT))
        assert (abs(found[0, 0] - wanted[0, 0]) > 1e-3) == moves
        np.testing.assert_array_equal(found.ravel()[1:], wanted.ravel()[1:])


def test_a_bfloat16_trunk_is_read_in_float32():
    model, params = made("llama", "bfloat16")
    found = jax.jit(model.rewards)(params, batch())
    assert found.dtype == jnp.float32 and np.any(found != found.astype(jnp.bfloat16))
    hidden_RTD = jnp.asarray(RANDOM.normal(size=(6, 16, WIDTH)), jnp.bfloat16)
    weight_D = jnp.asarray(RANDOM.normal(size=WIDTH), jnp.float32)
    wide = last_rewards(hidden_RTD.astype(jnp.float32), weight_D, batch())
    np.testing.assert_array_equal(last_rewards(hidden_RTD, weight_D, batch()), wide)


@pytest.mark.parametrize("family", SPECS)
def test_there_is_a_head_in_place_of_the_unembedding(family: str):
    model, params = made(family, "float32")
    assert "unembedding" not in params and params["head"]["weight"].shape == (WIDTH,)
    assert trunk_of({"embedding": 1, "unembedding": 2}) == {"embedding": 1}
    described = jax.tree.map(lambda x: (x.shape, x.dtype), params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), model.shapes) == described
    names = jax.tree.map(len, model.axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert names == jax.tree.map(lambda x: x.ndim, params)
    assert model.trained == (model.shapes, model.axes) and model.axes["head"] == {"weight": ("embed",)}


@pytest.mark.slow("a program for each family")
@pytest.mark.parametrize("family", ["gpt2", pytest.param("llama", marks=SLOW)])
def test_with_an_adapter_the_head_is_trained_beside_it(family: str):
    model = make_reward_model(SPECS[family], lora=Lora(2, 4.0, 0.5, ADAPTED[family]))
    _, params = made(family, "float32")
    trained = {**model.trunk.init_adapter(jax.random.key(2)), "head": params["head"]}
    assert jax.tree.structure(trained) == jax.tree.structure(model.trained.shapes)
    assert trained.keys() == {"layers", "head"} and "head" not in model.tree.shapes
    base = {name: branch for name, branch in params.items() if name != "head"}
    found = jax.jit(model.rewards)(join(base, trained), batch())
    np.testing.assert_allclose(found, rewards(family, params, batch()), rtol=1e-5)  # a fresh adapter adds nothing

    def loss(trained: Params, key: jax.Array | None = None) -> jax.Array:
        return model.rewards(join(base, trained), batch(), key).sum()

    moved = jax.tree.map(lambda x: x + 0.1, trained)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(moved)))
    one, other = (float(jax.jit(loss)(moved, jax.random.key(seed))) for seed in (0, 1))
    assert abs(one - other) > 1e-3  # dropout


def test_the_start_of_the_head():
    """Normal with variance 1 / (D + 1), another for another key."""
    model = make_reward_model(DecoderSpec(**SIZES | {"width": 3999}, kv_heads=2, norm_epsilon=1e-5, tied=True))
    weight = np.asarray(model.init_head(jax.random.key(0))["head"]["weight"])
    assert weight.dtype == np.float32 and abs(weight.std() * 4000**0.5 - 1) < 0.05 and abs(weight.mean()) < 1e-3
    assert np.any(weight != model.init_head(jax.random.key(1))["head"]["weight"])
