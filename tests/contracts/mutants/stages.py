"""Called with what they need: the losses in the step."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

BY_VALUE = "tests/stages/test_objectives_by_value.py"
IN_PARTS = "tests/stages/test_objectives.py -k 'one_batch_on_one and (two or unpaired or wpo or bco or tdpo1 or aot)'"
RUNS = "tests/stages/test_losses.py -k 'mixture or ld_and_wpo or kto_scores or moves_to or steered'"

MUTANTS: list[Mutant] = [
    *planted(
        "stages/objectives.py",
        (BY_VALUE, IN_PARTS, RUNS),
        (
            "mean too early: each micro-batch is divided by its own pairs",
            'return total / counts["pairs"], metrics',
            "return total / batch.weight_B.sum(), metrics",
        ),
        ("the weight of a term is ignored", "total += term.weight * summed", "total += summed"),
        ("a term of the mixture is lost", "total += term.weight * summed", "total = term.weight * summed"),
        ("all terms remember what the first does", "options, memory[index], own_key)", "options, memory[0], own_key)"),
        (
            "all terms have the options of the first",
            'zip(terms, knobs["losses"], strict=True)',
            'zip(terms, knobs["losses"][:1] * len(terms), strict=True)',
        ),
        ("two terms draw the same lots", "own_key = jax.random.fold_in(key, index)", "own_key = key"),
        ("what is remembered is not given back", "remembered.append(after)", "remembered.append(memory[index])"),
        (
            "batch-global losses are computed by micro-batch",
            "term.entry.batch_global or term.entry.state or term.entry.mismatched for",
            "term.entry.state or term.entry.mismatched for",
        ),
        (
            "losses with a state are computed by micro-batch",
            "term.entry.batch_global or term.entry.state or term.entry.mismatched for",
            "term.entry.batch_global or term.entry.mismatched for",
        ),
        (
            "KTO's KL is one of the micro-batch",
            "term.entry.batch_global or term.entry.state or term.entry.mismatched for",
            "term.entry.batch_global or term.entry.state for",
        ),
        (
            "pairs of weight 0 count in the loss",
            "summed = (losses_B * batch.weight_B).sum()",
            "summed = losses_B.sum()",
        ),
        ("pairs of weight 0 count in the batch's statistics", "where=batch.weight_B > 0", "where=None"),
        (
            "pairs of weight 0 count among the pairs",
            'counts = {"pairs": batch.weight_B.sum()',
            'counts = {"pairs": jnp.ones_like(batch.weight_B).sum()',
        ),
        (
            "the sft term counts the rejected tokens",
            "(batch.response_tokens_BP[:, 0] * batch.weight_B)",
            "(batch.response_tokens_BP[:, -1] * batch.weight_B)",
        ),
        (
            "the sft term's mean tokens are the total",
            'mean_tokens=counts["tokens"] / counts["pairs"]',
            'mean_tokens=counts["tokens"]',
        ),
        (
            "stored and live reference exchanged",
            "stored = scored.reference_BP is None",
            "stored = scored.reference_BP is not None",
        ),
        (
            "heads of the reference are its whole log-probs",
            "reference_heads_BP = batch.reference_heads_BP if stored",
            "reference_heads_BP = batch.reference_logps_BP if stored",
        ),
        (
            "heads of the policy are its whole log-probs",
            "policy_heads=as_pair(scored.policy_heads_BP, batch)",
            "policy_heads=as_pair(scored.policy_BP, batch)",
        ),
        (
            "the frozen reference is the policy",
            "still = jax.lax.stop_gradient(frozen)",
            "still = jax.lax.stop_gradient(params)",
        ),
        ("gradient flows into the frozen reference", "still = jax.lax.stop_gradient(frozen)", "still = frozen"),
        (
            "gradient flows through the mismatched completions",
            "jax.lax.stop_gradient(params), frozen, batch.mismatched, key)",
            "params, frozen, batch.mismatched, key)",
        ),
        (
            "KTO's KL is one of the completions themselves",
            "jax.lax.stop_gradient(params), frozen, batch.mismatched, key)",
            "jax.lax.stop_gradient(params), frozen, batch, key)",
        ),
        (
            "KTO's KL compares with the completions' reference",
            "frozen_BP = batch.mismatched.reference_logps_BP",
            "frozen_BP = batch.reference_logps_BP",
        ),
        (
            "TDPO's KL is of the reference with itself",
            "token_kl(policy_RND, unembedding, reference_RND, reference_unembedding, **tiles)",
            "token_kl(reference_RND, reference_unembedding, reference_RND, reference_unembedding, **tiles)",
        ),
        (
            "TDPO's KL is of the reference to the policy",
            "token_kl(policy_RND, unembedding, reference_RND, reference_unembedding, **tiles)",
            "token_kl(reference_RND, reference_unembedding, policy_RND, unembedding)",
        ),
        (
            "WPO: each response is held to 1, not the pair",
            "jnp.minimum(weights_BP.prod(axis=1), 1.0)",
            "jnp.minimum(weights_BP, 1.0).prod(axis=1)",
        ),
        (
            "WPO: the pair is not held to 1",
            "return jnp.minimum(weights_BP.prod(axis=1), 1.0)",
            "return weights_BP.prod(axis=1)",
        ),
        (
            "WPO: the sum over tokens, not the mean",
            "(scored.policy_BP - scored.log_sum_sq_BP) / tokens_BP)",
            "(scored.policy_BP - scored.log_sum_sq_BP) / 1.0)",
        ),
        ("WPO: the chosen response alone", "weights_BP.prod(axis=1)", "weights_BP[:, 0]"),
        (
            "the rejected log-probs are the chosen ones",
            "PairLogps(logps_BP[:, 0], logps_BP[:, -1],",
            "PairLogps(logps_BP[:, 0], logps_BP[:, 0],",
        ),
        (
            "the rejected token counts are the chosen ones",
            "tokens_BP[:, 0], tokens_BP[:, -1])",
            "tokens_BP[:, 0], tokens_BP[:, 0])",
        ),
        (
            "sft: a mean over responses",
            'weighted_B.sum() / counts["tokens"]',
            "weighted_B.sum() / batch.response_tokens_BP.shape[0]",
        ),
        ("sft: the weights of rows are ignored", "else nll_B * batch.loss_weight_B", "else nll_B"),
        (
            "metrics: rewards take the beta of the last loss",
            'next((options["beta"] for options in knobs["losses"] if',
            'next((options["beta"] for options in reversed(knobs["losses"]) if',
        ),
        (
            "metrics: the labels exchanged",
            (
                'weights = {"chosen": inputs.desirable_B * batch.weight_B, "rejected": (1 - '
                "inputs.desirable_B) * batch.weight_B}"
            ),
            (
                'weights = {"rejected": inputs.desirable_B * batch.weight_B, "chosen": (1 - '
                "inputs.desirable_B) * batch.weight_B}"
            ),
        ),
        (
            "metrics: the margin of labelled completions with a swapped sign",
            "Mean(parts[0] - parts[1],",
            "Mean(parts[1] - parts[0],",
        ),
        (
            "metrics: the margin of labelled completions by micro-batch",
            "/ means[side] for side",
            "/ weights[side].sum() for side",
        ),
        (
            "metrics: rewards of labelled completions without beta",
            '"rewards": beta * (policy_B - reference_B)',
            '"rewards": policy_B - reference_B',
        ),
        (
            "metrics: a term's own loss is weighted",
            "Mean(summed, batch.weight_B.sum())\n        beta",
            "Mean(term.weight * summed, batch.weight_B.sum())\n        beta",
        ),
    ),
    *planted(
        "stages/losses.py",
        (BY_VALUE, IN_PARTS, RUNS),
        (
            "LD-DPO reduces the policy alone",
            "reference=_ld(inputs.reference, inputs.reference_heads, term.ld_alpha)",
            "reference=inputs.reference",
        ),
        (
            "LD-DPO: head and tail exchanged",
            "chosen=heads.chosen + alpha * (pairs.chosen - heads.chosen)",
            "chosen=alpha * heads.chosen + (pairs.chosen - heads.chosen)",
        ),
        (
            "LD-DPO: the chosen response alone",
            "rejected=heads.rejected + alpha * (pairs.rejected - heads.rejected)",
            "rejected=pairs.rejected",
        ),
        ("LD-DPO is ignored", "    if term.ld_alpha is not None:", "    if False:"),
        ("LD-DPO at alpha 0 is ignored", "    if term.ld_alpha is not None:", "    if term.ld_alpha:"),
        (
            "WPO weighs every term",
            "(inputs.wpo_weight_B if term.wpo else None, inputs.loss_weight_B)",
            "(inputs.wpo_weight_B, inputs.loss_weight_B)",
        ),
        (
            "WPO is ignored",
            "inputs.wpo_weight_B if term.wpo else None, inputs.loss_weight_B",
            "None, inputs.loss_weight_B",
        ),
        ("weights of pairs are ignored", "if term.wpo else None, inputs.loss_weight_B", "if term.wpo else None, None"),
        ("soft labels are the other way round", "1.0 - inputs.soft_label_B", "inputs.soft_label_B"),
        (
            "the sft term divides by the micro-batch's tokens",
            'options["mean_tokens"] = inputs.mean_tokens',
            'options["mean_tokens"] = None',
        ),
        ("choices are ignored", "{**term.static, **knobs}", "{**knobs}"),
        (
            "the steered alpha is ignored",
            'options["alpha"] = memory["alpha"]',
            'options["alpha"] = term.budget.alpha_start',
        ),
        ("a state is not updated", 'return losses_B, {**memory, "state": state}', "return losses_B, memory"),
        (
            "the steered alpha is forgotten",
            'return losses_B, {**memory, "state": state}',
            'return losses_B, {"state": state}',
        ),
        (
            "TDPO's KLs exchanged",
            "inputs.token_kl_BP[:, 0], inputs.token_kl_BP[:, 1]",
            "inputs.token_kl_BP[:, 1], inputs.token_kl_BP[:, 0]",
        ),
        (
            "BCO's level is of the chosen rewards alone",
            "rewards = rewards if term.name in PAIRWISE else rewards[:1]",
            "rewards = rewards[:1]",
        ),
        (
            "BCO's level is of log-ratios, beta forgotten",
            'implicit_rewards(policy, reference, beta=options["beta"])',
            "implicit_rewards(policy, reference, beta=1.0)",
        ),
        (
            "BCO's running mean begins anew",
            'memory = {**memory, "state": state}\n    if',
            "memory = {**memory}\n    if",
        ),
        ("BCO's level is 0", '**({} if delta is None else {"delta": delta})', "**{}"),
        (
            "KTO has BCO's level",
            "level = inputs.mismatched_kl if term.entry.mismatched else delta",
            "level = jnp.zeros(()) if term.entry.mismatched else delta",
        ),
        (
            "labels with a swapped sign",
            "reference.chosen, inputs.desirable_B, *more",
            "reference.chosen, 1 - inputs.desirable_B, *more",
        ),
        (
            "forgotten reference of single completions",
            "loss(policy.chosen, reference.chosen, inputs",
            "loss(policy.chosen, 0 * reference.chosen, inputs",
        ),
        (
            "swapped sign: policy and reference exchanged",
            "    policy, reference = inputs.policy, inputs.reference\n",
            "    policy, reference = inputs.reference, inputs.policy\n",
        ),
        (
            "batch-global losses are not told which pairs are real",
            'options["where"] = inputs.where',
            'options["where"] = None',
        ),
    ),
]
