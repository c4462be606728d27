"""A diffusion model under any parameters: denoising errors of rows, and samples.

A sample is a function of (seed, its number): two models start from the same noise.

Dimension key: n rows or samples, K draws, P members of a row, B rows of a batch; X stands for all axes of a sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.config.pictures import PictureSamplingConfig
from dpo_jax.diffusion.denoising import denoise_pairs
from dpo_jax.diffusion.draws import row_keys
from dpo_jax.diffusion.embeddings import Condition, present
from dpo_jax.diffusion.sampling import make_sampler
from dpo_jax.errors import sized_by
from dpo_jax.mesh import constrain
from dpo_jax.objectives.diffusion import Apply, Noise, draws_of, pixels, shown
from dpo_jax.reference.store import Errors
from dpo_jax.types import HostPictures, Params, PictureBatch, row_words

ErrorScore = Callable[[Params, PictureBatch, jax.Array], jax.Array]
"""`score(params, batch, epoch) -> errors_BP` at the draw of that epoch."""

Sample = Callable[..., np.ndarray]
"""`sample(params, shown_n, count, purpose, progress) -> uint8 [n, X]`; `progress` is called with the number done.

`shown_n` is None where nothing is to be shown. Samples of one `purpose`, a word, begin with the same noise.
"""


def make_error_score(apply: Apply, noise: Noise, *, seed: int) -> ErrorScore:
    """Return the jitted score."""

    @jax.jit
    def score(params: Params, batch: PictureBatch, epoch: jax.Array) -> jax.Array:
        _, drawn = draws_of(batch._replace(epoch_B=jnp.full_like(batch.epoch_B, epoch)), seed=seed)

        def predict(noisy_RX: jax.Array, time_R: jax.Array, condition: Condition | None) -> jax.Array:
            return apply(params, noisy_RX, time_R, condition, None)

        errors_BP, _ = denoise_pairs(predict, pixels(batch.samples_BPX), drawn, shown(batch), **noise)
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


def make_sampling(
    apply: Callable[..., jax.Array],
    noise: Noise,
    options: PictureSamplingConfig,
    shape_X: tuple[int, ...],
    *,
    seed: int,
    row_multiple: int,
    place: Callable[[np.ndarray], jax.Array],
) -> Sample:
    """The sampler that `options` describe; `place` puts rows on the mesh, which splits them into `row_multiple`."""
    own = {"eta": options.eta} if options.sampler == "ddim" else {}
    clip = 1.0 if options.clip else None
    draw = make_sampler(apply, shape_X, sampler=options.sampler, steps=options.steps, clip=clip, **own, **noise)

    @jax.jit
    def finished(params: Params, words_BW: jax.Array, condition: Condition | None) -> jax.Array:
        drawn_BX = draw(params, row_keys(words_BW, seed=seed, epoch=0), condition, options.guidance)
        bytes_BX = jnp.round((jnp.clip(drawn_BX, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
        return constrain(bytes_BX, *[None] * bytes_BX.ndim)  # every host reads them

    @sized_by("sampling.batch_rows")
    def sample(
        params: Params, shown_n: np.ndarray | None, count: int, purpose: str, progress: Callable[[int], None]
    ) -> np.ndarray:
        names = [hashlib.blake2b(f"{purpose} {n}".encode(), digest_size=16).hexdigest() for n in range(count)]
        words_nW = row_words(names)
        size = -(-min(options.batch_rows, count) // row_multiple) * row_multiple
        parts = []
        for start in range(0, count, size):
            picks = np.minimum(np.arange(start, start + size), count - 1)  # the last batch is filled up
            condition = None if shown_n is None else present(place(shown_n[picks]))
            parts.append(jax.device_get(finished(params, place(words_nW[picks]), condition))[: count - start])
            progress(min(start + size, count))
        return np.concatenate(parts)

    return sample
