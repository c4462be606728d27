"""Pre-training of a diffusion transformer on samples alone: the start of the policy, and the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpo_jax.config import TrainConfig
from dpo_jax.data.pictures.batches import PictureBatches
from dpo_jax.errors import UserError
from dpo_jax.experiments.fit import fit
from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.experiments.sinks import check_sinks
from dpo_jax.experiments.training import make_training
from dpo_jax.objectives.diffusion import denoising_objective
from dpo_jax.types import PictureRow


def run(experiment: PictureExperiment) -> None:
    """Trains into WORKDIR/sft; does nothing where that is done."""
    config = experiment.config
    if config.sft is None:
        raise UserError("sft: the configuration has no `sft:` section, which would say what to pre-train on.")
    check_sinks(experiment)
    seed = config.seed if config.sft.seed is None else config.sft.seed
    rows = experiment.read("sft.data.train", config.sft.data.train, "samples", seed=seed).rows
    average = config.sft.average
    training = make_training(
        config.sft,
        stage="sft",
        folder=experiment.sft_folder,
        model=experiment.sft_model,
        start=experiment.pretrained,
        frozen=experiment.pretrained if average else None,
        objective=denoising_objective(
            experiment.sft_model.apply, **experiment.noise, seed=seed, drop=config.sft.drop_condition, average=average
        ),
        batches=batches_of(rows, config.sft.train, seed=seed, order=config.data.order),
        seed=seed,
    )
    fit(experiment, training)


def batches_of(rows: Sequence[PictureRow], train: TrainConfig, *, seed: int, order: str, **more: Any) -> PictureBatches:
    """The training batches of some rows."""
    micro = train.micro_batch_pairs or train.batch_pairs
    return PictureBatches(rows, batch_pairs=train.batch_pairs, micro_batch_pairs=micro, seed=seed, order=order, **more)
