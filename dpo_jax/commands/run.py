"""Everything that the configuration asks for, in order; what is done already is kept."""

from __future__ import annotations

from dpo_jax.commands import analyse, evaluate, export, report, reward, scratch, train
from dpo_jax.experiments.texts import Setup
from dpo_jax.runtime.progress import say


def run(setup: Setup) -> None:
    """Fine-tuning, reference pass and preference training (`train` does all three), then all that is made of it."""
    scratch.prepare(setup)
    if setup.config.reward:
        reward.check(setup)  # now, rather than after hours of training
    if setup.config.analysis:
        analyse.check(setup)
    train.run(setup)
    if setup.config.reward:
        reward.run(setup)
    if evaluate.has_work(setup):
        evaluate.run(setup)
    else:
        say("evaluate", "left out: the configuration names no held-out pairs (data.eval)")
    if setup.config.analysis:
        analyse.run(setup)
    export.run(setup)
    report.run(setup)
