"""Attention by cuDNN's kernel, on NVIDIA GPUs in half precision. It knows causal rows and their lengths.

Dimension key: R rows, T tokens, H query heads, G key/value heads, K head size; B, L rows and tokens as the kernel
sees them.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from dpo_jax.models.attention.apart import attend_apart
from dpo_jax.models.attention.seen import Seen

IMPLEMENTATION = "cudnn"


def attend_cudnn(
    query_RTHK: jax.Array,
    key_RTGK: jax.Array,
    value_RTGK: jax.Array,
    seen: Seen,
    *,
    scale: float,
    soft_cap: float | None,
) -> jax.Array:
    """Softmax attention over the sequences of rows, [R, T, H, K]; 0 on padding."""
    assert seen.segments_RT is not None and seen.apart is not None and soft_cap is None
    causal = partial(seen.of_window, partial(_causal, scale=scale))
    return attend_apart(query_RTHK, key_RTGK, value_RTGK, seen.segments_RT, seen.apart, causal)


def _causal(
    segments_BL: jax.Array,
    query_BLHK: jax.Array,
    key_BLGK: jax.Array,
    value_BLGK: jax.Array,
    *,
    window: int | None,
    scale: float,
) -> jax.Array:
    # A row without tokens has one all the same: the softmax over nothing is not a number.
    tokens_B = jnp.maximum((segments_BL > 0).sum(axis=1), 1).astype(jnp.int32)
    return jax.nn.dot_product_attention(
        query_BLHK,
        key_BLGK,
        value_BLGK,
        scale=scale,
        is_causal=True,
        query_seq_lengths=tokens_B,
        key_value_seq_lengths=tokens_B,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=IMPLEMENTATION,
    )
