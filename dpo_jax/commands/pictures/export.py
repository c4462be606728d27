"""The trained diffusion transformer as a folder that Diffusers loads."""

from __future__ import annotations

from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.runtime.progress import say
from dpo_jax.weights.dit import export_dit


def run(experiment: PictureExperiment, *, fine_tuned: bool = False) -> None:
    """Writes WORKDIR/export, or the result of the pre-training, WORKDIR/sft/export; an adapter is merged."""
    folder = (experiment.sft_folder if fine_tuned else experiment.workdir) / "export"
    params = experiment.start_params(held=False) if fine_tuned else experiment.merged_params()
    dtype = experiment.config.export.dtype
    export_dit(folder, params, experiment.model.base, dtype=dtype)
    say("export", f"wrote {folder} ({dtype}, for Diffusers' DiTTransformer2DModel)")
