"""Layers that are stacked and scanned, so that compile time does not grow with depth.

Dimension key: R rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dpo_jax.models.attention.blocks import SAVED
from dpo_jax.models.layers import Cache

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        # With it nothing in front is needed: else the scores of attention would be kept.
        jax.checkpoint_policies.save_only_these_names(SAVED),
    ),
}
"""What the backward pass keeps of each layer: everything, its input alone, or the results of matmuls and attention."""


@jax.named_scope("layers")
def scan_layers(
    stacked: nnx.Module,
    step: Callable[..., tuple],
    hidden_RTD: jax.Array,
    cache: Cache | None,
    *,
    layers: int,
    remat: str,
) -> tuple[jax.Array, Cache | None]:
    """Hidden states and cache after `step(block, hidden_RTD, cache, layer)` for each block of `stacked`."""
    graphdef, state = nnx.split(stacked)

    def body(carry: tuple, layer: tuple[Any, jax.Array]) -> tuple[tuple, None]:
        weights, index = layer
        return step(nnx.merge(graphdef, weights), *carry, index), None

    if remat != "none":
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat])
    carry, _ = jax.lax.scan(body, (hidden_RTD, cache), (nnx.to_pure_dict(state), jnp.arange(layers)))
    return carry
