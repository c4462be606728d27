"""Samples of a diffusion model, each a function of (seed, its number): two models start from the same noise.

Dimension key: n samples, B of them drawn at once; X stands for all axes of a sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.diffusion.draws import row_keys
from dpo_jax.diffusion.embeddings import Condition, present
from dpo_jax.diffusion.sampling import make_sampler
from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.mesh import constrain, place
from dpo_jax.runtime.translate import sized_by
from dpo_jax.types import Params, row_words

Sample = Callable[..., np.ndarray]
"""`sample(params, shown_n, count, purpose, told) -> uint8 [n, X]`; `told(done)` is called now and then."""


def make_sampling(experiment: PictureExperiment, *, seed: int) -> Sample:
    """The sampler that `sampling` of the configuration describes; `shown_n` is None where nothing is to be shown.

    Samples of one seed and `purpose`, a word, begin with the same noise for every model.
    """
    options, shape_X = experiment.config.sampling, experiment.shape_X
    own = {"eta": options.eta} if options.sampler == "ddim" else {}
    clip = 1.0 if options.clip else None
    draw = make_sampler(
        experiment.model.apply,
        shape_X,
        sampler=options.sampler,
        steps=options.steps,
        clip=clip,
        **own,
        **experiment.noise,
    )

    @jax.jit
    def finished(params: Params, words_BW: jax.Array, condition: Condition | None) -> jax.Array:
        keys_B = row_keys(words_BW, seed=seed, epoch=0)
        found_BX = draw(params, keys_B, condition, options.guidance)
        bytes_BX = jnp.round((jnp.clip(found_BX, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
        return constrain(bytes_BX, *[None] * bytes_BX.ndim)  # every host reads them

    @sized_by("sampling.batch_rows")
    def sample(
        params: Params, shown_n: np.ndarray | None, count: int, purpose: str, told: Callable[[int], None]
    ) -> np.ndarray:
        words_nW = row_words([_row_id(purpose, number) for number in range(count)])
        size = -(-min(options.batch_rows, count) // experiment.row_multiple) * experiment.row_multiple
        parts = []
        for start in range(0, count, size):
            picks = np.minimum(np.arange(start, start + size), count - 1)  # the last batch is filled up
            words_BW = place(experiment.row_sharding(words_nW[picks]), words_nW[picks])
            condition = (
                None if shown_n is None else present(place(experiment.row_sharding(shown_n[picks]), shown_n[picks]))
            )
            parts.append(jax.device_get(finished(params, words_BW, condition))[: count - start])
            told(min(start + size, count))
        return np.concatenate(parts)

    return sample


def _row_id(purpose: str, number: int) -> str:
    return hashlib.blake2b(f"{purpose} {number}".encode(), digest_size=16).hexdigest()


def what_to_show(experiment: PictureExperiment, count: int, *, group: int = 1) -> np.ndarray | None:
    """Classes in turn, int32 [count], each `group` times; the texts of held-out or training rows; None: nothing."""
    pictures = experiment.config.pictures
    places = np.arange(count) // group
    if pictures.classes:
        return (places % pictures.classes).astype(np.int32)
    if not pictures.text_width:
        return None
    texts: Sequence = experiment.prompts_E
    return np.stack([texts[place % len(texts)] for place in places]).astype(np.float32)
