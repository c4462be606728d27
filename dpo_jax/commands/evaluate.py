"""The evaluation of what was trained, into WORKDIR/evaluation.json."""

from __future__ import annotations

from dpo_jax.errors import UserError
from dpo_jax.experiments.steps import Steps
from dpo_jax.files import write_json
from dpo_jax.runtime.progress import say


def run(experiment: Steps) -> None:
    """Writes WORKDIR/evaluation.json for the newest checkpoint, or for the outputs that the configuration names."""
    if not experiment.has_evaluation:
        raise UserError("evaluate: the configuration names no held-out pairs; set data.eval.")
    path = experiment.run.evaluation
    write_json(path, experiment.evaluate().to_json())
    say("evaluate", f"wrote {path}")
