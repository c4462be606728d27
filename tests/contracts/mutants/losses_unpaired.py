"""Losses on single completions, reward models, diffusion."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

CALLS = "tests/contracts/test_losses_calls.py"
BATTERY = "tests/contracts/test_losses.py"
SHARDED = "tests/contracts/test_losses_sharded.py"

MUTANTS: list[Mutant] = [
    *planted(
        "losses/unpaired.py",
        ("tests/losses/test_unpaired.py", CALLS, BATTERY, SHARDED),
        (
            "mismatched_kl: gradient flows",
            "    policy_B, reference_B = jax.lax.stop_gradient(widened(policy_logps, reference_logps))\n",
            "    policy_B, reference_B = widened(policy_logps, reference_logps)\n",
        ),
        (
            "mismatched_kl: the KL of the reference to the policy",
            "mean(policy_B - reference_B, where=where, axis_name=axis_name)",
            "mean(reference_B - policy_B, where=where, axis_name=axis_name)",
        ),
        (
            "mismatched_kl: pairs that are not real count",
            "mean(policy_B - reference_B, where=where, axis_name=axis_name)",
            "mean(policy_B - reference_B, axis_name=axis_name)",
        ),
        (
            "mismatched_kl: of one shard only",
            "mean(policy_B - reference_B, where=where, axis_name=axis_name)",
            "mean(policy_B - reference_B, where=where)",
        ),
        (
            "kto: a KL below 0 is used as it is",
            "jax.lax.stop_gradient(jnp.maximum(kl, 0.0))",
            "jax.lax.stop_gradient(kl)",
        ),
        ("kto: gradient flows through the KL", "jax.lax.stop_gradient(jnp.maximum(kl, 0.0))", "jnp.maximum(kl, 0.0)"),
        (
            "kto: the KL is added",
            "x_B = beta * (a_B - jax.lax.stop_gradient(",
            "x_B = beta * (a_B + jax.lax.stop_gradient(",
        ),
        (
            "kto: beta does not scale the KL",
            "x_B = beta * (a_B - jax.lax.stop_gradient(jnp.maximum(kl, 0.0)))",
            "x_B = beta * a_B - jax.lax.stop_gradient(jnp.maximum(kl, 0.0))",
        ),
        (
            "kto: desirable and undesirable exchanged",
            (
                "jnp.maximum(kl, 0.0)))\n"
                "    return jnp.where(desirable, desirable_weight * sigmoid(-x_B), undesirable_weight * "
                "sigmoid(x_B))"
            ),
            (
                "jnp.maximum(kl, 0.0)))\n"
                "    return jnp.where(desirable, desirable_weight * sigmoid(x_B), undesirable_weight * "
                "sigmoid(-x_B))"
            ),
        ),
        (
            "kto: the weight of desirable completions is ignored",
            (
                "jnp.maximum(kl, 0.0)))\n"
                "    return jnp.where(desirable, desirable_weight * sigmoid(-x_B), undesirable_weight * "
                "sigmoid(x_B))"
            ),
            (
                "jnp.maximum(kl, 0.0)))\n"
                "    return jnp.where(desirable, sigmoid(-x_B), undesirable_weight * sigmoid(x_B))"
            ),
        ),
        (
            "kto: the weight of desirable completions for both",
            (
                "jnp.maximum(kl, 0.0)))\n"
                "    return jnp.where(desirable, desirable_weight * sigmoid(-x_B), undesirable_weight * "
                "sigmoid(x_B))"
            ),
            (
                "jnp.maximum(kl, 0.0)))\n"
                "    return jnp.where(desirable, desirable_weight * sigmoid(-x_B), desirable_weight * sigmoid(x_B))"
            ),
        ),
        ("kto: the KL may be an array", "    chex.assert_rank(kl, 0)\n", ""),
        (
            "apo_zero_unpaired: the two weights exchanged",
            (
                "reference_logps, desirable)\n"
                "    return jnp.where(desirable, desirable_weight * sigmoid(-x_B), undesirable_weight * "
                "sigmoid(x_B))"
            ),
            (
                "reference_logps, desirable)\n"
                "    return jnp.where(desirable, undesirable_weight * sigmoid(-x_B), desirable_weight * "
                "sigmoid(x_B))"
            ),
        ),
        (
            "apo_zero_unpaired: desirable and undesirable exchanged",
            (
                "reference_logps, desirable)\n"
                "    return jnp.where(desirable, desirable_weight * sigmoid(-x_B), undesirable_weight * "
                "sigmoid(x_B))"
            ),
            (
                "reference_logps, desirable)\n"
                "    return jnp.where(desirable, desirable_weight * sigmoid(x_B), undesirable_weight * "
                "sigmoid(-x_B))"
            ),
        ),
        (
            "unpaired: policy and reference exchanged",
            "    return policy_B - reference_B\n",
            "    return reference_B - policy_B\n",
        ),
        ("unpaired: forgotten reference", "    return policy_B - reference_B\n", "    return policy_B\n"),
        ("unpaired: labels of another shape are broadcast", "    chex.assert_equal_shape([policy_B, desirable])\n", ""),
        ("bco: gradient flows through delta", " - jax.lax.stop_gradient(delta)", " - delta"),
        ("bco: delta is added", " - jax.lax.stop_gradient(delta)", " + jax.lax.stop_gradient(delta)"),
        (
            "bco: delta multiplied by beta",
            "x_B = beta * _log_ratio(policy_logps, reference_logps, desirable) - jax.lax.stop_gradient(delta)",
            "x_B = beta * (_log_ratio(policy_logps, reference_logps, desirable) - jax.lax.stop_gradient(delta))",
        ),
        (
            "bco: desirable and undesirable exchanged",
            "-log_sigmoid(jnp.where(desirable, x_B, -x_B))",
            "-log_sigmoid(jnp.where(desirable, -x_B, x_B))",
        ),
        (
            "bco: naive log-sigmoid",
            "-log_sigmoid(jnp.where(desirable, x_B, -x_B))",
            "-jnp.log(sigmoid(jnp.where(desirable, x_B, -x_B)))",
        ),
    ),
    *planted(
        "losses/unpaired.py",
        ("tests/contracts/test_losses_calls.py -k refused",),
        (
            "kto: knobs are not checked",
            (
                "    check_knobs(kto, beta=beta, desirable_weight=desirable_weight, "
                "undesirable_weight=undesirable_weight)\n"
            ),
            "",
        ),
        (
            "apo_zero_unpaired: knobs are not checked",
            (
                "    check_knobs(apo_zero_unpaired, beta=beta, desirable_weight=desirable_weight, "
                "undesirable_weight=undesirable_weight)\n"
            ),
            "",
        ),
        ("bco: knobs are not checked", "    check_knobs(bco, beta=beta)\n", ""),
    ),
    *planted(
        "losses/reward.py",
        ("tests/losses/test_reward.py", CALLS, BATTERY),
        (
            "bradley_terry: chosen and rejected exchanged",
            "chosen_B - rejected_B - margin)",
            "rejected_B - chosen_B - margin)",
        ),
        ("bradley_terry: the margin is a bonus", "chosen_B - rejected_B - margin)", "chosen_B - rejected_B + margin)"),
        (
            "bradley_terry: the difference is centred, not the sum",
            "center * (chosen_B + rejected_B) ** 2",
            "center * (chosen_B - rejected_B) ** 2",
        ),
        (
            "bradley_terry: the centring is not squared",
            "center * (chosen_B + rejected_B) ** 2",
            "center * (chosen_B + rejected_B)",
        ),
        ("plackett_luce: the sums run from the best", ", axis=1, reverse=True)", ", axis=1)"),
        (
            "plackett_luce: absent answers are minus infinity, so the gradient is NaN",
            "jnp.finfo(rewards_BK.dtype).min)",
            "-jnp.inf)",
        ),
        ("plackett_luce: absent answers count as a reward of 0", "jnp.finfo(rewards_BK.dtype).min)", "0.0)"),
        (
            "plackett_luce: absent answers have losses of their own",
            "jnp.where(present_BK, tails_BK - rewards_BK, 0.0)",
            "(tails_BK - rewards_BK)",
        ),
        (
            "plackett_luce: mean over the ranks",
            "tails_BK - rewards_BK, 0.0).sum(axis=1)",
            "tails_BK - rewards_BK, 0.0).mean(axis=1)",
        ),
        (
            "preference_score: chosen and rejected exchanged",
            "beta * (chosen_B - rejected_B))",
            "beta * (rejected_B - chosen_B))",
        ),
        ("preference_score: beta twice", "beta * (chosen_B - rejected_B))", "beta * beta * (chosen_B - rejected_B))"),
        (
            "preference_score: naive softplus",
            "-log_sigmoid(beta * (chosen_B - rejected_B))",
            "jnp.log(1.0 + jnp.exp(beta * (rejected_B - chosen_B)))",
        ),
    ),
    *planted(
        "losses/reward.py",
        ("tests/contracts/test_losses_calls.py -k refused",),
        ("bradley_terry: knobs are not checked", "    check_knobs(bradley_terry, margin=margin, center=center)\n", ""),
        ("preference_score: knobs are not checked", "    check_knobs(preference_score, beta=beta)\n", ""),
    ),
    *planted(
        "losses/diffusion.py",
        ("tests/losses/test_diffusion.py", CALLS, BATTERY, SHARDED),
        ("diffusion_dpo: swapped sign", "-0.5 * beta * (", "0.5 * beta * ("),
        ("diffusion_dpo: the half forgotten", "-0.5 * beta * (", "-beta * ("),
        ("diffusion_dpo: beta twice", "-0.5 * beta * (", "-0.5 * beta * beta * ("),
        (
            "diffusion_dpo: forgotten reference",
            "(policy_w_B - policy_l_B) - (reference_w_B - reference_l_B)",
            "(policy_w_B - policy_l_B)",
        ),
        (
            "diffusion_dpo: preferred and rejected exchanged",
            "policy_w_B, policy_l_B, reference_w_B, reference_l_B = widened",
            "policy_l_B, policy_w_B, reference_l_B, reference_w_B = widened",
        ),
        (
            "diffusion_dpo: any number of columns",
            "    chex.assert_shape([policy_errors, reference_errors], (None, 2))\n",
            "",
        ),
        (
            "diffusion_baseline: may be below 0",
            "jnp.maximum(mean(reference_B - policy_B, where=where, axis_name=axis_name), 0.0)",
            "mean(reference_B - policy_B, where=where, axis_name=axis_name)",
        ),
        (
            "diffusion_baseline: bounded before the mean",
            "jnp.maximum(mean(reference_B - policy_B, where=where, axis_name=axis_name), 0.0)",
            "mean(jnp.maximum(reference_B - policy_B, 0.0), where=where, axis_name=axis_name)",
        ),
        ("diffusion_baseline: swapped sign", "mean(reference_B - policy_B,", "mean(policy_B - reference_B,"),
        (
            "diffusion_baseline: pairs that are not real count",
            "where=where, axis_name=axis_name), 0.0)",
            "axis_name=axis_name), 0.0)",
        ),
        ("diffusion_baseline: of one shard only", "where=where, axis_name=axis_name), 0.0)", "where=where), 0.0)"),
        (
            "diffusion_baseline: gradient flows",
            "policy_B, reference_B = jax.lax.stop_gradient(widened(policy_errors, reference_errors))",
            "policy_B, reference_B = widened(policy_errors, reference_errors)",
        ),
        (
            "diffusion_kto: gradient flows through the baseline",
            "(reference_B - policy_B - jax.lax.stop_gradient(baseline))",
            "(reference_B - policy_B - baseline)",
        ),
        (
            "diffusion_kto: the baseline forgotten",
            "(reference_B - policy_B - jax.lax.stop_gradient(baseline))",
            "(reference_B - policy_B)",
        ),
        (
            "diffusion_kto: swapped sign",
            "(reference_B - policy_B - jax.lax.stop_gradient(baseline))",
            "(policy_B - reference_B - jax.lax.stop_gradient(baseline))",
        ),
        (
            "diffusion_kto: desirable and undesirable exchanged",
            "jnp.where(desirable, -x_B, x_B)",
            "jnp.where(desirable, x_B, -x_B)",
        ),
        ("diffusion_kto: the baseline may be an array", "    chex.assert_rank(baseline, 0)\n", ""),
    ),
    *planted(
        "losses/diffusion.py",
        ("tests/contracts/test_losses_calls.py -k refused",),
        ("diffusion_dpo: knobs are not checked", "    check_knobs(diffusion_dpo, beta=beta)\n", ""),
        ("diffusion_kto: knobs are not checked", "    check_knobs(diffusion_kto, beta=beta)\n", ""),
    ),
]
