"""Samples of the trained model, as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpo_jax.commands.pictures.pairs import encoded
from dpo_jax.errors import UserError, nearest
from dpo_jax.experiments.picture_samples import make_sampling, what_to_show
from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.files import write_atomic
from dpo_jax.runtime.progress import Progress, say

_MODELS = ("policy", "reference")


def run(
    experiment: PictureExperiment, *, prompts: str | None = None, output: str | None = None, model: str | None = None
) -> None:
    """Writes evaluation.samples pictures (PNG) or clips (.npy) into WORKDIR/samples, or the folder `output`."""
    if prompts is not None:
        raise UserError("command line: --prompts is of experiments on texts; classes are shown in turn.")
    if model is not None and model not in _MODELS:
        raise UserError(f"command line: --model {model!r} is unknown. {nearest(model, _MODELS)}")
    count = experiment.config.evaluation.samples
    if not count:
        raise UserError(f"{experiment.at('evaluation.samples')}: evaluation.samples is 0; it says how many to draw.")
    params = experiment.start_params() if model == "reference" else experiment.trained_params()
    shown = what_to_show(experiment, count)
    with Progress("sample", count, unit="samples") as progress:
        found = make_sampling(experiment, seed=experiment.config.seed)(params, shown, count, "samples", progress.update)
    folder, kind = Path(output) if output else experiment.workdir / "samples", "npy" if found.ndim == 5 else "png"
    for number, sample in enumerate(found):
        at = folder if shown is None or shown.ndim > 1 else folder / str(shown[number])
        at.mkdir(parents=True, exist_ok=True)
        write_atomic(at / f"{number:05d}.{kind}", encoded(np.asarray(sample)))
    say("sample", f"wrote {count} files to {folder}" + ("" if shown is None or shown.ndim > 1 else ", by class"))
