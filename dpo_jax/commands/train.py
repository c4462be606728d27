"""Preference training: the policy against the reference, from the store or beside it."""

from __future__ import annotations

from dpo_jax.commands import reference
from dpo_jax.experiments.fit import fit
from dpo_jax.experiments.sinks import check_sinks
from dpo_jax.experiments.steps import Start, Steps
from dpo_jax.experiments.stores import complete_store


def run(experiment: Steps) -> None:
    """Trains into WORKDIR, after fine-tuning, pairs and reference pass where they are missing."""
    experiment.prepare()
    check_sinks(experiment.config.logging, experiment.origins)
    experiment.check()
    reference.prepare(experiment)
    _ = experiment.train_data, experiment.eval_data  # a bad row is told before hours of scoring and training
    start = Start(experiment.start_params)
    store = complete_store(experiment, start) if experiment.reads_store else None
    experiment.warn_of_data()
    fit(experiment, experiment.training(store, start))
