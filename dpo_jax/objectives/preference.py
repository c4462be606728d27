"""Objectives on texts: losses of the table or the negative log-likelihood of responses, and rewards of pairs.

Dimension key: B pairs, P slot in the pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dpo_jax.logprobs import batch_logps, batch_scores, response_logps, scored_hidden, token_kl, token_log_sum_sq
from dpo_jax.losses import LossInputs, bradley_terry, mismatched_kl, preference_metrics, wpo_weights
from dpo_jax.objectives.terms import Term, TermInputs, as_pair
from dpo_jax.types import Counts, Knobs, LossState, Mean, Metrics, Objective, PairBatch, Params, Unembedding, join

Refresh = Callable[[Params, Params, jax.Array], Params]
Apply = Callable[..., tuple[jax.Array, Unembedding]]
"""`apply(params, tokens_RT, positions_RT, segments_RT, key, sequences=...) -> hidden_RTD, unembedding`: a model."""


def moving(every: int, share: float) -> Refresh:
    """TR-DPO's reference (Gorbatovski et al. 2024): every so many steps it moves by this share to the policy."""

    def moved(params: Params, frozen: Params) -> Params:
        return jax.tree.map(lambda p, f: (share * p + (1.0 - share) * f).astype(f.dtype), params, frozen)

    def refresh(params: Params, frozen: Params, done: jax.Array) -> Params:
        return jax.lax.cond(done % every == 0, moved, lambda params, frozen: frozen, params, frozen)

    return refresh


_Policy = Callable[[Params, Params | None, PairBatch, jax.Array], tuple[jax.Array, Unembedding]]


class Scored(NamedTuple):
    """Scores of a batch by the models: nats, [B, P] each, P = 1 for unpaired completions; None where unread."""

    policy_BP: jax.Array
    policy_heads_BP: jax.Array
    reference_BP: jax.Array | None = None  # where the reference runs in the step
    reference_heads_BP: jax.Array | None = None
    log_sum_sq_BP: jax.Array | None = None  # log sum_v p_v^2 under the policy, summed over the tokens of a response
    token_kl_BP: jax.Array | None = None  # KL(reference || policy), summed over the tokens of a response
    mismatched_BP: jax.Array | None = None  # the policy on the mismatched completions
    reference_mismatched_BP: jax.Array | None = None  # the reference on them, where it runs in the step


def completion_objective(apply: Apply, *, adapter: bool = False, **tiles: int) -> Objective:
    """Negative log-likelihood of the responses, a mean over all scored tokens; a row's weight multiplies its own.

    With `adapter`, the parameters without gradient are the base under it.
    """
    policy = _policy(apply, adapter)

    def weigh(batch: PairBatch) -> Counts:
        return {"tokens": batch.response_tokens_BP.sum()}

    def forward(params: Params, frozen: Params | None, batch: PairBatch, key: jax.Array) -> jax.Array:
        return batch_logps(*policy(params, frozen, batch, key), batch, **tiles)

    def loss(
        logps_BP: jax.Array, batch: PairBatch, knobs: Knobs, counts: Counts, state: LossState, key: jax.Array
    ) -> tuple[jax.Array, Metrics, LossState]:
        nll_B = -logps_BP.sum(axis=1)
        weighted_B = nll_B if batch.loss_weight_B is None else nll_B * batch.loss_weight_B
        metrics = {"nll": Mean(nll_B.sum(), batch.response_tokens_BP.sum())}
        return weighted_B.sum() / counts["tokens"], metrics, state

    return Objective(weigh, forward, loss)


def _hidden(apply: Apply, params: Params, batch: PairBatch, *key: jax.Array) -> tuple[jax.Array, Unembedding]:
    rows = (batch.tokens_RT, batch.positions_RT, batch.segments_RT)
    return apply(params, *rows, *key, sequences=batch.sequences)


def _policy(apply: Apply, adapter: bool) -> _Policy:
    """`policy(params, frozen, batch, key)`: hidden states and unembedding, where the adapter alone may be trained."""
    if not adapter:
        return lambda params, frozen, batch, key: _hidden(apply, params, batch)

    def adapted(
        branches: Params, base: Params | None, batch: PairBatch, key: jax.Array
    ) -> tuple[jax.Array, Unembedding]:
        assert base is not None
        return _hidden(apply, join(jax.lax.stop_gradient(base), branches), batch, key)

    return adapted


