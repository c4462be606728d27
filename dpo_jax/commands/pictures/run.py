"""Everything that the configuration asks for, in order; what is done already is kept."""

from __future__ import annotations

from dpo_jax.commands.pictures import evaluate, export, report, reward, train
from dpo_jax.errors import UserError
from dpo_jax.experiments.pictures import PictureSetup
from dpo_jax.runtime.progress import say


def run(setup: PictureSetup) -> None:
    """Pre-training, pairs, reference pass and preference training (`train` does all four), then what is made of it."""
    if setup.config.reward:
        reward.check(setup)
    train.run(setup)
    if setup.config.reward:
        reward.run(setup)
    if evaluate.has_work(setup):
        evaluate.run(setup)
    else:
        say("evaluate", "left out: the configuration asks for no samples and names no held-out rows (data.eval)")
    try:
        export.run(setup)
    except UserError as error:  # of text or clips there is no class in Diffusers
        say("export", f"left out: {error}")
    report.run(setup)
