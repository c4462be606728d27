"""Attention by the splash kernel, on TPUs. It knows causal rows, segments in them that see only themselves, windows.

Dimension key: R rows, T tokens, H query heads, G key/value heads, K head size; B, L rows and tokens as the kernel
sees them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax.models.attention.apart import attend_apart
from dpo_jax.models.attention.blocks import SAVED
from dpo_jax.models.attention.seen import Seen

INTERPRET = False
"""Whether the kernel is run by an interpreter, on any machine; for tests."""

_LANES = 128
_BLOCKS = (512, 256, 128)


def attend_splash(
    query_RTHK: jax.Array,
    key_RTGK: jax.Array,
    value_RTGK: jax.Array,
    seen: Seen,
    *,
    scale: float,
    soft_cap: float | None,
) -> jax.Array:
    """Softmax attention over rows of segments, or over the sequences of rows with shared prompts; 0 on padding."""
    assert seen.segments_RT is not None and seen.apart is not None
    causal = partial(seen.of_window, partial(_causal, soft_cap=soft_cap))
    query_RTHK = (query_RTHK * scale).astype(query_RTHK.dtype)  # the kernel has no scale
    return attend_apart(query_RTHK, key_RTGK, value_RTGK, seen.segments_RT, seen.apart, causal)


def _causal(
    segments_BL: jax.Array,
    query_BLHK: jax.Array,
    key_BLGK: jax.Array,
    value_BLGK: jax.Array,
    *,
    window: int | None,
    soft_cap: float | None,
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

    length = segments_BL.shape[1]
    padding = -length % _LANES
    arrays = [
        jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2) for x in (query_BLHK, key_BLGK, value_BLGK)
    ]
    segments_BL = jnp.pad(segments_BL, ((0, 0), (0, padding)))
    kernel = _kernel(length + padding, query_BLHK.shape[2], window, soft_cap)
    mixed_BHLK = jax.vmap(kernel)(*arrays, kernels.SegmentIds(segments_BL, segments_BL))
    return mixed_BHLK.swapaxes(1, 2)[:, :length].astype(value_BLGK.dtype)


def _kernel(length: int, heads: int, window: int | None, soft_cap: float | None) -> Any:
    """The kernel for one row, its mask and the size of its blocks."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    square = (length, length)
    mask = masks.CausalMask(square) if window is None else masks.LocalMask(square, (window - 1, 0), 0)
    block = next(size for size in _BLOCKS if length % size == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    return kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(**dict.fromkeys(names, block)),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=soft_cap,
        residual_checkpoint_name=SAVED,
        interpret=INTERPRET,
    )