def preference_objective(
    apply: Apply,
    terms: Sequence[Term],
    *,
    adapter: bool = False,
    live: bool = False,
    refresh: Refresh | None = None,
    sources: Sequence[str] = (),
    **tiles: int,
) -> Objective:
    """A weighted sum of losses, meant over the pairs of the batch.

    The reference's log-probs come with the batch, or, `live`, from the frozen parameters. Rewards take the beta of the
    first loss that has one. Of several `sources` each has metrics of its own; `adapter` as in `completion_objective`,
    `tiles` as in `batch_scores`.
    """
    policy = _policy(apply, adapter)
    distributions = any(term.entry.needs_distribution for term in terms)
    wpo = any(term.wpo for term in terms)

    def forward(params: Params, frozen: Params | None, batch: PairBatch, key: jax.Array) -> Scored:
        hidden_RTD, unembedding = policy(params, frozen, batch, key)
        pairs, slots = batch.response_tokens_BP.shape
        scored = Scored(*batch_scores(hidden_RTD, unembedding, batch, **tiles))
        if wpo:
            squares_RN = token_log_sum_sq(scored_hidden(hidden_RTD, batch), unembedding, **tiles)
            sums_BP = response_logps(squares_RN, batch.response_RN, pairs=pairs, slots=slots)
            scored = scored._replace(log_sum_sq_BP=sums_BP)
        if batch.mismatched is not None:  # measured, not trained on
            seen = policy(jax.lax.stop_gradient(params), frozen, batch.mismatched, key)
            scored = scored._replace(mismatched_BP=batch_logps(*seen, batch.mismatched, **tiles))
        if not live:
            return scored
        assert frozen is not None
        still = jax.lax.stop_gradient(frozen)
        with jax.named_scope("reference"):
            if batch.mismatched is not None:
                seen = _hidden(apply, still, batch.mismatched)
                scored = scored._replace(reference_mismatched_BP=batch_logps(*seen, batch.mismatched, **tiles))
            reference_RTD, reference_unembedding = _hidden(apply, still, batch)
            logps_BP, heads_BP = batch_scores(reference_RTD, reference_unembedding, batch, **tiles)
        scored = scored._replace(reference_BP=logps_BP, reference_heads_BP=heads_BP)
        if not distributions:
            return scored
        policy_RND, reference_RND = scored_hidden(hidden_RTD, batch), scored_hidden(reference_RTD, batch)
        kl_RN = token_kl(policy_RND, unembedding, reference_RND, reference_unembedding, **tiles)
        return scored._replace(token_kl_BP=response_logps(kl_RN, batch.response_RN, pairs=pairs, slots=slots))

    def loss(
        scored: Scored, batch: PairBatch, knobs: Knobs, counts: Counts, state: LossState, key: jax.Array
    ) -> tuple[jax.Array, Metrics, LossState]:
        inputs = _inputs(scored, batch, counts)
        total, metrics, remembered = jnp.zeros((), jnp.float32), {}, []
        for index, (term, options) in enumerate(zip(terms, knobs["losses"], strict=True)):
            own_key = jax.random.fold_in(key, index)
            losses_B, after = term.evaluate(inputs, options, state[index], own_key)
            summed = (losses_B * batch.weight_B).sum()
            total += term.weight * summed
            remembered.append(after)
            metrics |= _state_metrics(term.name, after)
            if len(terms) > 1:
                metrics[f"loss/{term.name}"] = Mean(summed, batch.weight_B.sum())
        beta = next((options["beta"] for options in knobs["losses"] if "beta" in options), 1.0)
        if batch.desirable_B is None:
            watched = preference_metrics(inputs.read.policy, inputs.read.reference, beta=beta)
            metrics |= pair_means(watched, batch, sources)
        else:
            metrics |= _labelled(inputs.read, batch, counts, beta)
        return total / counts["pairs"], metrics, tuple(remembered)

    entries = [term.entry for term in terms]
    whole_batch = any(entry.batch_global or entry.state or entry.mismatched for entry in entries)
    return Objective(_count, forward, loss, whole_batch=whole_batch, refresh=refresh)


def _count(batch: PairBatch) -> Counts:
    counts = {"pairs": batch.weight_B.sum(), "tokens": (batch.response_tokens_BP[:, 0] * batch.weight_B).sum()}
    if batch.desirable_B is not None:
        counts["desirable"] = (batch.desirable_B * batch.weight_B).sum()
    return counts


