"""A tiny diffusion transformer whose parameters are all random, also those that begin at zero."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.types import Params
from dpo_jax.vision.diffuser import Diffuser, make_diffuser
from dpo_jax.vision.embeddings import TransformerSpec

SIZES = {"channels": 3, "patch": 2, "base": 4, "layers": 2, "heads": 2, "head_size": 4, "mlp_width": 24}
CLASSES = TransformerSpec(**SIZES, classes=5)
TEXT = TransformerSpec(**SIZES, text_width=7, learned_sigma=True)
PLAIN = TransformerSpec(**SIZES, frame_patch=2)


def moved(params: Params, *, by: float = 0.2) -> Params:
    """Every number changed."""
    random = np.random.default_rng(1)  # compiling a draw for each shape takes longer than most tests
    return jax.tree.map(lambda x: x + jnp.asarray(by * random.normal(size=x.shape), x.dtype), params)


@functools.cache
def made(spec: TransformerSpec = CLASSES, **options: Any) -> tuple[Diffuser, Params]:
    diffuser = make_diffuser(spec, **options)
    return diffuser, moved(jax.jit(diffuser.init)(jax.random.key(0)))
