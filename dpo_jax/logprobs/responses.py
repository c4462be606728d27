"""Quantities of responses from those of tokens, in a batch of any layout.

Dimension key: B pairs, P slot in the pair, R rows, T tokens, N scored tokens, D width.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from dpo_jax.logprobs.tokens import token_logps
from dpo_jax.mesh import constrain
from dpo_jax.types import PairBatch, Unembedding


def response_logps(token_logps_RN: jax.Array, response_RN: jax.Array, *, pairs: int, slots: int) -> jax.Array:
    """Sum token log-probs over each response: [B, P], nats. `response_RN` is slots * pair + slot, -1 on padding."""
    chex.assert_equal_shape([token_logps_RN, response_RN])
    # Ids outside [0, pairs * slots) are dropped, -1 among them.
    sums = jax.ops.segment_sum(token_logps_RN.ravel(), response_RN.ravel(), num_segments=pairs * slots)
    return sums.reshape(pairs, slots)


def head_mask(response_RN: jax.Array, response_tokens_BP: jax.Array) -> jax.Array:
    """Mask of the scored tokens among the first m of their response, bool [R, N]; padding is not.

    m is the token count of the shortest response of the pair: LD-DPO, arXiv:2409.06411. The tokens of a response stand
    side by side in one row, in every layout.
    """
    pairs, slots = response_tokens_BP.shape
    place_RN = jax.lax.broadcasted_iota(jnp.int32, response_RN.shape, 1)
    first = jax.ops.segment_min(place_RN.ravel(), response_RN.ravel(), num_segments=pairs * slots)
    shortest = jnp.repeat(response_tokens_BP.min(axis=1), slots)
    return (response_RN >= 0) & (place_RN - first[response_RN] < shortest[response_RN])


def scored_hidden(hidden_RTD: jax.Array, batch: PairBatch) -> jax.Array:
    """The hidden states that predict the scored tokens, [R, N, D]."""
    hidden_RND = jnp.take_along_axis(hidden_RTD, batch.source_RN[..., None], axis=1)
    return constrain(hidden_RND, "rows", None, None)


def batch_logps(hidden_RTD: jax.Array, unembedding: Unembedding, batch: PairBatch, **tiles: int) -> jax.Array:
    """Response log-probs [B, P] of a batch of any layout, from the hidden states of its rows."""
    return batch_scores(hidden_RTD, unembedding, batch, **tiles)[0]


@jax.named_scope("logprobs")
def batch_scores(
    hidden_RTD: jax.Array, unembedding: Unembedding, batch: PairBatch, **tiles: int
) -> tuple[jax.Array, jax.Array]:
    """Response log-probs [B, P] as `batch_logps`, and those of their heads alone [B, P], see `head_mask`."""
    logps_RN = token_logps(scored_hidden(hidden_RTD, batch), batch.target_RN, unembedding, **tiles)
    heads_RN = jnp.where(head_mask(batch.response_RN, batch.response_tokens_BP), logps_RN, 0.0)
    pairs, slots = batch.response_tokens_BP.shape
    logps_BP, heads_BP = (
        response_logps(values_RN, batch.response_RN, pairs=pairs, slots=slots) for values_RN in (logps_RN, heads_RN)
    )
    return logps_BP, heads_BP
