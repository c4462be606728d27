"""Everything that the configuration asks for, in order; what is done already is kept."""

from __future__ import annotations

from dpo_jax.commands import report, results, training
from dpo_jax.experiments.steps import Steps
from dpo_jax.runtime.progress import say


def run(experiment: Steps) -> None:
    """Train all that is asked for, measure it, and write the exported model and the report."""
    experiment.check_exports()
    if experiment.only_fine_tunes:
        training.sft(experiment)
        results.export(experiment, fine_tuned=True)
        report.run(experiment)
        return
    train_and_measure(experiment)
    if reason := experiment.why_no_export():
        say("export", f"left out: {reason}")
    else:
        results.export(experiment)
    report.run(experiment)


def train_and_measure(experiment: Steps) -> None:
    """Train all that the configuration asks for, and measure it."""
    experiment.check_inputs()
    experiment.prepare()
    if experiment.config.reward:
        experiment.check_reward()  # now, rather than after hours of training
    if experiment.analyses:
        experiment.check_analysis()
    training.train(experiment)
    if experiment.config.reward:
        training.reward(experiment)
    if experiment.has_evaluation:
        results.evaluate(experiment)
    else:
        say("evaluate", "left out: the configuration asks for no samples and names no held-out rows (data.eval)")
    if experiment.analyses:
        results.analyse(experiment)
