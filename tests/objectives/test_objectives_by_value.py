"""Losses in the step by value: told again from all logits at once, term by term and pair by pair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.config import LossConfig
from dpo_jax.experiments.losses import needs_mismatched, read_terms
from dpo_jax.losses import PairLogps, dpo, ld_reduce, simpo, tdpo1, wpo_weights
from dpo_jax.objectives.preference import completion_objective, preference_objective
from dpo_jax.types import PairBatch
from tests.objectives.toy import (
    PAIRS,
    Toy,
    all_logps,
    by_token,
    first_micro_batch,
    found_by,
    jitted_gradients,
    make_batch,
    of_responses,
    parameters,
    sums_BP,
)


@pytest.mark.parametrize(("ld_alpha", "wpo"), [(0.3, False), (None, True), (0.0, True)])
def test_token_weights_in_the_step_equal_the_pure_functions(x64, ld_alpha: float | None, wpo: bool):
    whole = make_batch(unpaired=False, mismatched=False, micro_batches=1, reference=True)
    likeliest_RN = by_token(parameters(0), jax.tree.map(lambda x: x[0], whole))[3].reshape(2 * PAIRS, -1)
    whole.target_RN[0, :PAIRS] = likeliest_RN[:PAIRS]  # half of the pairs are just what the policy would say
    batch = jax.tree.map(lambda x: x[0], whole)
    logps_BPN, squares_BPN, mask_BPN, _ = by_token(parameters(0), batch)
    heads_BP, totals_BP = (jnp.asarray(x, jnp.float64) for x in (batch.reference_heads_BP, batch.reference_logps_BP))
    if ld_alpha is None:
        policy_BP, reference_BP = (logps_BPN * mask_BPN).sum(-1), totals_BP
    else:
        policy_BP = ld_reduce(logps_BPN, mask_BPN, alpha=ld_alpha)
        reference_BP = heads_BP + ld_alpha * (totals_BP - heads_BP)
    losses_B = dpo(PairLogps(*policy_BP.T), PairLogps(*reference_BP.T))
    if wpo:
        weights_B = wpo_weights(logps_BPN, squares_BPN, mask_BPN, clamp=jnp.inf).prod(axis=1)
        assert (weights_B < 1).any() and (weights_B > 1).any()
        losses_B *= jnp.minimum(weights_B, 1.0)
    (loss, _, _), _ = found_by([LossConfig(name="dpo", ld_alpha=ld_alpha, wpo=wpo)], micro_batches=1, batch=whole)
    # the reference is float32, and so is its head
    np.testing.assert_allclose(loss, losses_B.mean(), rtol=1e-7 if ld_alpha else 1e-9)


@pytest.mark.slow("four programs")
def test_a_mixture_is_the_weighted_sum_of_its_losses(x64):
    batch = make_batch(unpaired=False, mismatched=False, micro_batches=2, reference=True)
    losses = [LossConfig(name="dpo"), LossConfig(name="bco_pair", options={"beta": 0.3}), LossConfig(name="sft")]
    singles = [found_by([loss], micro_batches=2, batch=batch) for loss in losses]
    weights = (0.8, 0.2, 1.5)
    mixture = [replace(loss, weight=weight) for loss, weight in zip(losses, weights, strict=True)]
    (loss, _, memory), gradient = found_by(mixture, micro_batches=2, batch=batch)
    expected = [
        jax.tree.map(lambda *parts: sum(w * part for w, part in zip(weights, parts, strict=True)), *found)
        for found in ([single[0][0] for single in singles], [single[1] for single in singles])
    ]
    for ours, wanted in zip(jax.tree.leaves((loss, gradient)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-12)
    assert [jax.tree.leaves(one) for one in memory] == [jax.tree.leaves(single[0][2]) for single in singles]
    assert memory[1]["state"].count == pytest.approx(0.7 + 2 * PAIRS)


def test_two_losses_that_draw_lots_draw_different_ones_in_a_mixture(x64):
    batch = make_batch(unpaired=False, mismatched=False, micro_batches=1, reference=True)
    logps_BPN, _, mask_BPN, _ = by_token(parameters(0), first_micro_batch(batch))
    close_BP = (logps_BPN * mask_BPN).sum(-1) + np.random.default_rng(0).normal(0, 0.5, (PAIRS, 2))
    batch = batch._replace(reference_logps_BP=np.asarray(close_BP, np.float32)[None])  # so close that chance decides
    lots = LossConfig(name="beta_dpo", options={"filter_fraction": 0.5})
    (one, _, _), _ = found_by([lots], micro_batches=1, batch=batch)
    (two, _, _), _ = found_by([lots, lots], micro_batches=1, batch=batch)
    assert abs(two / one - 2) > 1e-3


def test_weights_multiply_the_losses_and_soft_labels_are_label_smoothing_of_each_pair(x64):
    whole = make_batch(unpaired=False, mismatched=False, micro_batches=2, reference=True)
    parts = [jax.tree.map(lambda x, i=i: x[i], whole) for i in range(2)]
    weights_B, soft_B = np.array([1, 0, 2.5, 1, 1, 0.5, 3, 1], np.float32), np.linspace(0, 1, 8, dtype=np.float32)
    batch = whole._replace(loss_weight_B=weights_B.reshape(2, 4), soft_label_B=soft_B.reshape(2, 4))
    losses = [LossConfig(name="dpo"), LossConfig(name="sft", weight=0.5)]
    (loss, metrics, _), _ = found_by(losses, micro_batches=2, batch=batch)
    ratios_BP = np.concatenate([sums_BP(parameters(0), part) - part.reference_logps_BP for part in parts])
    margins_B = 0.1 * (ratios_BP[:, 0] - ratios_BP[:, 1])
    pairs_B = soft_B * jax.nn.softplus(-margins_B) + (1 - soft_B) * jax.nn.softplus(margins_B)
    nll_B = -np.concatenate([sums_BP(parameters(0), part)[:, 0] for part in parts])
    tokens_B = np.concatenate([part.response_tokens_BP[:, 0] for part in parts])
    sft = (weights_B * nll_B).sum() / tokens_B.sum()
    np.testing.assert_allclose(loss, (weights_B * pairs_B).sum() / 8 + 0.5 * sft, rtol=1e-7)
    np.testing.assert_allclose(shown(metrics)["rewards/margins"], margins_B.mean(), rtol=1e-7)  # of all pairs alike


def test_each_of_several_sources_has_its_metrics(x64):
    whole = make_batch(unpaired=False, mismatched=False, micro_batches=2, reference=True)
    source_B = np.array([0, 2, 2, 0, 0, 2, 0, 0], np.float32)
    objective = preference_objective(Toy().apply, read_terms([LossConfig(name="dpo")], {}), sources=("a", "b", "c"))  # type: ignore[arg-type]
    batch = whole._replace(source_B=source_B.reshape(2, 4))
    knobs = {"losses": [{"beta": 0.1, "label_smoothing": 0.0}]}
    (_, metrics, _), _ = jitted_gradients(objective)(parameters(0), None, batch, knobs, ({},))
    parts = [jax.tree.map(lambda x, i=i: x[i], whole) for i in range(2)]
    ratios_BP = np.concatenate([sums_BP(parameters(0), part) - part.reference_logps_BP for part in parts])
    margins_B = 0.1 * (ratios_BP[:, 0] - ratios_BP[:, 1])
    for number, name in enumerate("ac"):
        own = margins_B[source_B == 2 * number]
        found = metrics[f"rewards/margins/{name}"], metrics[f"rewards/accuracies/{name}"]
        np.testing.assert_allclose([x.total / x.weight for x in found], [own.mean(), (own > 0).mean()], rtol=1e-7)
    assert metrics["rewards/margins/b"].weight == 0


REAL = np.array([1, 1, 0, 1, 1, 1, 0, 1], np.float32)


def test_losses_of_single_pairs_are_meant_over_the_real_ones(x64):
    """8 L(all) = 6 L(6 of them) + 2 L(the other 2)."""
    whole = make_batch(unpaired=False, mismatched=False, micro_batches=2, reference=True)

    def total(weights: np.ndarray) -> Any:
        batch = whole._replace(weight_B=weights.reshape(2, 4))
        (loss, _, _), gradient = found_by([LossConfig(name="dpo")], micro_batches=2, batch=batch)
        return jax.tree.map(lambda x: weights.sum() * x, (loss, gradient))

    for both, one, other in zip(*map(jax.tree.leaves, map(total, (np.ones(8), REAL, 1 - REAL))), strict=True):
        np.testing.assert_allclose(one + other, both, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("names", [("aot", "beta_dpo", "bco_pair"), ("kto",)], ids="-".join)
def test_a_pair_of_weight_0_changes_nothing_for_the_others(x64, names: tuple[str, ...]):
    losses = [LossConfig(name=name) for name in names]
    batch = make_batch(
        unpaired="kto" in names, mismatched=needs_mismatched(losses), micro_batches=2, reference=True
    )._replace(weight_B=REAL.reshape(2, 4))

    def junk(batch: PairBatch) -> PairBatch:
        logps_BP = np.where(REAL.reshape(2, 4, 1) > 0, batch.reference_logps_BP, 40.0)
        mismatched = None if batch.mismatched is None else junk(batch.mismatched)
        return batch._replace(reference_logps_BP=logps_BP.astype(np.float32), mismatched=mismatched)

    def values(which: PairBatch) -> Any:
        return found_by(losses, micro_batches=2, batch=which)  # its metrics too

    for ours, wanted in zip(*map(jax.tree.leaves, (values(junk(batch)), values(batch))), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-12)


def test_a_reference_in_the_step_scores_mismatched_completions_as_a_stored_one_has(x64):
    live = make_batch(unpaired=True, mismatched=True, micro_batches=1, reference=False)
    assert live.mismatched is not None
    scores, others = (sums_BP(parameters(1), first_micro_batch(each)) for each in (live, live.mismatched))
    stored = live._replace(
        reference_logps_BP=scores[None], mismatched=live.mismatched._replace(reference_logps_BP=others[None])
    )
    terms = read_terms([LossConfig(name="kto")], {})
    rest = {"losses": [term.knobs(0) for term in terms]}, tuple(term.memory() for term in terms)

    def values(batch: PairBatch, frozen: Any) -> Any:
        objective = preference_objective(Toy().apply, terms, live=frozen is not None)
        return jitted_gradients(objective)(parameters(0), frozen, batch, *rest)

    for ours, wanted in zip(*map(jax.tree.leaves, (values(live, parameters(1)), values(stored, None))), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-6, atol=1e-9)


def test_tdpo_reads_the_kl_of_the_reference_to_the_policy_token_by_token(x64):
    whole = make_batch(unpaired=False, mismatched=False, micro_batches=1, reference=False)
    batch = first_micro_batch(whole)
    ours_RNV, frozen_RNV = (all_logps(parameters(seed), batch) for seed in (0, 1))
    kl_RN = jnp.where(batch.response_RN >= 0, (jnp.exp(frozen_RNV) * (frozen_RNV - ours_RNV)).sum(-1), 0)
    kl_BP = of_responses(kl_RN, batch).sum(axis=2)
    policy, reference = (PairLogps(*sums_BP(parameters(seed), batch).T) for seed in (0, 1))
    (loss, _, _), _ = found_by([LossConfig(name="tdpo1")], micro_batches=1, batch=whole)
    np.testing.assert_allclose(loss, tdpo1(policy, reference, *kl_BP.T).mean(), rtol=1e-9)


def test_averages_are_over_each_responses_own_tokens(x64):
    whole = make_batch(unpaired=False, mismatched=False, micro_batches=1, reference=True)
    batch = first_micro_batch(whole)
    policy = PairLogps(*sums_BP(parameters(0), batch).T, *by_token(parameters(0), batch)[2].sum(axis=2).T)
    (loss, _, _), _ = found_by([LossConfig(name="simpo")], micro_batches=1, batch=whole)
    np.testing.assert_allclose(loss, simpo(policy).mean(), rtol=1e-9)


def test_supervised_completions_are_a_mean_over_tokens(x64):
    """However they lie in micro-batches."""
    whole = make_batch(unpaired=True, mismatched=False, micro_batches=2, reference=False)
    parts = [jax.tree.map(lambda x, i=i: x[i], whole) for i in range(2)]
    nats = -sum(sums_BP(parameters(0), part).sum() for part in parts)
    tokens = sum(part.response_tokens_BP.sum() for part in parts)
    step = jitted_gradients(completion_objective(Toy().apply))  # type: ignore[arg-type]
    (loss, metrics, _), _ = step(parameters(0), None, whole, {}, ())
    np.testing.assert_allclose([loss, shown(metrics)["nll"]], [nats / tokens] * 2, rtol=1e-9)

    weights_B = np.array([0, 1, 2, 0.5, 1, 1, 3, 1], np.float32)
    nats_B = -np.concatenate([sums_BP(parameters(0), part)[:, 0] for part in parts])
    batch = whole._replace(loss_weight_B=weights_B.reshape(2, 4))
    (loss, metrics, _), _ = step(parameters(0), None, batch, {}, ())
    np.testing.assert_allclose(loss, (weights_B * nats_B).sum() / tokens, rtol=1e-9)
    np.testing.assert_allclose(shown(metrics)["nll"], nats / tokens, rtol=1e-9)


def shown(metrics: Any) -> dict[str, float]:
    return {name: float(mean.total / mean.weight) for name, mean in metrics.items()}


def test_metrics_of_pairs_have_the_beta_of_the_first_loss_and_each_loss_its_own_value(x64):
    losses = [LossConfig(name="ipo", weight=0.5, options={"beta": 0.7}), LossConfig(name="dpo", options={"beta": 0.2})]
    whole = make_batch(unpaired=False, mismatched=False, micro_batches=1, reference=True)
    batch = first_micro_batch(whole)
    ratios_BP = sums_BP(parameters(0), batch) - batch.reference_logps_BP
    margins_B = ratios_BP[:, 0] - ratios_BP[:, 1]
    (_, metrics, _), _ = found_by(losses, micro_batches=1, batch=whole)
    found = shown(metrics)
    np.testing.assert_allclose(found["rewards/margins"], 0.7 * margins_B.mean(), rtol=1e-9)
    np.testing.assert_allclose(found["loss/dpo"], jax.nn.softplus(-0.2 * margins_B).mean(), rtol=1e-9)
    squares_B = (ratios_BP / batch.response_tokens_BP @ np.array([1.0, -1.0]) - 1 / 1.4) ** 2
    np.testing.assert_allclose(found["loss/ipo"], squares_B.mean(), rtol=1e-9)


def test_metrics_of_labelled_completions_are_means_over_each_label(x64):
    whole = make_batch(unpaired=True, mismatched=False, micro_batches=4, reference=True)
    parts = [jax.tree.map(lambda x, i=i: x[i], whole) for i in range(4)]
    logps_B = np.concatenate([sums_BP(parameters(0), part)[:, 0] for part in parts])
    ratios_B = logps_B - np.concatenate([part.reference_logps_BP[:, 0] for part in parts])
    good_B = np.concatenate([part.desirable_B for part in parts]) > 0
    losses = [LossConfig(name="apo_zero_unpaired", options={"beta": 0.5})]
    (_, metrics, _), _ = found_by(losses, micro_batches=4, batch=whole)
    found = shown(metrics)
    expected = {
        "rewards/chosen": 0.5 * ratios_B[good_B].mean(),
        "rewards/rejected": 0.5 * ratios_B[~good_B].mean(),
        "rewards/margins": 0.5 * (ratios_B[good_B].mean() - ratios_B[~good_B].mean()),
        "logps/chosen": logps_B[good_B].mean(),
        "log_ratios/rejected": ratios_B[~good_B].mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)
