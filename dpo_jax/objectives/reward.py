"""Reward models: the Bradley-Terry loss on the rewards of pairs.

Dimension key: B pairs, P slot in the pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
from jax.typing import ArrayLike

from dpo_jax.losses import bradley_terry
from dpo_jax.objectives.preference import pair_means
from dpo_jax.types import Counts, Knobs, LossState, Metrics, Objective, PairBatch, Params, join

Rewards = Callable[[Params, PairBatch, jax.Array | None], jax.Array]
"""`rewards(params, batch, key) -> rewards_BP`: a model with a head."""


def reward_objective(rewards: Rewards, *, adapter: bool = False, sources: Sequence[str] = ()) -> Objective:
    """The Bradley-Terry loss, meant over the pairs of the batch; a pair's own margin is added to that of the options.

    With `adapter`, the frozen parameters are the base under it. `sources` are the names of the data's sources, for
    metrics of each.
    """

    def weigh(batch: PairBatch) -> Counts:
        return {"pairs": batch.weight_B.sum()}

    def forward(params: Params, frozen: Params | None, batch: PairBatch, key: jax.Array) -> jax.Array:
        whole = params if frozen is None else join(jax.lax.stop_gradient(frozen), params)
        return rewards(whole, batch, key if adapter else None)

    def loss(
        rewards_BP: jax.Array, batch: PairBatch, knobs: Knobs, counts: Counts, state: LossState, key: jax.Array
    ) -> tuple[jax.Array, Metrics, LossState]:
        chosen_B, rejected_B = rewards_BP[:, 0], rewards_BP[:, 1]
        losses_B = bradley_terry(chosen_B, rejected_B, **with_margins(knobs["options"], batch.margin_B))
        if batch.loss_weight_B is not None:
            losses_B *= batch.loss_weight_B
        watched = {
            "rewards/chosen": chosen_B,
            "rewards/rejected": rejected_B,
            "rewards/margins": chosen_B - rejected_B,
            "rewards/accuracies": (chosen_B > rejected_B).astype(chosen_B.dtype),
        }
        metrics = pair_means(jax.lax.stop_gradient(watched), batch, sources)
        return (losses_B * batch.weight_B).sum() / counts["pairs"], metrics, state

    return Objective(weigh, forward, loss)


def with_margins(options: Knobs, margin_B: ArrayLike | None) -> Knobs:
    """The options with what each pair adds to the margin, [B] or None."""
    return options if margin_B is None else {**options, "margin": options["margin"] + margin_B}
