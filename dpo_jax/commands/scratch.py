"""A small model made from nothing, for experiments to start from."""

from __future__ import annotations

from dpo_jax.experiments.text_steps import TextSteps


def run(experiment: TextSteps) -> None:
    """Writes a tokenizer and random weights into the folder that `model.weights` names."""
    experiment.make_scratch()
