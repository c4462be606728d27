"""Folders of diffusion transformers: written and read, and what is refused. Outputs: `tests/parity/test_dit.py`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dpo_jax.diffusion.diffuser import make_diffuser
from dpo_jax.diffusion.embeddings import Grid, positions
from dpo_jax.errors import UserError
from dpo_jax.mesh import make_mesh
from dpo_jax.weights.dit import STEM, dit_spec, export_dit, load_dit, open_dit
from dpo_jax.weights.folder import DIGESTS_FILE
from tests.diffusion.tiny import CLASSES, PLAIN, TEXT, made

SPEC = dataclasses.replace(CLASSES, mlp_width=4 * CLASSES.width, learned_sigma=True, mlp_epsilon=1e-5)
NAME = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export without its digests, so that it may be edited."""
    model, params = made(SPEC)
    export_dit(tmp_path / "dit", params, model)
    (tmp_path / "dit" / DIGESTS_FILE).unlink()
    return tmp_path / "dit"


def edit(folder: Path, change) -> None:
    file = folder / f"{STEM}.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


def load(folder: Path, mesh=None):
    source = open_dit(folder)
    return load_dit(source, make_diffuser(dit_spec(source)), mesh or make_mesh())


def refuses(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(folder)


def test_there_and_back_everything_is_the_same(folder: Path):
    assert dit_spec(open_dit(folder)) == SPEC
    _, params = made(SPEC)
    found = load(folder, make_mesh(fsdp=2, tensor=4))
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert not found["layers"]["modulation"]["weight"].sharding.is_fully_replicated


def test_the_layout_is_that_of_diffusers(folder: Path):
    tensors, (_, params) = load_file(folder / f"{STEM}.safetensors"), made(SPEC)
    width = SPEC.width
    assert tensors["pos_embed.proj.weight"].shape == (width, 3, 2, 2)
    # What the second pixel of the third row of a patch's red says is at [.., 0, 1, 0] of a kernel: channels, then rows.
    np.testing.assert_array_equal(tensors["pos_embed.proj.weight"][5, 1, 1, 0], params["patches"]["weight"][6, 5])
    modulation = params["layers"]["modulation"]["weight"][1]
    np.testing.assert_array_equal(tensors["transformer_blocks.1.norm1.linear.weight"], modulation.reshape(width, -1).T)
    output = params["layers"]["attention"]["output"]["weight"][0]
    np.testing.assert_array_equal(tensors["transformer_blocks.0.attn1.to_out.0.weight"], output.reshape(width, width).T)
    np.testing.assert_array_equal(tensors[NAME], params["time"]["first"]["weight"].T)
    assert tensors["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"].shape == (6, width)
    assert json.loads((folder / "config.json").read_text())["out_channels"] == 6


def test_a_pipeline_has_it_one_folder_down(folder: Path):
    folder.rename(folder.parent / "transformer")
    assert dit_spec(open_dit(folder.parent)) == SPEC


def test_half_precision(tmp_path: Path):
    model, params = made(SPEC)
    export_dit(tmp_path / "dit", params, model, dtype="bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "dit"), rounded)
    with pytest.raises(UserError, match="export dtype 'float16' is not supported"):
        export_dit(tmp_path / "other", params, model, dtype="float16")


def test_positions_of_old_folders_are_checked(folder: Path):
    wanted = positions(Grid(1, SPEC.base, SPEC.base), width=SPEC.width, base=SPEC.base)[None]
    edit(folder, lambda tensors: tensors.update({"pos_embed.pos_embed": wanted}))
    load(folder)
    edit(folder, lambda tensors: tensors.update({"pos_embed.pos_embed": wanted + 0.1}))
    refuses(folder, "does not hold sines and cosines of 4 places")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[NAME].__iadd__(1), "linear_1.weight' is missing, or differs from 'transformer_blocks.0"),
        (lambda t: t.pop(NAME), "linear_1.weight' is missing, or differs"),
        (lambda t: t.pop("proj_out_1.bias"), "1 tensors are missing: proj_out_1.bias"),
        (lambda t: t.update(extra=t["proj_out_1.bias"]), "tensor 'extra' is unknown"),
        (
            lambda t: t.update({"pos_embed.proj.weight": t["pos_embed.proj.weight"].reshape(8, 2, 2, 3)}),
            r"'pos_embed.proj.weight' has shape \(8, 2, 2, 3\), config.json asks for \(8, 3, 2, 2\)",
        ),
        (
            lambda t: t.update({"proj_out_2.bias": t["proj_out_2.bias"][:-1]}),
            r"'proj_out_2.bias' has shape \(23,\), config.json asks for \(24,\)",
        ),
    ],
)
def test_wrong_tensors_are_refused(folder: Path, change, message: str):
    edit(folder, change)
    refuses(folder, message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"norm_type": "ada_norm_single"}, "norm_type is 'ada_norm_single'; .* computes 'ada_norm_zero'"),
        ({"attention_bias": False}, "attention_bias is False"),
        ({"cross_attention_dim": 16}, "cross_attention_dim is 16; .* computes None"),
        ({"patchsize": 2}, "'patchsize' is unknown. Did you mean 'patch_size'"),
        ({"num_layers": None}, "num_layers missing"),
        ({"out_channels": 5}, "out_channels is 5; allowed: 3, or 6 with a variance"),
        ({"sample_size": 9}, "sample_size 9 is no multiple"),
    ],
)
def test_wrong_configs_are_refused(folder: Path, config: dict, message: str):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    refuses(folder, message)


def test_an_older_class_with_everything_else_turned_off_is_read(folder: Path):
    path = folder / "config.json"
    older = {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "use_linear_projection": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | older))
    assert dit_spec(open_dit(folder)) == SPEC


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TEXT, "cannot be conditioned on text, with an MLP 24 wide"),
        (PLAIN, "on nothing, of clips, 2 frames in a patch"),
    ],
)
def test_what_diffusers_has_no_class_for_is_not_written(tmp_path: Path, spec, message: str):
    model, params = made(spec)
    with pytest.raises(UserError, match=message):
        export_dit(tmp_path / "dit", params, model)
    assert not (tmp_path / "dit").exists()
