"""Samples of the policy, or of the reference, as files."""

from __future__ import annotations

from dpo_jax.errors import UserError, nearest
from dpo_jax.experiments.steps import Steps

_MODELS = ("policy", "reference")


def run(experiment: Steps, *, prompts: str | None = None, output: str | None = None, model: str | None = None) -> None:
    """Samples from the newest checkpoint, or, as `model` asks, from where the training started."""
    if model is not None and model not in _MODELS:
        raise UserError(f"command line: --model {model!r} is unknown. {nearest(model, _MODELS)}")
    experiment.write_samples(prompts=prompts, output=output, reference=model == "reference")
