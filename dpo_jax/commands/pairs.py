"""New preference pairs: the model samples several times, a judge says which samples are better."""

from __future__ import annotations

from dpo_jax.experiments.steps import Steps


def run(experiment: Steps, *, output: str | None) -> None:
    """Writes pairs that `data.train` reads."""
    experiment.write_pairs(output)
