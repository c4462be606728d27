"""The scalar head: a reward in place of logits, read off the last token of a response.

Dimension key: B pairs, P slot in the pair, R rows, T tokens, N scored tokens, V parts of segments, D width.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dpo_jax.mesh import constrain
from dpo_jax.models.model import Model, make_model
from dpo_jax.models.spec import Spec
from dpo_jax.types import SEGMENT_PARTS, Lora, PairBatch, Params, Tree

_HEAD = "head"


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A model whose parameters have a branch `head`, and no unembedding; with an adapter in the trunk, that is used."""

    trunk: Model

    @property
    def spec(self) -> Spec:
        """Sizes of the trunk."""
        return self.trunk.spec

    @property
    def lora(self) -> Lora | None:
        """The adapter of the trunk."""
        return self.trunk.lora

    @property
    def tree(self) -> Tree:
        """The trunk alone, which is frozen under an adapter."""
        return self.trunk.tree

    @property
    def trained(self) -> Tree:
        """The parameters that training changes: the head, and the trunk or its adapter."""
        return self._with_head(self.trunk.trained)

    @property
    def shapes(self) -> Params:
        """The shape and dtype of each parameter, the adapter's left out."""
        return self._with_head(self.tree).shapes

    @property
    def axes(self) -> Params:
        """The logical axis names of each parameter, the adapter's left out."""
        return self._with_head(self.tree).axes

    def _with_head(self, tree: Tree) -> Tree:
        weight = jax.ShapeDtypeStruct((self.spec.width,), jnp.float32)
        return Tree({**tree.shapes, _HEAD: {"weight": weight}}, {**tree.axes, _HEAD: {"weight": ("embed",)}})

    def init_head(self, key: jax.Array) -> Params:
        """The branch of the head before the first step: normal with variance 1 / (D + 1), as in arXiv:2009.01325."""
        weight_D = jax.random.normal(key, (self.spec.width,), jnp.float32) / math.sqrt(self.spec.width + 1)
        return {_HEAD: {"weight": weight_D}}

    def rewards(self, params: Params, batch: PairBatch, key: jax.Array | None = None) -> jax.Array:
        """The reward of each response, [B, P], at least float32. `key` draws dropout; None drops nothing."""
        trunk = {name: branch for name, branch in params.items() if name != _HEAD}
        rows = (batch.tokens_RT, batch.positions_RT, batch.segments_RT)
        hidden_RTD, _ = self.trunk.apply(trunk, *rows, key, sequences=batch.sequences)
        return last_rewards(hidden_RTD, params[_HEAD]["weight"], batch)


def make_reward_model(spec: Spec, **options: Any) -> RewardModel:
    """Describe the reward model of this trunk without allocating anything; `options` are those of `make_model`."""
    # A tied model has no unembedding of its own: neither the mesh nor the optimizer holds one that is never read.
    return RewardModel(make_model(dataclasses.replace(spec, tied=True), **options))


def trunk_of(params: Params) -> Params:
    """The parameters of a language model as those of a reward model's trunk."""
    return {name: branch for name, branch in params.items() if name != "unembedding"}


def last_rewards(hidden_RTD: jax.Array, weight_D: jax.Array, batch: PairBatch) -> jax.Array:
    """The product of the head and the hidden state of each response's last token, [B, P], in any layout."""
    chex.assert_shape(weight_D, hidden_RTD.shape[-1:])
    wide_RTD = hidden_RTD.astype(jnp.promote_types(hidden_RTD.dtype, jnp.float32))
    # Multiplied and summed rather than a matmul, which some accelerators compute with short mantissas.
    rewards_RT = constrain((wide_RTD * weight_D[None, None]).sum(axis=-1), "rows", None)
    rewards_RN = jnp.take_along_axis(rewards_RT, _ends(batch), axis=1)
    # Each response once: its scored tokens stand side by side.
    after_RN = jnp.pad(batch.response_RN[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    once_RN = jnp.where(batch.response_RN != after_RN, rewards_RN, 0.0)
    pairs, slots = batch.response_tokens_BP.shape
    # Ids outside [0, pairs * slots) are dropped, -1 among them.
    sums = jax.ops.segment_sum(once_RN.ravel(), batch.response_RN.ravel(), num_segments=pairs * slots)
    return sums.reshape(pairs, slots)


def _ends(batch: PairBatch) -> jax.Array:
    """Position in its row at which the response of each scored token ends, int32 [R, N]; 0 on padding.

    That is the last token of its part of the segment, or, where a segment has one part, of the segment. Whether it is
    scored does not matter: transformers reads it in any case.
    """
    length = batch.segments_RT.shape[1]
    # The last position of every part, below 0 of those that are not there.
    last_of_part = partial(jax.ops.segment_max, jnp.arange(length), num_segments=1 + SEGMENT_PARTS * length)
    last_RV = jax.vmap(last_of_part)(batch.segments_RT)
    source_part_RN = jnp.take_along_axis(batch.segments_RT, batch.source_RN, axis=1)
    slot_RN = batch.response_RN % batch.response_tokens_BP.shape[1]
    first_part_RN = source_part_RN - (source_part_RN - 1) % SEGMENT_PARTS
    own_RN = jnp.take_along_axis(last_RV, first_part_RN + 1 + slot_RN, axis=1)
    whole_RN = jnp.take_along_axis(last_RV, source_part_RN, axis=1)
    return jnp.where(batch.response_RN < 0, 0, jnp.where(own_RN >= 0, own_RN, whole_RN))
