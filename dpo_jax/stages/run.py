"""Everything that the configuration asks for, in order; what is done already is kept."""

from __future__ import annotations

from dpo_jax.stages import evaluate, export, report, train
from dpo_jax.stages.progress import say
from dpo_jax.stages.setup import Setup


def run(setup: Setup) -> None:
    """Fine-tuning, reference pass and preference training (`train` does all three), evaluation, export, report."""
    train.run(setup)
    if setup.config.data.eval:
        evaluate.run(setup)
    else:
        say("evaluate", "left out: the configuration names no held-out pairs (data.eval)")
    export.run(setup)
    report.run(setup)
