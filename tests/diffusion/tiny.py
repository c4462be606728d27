"""A tiny diffusion transformer whose parameters are all random, also those that begin at zero."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.diffusion.diffuser import Diffuser, make_diffuser
from dpo_jax.diffusion.embeddings import TransformerSpec, present
from dpo_jax.types import Params

SIZES = {"channels": 3, "patch": 2, "base": 4, "layers": 2, "heads": 2, "head_size": 4, "mlp_width": 24}
CLASSES = TransformerSpec(**SIZES, classes=5)
TEXT = TransformerSpec(**SIZES, text_width=7, learned_sigma=True)
PLAIN = TransformerSpec(**SIZES, frame_patch=2)

RANDOM = np.random.default_rng(0)
IMAGES = jnp.asarray(RANDOM.normal(size=(8, 8, 8, 3)), jnp.float32)
CLIPS = jnp.asarray(RANDOM.normal(size=(8, 4, 4, 6, 3)), jnp.float32)
TIMES = jnp.linspace(0.05, 1.0, 8)
LABELS = present(jnp.arange(8) % 5)
TEXTS = present(jnp.asarray(RANDOM.normal(size=(8, 7)), jnp.float32))
CASES = {"classes": (CLASSES, IMAGES, LABELS), "text": (TEXT, CLIPS, TEXTS), "nothing": (PLAIN, CLIPS, None)}


def moved(params: Params, *, by: float = 0.2) -> Params:
    """Every number changed."""
    random = np.random.default_rng(1)  # compiling a draw for each shape takes longer than most tests
    return jax.tree.map(lambda x: x + np.asarray(by * random.normal(size=x.shape), x.dtype), params)


@functools.cache
def made(spec: TransformerSpec = CLASSES, **options: Any) -> tuple[Diffuser, Params]:
    diffuser = make_diffuser(spec, **options)
    return diffuser, moved(jax.jit(diffuser.init)(jax.random.key(0)))


@functools.cache
def applied(case: str, **options: Any) -> jax.Array:
    """What the model of a case says of its samples."""
    spec, samples, condition = CASES[case]
    diffuser, params = made(spec, **options)
    return jax.jit(diffuser.apply)(params, samples, TIMES, condition)
