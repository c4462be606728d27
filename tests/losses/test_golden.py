"""The losses by value: what TRL 1.16.0 computed for fixed inputs, recorded in trl_golden.json (no torch needed here).

Six pairs of token log-probs; for each case the mean loss, its gradient with respect to each token's log-prob (the CPO
and ORPO cases: losses, and gradients with respect to each response's), and TRL's metrics.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses
from dpo_jax.losses import PairLogps

GOLDEN = json.loads((Path(__file__).parent / "trl_golden.json").read_text(encoding="utf8"))
INPUTS = {name: np.asarray(value) for name, value in GOLDEN["inputs"].items()}
MASKS = {name: INPUTS[f"{name}_mask"][:, 1:] > 0 for name in ("chosen", "rejected")}  # the first token has no log-prob
RECORDED = [(kind, case) for kind in ("dpo", "kto", "cpo") for case in GOLDEN[kind]] + [("orpo", GOLDEN["orpo"])]

# TRL takes the logarithm of label_smoothing in float32; its own number, so that the rest is compared to nine digits.
FLOAT32_EPSILON = {0.001: float(np.exp(np.float64(np.log(np.float32(0.001)))))}
TRL_DIVERGENCES = {"forward_kl": "forward_kl", "js_divergence": "js", "alpha_divergence": "alpha"}
TRL_NAMES = {"robust": losses.robust_dpo} | {
    name: losses.PAIRWISE[name].function
    for name in ("nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop")
}


def named(kind_and_case: tuple[str, dict[str, Any]]) -> str:
    kind, case = kind_and_case
    options = [f"{key}={case[key]}" for key in ("label_smoothing", "alpha", "undesirable_weight") if key in case]
    return f"{kind}/{case['name']}" if "name" in case else "/".join([kind, case.get("loss_type", ""), *options])


def close(ours: Any, trl: Any, case: dict[str, Any]) -> None:
    np.testing.assert_allclose(ours, trl, rtol=1e-5 if case.get("dtype") == "float32" else 1e-9, atol=1e-14)


def test_no_case_is_left_out():
    assert Counter(kind for kind, _ in RECORDED) == {"dpo": 48, "kto": 4, "cpo": 16, "orpo": 1}
    assert len({named(recorded) for recorded in RECORDED}) == 69


@pytest.mark.parametrize(("kind", "case"), RECORDED, ids=map(named, RECORDED))
def test_loss_gradient_and_metrics_equal_trl(kind: str, case: dict[str, Any]):
    with jax.enable_x64(case.get("dtype", "float64") == "float64"):
        {"dpo": compare_dpo, "kto": compare_kto, "cpo": compare_cpo, "orpo": compare_orpo}[kind](case)


def compare_dpo(case: dict[str, Any]) -> None:
    settings = case["settings"]
    reference = PairLogps(jnp.asarray(INPUTS["ref_chosen"]), jnp.asarray(INPUTS["ref_rejected"]))

    def mean_loss(token_logps):
        policy = summed(token_logps, settings.get("ld_alpha"))
        types, weights = settings["loss_type"], settings.get("loss_weights", [1.0])
        terms = [types] if isinstance(types, str) else types
        total = sum(w * term(settings, name, policy, reference) for name, w in zip(terms, weights, strict=True))
        if settings.get("wpo"):
            total = total * wpo(token_logps)
        return total.mean(), policy

    token_logps = {name: jnp.asarray(INPUTS[f"{name}_logps"]) for name in MASKS}
    (loss, policy), gradient = jax.value_and_grad(mean_loss, has_aux=True)(token_logps)
    assert loss.dtype == case["dtype"]
    close(loss, case["loss"], case)
    for name, mask in MASKS.items():  # elsewhere TRL's log-probs are zeros that it sums without a mask
        close(gradient[name][mask], np.asarray(case[f"grad_{name}"])[mask], case)
    metrics = losses.preference_metrics(policy, reference, beta=settings["beta"])
    assert set(case["metrics"]) <= set(metrics)
    for name, value in case["metrics"].items():
        # TRL averages its accuracies in float32.
        close(metrics[name].mean(), value, {"dtype": "float32"} if name.endswith("accuracies") else case)


def summed(token_logps: dict[str, jax.Array], ld_alpha: float | None) -> PairLogps:
    logps_BPT = jnp.stack([token_logps["chosen"], token_logps["rejected"]], axis=1)
    mask_BPT = jnp.stack([MASKS["chosen"], MASKS["rejected"]], axis=1)
    logps_BP = losses.ld_reduce(logps_BPT, mask_BPT, alpha=1.0 if ld_alpha is None else ld_alpha)
    return PairLogps(*logps_BP.T, *mask_BPT.sum(axis=2).T)


def term(settings: dict[str, Any], name: str, policy: PairLogps, reference: PairLogps) -> jax.Array:
    beta = settings["beta"]
    if name == "sft":
        return losses.sft(policy, nll_reduction="token")
    if name == "sigmoid_norm":
        return losses.length_normalized_dpo(policy, reference, beta=beta)
    if name == "exo_pair":
        epsilon = FLOAT32_EPSILON[settings["label_smoothing"]]
        return losses.exo_pair(policy, reference, beta=beta, label_smoothing=epsilon)
    if name in ("sigmoid", "hinge", "ipo"):
        divergence = TRL_DIVERGENCES.get(settings.get("f_div"))
        options = {"divergence": divergence, "alpha": 1.0 - settings.get("alpha", 0.5)}
        if divergence and name == "sigmoid":
            return losses.f_dpo(policy, reference, beta=beta, **options)
        if divergence:
            policy, reference = losses.f_scores(policy, reference, **options), zero_reference(policy)
        function = {"sigmoid": losses.dpo, "hinge": losses.hinge, "ipo": losses.ipo}[name]
        return function(policy, reference, beta=beta)
    smoothing = {"label_smoothing": settings["label_smoothing"]} if "label_smoothing" in settings else {}
    discopop = {"temperature": 0.05} if name == "discopop" else {}
    return TRL_NAMES[name](policy, reference, beta=beta, **smoothing, **discopop)


def zero_reference(policy: PairLogps) -> PairLogps:
    return PairLogps(jnp.zeros_like(policy.chosen), jnp.zeros_like(policy.rejected))


def wpo(token_logps: dict[str, jax.Array]) -> jax.Array:
    sums = dict(zip(MASKS, np.split(INPUTS["log_sum_sq_probs"], 2), strict=True))
    chosen, rejected = (losses.wpo_weights(token_logps[n], jnp.asarray(sums[n]), MASKS[n], clamp=1.0) for n in MASKS)
    return jnp.minimum(chosen * rejected, 1.0)


def compare_kto(case: dict[str, Any]) -> None:
    desirable = INPUTS["kto_label"]
    reference = jnp.asarray(INPUTS["ref_chosen"])
    weights = {name: case[name] for name in ("beta", "desirable_weight", "undesirable_weight")}

    def mean_loss(token_logps):
        policy = jnp.where(MASKS["chosen"], token_logps, 0).sum(axis=1)
        if case["loss_type"] == "apo_zero_unpaired":
            return losses.apo_zero_unpaired(policy, reference, desirable, **weights).mean(), policy
        return losses.kto(policy, reference, desirable, case["kl"], **weights).mean(), policy

    (loss, policy), gradient = jax.value_and_grad(mean_loss, has_aux=True)(jnp.asarray(INPUTS["chosen_logps"]))
    close(loss, case["loss"], case)
    close(gradient[MASKS["chosen"]], np.asarray(case["grad"])[MASKS["chosen"]], case)
    if case["loss_type"] == "kto":
        kl = losses.mismatched_kl(jnp.asarray(INPUTS["kto_kl"]), jnp.asarray(INPUTS["kto_ref_kl"]))
        close(jnp.maximum(kl, 0), case["kl"], {"dtype": "float32"})  # TRL's is an average in float32
    rewards, _ = losses.implicit_rewards(
        PairLogps(policy, policy), PairLogps(reference, reference), beta=weights["beta"]
    )
    of = {"chosen": desirable, "rejected": ~desirable}
    for name, members in of.items():
        close(rewards[members].mean(), case["metrics"][f"rewards/{name}"], case)
        close(policy[members].mean(), case["metrics"][f"logps/{name}"], case)
    close(rewards[desirable].mean() - rewards[~desirable].mean(), case["metrics"]["rewards/margins"], case)


def compare_cpo(case: dict[str, Any]) -> None:
    def mean_loss(pairs):
        found = cpo_losses(case, PairLogps(*pairs, jnp.ones(6), jnp.ones(6)))
        return found.mean(), found

    pairs = jnp.asarray(INPUTS["cpo_chosen"]), jnp.asarray(INPUTS["cpo_rejected"])
    (chosen, rejected), found = jax.grad(mean_loss, has_aux=True)(pairs)
    close(found, case["losses"], case)
    close(chosen, case["grad_chosen"], case)
    close(rejected, case["grad_rejected"], case)


def cpo_losses(case: dict[str, Any], pairs: PairLogps) -> jax.Array:
    """TRL's CPO trainer: `alpha` bends the log-probs into AlphaPO's rewards before any of its losses."""
    name, beta, alpha = case["loss_type"], case["beta"], case["alpha"]
    zero = zero_reference(pairs)
    if name == "simpo" and alpha and not case["label_smoothing"]:
        return losses.alpha_po(pairs, beta=beta, gamma=case["simpo_gamma"], alpha=alpha)
    if alpha:
        pairs = losses.f_scores(pairs, zero, divergence="alpha", alpha=alpha)
    if name == "hinge":
        return losses.hinge(pairs, zero, beta=beta)
    if name == "ipo":
        return losses.ipo(pairs, zero, beta=beta, average=False)
    smoothing = {"beta": beta, "label_smoothing": case["label_smoothing"]}
    return (
        losses.simpo(pairs, gamma=case["simpo_gamma"], **smoothing)
        if name == "simpo"
        else losses.cpo(pairs, **smoothing)
    )


def compare_orpo(case: dict[str, Any]) -> None:
    def mean_loss(pairs):
        found = losses.orpo(PairLogps(*pairs, jnp.ones(6), jnp.ones(6)))
        return case["beta"] * found.mean(), found

    pairs = jnp.asarray(INPUTS["cpo_chosen"]), jnp.asarray(INPUTS["cpo_rejected"])
    (chosen, rejected), found = jax.grad(mean_loss, has_aux=True)(pairs)
    close(case["beta"] * found, case["minus_losses"], case)
    close(found.mean(), -case["mean_log_odds_ratio"], case)
    close(chosen, case["grad_chosen"], case)
    close(rejected, case["grad_rejected"], case)
