"""The naive forms that the tiled ones are compared with, whole logits at once, and inputs for both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.types import Unembedding


def log_softmax(hidden_RND, unembedding: Unembedding):
    """All log-probabilities of the vocabulary, padding left out."""
    logits = unembedding.scale * jnp.einsum("rnd,vd->rnv", hidden_RND, unembedding.weight_VD)
    if unembedding.soft_cap:
        logits = unembedding.soft_cap * jnp.tanh(logits / unembedding.soft_cap)
    return jax.nn.log_softmax(logits[..., : unembedding.vocabulary])


def token_logps(hidden_RND, target_RN, unembedding: Unembedding):
    return jnp.take_along_axis(log_softmax(hidden_RND, unembedding), target_RN[..., None], axis=-1)[..., 0]


def token_kl(hidden_RND, unembedding: Unembedding, reference_hidden_RND, reference_unembedding: Unembedding):
    reference = log_softmax(reference_hidden_RND, reference_unembedding)
    return (jnp.exp(reference) * (reference - log_softmax(hidden_RND, unembedding))).sum(axis=-1)


def token_log_sum_sq(hidden_RND, unembedding: Unembedding):
    return jax.nn.logsumexp(2.0 * log_softmax(hidden_RND, unembedding), axis=-1)


def example(rows=3, scored=5, width=8, columns=40, dtype: Any = jnp.float64, vocabulary=37, seed=0):
    """Hidden states, targets, a weight, and a number for each token."""
    draw = np.random.default_rng(seed)
    hidden, weight, weights_RN = (
        jnp.asarray(draw.standard_normal(shape), dtype)
        for shape in ((rows, scored, width), (columns, width), (rows, scored))
    )
    return hidden, jnp.asarray(draw.integers(0, vocabulary, (rows, scored))), weight, weights_RN


def assert_trees_close(ours, wanted, **tolerances: float) -> None:
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, **tolerances)


# T = 2048, V = 131072: the logits alone would be 1 GiB in float32.
TOKENS, VOCABULARY = 2048, 131072
LOGITS_BYTES = TOKENS * VOCABULARY * 4


def temporary_bytes(form: Callable, width: int = 64) -> int:
    """Peak temporary memory of `form(hidden, weight)`, by XLA's own account."""
    hidden = jax.ShapeDtypeStruct((1, TOKENS, width), jnp.float32)
    weight = jax.ShapeDtypeStruct((VOCABULARY, width), jnp.float32)
    return jax.jit(form).lower(hidden, weight).compile().memory_analysis().temp_size_in_bytes
