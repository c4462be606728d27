"""The trained model as a folder that other programs load."""

from __future__ import annotations

from dpo_jax.commands import report
from dpo_jax.errors import UserError
from dpo_jax.experiments.steps import Steps
from dpo_jax.reporting.card import model_card


def run(experiment: Steps, *, fine_tuned: bool = False) -> None:
    """Writes WORKDIR/export from the newest checkpoint; with `fine_tuned` the result of `sft`, WORKDIR/sft/export."""
    if fine_tuned and experiment.config.sft is None:
        raise UserError("command line: export --fine-tuned: the configuration has no `sft:` section.")
    experiment.export(fine_tuned=fine_tuned, card=lambda: model_card(report.gather(experiment)))
