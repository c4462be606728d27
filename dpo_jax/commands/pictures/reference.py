"""The pass of the frozen reference over pictures: its errors at K draws of each row, in the store.

Dimension key: n rows, K draws, P members of a row, B rows of a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.commands.pictures import pairs, sft
from dpo_jax.data.pictures.batches import evaluation_batches
from dpo_jax.diffusion.denoising import pair_errors
from dpo_jax.errors import UserError
from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.mesh import constrain
from dpo_jax.objectives.diffusion import draws_of, pixels, shown
from dpo_jax.reference.fingerprint import rows_digest, weights_digest
from dpo_jax.reference.store import Errors, Store
from dpo_jax.runtime.progress import Progress, say
from dpo_jax.runtime.translate import sized_by
from dpo_jax.types import Params, PictureBatch, PictureRow

SCORER_VERSION = "1"
"""Raised when the same inputs would give other errors."""

Score = Callable[[Params, PictureBatch, jax.Array], jax.Array]
"""`score(params, batch, epoch) -> errors_BP` at the draw of that epoch."""


def run(experiment: PictureExperiment, *, jsonl: str | None = None, verify: str | None = None) -> None:
    """Fills the store, after the pre-training and the pairs where they are missing."""
    if jsonl is not None or verify is not None:
        raise UserError("command line: --jsonl and --verify are of experiments on texts.")
    if not experiment.config.reference.draws:
        raise UserError(
            "reference: there is no pass to make: the reference runs beside the policy. `reference: {draws: 8}` stores "
            "its errors at 8 draws of time and noise for each row."
        )
    prepare(experiment)
    complete_store(experiment)


def prepare(experiment: PictureExperiment) -> None:
    """Pre-trains and makes the pairs, where the configuration asks for that and it is not done."""
    if experiment.config.sft:
        sft.run(experiment)
    pairs.make_missing(experiment)


def scorer(experiment: PictureExperiment) -> Score:
    """Denoising errors, compiled once."""
    model, noise, seed = experiment.model, experiment.noise, experiment.config.seed

    @jax.jit
    def score(params: Params, batch: PictureBatch, epoch: jax.Array) -> jax.Array:
        _, drawn = draws_of(batch._replace(epoch_B=jnp.full_like(batch.epoch_B, epoch)), seed=seed)

        def predict(noisy_RX: jax.Array, time_R: jax.Array, condition: object) -> jax.Array:
            return model.apply(params, noisy_RX, time_R, condition)  # type: ignore[arg-type]

        errors_BP = pair_errors(predict, pixels(batch.samples_BPX), drawn, shown(batch), **noise)
        return constrain(errors_BP, None, None)  # every host reads them

    return score


@sized_by("reference.batch_pairs")
def errors_of(
    experiment: PictureExperiment,
    score: Score,
    params: Params,
    rows: Sequence[PictureRow],
    *,
    draws: int,
    told: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Errors [n, K, P] of rows at their first K draws."""
    found = []
    for batch in evaluation_batches(rows, pairs=experiment.config.reference.batch_pairs):
        arrays = experiment.place(batch.arrays)
        of_draws = [jax.device_get(score(params, arrays, jnp.asarray(epoch, jnp.int32))) for epoch in range(draws)]
        found.append(np.stack(of_draws, axis=1)[: len(batch.row_ids)])
        told(sum(map(len, found)))
    return np.concatenate(found)


def store_folder(experiment: PictureExperiment) -> Path:
    """Where the store of this model lies."""
    return Path(experiment.config.reference.store or experiment.workdir / "stores")


def complete_store(experiment: PictureExperiment) -> np.ndarray:
    """The reference's errors of the training rows, [n, K, P]; those that are missing are computed."""
    rows, draws = experiment.train_data.rows, experiment.config.reference.draws
    params, row_ids = experiment.start_params(), [row.row_id for row in rows]
    config = experiment.config
    fingerprint = {
        "weights": weights_digest(params),
        "model": str(experiment.spec),
        "dtype": config.model.dtype,
        "scorer version": SCORER_VERSION,
        "rows": rows_digest(row_ids),
        "noise": f"{config.model.schedule}, {config.model.prediction}",
        "draws": f"{draws} of seed {config.seed}",
        "shape": str(experiment.shape),
    }
    name = f"pictures-{fingerprint['weights'][:12]}-{draws}-of-{config.seed}"  # runs of other draws have their own
    store = Store(store_folder(experiment) / name, fingerprint, kind=Errors)
    missing = store.missing(row_ids)
    if not len(missing):
        say("reference", f"{len(rows)} rows in {store.folder}: nothing to score")
    else:
        say("reference", f"scores {len(missing)} rows at {draws} draws into {store.folder}")
        score, size = scorer(experiment), config.reference.rows_per_shard
        with Progress("reference", len(missing), unit="rows") as progress:
            for start in range(0, len(missing), size):
                shard = [rows[index] for index in missing[start : start + size]]
                told = functools.partial(_told, progress, start)
                errors_nKP = errors_of(experiment, score, params, shard, draws=draws, told=told)
                store.append([row.row_id for row in shard], Errors(errors_nKP.reshape(len(shard), -1)))
    store.serves(str(experiment.workdir.resolve()))
    return store.lookup(row_ids).errors_nP.reshape(len(rows), draws, -1)


def _told(progress: Progress, before: int, done: int) -> None:
    progress.update(before + done)
