"""From a configuration to what is trained: preferences, reward models and fine-tunings as a `Training` each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from dpo_jax.config import OptimizerConfig, TrainConfig
from dpo_jax.data.batches import Batches
from dpo_jax.errors import UserError
from dpo_jax.experiments.losses import soft_labelled
from dpo_jax.experiments.rows import DataRows
from dpo_jax.experiments.stores import reads_store
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.objectives.preference import Refresh, preference_objective
from dpo_jax.objectives.terms import needs_reference
from dpo_jax.reference.store import Scores
from dpo_jax.runtime.progress import say
from dpo_jax.training.optimizer import OPTIMIZERS, make_schedule
from dpo_jax.training.training import Batches as AnyBatches
from dpo_jax.training.training import Pace, Trainable, Training
from dpo_jax.types import Objective, Params, TokenRow


class Section(Protocol):
    """A section of the configuration that describes a training: the whole of it, `sft` or `reward`."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """How it descends."""
        ...

    @property
    def train(self) -> TrainConfig:
        """How long, and in what portions."""
        ...


def make_training(
    section: Section,
    *,
    stage: str,
    folder: Path,
    model: Trainable,
    objective: Objective,
    batches: AnyBatches,
    **more: Any,
) -> Training:
    """The training that a section describes; `more` are further fields of `Training`."""
    train, optimizer = section.train, section.optimizer
    steps = train.steps or batches.steps(train.epochs or 1.0)
    transform = OPTIMIZERS[optimizer.name](
        model.trained.axes,
        beta1=optimizer.beta1,
        beta2=optimizer.beta2,
        epsilon=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
        clip_norm=optimizer.clip_norm,
        moment_dtype=optimizer.moment_dtype,
    )
    return Training(
        stage=stage,
        folder=folder,
        model=model,
        objective=objective,
        batches=batches,
        steps=steps,
        optimizer=transform,
        schedule=make_schedule(optimizer.schedule, warmup_steps=optimizer.warmup_steps, steps=steps),
        learning_rate=optimizer.learning_rate,
        pace=Pace(**{field.name: getattr(train, field.name) for field in dataclasses.fields(Pace)}),
        **more,
    )


def preference_training(
    experiment: TextExperiment, data: DataRows, scores: Scores | None, *, train: TrainConfig | None = None, **more: Any
) -> Training:
    """The training of the policy on preferences; `scores` are the stored log-probs of the rows, if there is a store.

    `train` says how large its batches are, by default as the configuration does. `more` are further fields of
    `Training`: without them it starts as a run does, and the reference is loaded anew.
    """
    config, model = experiment.config, experiment.model
    beside = model.lora is not None or runs_beside(experiment)
    start = (lambda: experiment.fresh_adapter(model, seed=config.seed)) if model.lora else experiment.start_params
    starts = {"start": start, "frozen": experiment.start_params if beside else None}
    return make_training(
        config,
        stage="train",
        folder=experiment.workdir,
        model=model,
        objective=policy_objective(experiment, data.sources),
        batches=batches_of(
            experiment, train or config.train, data.rows, seed=config.seed, **_attached(experiment, data, scores)
        ),
        hyperparams=lambda step: {"losses": [term.knobs(step) for term in experiment.terms]},
        loss_state=tuple(term.memory() for term in experiment.terms),
        **{"seed": config.seed, **starts, **more},
    )


def batches_of(
    experiment: TextExperiment, train: TrainConfig, rows: Sequence[TokenRow], *, seed: int, **more: Any
) -> Batches:
    """The batches of a training on texts; `more` is what else `Batches` takes."""
    return Batches(
        rows,
        batch_pairs=train.batch_pairs,
        micro_batch_pairs=train.micro_batch_pairs or train.batch_pairs,
        seed=seed,
        order=experiment.config.data.order,
        row_multiple=experiment.row_multiple,
        layout=experiment.config.data.layout,
        unpack=experiment.unpack,
        **more,
    )


def runs_beside(experiment: TextExperiment) -> bool:
    """True if the reference runs in every step: its log-probs do not come from a store."""
    return needs_reference(experiment.terms) and not reads_store(experiment)


def policy_objective(experiment: TextExperiment, sources: Sequence[str]) -> Objective:
    """The objective of training on preferences; of several `sources` each has metrics of its own."""
    return preference_objective(
        experiment.model.apply,
        experiment.terms,
        adapter=experiment.model.lora is not None,
        live=runs_beside(experiment),
        refresh=_refresh(experiment),
        sources=sources,
        **experiment.tiles,
    )


def _attached(experiment: TextExperiment, data: DataRows, scores: Scores | None) -> dict[str, Any]:
    """What goes into batches beside the rows.

    Raises:
        UserError: soft labels, and a loss that cannot read them.
    """
    if data.margin_B is not None:
        say("train", "data.train: the column margin is read by `dpo-jax reward` alone, and by no loss here")
    if data.soft_label_B is not None:
        unread = [term.name for term in experiment.terms if not term.reads_soft_labels]
        if unread:
            raise UserError(
                f"data.train has soft labels, which {unread[0]} cannot read. Allowed: {', '.join(soft_labelled())}, "
                "and sft beside them; or take the column soft_label out of the rows."
            )
    columns = present(loss_weight_B=data.weight_B, soft_label_B=data.soft_label_B, source_B=several(data))
    reference = scores and {"reference_logps_BP": scores.logps_nP, "reference_heads_BP": scores.heads_nP}
    return {"columns": columns, "reference": reference, "desirable": data.desirable}


def several(data: DataRows) -> np.ndarray | None:
    """The source of each row, where there are several."""
    return data.source_B if len(data.sources) > 1 else None


def present(**columns: np.ndarray | None) -> Mapping[str, np.ndarray]:
    """The columns that there are."""
    return {name: values for name, values in columns.items() if values is not None}


def _refresh(experiment: TextExperiment) -> Refresh | None:
    """TR-DPO: how the reference moves to the policy."""
    every, share = experiment.config.reference.update_every, experiment.config.reference.update_share
    if not every:
        return None

    def moved(params: Params, frozen: Params) -> Params:
        return jax.tree.map(lambda p, f: (share * p + (1.0 - share) * f).astype(f.dtype), params, frozen)

    def refresh(params: Params, frozen: Params, done: jax.Array) -> Params:
        return jax.lax.cond(done % every == 0, moved, lambda params, frozen: frozen, params, frozen)

    return refresh
