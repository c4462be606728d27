"""GPT-2 in and out: both spellings, and what differs from the config."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dpo_jax.errors import UserError
from dpo_jax.mesh import make_mesh
from dpo_jax.models.model import make_model
from dpo_jax.weights.export import export_folder
from dpo_jax.weights.load import load_params
from dpo_jax.weights.opening import open_weights
from dpo_jax.weights.resolve import resolve_spec
from tests.tiny_gpt2 import make_gpt2_folder


def load(folder: Path, **axes: int):
    source = open_weights(str(folder))
    spec, rules, *_ = resolve_spec(source)
    model = make_model(spec)
    return source, rules, model, load_params(source, model, rules, make_mesh(**axes))


def test_the_export_has_the_names_and_bits_of_an_old_checkpoint(tmp_path: Path):
    """Without the prefix, with stored masks."""
    source, rules, model, params = load(make_gpt2_folder(tmp_path / "in", old=True), data=2, fsdp=2, tensor=2)
    export_folder(tmp_path / "out", params, model, rules, source)
    saved, exported = load_file(tmp_path / "in/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    masks = {name for name in saved if name.endswith((".attn.bias", ".attn.masked_bias"))}
    assert len(masks) == 4 and set(exported) == set(saved) - masks
    for name, array in exported.items():
        np.testing.assert_array_equal(array, saved[name], err_msg=name, strict=True)


def test_both_spellings_are_one_model(tmp_path: Path):
    new, old = (load(make_gpt2_folder(tmp_path / str(old), old=old))[-1] for old in (False, True))
    jax.tree.map(np.testing.assert_array_equal, old, new)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("transformer.h.1.attn.c_attn.bias", r"1 tensors are missing: transformer\.h\.1\.attn\.c_attn\.bias"),
        ("transformer.wte.weight", r"1 tensors are missing: transformer\.wte\.weight"),
    ],
)
def test_a_missing_tensor_is_named_as_the_checkpoint_spells(tmp_path: Path, name: str, says: str):
    file = make_gpt2_folder(tmp_path) / "model.safetensors"
    save_file({key: array for key, array in load_file(file).items() if key != name}, file)
    with pytest.raises(UserError, match=says):
        load(tmp_path)


def test_a_table_of_another_length_than_the_config_says_is_refused(tmp_path: Path):
    file = make_gpt2_folder(tmp_path) / "model.safetensors"
    save_file(load_file(file) | {"transformer.wpe.weight": np.zeros((32, 16), np.float32)}, file)
    with pytest.raises(
        UserError, match=r"'transformer.wpe.weight' has shape \(32, 16\), config.json asks for \(64, 16"
    ):
        load(tmp_path)
