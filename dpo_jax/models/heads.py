"""The scalar head: a reward in place of logits, read off the last token of a response.

Dimension key: B pairs, P slot in the pair, R rows, T tokens, N scored tokens, D width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dpo_jax.mesh import constrain
from dpo_jax.models.decoder import Model, Tree, make_model
from dpo_jax.models.lora import Lora
from dpo_jax.models.spec import Spec
from dpo_jax.types import PairBatch, Params

_HEAD = "head"


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A model whose parameters have a branch `head`, and no unembedding; with an adapter in the trunk, that is used."""

    trunk: Model

    @property
    def spec(self) -> Spec:
        """That of the trunk."""
        return self.trunk.spec

    @property
    def lora(self) -> Lora | None:
        """The adapter of the trunk."""
        return self.trunk.lora

    @property
    def tree(self) -> Tree:
        """The trunk alone, as it lies under an adapter."""
        return self.trunk.tree

    @property
    def trained(self) -> Tree:
        """What training changes: the head, and the trunk or its adapter."""
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
        lots = () if key is None else (key,)
        hidden_RTD, _ = self.trunk.apply(trunk, batch.tokens_RT, batch.positions_RT, batch.segments_RT, *lots)
        return last_rewards(hidden_RTD, params[_HEAD]["weight"], batch)


def make_reward_model(
    spec: Spec, *, dtype: Any = jnp.float32, remat: str = "none", lora: Lora | None = None
) -> RewardModel:
    """Describes the reward model of this trunk without allocating anything."""
    # A tied model has no unembedding of its own: neither the mesh nor the optimizer holds one that nobody reads.
    return RewardModel(make_model(dataclasses.replace(spec, tied=True), dtype=dtype, remat=remat, lora=lora))


def trunk_of(params: Params) -> Params:
    """The parameters of a language model as those of a reward model's trunk."""
    return {name: branch for name, branch in params.items() if name != "unembedding"}


def last_rewards(hidden_RTD: jax.Array, weight_D: jax.Array, batch: PairBatch) -> jax.Array:
    """The product of the head and the hidden state of each response's last token, [B, P], in any layout."""
    chex.assert_shape(weight_D, hidden_RTD.shape[-1:])
    place_RN, last_RN = _last_tokens(batch)
    wide_RTD = hidden_RTD.astype(jnp.promote_types(hidden_RTD.dtype, jnp.float32))
    # Multiplied and summed rather than a matmul, which some accelerators compute with short mantissas.
    rewards_RT = constrain((wide_RTD * weight_D[None, None]).sum(axis=-1), "rows", None)
    rewards_RN = jnp.where(last_RN, jnp.take_along_axis(rewards_RT, place_RN, axis=1), 0.0)
    pairs, slots = batch.response_tokens_BP.shape
    # Ids outside [0, pairs * slots) are dropped, -1 among them.
    sums = jax.ops.segment_sum(rewards_RN.ravel(), batch.response_RN.ravel(), num_segments=pairs * slots)
    return sums.reshape(pairs, slots)


def _last_tokens(batch: PairBatch) -> tuple[jax.Array, jax.Array]:
    """Where in its row each scored token stands, int32 [R, N], and whether it is the last of its response.

    A token stands behind the position that predicts it. With a shared prompt the first rejected token does not: it
    stands behind the chosen response. In every layout the tokens of a row lie in the order of their entries, and those
    of a response side by side, so that a token stands behind both its source and the token before it.
    """
    entry_RN = jax.lax.broadcasted_iota(jnp.int32, batch.source_RN.shape, 1)
    place_RN = jax.lax.cummax(batch.source_RN - entry_RN, axis=1) + entry_RN + 1
    after_RN = jnp.pad(batch.response_RN[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    last_RN = (batch.response_RN >= 0) & (batch.response_RN != after_RN)
    return jnp.where(last_RN, place_RN, 0), last_RN
