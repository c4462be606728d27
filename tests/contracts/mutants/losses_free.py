"""Losses without a reference, and those that read more than response log-probs."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

CALLS = "tests/contracts/test_losses_calls.py"
BATTERY = "tests/contracts/test_losses.py"

MUTANTS: list[Mutant] = [
    *planted(
        "losses/reference_free.py",
        ("tests/losses/test_reference_free.py", CALLS, BATTERY),
        (
            "simpo: chosen and rejected exchanged",
            "smoothed(beta * (p_B - q_B) - gamma, label_smoothing)",
            "smoothed(beta * (q_B - p_B) - gamma, label_smoothing)",
        ),
        (
            "simpo: beta twice",
            "smoothed(beta * (p_B - q_B) - gamma, label_smoothing)",
            "smoothed(beta * beta * (p_B - q_B) - gamma, label_smoothing)",
        ),
        (
            "simpo: gamma multiplied by beta",
            "smoothed(beta * (p_B - q_B) - gamma, label_smoothing)",
            "smoothed(beta * (p_B - q_B - gamma), label_smoothing)",
        ),
        (
            "simpo: label smoothing ignored",
            "smoothed(beta * (p_B - q_B) - gamma, label_smoothing)",
            "smoothed(beta * (p_B - q_B) - gamma, 0.0)",
        ),
        (
            "simpo: sums instead of averages",
            "    p_B, q_B = averages(policy)\n    return smoothed(",
            "    p_B, q_B = widened(policy.chosen, policy.rejected)\n    return smoothed(",
        ),
        (
            "cpo: beta twice",
            "smoothed(beta * (C_B - R_B), label_smoothing)",
            "smoothed(beta * beta * (C_B - R_B), label_smoothing)",
        ),
        (
            "cpo: chosen and rejected exchanged",
            "smoothed(beta * (C_B - R_B), label_smoothing)",
            "smoothed(beta * (R_B - C_B), label_smoothing)",
        ),
        (
            "cpo: label smoothing ignored",
            "smoothed(beta * (C_B - R_B), label_smoothing)",
            "smoothed(beta * (C_B - R_B), 0.0)",
        ),
        (
            "orpo: log1mexp near 0 by the branch for far from it",
            "jnp.log(-jnp.expm1(small_B))",
            "jnp.log1p(-jnp.exp(small_B))",
        ),
        (
            "orpo: log1mexp far from 0 by the branch for near it",
            "jnp.log1p(-jnp.exp(large_B))",
            "jnp.log(-jnp.expm1(large_B))",
        ),
        (
            "orpo: both branches of log1mexp see all values, so the gradient is NaN",
            "jnp.where(near_zero, x_B, -1.0), jnp.where(near_zero, -1.0, x_B)",
            "x_B, x_B",
        ),
        ("orpo: averages at 0 are not clamped", "    average_B = jnp.minimum(average_B, -LEAST_SURPRISE)\n", ""),
        (
            "orpo: log-odds with a swapped sign",
            "return average_B - log1mexp(average_B)",
            "return average_B + log1mexp(average_B)",
        ),
        ("orpo: log-odds are log-probs", "return average_B - log1mexp(average_B)", "return average_B"),
        (
            "orpo: chosen and rejected exchanged",
            "-log_sigmoid(_log_odds(p_B) - _log_odds(q_B))",
            "-log_sigmoid(_log_odds(q_B) - _log_odds(p_B))",
        ),
        (
            "orpo: sums instead of averages",
            "    p_B, q_B = averages(policy)\n    return -log_sigmoid(_log_odds",
            "    p_B, q_B = widened(policy.chosen, policy.rejected)\n    return -log_sigmoid(_log_odds",
        ),
        (
            "orpo: naive log-sigmoid",
            "-log_sigmoid(_log_odds(p_B) - _log_odds(q_B))",
            "-jnp.log(jax.nn.sigmoid(_log_odds(p_B) - _log_odds(q_B)))",
        ),
        ("slic_hf: chosen and rejected exchanged", "jax.nn.relu(delta - C_B + R_B)", "jax.nn.relu(delta + C_B - R_B)"),
        ("slic_hf: no hinge", "jax.nn.relu(delta - C_B + R_B)", "delta - C_B + R_B"),
        ("slic_hf: half a slope at the kink", "jax.nn.relu(delta - C_B + R_B)", "jnp.maximum(delta - C_B + R_B, 0.0)"),
        (
            "alpha_po: alpha with a swapped sign",
            "(alpha_reward(p_B, alpha) - alpha_reward(q_B, alpha))",
            "(alpha_reward(p_B, -alpha) - alpha_reward(q_B, -alpha))",
        ),
        (
            "alpha_po: the reward of the difference, not the difference of the rewards",
            "(alpha_reward(p_B, alpha) - alpha_reward(q_B, alpha))",
            "(alpha_reward(p_B - q_B, alpha))",
        ),
        (
            "alpha_po: sums instead of averages",
            "    p_B, q_B = averages(policy)\n    return -log_sigmoid(beta",
            "    p_B, q_B = widened(policy.chosen, policy.rejected)\n    return -log_sigmoid(beta",
        ),
        (
            "alpha_po: gamma with a swapped sign",
            "alpha_reward(q_B, alpha)) - gamma)",
            "alpha_reward(q_B, alpha)) + gamma)",
        ),
    ),
    *planted(
        "losses/reference_free.py",
        ("tests/contracts/test_losses_calls.py -k refused",),
        ("alpha_po: knobs are not checked", "    check_knobs(alpha_po, beta=beta, gamma=gamma, alpha=alpha)\n", ""),
        (
            "simpo: knobs are not checked",
            "    check_knobs(simpo, beta=beta, gamma=gamma, label_smoothing=label_smoothing)\n",
            "",
        ),
        ("cpo: knobs are not checked", "    check_knobs(cpo, beta=beta, label_smoothing=label_smoothing)\n", ""),
        ("slic_hf: knobs are not checked", "    check_knobs(slic_hf, delta=delta)\n", ""),
    ),
    *planted(
        "losses/token_level.py",
        ("tests/losses/test_token_level.py", CALLS, BATTERY),
        ("tdpo1: the KLs with a swapped sign", "a_B - b_B - (K_l_B - K_w_B)", "a_B - b_B + (K_l_B - K_w_B)"),
        (
            "tdpo1: beta twice",
            "-log_sigmoid(beta * (a_B - b_B - (K_l_B - K_w_B)))",
            "-log_sigmoid(beta * beta * (a_B - b_B - (K_l_B - K_w_B)))",
        ),
        (
            "tdpo1: no gradient through the chosen KL",
            "-log_sigmoid(beta * (a_B - b_B - (K_l_B - K_w_B)))",
            "-log_sigmoid(beta * (a_B - b_B - (K_l_B - jax.lax.stop_gradient(K_w_B))))",
        ),
        ("tdpo2: gradient flows through the chosen KL", "K_l_B - jax.lax.stop_gradient(K_w_B)", "K_l_B - K_w_B"),
        (
            "tdpo2: no gradient through the rejected KL",
            "K_l_B - jax.lax.stop_gradient(K_w_B)",
            "jax.lax.stop_gradient(K_l_B) - K_w_B",
        ),
        ("tdpo2: alpha ignored", "- alpha * (K_l_B", "- (K_l_B"),
        (
            "tdpo2: beta twice",
            "-log_sigmoid(beta * (a_B - b_B - alpha",
            "-log_sigmoid(beta * beta * (a_B - b_B - alpha",
        ),
        (
            "tdpo: KLs of another shape are broadcast",
            "    chex.assert_equal_shape([policy.chosen, chosen_kl, rejected_kl])\n",
            "",
        ),
        (
            "wpo_weights: gradient flows",
            "jax.lax.stop_gradient(jnp.minimum(jnp.exp(jnp.minimum(averages, LARGEST_EXPONENT)), clamp))",
            "jnp.minimum(jnp.exp(jnp.minimum(averages, LARGEST_EXPONENT)), clamp)",
        ),
        (
            "wpo_weights: the clamp is ignored",
            "jax.lax.stop_gradient(jnp.minimum(jnp.exp(jnp.minimum(averages, LARGEST_EXPONENT)), clamp))",
            "jax.lax.stop_gradient(jnp.exp(jnp.minimum(averages, LARGEST_EXPONENT)))",
        ),
        (
            "wpo_weights: the exponent has no bound",
            "jnp.exp(jnp.minimum(averages, LARGEST_EXPONENT))",
            "jnp.exp(averages)",
        ),
        (
            "wpo_weights: padding counts in the mean",
            "jnp.maximum(jnp.count_nonzero(mask, axis=-1), 1)",
            "mask.shape[-1]",
        ),
        (
            "wpo_weights: a response without tokens divides by 0",
            "jnp.maximum(jnp.count_nonzero(mask, axis=-1), 1)",
            "jnp.count_nonzero(mask, axis=-1)",
        ),
        (
            "wpo_weights: swapped sign of the yardstick",
            " - jnp.asarray(log_sum_sq_probs, dtype), 0.0)",
            " + jnp.asarray(log_sum_sq_probs, dtype), 0.0)",
        ),
        (
            "wpo_weights: padding counts in the sum",
            "jnp.where(mask, jnp.asarray(token_logps, dtype) - jnp.asarray(log_sum_sq_probs, dtype), 0.0)",
            "jnp.asarray(token_logps, dtype) - jnp.asarray(log_sum_sq_probs, dtype)",
        ),
        ("ld_reduce: as long as the longer response", ".min(axis=1, keepdims=True)", ".max(axis=1, keepdims=True)"),
        (
            "ld_reduce: places count padding",
            "place_BPT = jnp.cumsum(present_BPT, axis=2)",
            "place_BPT = jnp.cumsum(jnp.ones_like(present_BPT), axis=2)",
        ),
        ("ld_reduce: one token short", "place_BPT <= shorter_B11", "place_BPT < shorter_B11"),
        ("ld_reduce: alpha ignored", "jnp.asarray(alpha, dtype).reshape(-1, 1, 1))", "0.0)"),
        (
            "ld_reduce: NaN in padding leaks",
            "jnp.where(present_BPT, jnp.asarray(token_logps_BPT, dtype), 0.0)",
            "jnp.asarray(token_logps_BPT, dtype) * mask_BPT",
        ),
        ("tdpo1: knobs are not checked", "    check_knobs(tdpo1, beta=beta)\n", ""),
        ("tdpo2: knobs are not checked", "    check_knobs(tdpo2, beta=beta, alpha=alpha)\n", ""),
        ("wpo_weights: knobs are not checked", "    check_knobs(wpo_weights, clamp=clamp)\n", ""),
        ("ld_reduce: knobs are not checked", "    check_knobs(ld_reduce, alpha=alpha)\n", ""),
    ),
]
