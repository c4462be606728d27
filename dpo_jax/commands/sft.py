"""Supervised fine-tuning, or pre-training: the start of the policy, and the reference."""

from __future__ import annotations

from dpo_jax.errors import UserError
from dpo_jax.experiments.fit import fit
from dpo_jax.experiments.sinks import check_sinks
from dpo_jax.experiments.steps import Steps


def run(experiment: Steps) -> None:
    """Trains into the folder of the fine-tuning, WORKDIR/sft; does nothing where that is done."""
    if experiment.config.sft is None:
        raise UserError("sft: the configuration has no `sft:` section, which would say what to train on first.")
    check_sinks(experiment.config.logging, experiment.origins)
    experiment.prepare()
    fit(experiment, experiment.sft_training())
