"""Losses on pairs with a reference: the margin, each response by itself, lengths, divergences."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

CALLS = "tests/contracts/test_losses_calls.py"
BATTERY = "tests/contracts/test_losses.py"

MUTANTS: list[Mutant] = [
    *planted(
        "losses/pairwise.py",
        ("tests/losses/test_pairwise.py", CALLS, BATTERY),
        (
            "dpo: swapped sign",
            "smoothed(beta * margin(policy, reference), label_smoothing)",
            "smoothed(-beta * margin(policy, reference), label_smoothing)",
        ),
        (
            "dpo: beta twice",
            "smoothed(beta * margin(policy, reference), label_smoothing)",
            "smoothed(beta * beta * margin(policy, reference), label_smoothing)",
        ),
        (
            "dpo: forgotten reference",
            "smoothed(beta * margin(policy, reference), label_smoothing)",
            "smoothed(beta * (policy.chosen - policy.rejected), label_smoothing)",
        ),
        (
            "dpo: mean too early",
            "smoothed(beta * margin(policy, reference), label_smoothing)",
            "smoothed(beta * margin(policy, reference).mean(keepdims=True), label_smoothing)",
        ),
        (
            "dpo: label smoothing ignored",
            "smoothed(beta * margin(policy, reference), label_smoothing)",
            "smoothed(beta * margin(policy, reference), 0.0)",
        ),
        ("robust_dpo: the sign of cDPO", "return (flipped_B - (1.0", "return (-flipped_B - (1.0"),
        ("robust_dpo: not divided by 1 - 2e", " / (1.0 - 2.0 * label_smoothing)", ""),
        ("robust_dpo: divided by 1 - e", "(1.0 - 2.0 * label_smoothing)", "(1.0 - label_smoothing)"),
        (
            "robust_dpo: beta twice",
            "    x_B = beta * margin(policy, reference)\n    flipped_B",
            "    x_B = beta * beta * margin(policy, reference)\n    flipped_B",
        ),
        ("ipo: the target is 1 / beta", "1.0 / (2.0 * beta)) ** 2", "1.0 / beta) ** 2"),
        ("ipo: the target is below 0", "(a_B - b_B - 1.0 / (2.0", "(a_B - b_B + 1.0 / (2.0"),
        ("ipo: `average` with a swapped sign", "    if average:", "    if not average:"),
        ("ipo: the margin by one length", "a_B / n_w_B, b_B / n_l_B", "a_B / n_w_B, b_B / n_w_B"),
        ("ipo: lengths exchanged", "a_B / n_w_B, b_B / n_l_B", "a_B / n_l_B, b_B / n_w_B"),
        ("ipo: not squared", "1.0 / (2.0 * beta)) ** 2", "1.0 / (2.0 * beta))"),
        ("hinge: swapped sign", "relu(1.0 - beta * margin", "relu(1.0 + beta * margin"),
        (
            "hinge: no hinge",
            "jax.nn.relu(1.0 - beta * margin(policy, reference))",
            "1.0 - beta * margin(policy, reference)",
        ),
        (
            "hinge: the kink at h = 1, not 1 / beta",
            "relu(1.0 - beta * margin(policy, reference))",
            "relu(beta * (1.0 - margin(policy, reference)))",
        ),
        ("hinge: beta twice", "relu(1.0 - beta * margin", "relu(1.0 - beta * beta * margin"),
        (
            "exo_pair: e and 1 - e exchanged",
            "- jnp.log1p(-e))\n    return right_B + jax.nn.sigmoid(-x_B) * (log_sigmoid(-x_B) - jnp.log(e))",
            "- jnp.log(e))\n    return right_B + jax.nn.sigmoid(-x_B) * (log_sigmoid(-x_B) - jnp.log1p(-e))",
        ),
        (
            "exo_pair: the wrong label's half forgotten",
            "return right_B + jax.nn.sigmoid(-x_B) * (log_sigmoid(-x_B) - jnp.log(e))",
            "return right_B",
        ),
        (
            "exo_pair: the forward KL",
            "right_B = jax.nn.sigmoid(x_B) * (log_sigmoid(x_B) - jnp.log1p(-e))",
            "right_B = (1.0 - e) * (jnp.log1p(-e) - log_sigmoid(x_B))",
        ),
        (
            "exo_pair: beta twice",
            "    x_B = beta * margin(policy, reference)\n    e =",
            "    x_B = beta * beta * margin(policy, reference)\n    e =",
        ),
        ("dpop: a chosen response that rose is punished", "penalty * jax.nn.relu(-a_B)", "penalty * jax.nn.relu(a_B)"),
        ("dpop: the penalty is a bonus", "- penalty * jax.nn.relu(-a_B)", "+ penalty * jax.nn.relu(-a_B)"),
        (
            "dpop: beta does not scale the penalty",
            "beta * (a_B - b_B - penalty * jax.nn.relu(-a_B))",
            "beta * (a_B - b_B) - penalty * jax.nn.relu(-a_B)",
        ),
        ("dpop: penalty ignored", " - penalty * jax.nn.relu(-a_B)", ""),
        ("dpop: half a slope at the kink", "jax.nn.relu(-a_B)", "jnp.maximum(-a_B, 0.0)"),
        ("dpop: the rejected response is watched", "jax.nn.relu(-a_B)", "jax.nn.relu(-b_B)"),
        (
            "discopop: naive m exp(-x), NaN far out",
            "jnp.exp(log_sigmoid(x_B / temperature) - x_B)",
            "jax.nn.sigmoid(x_B / temperature) * jnp.exp(-x_B)",
        ),
        (
            "discopop: m and 1 - m exchanged",
            "-jax.nn.sigmoid(-x_B / temperature) * log_sigmoid(x_B) + exponential_B",
            "-jax.nn.sigmoid(x_B / temperature) * log_sigmoid(x_B) + exponential_B",
        ),
        (
            "discopop: temperature ignored in the exponential",
            "jnp.exp(log_sigmoid(x_B / temperature) - x_B)",
            "jnp.exp(log_sigmoid(x_B) - x_B)",
        ),
        (
            "discopop: temperature ignored in the logistic part",
            "jax.nn.sigmoid(-x_B / temperature)",
            "jax.nn.sigmoid(-x_B)",
        ),
        (
            "discopop: beta twice",
            "    x_B = beta * margin(policy, reference)\n    #",
            "    x_B = beta * beta * margin(policy, reference)\n    #",
        ),
    ),
    *planted(
        "losses/pairwise.py",
        ("tests/contracts/test_losses_calls.py -k refused",),
        ("dpo: knobs are not checked", "    check_knobs(dpo, beta=beta, label_smoothing=label_smoothing)\n", ""),
        (
            "robust_dpo: knobs are not checked",
            "    check_knobs(robust_dpo, beta=beta, label_smoothing=label_smoothing)\n",
            "",
        ),
        ("ipo: knobs are not checked", "    check_knobs(ipo, beta=beta, average=average)\n", ""),
        ("hinge: knobs are not checked", "    check_knobs(hinge, beta=beta)\n", ""),
        (
            "exo_pair: knobs are not checked",
            "    check_knobs(exo_pair, beta=beta, label_smoothing=label_smoothing)\n",
            "",
        ),
        ("dpop: knobs are not checked", "    check_knobs(dpop, beta=beta, penalty=penalty)\n", ""),
        ("discopop: knobs are not checked", "    check_knobs(discopop, beta=beta, temperature=temperature)\n", ""),
    ),
    *planted(
        "losses/absolute.py",
        ("tests/losses/test_absolute.py", CALLS, BATTERY),
        ("nca_pair: the chosen response is not held down", "- 0.5 * log_sigmoid(-beta * a_B) ", ""),
        ("nca_pair: the rejected response is not held down", " - 0.5 * log_sigmoid(-beta * b_B)", ""),
        (
            "nca_pair: both held down whole",
            "- 0.5 * log_sigmoid(-beta * a_B) - 0.5 * log_sigmoid(-beta * b_B)",
            "- log_sigmoid(-beta * a_B) - log_sigmoid(-beta * b_B)",
        ),
        (
            "nca_pair: the rejected response is lifted",
            "0.5 * log_sigmoid(-beta * b_B)",
            "0.5 * log_sigmoid(beta * b_B)",
        ),
        (
            "bco_pair: delta with a swapped sign for the chosen response",
            "-log_sigmoid(beta * a_B - delta)",
            "-log_sigmoid(beta * a_B + delta)",
        ),
        (
            "bco_pair: delta with a swapped sign for the rejected response",
            "log_sigmoid(delta - beta * b_B)",
            "log_sigmoid(-delta - beta * b_B)",
        ),
        ("bco_pair: gradient flows through delta", "    delta = jax.lax.stop_gradient(delta)\n", ""),
        (
            "bco_pair: chosen and rejected exchanged",
            "-log_sigmoid(beta * a_B - delta) - log_sigmoid(delta - beta * b_B)",
            "-log_sigmoid(beta * b_B - delta) - log_sigmoid(delta - beta * a_B)",
        ),
        (
            "sppo_hard: half, as in the authors' code",
            "return (a_B - target) ** 2 + (b_B + target) ** 2",
            "return 0.5 * ((a_B - target) ** 2 + (b_B + target) ** 2)",
        ),
        (
            "sppo_hard: the same target for both",
            "return (a_B - target) ** 2 + (b_B + target) ** 2",
            "return (a_B - target) ** 2 + (b_B - target) ** 2",
        ),
        (
            "sppo_hard: targets 1 / beta",
            "    target = 1.0 / (2.0 * beta)\n    return (a_B",
            "    target = 1.0 / beta\n    return (a_B",
        ),
        (
            "apo_zero: chosen and rejected exchanged",
            "return sigmoid(-beta * a_B) + sigmoid(beta * b_B)",
            "return sigmoid(beta * a_B) + sigmoid(-beta * b_B)",
        ),
        (
            "apo_zero: the rejected response forgotten",
            "return sigmoid(-beta * a_B) + sigmoid(beta * b_B)",
            "return sigmoid(-beta * a_B) + 0.5",
        ),
        (
            "apo_down: the chosen response is lifted",
            "return sigmoid(beta * a_B) + sigmoid(-beta",
            "return sigmoid(-beta * a_B) + sigmoid(-beta",
        ),
        ("apo_down: swapped sign of the margin", "sigmoid(-beta * (a_B - b_B))", "sigmoid(beta * (a_B - b_B))"),
        (
            "apo_down: the rejected log-ratio instead of the margin",
            "sigmoid(-beta * (a_B - b_B))",
            "sigmoid(beta * b_B)",
        ),
        (
            "cal_dpo: beta in the logistic part",
            "return -log_sigmoid(a_B - b_B) +",
            "return -log_sigmoid(beta * (a_B - b_B)) +",
        ),
        ("cal_dpo: the half forgotten", "+ 0.5 * ((a_B - target)", "+ ((a_B - target)"),
        (
            "cal_dpo: targets 1 / beta",
            "    target = 1.0 / (2.0 * beta)\n    return -log",
            "    target = 1.0 / beta\n    return -log",
        ),
        (
            "cal_dpo: the targets exchanged",
            "0.5 * ((a_B - target) ** 2 + (b_B + target) ** 2)",
            "0.5 * ((a_B + target) ** 2 + (b_B - target) ** 2)",
        ),
    ),
    *planted(
        "losses/absolute.py",
        ("tests/contracts/test_losses_calls.py -k refused",),
        ("nca_pair: knobs are not checked", "    check_knobs(nca_pair, beta=beta)\n", ""),
        ("bco_pair: knobs are not checked", "    check_knobs(bco_pair, beta=beta, delta=delta)\n", ""),
        ("sppo_hard: knobs are not checked", "    check_knobs(sppo_hard, beta=beta)\n", ""),
        ("apo_zero: knobs are not checked", "    check_knobs(apo_zero, beta=beta)\n", ""),
        ("apo_down: knobs are not checked", "    check_knobs(apo_down, beta=beta)\n", ""),
        ("cal_dpo: knobs are not checked", "    check_knobs(cal_dpo, beta=beta)\n", ""),
    ),
    *planted(
        "losses/lengths.py",
        ("tests/losses/test_lengths.py", CALLS, BATTERY),
        ("length_normalized_dpo: sums", "beta * (a_B / n_w_B - b_B / n_l_B)", "beta * (a_B - b_B)"),
        (
            "length_normalized_dpo: lengths exchanged",
            "beta * (a_B / n_w_B - b_B / n_l_B)",
            "beta * (a_B / n_l_B - b_B / n_w_B)",
        ),
        (
            "length_normalized_dpo: the margin by the common length",
            "beta * (a_B / n_w_B - b_B / n_l_B)",
            "beta * 2.0 * (a_B - b_B) / (n_w_B + n_l_B)",
        ),
        (
            "length_normalized_dpo: beta twice",
            "beta * (a_B / n_w_B - b_B / n_l_B)",
            "beta * beta * (a_B / n_w_B - b_B / n_l_B)",
        ),
        ("r_dpo: a long chosen response is punished", "+ penalty * (n_w_B - n_l_B)", "- penalty * (n_w_B - n_l_B)"),
        ("r_dpo: penalty ignored", " + penalty * (n_w_B - n_l_B)", ""),
        (
            "r_dpo: beta scales the penalty",
            "beta * margin(policy, reference) + penalty * (n_w_B - n_l_B)",
            "beta * (margin(policy, reference) + penalty * (n_w_B - n_l_B))",
        ),
        ("r_dpo: beta twice", "-log_sigmoid(beta * margin", "-log_sigmoid(beta * beta * margin"),
    ),
    *planted(
        "losses/lengths.py",
        ("tests/contracts/test_losses_calls.py -k refused",),
        ("length_normalized_dpo: knobs are not checked", "    check_knobs(length_normalized_dpo, beta=beta)\n", ""),
        ("r_dpo: knobs are not checked", "    check_knobs(r_dpo, beta=beta, penalty=penalty)\n", ""),
    ),
    *planted(
        "losses/divergences.py",
        ("tests/losses/test_divergences.py", "tests/losses/test_reference_free.py", CALLS, BATTERY),
        (
            "alpha_reward: swapped sign of the exponent",
            "jnp.minimum(-safe * u_B, LARGEST_EXPONENT)) / safe",
            "jnp.minimum(safe * u_B, LARGEST_EXPONENT)) / safe",
        ),
        ("alpha_reward: not divided by alpha", "LARGEST_EXPONENT)) / safe", "LARGEST_EXPONENT))"),
        ("alpha_reward: the exponent has no bound", "jnp.minimum(-safe * u_B, LARGEST_EXPONENT)", "-safe * u_B"),
        (
            "alpha_reward: alpha = 0 divides by 0",
            "    safe = jnp.where(alpha == 0, 1.0, alpha)\n",
            "    safe = alpha\n",
        ),
        ("alpha_reward: alpha = 0 is taken for 1", "return jnp.where(alpha == 0, u_B, bent_B)", "return bent_B"),
        (
            "alpha_reward: exp - 1 loses small exponents",
            "-jnp.expm1(jnp.minimum(-safe * u_B, LARGEST_EXPONENT))",
            "(1.0 - jnp.exp(jnp.minimum(-safe * u_B, LARGEST_EXPONENT)))",
        ),
        ("f_scores: js without log 2", "return math.log(2.0) + log_sigmoid(u_B)", "return log_sigmoid(u_B)"),
        (
            "f_scores: js with a swapped sign",
            "return math.log(2.0) + log_sigmoid(u_B)",
            "return math.log(2.0) + log_sigmoid(-u_B)",
        ),
        (
            "f_scores: forward_kl is the divergence with alpha = 1/2",
            "return alpha_reward(u_B, 1.0)",
            "return alpha_reward(u_B, 0.5)",
        ),
        (
            "f_scores: alpha is 1 minus alpha, as elsewhere",
            "return alpha_reward(u_B, alpha) if",
            "return alpha_reward(u_B, 1.0 - alpha) if",
        ),
        (
            "f_scores: the alpha-divergence is the reverse KL",
            'if divergence == "alpha" else u_B',
            'if divergence == "reverse_kl" else u_B',
        ),
        ("f_scores: token counts are lost", "score(b_B), policy.chosen_tokens, policy.rejected_tokens)", "score(b_B))"),
        (
            "f_scores: chosen and rejected exchanged",
            "PairLogps(score(a_B), score(b_B),",
            "PairLogps(score(b_B), score(a_B),",
        ),
        ("f_dpo: beta twice", "-log_sigmoid(beta * (scores.chosen", "-log_sigmoid(beta * beta * (scores.chosen"),
        ("f_dpo: swapped sign", "(scores.chosen - scores.rejected)", "(scores.rejected - scores.chosen)"),
        (
            "f_dpo: alpha ignored",
            "divergence=divergence, alpha=alpha)\n    return",
            "divergence=divergence)\n    return",
        ),
        (
            "f_dpo: divergence ignored",
            "f_scores(policy, reference, divergence=divergence, alpha=alpha)",
            "f_scores(policy, reference, alpha=alpha)",
        ),
        ("chi_po: the exponent has no bound", "jnp.exp(jnp.minimum(u_B, LARGEST_EXPONENT)) for", "jnp.exp(u_B) for"),
        (
            "chi_po: without the log-ratios",
            "beta * ((a_B - b_B) + (ratios_a_B - ratios_b_B))",
            "beta * (ratios_a_B - ratios_b_B)",
        ),
        ("chi_po: without the exponentials", "beta * ((a_B - b_B) + (ratios_a_B - ratios_b_B))", "beta * (a_B - b_B)"),
        (
            "chi_po: log-ratios lost beside large exponentials",
            "(a_B - b_B) + (ratios_a_B - ratios_b_B)",
            "(a_B + ratios_a_B) - (b_B + ratios_b_B)",
        ),
        ("chi_po: exponentials exchanged", "(ratios_a_B - ratios_b_B)", "(ratios_b_B - ratios_a_B)"),
        ("chi_po: clipped at R, not 2 R", "jnp.clip(x_B, -2.0 * clip, 2.0 * clip)", "jnp.clip(x_B, -clip, clip)"),
        (
            "chi_po: clipped before beta",
            "x_B if clip is None else jnp.clip(x_B, -2.0 * clip, 2.0 * clip)",
            "x_B if clip is None else beta * jnp.clip(x_B / beta, -2.0 * clip, 2.0 * clip)",
        ),
        ("chi_po: clipped above only", "jnp.clip(x_B, -2.0 * clip, 2.0 * clip)", "jnp.minimum(x_B, 2.0 * clip)"),
        ("f_scores: knobs are not checked", "    check_knobs(f_scores, divergence=divergence, alpha=alpha)\n", ""),
    ),
    *planted(
        "losses/divergences.py",
        ("tests/contracts/test_losses_calls.py -k refused",),
        ("f_dpo: knobs are not checked", "    check_knobs(f_dpo, beta=beta, divergence=divergence, alpha=alpha)\n", ""),
        ("chi_po: knobs are not checked", "    check_knobs(chi_po, beta=beta, clip=clip)\n", ""),
    ),
]
