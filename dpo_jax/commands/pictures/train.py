"""Preference training of a diffusion model, against the reference beside it or its stored errors."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpo_jax.commands.pictures import reference
from dpo_jax.commands.pictures.sft import batches_of
from dpo_jax.errors import UserError
from dpo_jax.experiments.fit import fit
from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.experiments.sinks import check_sinks
from dpo_jax.experiments.training import make_training
from dpo_jax.objectives.diffusion import preference_objective
from dpo_jax.runtime.progress import say
from dpo_jax.training.state import TrainState
from dpo_jax.types import join


def run(experiment: PictureExperiment) -> None:
    """Trains into WORKDIR, after pre-training, pairs and reference pass where they are missing."""
    check_sinks(experiment)
    _ = experiment.term  # a mistake in the loss is told before hours of pre-training
    reference.prepare(experiment)
    config, model = experiment.config, experiment.model
    draws = config.reference.draws
    rows, _ = experiment.train_data.rows, experiment.eval_data  # what is wrong with held-out rows is told now, too
    stored = {"reference_errors": reference.complete_store(experiment)} if draws else {}
    # With an adapter the base stands beside it whether it is also the reference or not.
    beside = model.lora is not None or not draws
    training = make_training(
        config,
        stage="train",
        folder=experiment.workdir,
        model=model,
        start=(lambda: experiment.fresh_adapter(model, seed=config.seed)) if model.lora else experiment.start_params,
        frozen=experiment.start_params if beside else None,
        objective=preference_objective(
            model.apply,
            experiment.term.entry,
            adapter=model.lora is not None,
            noise=experiment.noise,
            seed=config.seed,
            draws=draws,
            temporal_weight=experiment.temporal_weight,
        ),
        batches=batches_of(rows, config.train, seed=config.seed, order=config.data.order, **stored),
        hyperparams=lambda step: {"options": experiment.term.knobs(step)},
        check=lambda state: check_start(experiment, state, stored),
        seed=config.seed,
    )
    fit(experiment, training)


def check_start(experiment: PictureExperiment, state: TrainState, stored: dict[str, Any]) -> None:
    """Before the first step policy and reference are one: their errors agree, or something is not what it seems."""
    if not stored:
        return
    rows = experiment.train_data.rows[:4]
    params = state.params if state.frozen is None else join(state.frozen, state.params)
    now = reference.errors_of(experiment, reference.scorer(experiment), params, rows, draws=1)[:, 0]
    apart = float(np.abs(now - stored["reference_errors"][: len(rows), 0]).max())
    allowed = 1e-4 if experiment.config.model.dtype == "float32" else 2e-2
    if not apart <= allowed:
        raise UserError(
            f"train: before the first step the policy's errors differ from the stored ones by {apart:.2g}, more than "
            f"{allowed:g}: the store is of another model. Delete {reference.store_folder(experiment)}."
        )
    say("train", f"step 0: policy and reference agree on {len(rows)} rows to {apart:.1e}")
