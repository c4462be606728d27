"""Calling a loss of the tables with what it needs.

Dimension key: B pairs, P slot in the pair.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax.losses import (
    PAIRWISE,
    REFERENCE_FREE,
    STATEFUL,
    TOKEN_LEVEL,
    PairLogps,
    RunningMean,
    implicit_rewards,
    running_mean,
)
from dpo_jax.stages.terms import Term


class Inputs(NamedTuple):
    """What the losses are called with; of an unpaired completion both members are that completion."""

    policy: PairLogps
    reference: PairLogps | None
    where: jax.Array | None = None  # bool [B], which pairs are real
    token_kl_BP: jax.Array | None = None
    desirable_B: jax.Array | None = None
    mismatched_kl: jax.Array | None = None  # [], nats
    policy_heads: PairLogps | None = None  # over as many tokens as the shorter response has
    reference_heads: PairLogps | None = None
    wpo_weight_B: jax.Array | None = None
    loss_weight_B: jax.Array | None = None
    soft_label_B: jax.Array | None = None
    mean_tokens: jax.Array | None = None  # of the chosen responses of the whole batch


def evaluate_term(
    term: Term, inputs: Inputs, knobs: dict[str, Any], memory: dict[str, Any], key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """One loss of the tables, with the token weights that the term asks for: losses [B], and what it remembers.

    `knobs` are its numbers.
    """
    if term.ld_alpha is not None:
        inputs = inputs._replace(
            policy=_ld(inputs.policy, inputs.policy_heads, term.ld_alpha),
            reference=_ld(inputs.reference, inputs.reference_heads, term.ld_alpha),
        )
    if inputs.soft_label_B is not None and "label_smoothing" in knobs:
        knobs = {**knobs, "label_smoothing": 1.0 - inputs.soft_label_B}
    losses_B, memory = _call(term, inputs, knobs, memory, key)
    weights = (inputs.wpo_weight_B if term.wpo else None, inputs.loss_weight_B)
    for weight_B in weights:
        losses_B = losses_B if weight_B is None else losses_B * weight_B
    return losses_B, memory


def _ld(pairs: PairLogps | None, heads: PairLogps | None, alpha: float) -> PairLogps | None:
    """LD-DPO's log-probs: the head counts whole, what comes behind it by alpha (as `ld_reduce` does it by token)."""
    if pairs is None or heads is None:
        return pairs
    return pairs._replace(
        chosen=heads.chosen + alpha * (pairs.chosen - heads.chosen),
        rejected=heads.rejected + alpha * (pairs.rejected - heads.rejected),
    )


def _call(
    term: Term, inputs: Inputs, knobs: dict[str, Any], memory: dict[str, Any], key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    loss, options = term.entry.function, {**term.static, **knobs}
    if term.budget:
        options["alpha"] = memory["alpha"]
    if term.entry.batch_global:
        options["where"] = inputs.where
    if term.name in REFERENCE_FREE:
        if term.name == "sft":
            options["mean_tokens"] = inputs.mean_tokens
        return loss(inputs.policy, **options), memory
    policy, reference = inputs.policy, inputs.reference
    assert reference is not None
    if term.name in STATEFUL:
        lot = {"key": key} if term.entry.key else {}
        losses_B, state = loss(policy, reference, memory["state"], **options, **lot)
        return losses_B, {**memory, "state": state}
    if term.name in TOKEN_LEVEL:
        assert inputs.token_kl_BP is not None
        return loss(policy, reference, inputs.token_kl_BP[:, 0], inputs.token_kl_BP[:, 1], **options), memory
    delta = None
    if term.entry.state is RunningMean:
        rewards = implicit_rewards(policy, reference, beta=options["beta"])
        rewards = rewards if term.name in PAIRWISE else rewards[:1]
        where = None if inputs.where is None else jnp.tile(inputs.where, len(rewards))
        delta, state = running_mean(jnp.concatenate(rewards), memory["state"], where=where)
        memory = {**memory, "state": state}
    if term.name in PAIRWISE:
        return loss(policy, reference, **options, **({} if delta is None else {"delta": delta})), memory
    level = inputs.mismatched_kl if term.entry.mismatched else delta
    more = () if level is None else (level,)
    return loss(policy.chosen, reference.chosen, inputs.desirable_B, *more, **options), memory
