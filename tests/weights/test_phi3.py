"""Phi-3: tensors that fill several parameters, against a Llama of the same numbers, one parameter to a tensor."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dpo_jax import mesh
from dpo_jax.errors import UserError
from dpo_jax.mesh import make_mesh
from dpo_jax.models.model import make_model
from dpo_jax.weights.adapter import adapted_paths
from dpo_jax.weights.export import Files, export_folder
from dpo_jax.weights.load import load_params
from dpo_jax.weights.opening import open_weights
from dpo_jax.weights.resolve import resolve_spec
from tests.tiny import make_hf_folder

FUSED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
FUSED |= {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
SPLIT = {"data": 2, "fsdp": 2, "tensor": 2}


def make_phi3_folder(folder: Path, **config: Any) -> Path:
    """The tiny Llama with its tensors put together as Phi-3 has them: query, key, value; gate, up."""
    make_hf_folder(folder)
    file = folder / "model.safetensors"
    together: dict[str, list[np.ndarray]] = defaultdict(list)
    held = load_file(file)
    for name in sorted(held, key=lambda name: [own in name for own in FUSED], reverse=True):  # query, key, value, ...
        own = name.split(".")[-2]
        together[name.replace(own, FUSED.get(own, own))].append(held[name])
    save_file({name: np.concatenate(parts) for name, parts in together.items()}, file, metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text()) | {"model_type": "phi3", **config}
    del written["head_dim"]
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def load(folder: Path, **axes: int):
    source = open_weights(str(folder))
    spec, rules, *_ = resolve_spec(source)
    model = make_model(spec)
    return source, rules, model, load_params(source, model, rules, make_mesh(**axes))


@pytest.mark.parametrize(("axes", "block_bytes"), [({"data": 8, "fsdp": 1}, mesh.BLOCK_BYTES), (SPLIT, 8 * 520)])
def test_it_is_the_llama_of_the_same_numbers(tmp_path: Path, monkeypatch, axes: dict[str, int], block_bytes: int):
    llama = load(make_hf_folder(tmp_path / "llama"))[-1]
    monkeypatch.setattr(mesh, "BLOCK_BYTES", block_bytes)
    phi3 = load(make_phi3_folder(tmp_path / "phi3"), **axes)[-1]
    jax.tree.map(lambda ours, wanted: np.testing.assert_array_equal(ours, wanted, strict=True), phi3, llama)


def test_an_export_in_several_files_has_the_names_and_bits_of_the_checkpoint(tmp_path: Path):
    source, rules, model, params = load(make_phi3_folder(tmp_path / "in"), **SPLIT)
    out = tmp_path / "out"
    export_folder(out, params, model, rules, source, files=Files(max_shard_bytes=40_000))
    again = open_weights(str(out))
    assert again.shapes == source.shapes
    for name in again.shapes:
        np.testing.assert_array_equal(again.read(name), source.read(name), err_msg=name, strict=True)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(again.read(name).nbytes for name in again.shapes)


def test_a_tensor_of_fewer_rows_is_refused(tmp_path: Path):
    file = make_phi3_folder(tmp_path) / "model.safetensors"
    name = "model.layers.1.self_attn.qkv_proj.weight"
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name][:-8]}, file)
    with pytest.raises(UserError, match=r"qkv_proj\.weight' has shape \(56, 32\), config\.json asks for \(64, 32\)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}},
            r"config\.json: rope_type is 'longrope'; this decoder computes default, linear and llama3",
        ),
        ({"partial_rotary_factor": 0.4}, r"partial_rotary_factor is 0\.4; 3 numbers of a head are no pairs"),
        ({"hidden_act": "gelu"}, r"hidden_act is 'gelu'; this decoder computes with 'silu' only"),
    ],
)
def test_what_it_does_not_compute_is_refused_by_name(tmp_path: Path, config: dict[str, Any], says: str):
    source = open_weights(str(make_phi3_folder(tmp_path, **config)))
    with pytest.raises(UserError, match=says):
        resolve_spec(source)


def test_part_of_a_head_and_the_window_reach_the_spec(tmp_path: Path):
    source = open_weights(str(make_phi3_folder(tmp_path, partial_rotary_factor=0.5, sliding_window=7)))
    (kind,) = resolve_spec(source).spec.kinds
    assert (kind.rotary_share, kind.window) == (0.5, 7)
    # 4 of 8 numbers are turned, in pairs: by 1 and by theta^(-2/4) a position.
    np.testing.assert_allclose(kind.frequencies(8), [1.0, kind.rope_base**-0.5], rtol=1e-6)


def test_adapters_are_on_maps_that_have_a_tensor_of_their_own(tmp_path: Path):
    rules = resolve_spec(open_weights(str(make_phi3_folder(tmp_path)))).rules
    found = adapted_paths(rules, ["o_proj", "*.mlp.down_proj"])
    assert found == (("layers", "attention", "output"), ("layers", "mlp", "down"))
    for target, named in {
        "qkv_proj": "qkv_proj",
        "*.mlp.gate_up_proj": "gate_up_proj",
        "*.self_attn.*": "qkv_proj",
        "all-linear": "qkv_proj, gate_up_proj",
    }.items():
        with pytest.raises(ValueError, match=r"they have none\. Allowed: down_proj, o_proj") as error:
            adapted_paths(rules, ["o_proj", target])
        assert f"{target!r} names {named}: one tensor of several linear maps" in str(error.value)
    with pytest.raises(ValueError, match=r"'k_proj' names no linear map"):
        adapted_paths(rules, ["k_proj"])
