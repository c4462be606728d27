"""Everything that the configuration asks for, in order; what is done already is kept."""

from __future__ import annotations

from dpo_jax.commands.pictures import evaluate, export, report, reward, train
from dpo_jax.errors import UserError
from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.runtime.progress import say


def run(experiment: PictureExperiment) -> None:
    """Pre-training, pairs, reference pass and preference training (`train` does all four), then what is made of it."""
    if experiment.config.reward:
        reward.check(experiment)
    train.run(experiment)
    if experiment.config.reward:
        reward.run(experiment)
    if evaluate.has_work(experiment):
        evaluate.run(experiment)
    else:
        say("evaluate", "left out: the configuration asks for no samples and names no held-out rows (data.eval)")
    try:
        export.run(experiment)
    except UserError as error:  # of text or clips there is no class in Diffusers
        say("export", f"left out: {error}")
    report.run(experiment)