def _inputs(scored: Scored, batch: PairBatch, counts: Counts) -> TermInputs:
    stored, tokens_BP = scored.reference_BP is None, batch.response_tokens_BP
    reference_BP = batch.reference_logps_BP if stored else scored.reference_BP
    heads_BP = batch.reference_heads_BP if stored else scored.reference_heads_BP
    where, kl = batch.weight_B > 0, None
    if scored.mismatched_BP is not None and batch.mismatched is not None:
        frozen_BP = batch.mismatched.reference_logps_BP if stored else scored.reference_mismatched_BP
        assert frozen_BP is not None
        kl = mismatched_kl(scored.mismatched_BP[:, 0], frozen_BP[:, 0], where=where)
    read = LossInputs(
        as_pair(scored.policy_BP, tokens_BP),
        None if reference_BP is None else as_pair(reference_BP, tokens_BP),
        where=where,
        token_kl_BP=scored.token_kl_BP,
        desirable_B=batch.desirable_B,
        mismatched_kl=kl,
        mean_tokens=counts["tokens"] / counts["pairs"],
    )
    return TermInputs(
        read,
        policy_heads=as_pair(scored.policy_heads_BP, tokens_BP),
        reference_heads=None if heads_BP is None else as_pair(heads_BP, tokens_BP),
        wpo_weight_B=_wpo_weight(scored, batch),
        loss_weight_B=batch.loss_weight_B,
        soft_label_B=batch.soft_label_B,
    )


def _wpo_weight(scored: Scored, batch: PairBatch) -> jax.Array | None:
    """The weight of each pair, [B], where one is asked for: of its two responses together, 1 at most."""
    if scored.log_sum_sq_BP is None:
        return None
    tokens_BP = jnp.maximum(batch.response_tokens_BP, 1)
    # The mean over the tokens is taken already.
    typical_BP1 = ((scored.policy_BP - scored.log_sum_sq_BP) / tokens_BP)[..., None]
    zeros_BP1 = jnp.zeros_like(typical_BP1)
    weights_BP = wpo_weights(typical_BP1, zeros_BP1, jnp.ones(zeros_BP1.shape, bool), clamp=jnp.inf)
    return jnp.minimum(weights_BP.prod(axis=1), 1.0)


def _state_metrics(name: str, state: LossState) -> Metrics:
    """The state of a loss, for the log."""
    values = {"alpha": state["alpha"]} if "alpha" in state else {}
    values |= state["state"]._asdict() if "state" in state else {}
    return {f"{name}/{field}": Mean(value, jnp.ones((), jnp.float32)) for field, value in values.items()}


_OF_SOURCES = ("rewards/accuracies", "rewards/margins")


def pair_means(watched: dict[str, jax.Array], batch: PairBatch, sources: Sequence[str]) -> Metrics:
    """Means over the pairs of values [B] by name, and those of each source where there are several."""
    weights = {"": batch.weight_B}
    if batch.source_B is not None and len(sources) > 1:
        weights |= {f"/{name}": batch.weight_B * (batch.source_B == n) for n, name in enumerate(sources)}
    return {
        name + suffix: Mean((value_B * weight_B).sum(), weight_B.sum())
        for suffix, weight_B in weights.items()
        for name, value_B in watched.items()
        if not suffix or name in _OF_SOURCES
    }


def _labelled(inputs: LossInputs, batch: PairBatch, counts: Counts, beta: jax.Array | float) -> Metrics:
    """The metrics of unpaired completions: `chosen` of the desirable ones, `rejected` of the others."""
    assert inputs.desirable_B is not None and inputs.reference is not None
    policy_B, reference_B = jax.lax.stop_gradient((inputs.policy.chosen, inputs.reference.chosen))
    weights = {"chosen": inputs.desirable_B * batch.weight_B, "rejected": (1 - inputs.desirable_B) * batch.weight_B}
    means = {"chosen": counts["desirable"], "rejected": counts["pairs"] - counts["desirable"]}
    watched = {"rewards": beta * (policy_B - reference_B), "logps": policy_B, "log_ratios": policy_B - reference_B}
    metrics = {
        f"{name}/{side}": Mean((value_B * weight_B).sum(), weight_B.sum())
        for name, value_B in watched.items()
        for side, weight_B in weights.items()
    }
    # A difference of two means: each micro-batch adds its part of both, and its share of the whole as the weight.
    parts = [(watched["rewards"] * weights[side]).sum() / means[side] for side in ("chosen", "rejected")]
    metrics["rewards/margins"] = Mean(parts[0] - parts[1], batch.weight_B.sum() / counts["pairs"])
    if inputs.mismatched_kl is not None:
        metrics["log_ratios/mismatched"] = Mean(inputs.mismatched_kl, jnp.ones((), jnp.float32))
    return metrics


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
