"""The tables, the supervised term and the metrics."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

CALLS = "tests/contracts/test_losses_calls.py"
BATTERY = "tests/contracts/test_losses.py"
SHARDED = "tests/contracts/test_losses_sharded.py"

MUTANTS: list[Mutant] = [
    *planted(
        "losses/tables.py",
        (CALLS, BATTERY),
        (
            "ipo: the value at the reference",
            "lambda pairs, *, beta, **_: 1 / (4 * beta**2), averages=True)",
            "lambda pairs, *, beta, **_: 1 / (2 * beta**2), averages=True)",
        ),
        ("ipo: asks for no token counts", "1 / (4 * beta**2), averages=True)", "1 / (4 * beta**2))"),
        (
            "hinge: the value at the reference",
            "Loss(hinge, lambda pairs, **_: 1.0)",
            "Loss(hinge, lambda pairs, **_: 0.0)",
        ),
        ("exo_pair: the value at the reference", "-_LOG_2 - 0.5 * math.log(", "-_LOG_2 + 0.5 * math.log("),
        (
            "nca_pair: the value at the reference",
            "Loss(nca_pair, lambda pairs, **_: 2 * _LOG_2)",
            "Loss(nca_pair, _log_2)",
        ),
        (
            "bco_pair: the value at the reference",
            "Loss(bco_pair, lambda pairs, **_: 2 * _LOG_2, state",
            "Loss(bco_pair, _log_2, state",
        ),
        ("bco_pair: remembers no mean of the rewards", "2 * _LOG_2, state=RunningMean)", "2 * _LOG_2)"),
        (
            "sppo_hard: the value at the reference",
            "lambda pairs, *, beta: 1 / (2 * beta**2)",
            "lambda pairs, *, beta: 1 / (4 * beta**2)",
        ),
        ("aot: not marked as batch-global", "Loss(aot, _log_2, batch_global=True)", "Loss(aot, _log_2)"),
        (
            "aot_unpaired: not marked as batch-global",
            "Loss(aot_unpaired, _log_2, batch_global=True)",
            "Loss(aot_unpaired, _log_2)",
        ),
        (
            "apo_zero: the value at the reference",
            "Loss(apo_zero, lambda pairs, **_: 1.0)",
            "Loss(apo_zero, lambda pairs, **_: 0.5)",
        ),
        (
            "apo_down: the value at the reference",
            "Loss(apo_down, lambda pairs, **_: 1.0)",
            "Loss(apo_down, lambda pairs, **_: 0.5)",
        ),
        (
            "discopop: the value at the reference",
            "lambda pairs, **_: 0.5 * _LOG_2 + 0.5",
            "lambda pairs, **_: 0.5 * _LOG_2 + 1.0",
        ),
        ("dpo: marked as batch-global", '"dpo": Loss(dpo, _log_2)', '"dpo": Loss(dpo, _log_2, batch_global=True)'),
        (
            "length_normalized_dpo: asks for no token counts",
            "Loss(length_normalized_dpo, _log_2, averages=True)",
            "Loss(length_normalized_dpo, _log_2)",
        ),
        (
            "r_dpo: the value at the reference without the lengths",
            "Loss(r_dpo, _length_margin, averages=True)",
            "Loss(r_dpo, _log_2, averages=True)",
        ),
        (
            "r_dpo: the value at the reference with the lengths exchanged",
            "jax.nn.softplus(-penalty * (n_w_B - n_l_B))",
            "jax.nn.softplus(penalty * (n_w_B - n_l_B))",
        ),
        ("r_dpo: asks for no token counts", "_length_margin, averages=True)", "_length_margin)"),
        ("cal_dpo: the value at the reference", "_LOG_2 + 1 / (4 * beta**2)", "_LOG_2 + 1 / (2 * beta**2)"),
        ("simpo: asks for no token counts", "Loss(simpo, averages=True)", "Loss(simpo)"),
        ("orpo: asks for no token counts", "Loss(orpo, averages=True, beside_sft=True)", "Loss(orpo, beside_sft=True)"),
        ("alpha_po: asks for no token counts", "Loss(alpha_po, averages=True)", "Loss(alpha_po)"),
        ("sft: asks for no token counts", "Loss(sft, averages=True)", "Loss(sft)"),
        ("tdpo1: has no value at the reference", "Loss(tdpo1, _log_2)", "Loss(tdpo1)"),
        ("tdpo2: has no value at the reference", "Loss(tdpo2, _log_2)", "Loss(tdpo2)"),
        (
            "alpha_dpo: the value at the reference has SimPO's gamma",
            "simpo(pairs, beta=beta, gamma=gamma)",
            "simpo(pairs, beta=beta)",
        ),
        (
            "alpha_dpo: not marked as batch-global",
            "        averages=True,\n        batch_global=True,\n        state=AlphaDPOState,",
            "        averages=True,\n        state=AlphaDPOState,",
        ),
        (
            "alpha_dpo: asks for no token counts",
            "        averages=True,\n        batch_global=True,\n        state=AlphaDPOState,",
            "        batch_global=True,\n        state=AlphaDPOState,",
        ),
        (
            "beta_dpo: not marked as batch-global",
            "Loss(beta_dpo, _log_2, batch_global=True, state",
            "Loss(beta_dpo, _log_2, state",
        ),
        ("beta_dpo: takes no key", "state=AlphaDPOState, key=True)", "state=AlphaDPOState)"),
        (
            "unpaired: the two weights exchanged in the value at the reference",
            "jnp.where(desirable, desirable_weight, undesirable_weight)",
            "jnp.where(desirable, undesirable_weight, desirable_weight)",
        ),
        (
            "kto: the value at the reference",
            "Loss(kto, lambda desirable, *, beta, **weights: _by_label(desirable, 0.5",
            "Loss(kto, lambda desirable, *, beta, **weights: _by_label(desirable, 1.0",
        ),
        (
            "bco: the value at the reference",
            "lambda desirable, **_: _LOG_2, state",
            "lambda desirable, **_: 2 * _LOG_2, state",
        ),
        ("cpo: not known as a term beside sft", "Loss(cpo, beside_sft=True)", "Loss(cpo)"),
        (
            "orpo: not known as a term beside sft",
            "Loss(orpo, averages=True, beside_sft=True)",
            "Loss(orpo, averages=True)",
        ),
        ("slic_hf: not known as a term beside sft", "Loss(slic_hf, beside_sft=True)", "Loss(slic_hf)"),
        (
            "kto: draws no mismatched completions",
            "_by_label(desirable, 0.5, **weights), mismatched=True)",
            "_by_label(desirable, 0.5, **weights))",
        ),
        ("bco: remembers no mean of the rewards", "_LOG_2, state=RunningMean),\n}", "_LOG_2),\n}"),
    ),
    *planted(
        "losses/metrics.py",
        ("tests/losses/test_metrics.py",),
        (
            "implicit_rewards: beta twice",
            "return beta * a_B, beta * b_B",
            "return beta * beta * a_B, beta * beta * b_B",
        ),
        (
            "implicit_rewards: chosen and rejected exchanged",
            "return beta * a_B, beta * b_B",
            "return beta * b_B, beta * a_B",
        ),
        (
            "implicit_rewards: gradient flows",
            "a_B, b_B = jax.lax.stop_gradient(log_ratios(policy, reference))\n    return",
            "a_B, b_B = log_ratios(policy, reference)\n    return",
        ),
        (
            "preference_metrics: gradient flows",
            "        a_B, b_B = jax.lax.stop_gradient(log_ratios(policy, reference))\n        found",
            "        a_B, b_B = log_ratios(policy, reference)\n        found",
        ),
        (
            "preference_metrics: gradient flows through log-probs",
            "C_B, R_B = jax.lax.stop_gradient(widened(policy.chosen, policy.rejected))",
            "C_B, R_B = widened(policy.chosen, policy.rejected)",
        ),
        (
            "preference_metrics: gradient flows without a reference",
            "jax.lax.stop_gradient(averages(policy))",
            "averages(policy)",
        ),
        ("preference_metrics: a tie counts as right", "(a_B > b_B)", "(a_B >= b_B)"),
        ("preference_metrics: accuracy of the rejected", "(a_B > b_B)", "(a_B < b_B)"),
        (
            "preference_metrics: accuracy of the log-probs, not the rewards",
            "(a_B > b_B).astype(a_B.dtype)",
            "(C_B > R_B).astype(a_B.dtype)",
        ),
        ("preference_metrics: equal to the reference counts as below", "(a_B < 0)", "(a_B <= 0)"),
        ("preference_metrics: above the reference", "(a_B < 0)", "(a_B > 0)"),
        (
            "preference_metrics: beta forgotten in the margin",
            '"rewards/margins": beta * (a_B - b_B)',
            '"rewards/margins": a_B - b_B',
        ),
        (
            "preference_metrics: beta twice in the margin",
            '"rewards/margins": beta * (a_B - b_B)',
            '"rewards/margins": beta * beta * (a_B - b_B)',
        ),
        (
            "preference_metrics: chosen and rejected log-probs exchanged",
            '{"logps/chosen": C_B, "logps/rejected": R_B}',
            '{"logps/chosen": R_B, "logps/rejected": C_B}',
        ),
        ("preference_metrics: sums where there are token counts", "elif policy.chosen_tokens is None:", "elif True:"),
        (
            "kl_estimates: the KL of the reference to the policy",
            "u_B = policy_B - reference_B",
            "u_B = reference_B - policy_B",
        ),
        ("kl_estimates: k2 without its half", "0.5 * u_B**2", "u_B**2"),
        ("kl_estimates: k3 with a swapped sign", ", LARGEST_EXPONENT)) + u_B)", ", LARGEST_EXPONENT)) - u_B)"),
        ("kl_estimates: k3 without a bound", "jnp.expm1(jnp.minimum(-u_B, LARGEST_EXPONENT))", "jnp.expm1(-u_B)"),
        (
            "kl_estimates: exp - 1 loses small differences",
            "jnp.expm1(jnp.minimum(-u_B, LARGEST_EXPONENT))",
            "(jnp.exp(jnp.minimum(-u_B, LARGEST_EXPONENT)) - 1.0)",
        ),
        (
            "kl_estimates: gradient flows",
            "jax.lax.stop_gradient(widened(policy_logps, reference_logps))",
            "widened(policy_logps, reference_logps)",
        ),
    ),
    *planted(
        "losses/likelihood.py",
        ("tests/losses/test_likelihood.py", CALLS, BATTERY, SHARDED),
        ("sft: of the rejected response", "chosen_B, _ = widened", "_, chosen_B = widened"),
        ("sft: swapped sign of the sum", "        return -chosen_B\n", "        return chosen_B\n"),
        ("sft: sum by sequence", "        return -chosen_B / n_w_B", "        return -chosen_B"),
        ("sft: the length of the rejected response", "n_w_B, _ = token_counts", "_, n_w_B = token_counts"),
        ("sft: mean too early, over the tokens of the micro-batch", "    if mean_tokens is None:", "    if True:"),
        (
            "sft: lengths of pairs that are not real count",
            "mean(n_w_B, where=where, axis_name",
            "mean(n_w_B, axis_name",
        ),
        ("sft: lengths of one shard only", "where=where, axis_name=axis_name), 1)", "where=where), 1)"),
        ("sft: token means a mean by sequence", "    return -chosen_B / mean_tokens", "    return -chosen_B / n_w_B"),
        (
            "sft: no real pair divides by 0",
            "jnp.maximum(mean(n_w_B, where=where, axis_name=axis_name), 1)",
            "mean(n_w_B, where=where, axis_name=axis_name)",
        ),
        ("sft: an unknown reduction is taken for token", "    check_knobs(sft, nll_reduction=nll_reduction)\n", ""),
    ),
]
