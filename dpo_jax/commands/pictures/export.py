"""The trained diffusion transformer as a folder that Diffusers loads."""

from __future__ import annotations

from dpo_jax.experiments.pictures import PictureSetup
from dpo_jax.runtime.progress import say
from dpo_jax.weights.dit import export_dit


def run(setup: PictureSetup, *, fine_tuned: bool = False) -> None:
    """Writes WORKDIR/export, or the result of the pre-training, WORKDIR/sft/export; an adapter is merged."""
    folder = (setup.sft_folder if fine_tuned else setup.workdir) / "export"
    params = setup.start_params(held=False) if fine_tuned else setup.merged_params()
    dtype = setup.config.export.dtype
    export_dit(folder, params, setup.model.base, dtype=dtype)
    say("export", f"wrote {folder} ({dtype}, for Diffusers' DiTTransformer2DModel)")
