"""Everything that the configuration asks for, in order; what is done already is kept."""

from __future__ import annotations

from dpo_jax.commands import analyse, evaluate, export, report, reward, scratch, train
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.runtime.progress import say


def run(experiment: TextExperiment) -> None:
    """Fine-tuning, reference pass and preference training (`train` does all three), then all that is made of it."""
    scratch.prepare(experiment)
    if experiment.config.reward:
        reward.check(experiment)  # now, rather than after hours of training
    if experiment.config.analysis:
        analyse.check(experiment)
    train.run(experiment)
    if experiment.config.reward:
        reward.run(experiment)
    if evaluate.has_work(experiment):
        evaluate.run(experiment)
    else:
        say("evaluate", "left out: the configuration names no held-out pairs (data.eval)")
    if experiment.config.analysis:
        analyse.run(experiment)
    export.run(experiment)
    report.run(experiment)
