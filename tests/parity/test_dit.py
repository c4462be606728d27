"""A diffusion transformer by value against Diffusers: its folder loaded here, ours loaded there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.diffusion.diffuser import make_diffuser
from dpo_jax.diffusion.embeddings import present
from dpo_jax.mesh import make_mesh
from dpo_jax.weights.dit import dit_spec, export_dit, load_dit, open_dit

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "num_layers": 3,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
}
CASES = {"plain": {}, "learned variance": {"out_channels": 8}, "other epsilon": {"norm_eps": 1e-2, "sample_size": 12}}
RANDOM = np.random.default_rng(0)
STEPS = np.array([0, 1, 250, 999])
LABELS = np.array([3, 0, 9, 10])  # the last is none


def random_dit(**more: Any) -> Any:
    """Every weight random; one embedding for all blocks, as the published checkpoints were converted."""
    import torch
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(**{**SIZES, **more}).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        for block in model.transformer_blocks[1:]:
            block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


def their_outputs(model: Any, images: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        given = torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(STEPS), torch.tensor(LABELS)
        return model(*given).sample.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_of_a_loaded_folder(case: str, tmp_path: Path):
    import torch

    theirs = random_dit(**CASES[case])
    theirs.save_pretrained(tmp_path)
    source, mesh = open_dit(tmp_path), make_mesh()
    spec = dit_spec(source)
    model = make_diffuser(spec)
    side = spec.base * spec.patch
    images = RANDOM.normal(size=(4, side, side, 4)).astype(np.float32)
    times = jnp.asarray((STEPS + 1) / 1000, jnp.float32)
    with jax.set_mesh(mesh):
        params = load_dit(source, model, mesh)

        def loss(params):
            found = model.apply(params, images, times, present(jnp.asarray(LABELS)), variance=True)
            return jnp.square(found).sum(), found

        slope, found = jax.jit(jax.grad(loss, has_aux=True))(params)
    wanted = their_outputs(theirs, images)
    assert wanted.std() > 0.3 and spec.learned_sigma == (case == "learned variance")
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    given = torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(STEPS), torch.tensor(LABELS)
    theirs(*given).sample.square().sum().backward()
    for ours, name in ((slope["patches"]["weight"].T, "pos_embed.proj"), (slope["output"]["weight"].T, "proj_out_2")):
        gradient = dict(theirs.named_parameters())[f"{name}.weight"].grad.numpy()
        np.testing.assert_allclose(ours, gradient.reshape(ours.shape), atol=1e-4 * np.abs(gradient).max())


@pytest.mark.parametrize("case", CASES)
def test_a_folder_of_ours_is_theirs(case: str, tmp_path: Path):
    """There and back every tensor is the same to the bit, and Diffusers misses none."""
    from diffusers import DiTTransformer2DModel

    theirs = random_dit(**CASES[case])
    theirs.save_pretrained(tmp_path / "first")
    source, mesh = open_dit(tmp_path / "first"), make_mesh(fsdp=4, tensor=2)
    model = make_diffuser(dit_spec(source))
    export_dit(tmp_path / "second", load_dit(source, model, mesh), model)
    again, said = DiTTransformer2DModel.from_pretrained(tmp_path / "second", output_loading_info=True)
    assert not any(said.values())
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name].numpy(), tensor.numpy())
    assert all(again.config[key] == value for key, value in theirs.config.items() if key in SIZES)
