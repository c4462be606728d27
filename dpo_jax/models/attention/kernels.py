"""Fused kernels of others, which know causal rows: cuDNN's on NVIDIA GPUs in half precision, splash on TPUs.

Dimension key: R rows, T tokens, H query heads, G key/value heads, K head size; B, L rows and tokens as the kernel
sees them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax.models.attention.mask import AttentionMask
from dpo_jax.models.attention.unpack import attend_unpacked
from dpo_jax.networks import SAVED

CUDNN_IMPLEMENTATION = "cudnn"
SPLASH_INTERPRET = False
"""True where the splash kernel is run by an interpreter, on any machine; for tests."""

_LANES = 128
_BLOCKS = (512, 256, 128)


def attend_cudnn(
    query_RTHK: jax.Array,
    key_RTGK: jax.Array,
    value_RTGK: jax.Array,
    mask: AttentionMask,
    *,
    scale: float,
    soft_cap: float | None,
) -> jax.Array:
    """Softmax attention by cuDNN over the sequences of rows, [R, T, H, K]; 0 on padding."""
    assert mask.segments_RT is not None and mask.unpacking is not None and soft_cap is None
    causal = partial(mask.of_window, partial(_causal_cudnn, scale=scale))
    return attend_unpacked(query_RTHK, key_RTGK, value_RTGK, mask.segments_RT, mask.unpacking, causal)


def _causal_cudnn(
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
        implementation=CUDNN_IMPLEMENTATION,
    )


def attend_splash(
    query_RTHK: jax.Array,
    key_RTGK: jax.Array,
    value_RTGK: jax.Array,
    mask: AttentionMask,
    *,
    scale: float,
    soft_cap: float | None,
) -> jax.Array:
    """Softmax attention by the splash kernel, which knows segments that see only themselves, and windows; 0 on padding.

    Rows with shared prompts are attended sequence by sequence.
    """
    assert mask.segments_RT is not None and mask.unpacking is not None
    causal = partial(mask.of_window, partial(_causal_splash, soft_cap=soft_cap))
    query_RTHK = (query_RTHK * scale).astype(query_RTHK.dtype)  # the kernel has no scale
    return attend_unpacked(query_RTHK, key_RTGK, value_RTGK, mask.segments_RT, mask.unpacking, causal)


def _causal_splash(
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
    kernel = _splash_kernel(length + padding, query_BLHK.shape[2], window, soft_cap)
    mixed_BHLK = jax.vmap(kernel)(*arrays, kernels.SegmentIds(segments_BL, segments_BL))
    return mixed_BHLK.swapaxes(1, 2)[:, :length].astype(value_BLGK.dtype)


def _splash_kernel(length: int, heads: int, window: int | None, soft_cap: float | None) -> Any:
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
        interpret=SPLASH_INTERPRET,
    )
