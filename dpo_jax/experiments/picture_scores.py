"""Denoising errors of rows of pictures under any parameters of a diffusion model.

Dimension key: n rows, K draws, P members of a row, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.diffusion.denoising import pair_errors
from dpo_jax.diffusion.embeddings import Condition
from dpo_jax.mesh import constrain
from dpo_jax.objectives.diffusion import Apply, Noise, draws_of, pixels, shown
from dpo_jax.reference.store import Errors
from dpo_jax.types import HostPictures, Params, PictureBatch

ErrorScore = Callable[[Params, PictureBatch, jax.Array], jax.Array]
"""`score(params, batch, epoch) -> errors_BP` at the draw of that epoch."""


def make_error_score(apply: Apply, noise: Noise, *, seed: int) -> ErrorScore:
    """Return the jitted score."""

    @jax.jit
    def score(params: Params, batch: PictureBatch, epoch: jax.Array) -> jax.Array:
        _, drawn = draws_of(batch._replace(epoch_B=jnp.full_like(batch.epoch_B, epoch)), seed=seed)

        def predict(noisy_RX: jax.Array, time_R: jax.Array, condition: Condition | None) -> jax.Array:
            return apply(params, noisy_RX, time_R, condition, None)

        errors_BP = pair_errors(predict, pixels(batch.samples_BPX), drawn, shown(batch), **noise)
        return constrain(errors_BP, None, None)  # every host reads them

    return score


def score_pictures(
    score: ErrorScore,
    params: Params,
    batches: Iterable[HostPictures],
    *,
    draws: int,
    place: Callable[[PictureBatch], PictureBatch],
    progress: Callable[[int], None] = lambda rows: None,
) -> tuple[list[str], Errors]:
    """Row ids and errors, draw after draw, of every row of the batches at its first K draws."""
    row_ids: list[str] = []
    errors: list[np.ndarray] = []
    for batch in batches:
        arrays, rows = place(batch.arrays), len(batch.row_ids)  # rows that only fill the batch come last
        of_draws = [jax.device_get(score(params, arrays, jnp.asarray(epoch, jnp.int32))) for epoch in range(draws)]
        errors.append(np.concatenate(of_draws, axis=1)[:rows])
        row_ids += batch.row_ids
        progress(len(row_ids))
    return row_ids, Errors(np.concatenate(errors))
