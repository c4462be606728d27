"""Filling parameters: sharding, and every way a checkpoint can differ from its config; values: tests/contracts."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dpo_jax.errors import UserError
from dpo_jax.mesh import make_mesh
from dpo_jax.models.model import make_model
from dpo_jax.weights.load import load_params
from dpo_jax.weights.opening import open_weights
from dpo_jax.weights.resolve import resolve_spec
from dpo_jax.weights.source import WeightsSource
from tests.tiny import make_hf_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("weights") / "model")


def load(source: WeightsSource, *, dtype=jnp.float32, **axes: int):
    spec, rules, *_ = resolve_spec(source)
    model = make_model(spec)
    dtypes = jax.tree.map(lambda _: dtype, model.shapes)
    return load_params(source, model, rules, make_mesh(**axes), dtypes=dtypes)


def with_tensors(target: Path, tensors: dict[str, np.ndarray | None], *, tied: bool = False) -> WeightsSource:
    """A new folder at `target` with these tensors replaced, added, or (None) left out."""
    held = load_file(make_hf_folder(target, tied=tied) / "model.safetensors") | tensors
    save_file({name: array for name, array in held.items() if array is not None}, target / "model.safetensors")
    return open_weights(str(target))


def test_a_split_mesh_holds_the_same_values_in_parts(folder: Path):
    source = open_weights(str(folder))
    whole, split = load(source, data=8, fsdp=1), load(source, data=2, fsdp=2, tensor=2)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), whole, split)
    query = split["layers"]["attention"]["query"]["weight"]  # [2, 32, 4, 8]: width over fsdp, heads over tensor
    assert {shard.data.shape for shard in query.addressable_shards} == {(2, 16, 2, 8)}


def test_bfloat16(folder: Path):
    params = load(open_weights(str(folder)), dtype=jnp.bfloat16)
    expected = open_weights(str(folder)).read("model.embed_tokens.weight").astype(jnp.bfloat16)
    np.testing.assert_array_equal(params["embedding"], expected, strict=True)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy on a 64-byte boundary, where JAX on CPU takes host memory over without copying it."""
    room = np.zeros(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def test_parameters_do_not_alias_the_file(folder: Path):
    """A mapped file that is written over later must not change the parameters."""
    source = open_weights(str(folder))
    arrays = {name: aligned(source.read(name)) for name in source.shapes}
    params = load(source._replace(read=lambda name, rows=slice(None): arrays[name][rows]), data=8, fsdp=1)
    arrays["model.embed_tokens.weight"][:] = 0
    np.testing.assert_array_equal(params["embedding"], source.read("model.embed_tokens.weight"))


def refuse_to_read(name: str, rows: slice = slice(None)) -> np.ndarray:
    raise AssertionError(f"{name} was read before the names and shapes were checked")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.norm.weight": None}, r"1 tensors are missing: model\.norm\.weight"),
        ({"model.norm.weigth": np.ones(32, np.float32)}, r"'model.norm.weigth' is unknown.*mean 'model.norm.weight'"),
        ({"model.layers.2.input_layernorm.weight": np.ones(32, np.float32)}, r"layers\.2.* is unknown \(2 layers\)"),
        (
            {"model.layers.1.self_attn.k_proj.weight": np.ones((32, 16), np.float32)},
            r"'model.layers.1.self_attn.k_proj.weight' has shape \(32, 16\), config.json asks for \(16, 32\)",
        ),
    ],
)
def test_a_checkpoint_that_differs_from_its_config(tmp_path: Path, tensors: dict, message: str):
    source = with_tensors(tmp_path, tensors)
    with pytest.raises(UserError, match=message):
        load(source._replace(read=refuse_to_read))


def test_a_tied_head_may_stand_in_the_file_if_it_is_the_embedding(tmp_path: Path):
    embedding = load_file(make_hf_folder(tmp_path / "tied", tied=True) / "model.safetensors")[
        "model.embed_tokens.weight"
    ]
    params = load(with_tensors(tmp_path / "same", {"lm_head.weight": embedding}, tied=True))
    assert "unembedding" not in params
    other = with_tensors(tmp_path / "other", {"lm_head.weight": embedding + 1}, tied=True)
    with pytest.raises(UserError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        load(other)


def test_stored_rotary_frequencies_are_ignored(tmp_path: Path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    load(with_tensors(tmp_path, {name: np.ones(4, np.float32)}))
