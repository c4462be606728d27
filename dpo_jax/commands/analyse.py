"""The reasons why log-probs moved as they did, pair by pair."""

from __future__ import annotations

from dpo_jax.experiments.steps import Steps
from dpo_jax.files import write_json
from dpo_jax.runtime.progress import say


def run(experiment: Steps) -> None:
    """Writes WORKDIR/analysis.json for the newest checkpoint."""
    experiment.check_analysis()
    path = experiment.run.analysis
    write_json(path, experiment.analyse())
    say("analyse", f"wrote {path}")
