"""From hidden states to log-probs, and the token quantities that some losses read."""

from __future__ import annotations

from tests.contracts.mutants.mutant import Mutant, planted

MUTANTS: list[Mutant] = [
    *planted(
        "logprobs/distribution.py",
        ("tests/logprobs/test_distribution.py",),
        (
            "token_kl: policy and reference exchanged",
            (
                "    policy = cut_tokens(hidden_RND, tile_tokens), weight_SVD\n"
                "    reference = cut_tokens(reference_hidden_RND, tile_tokens), reference_weight_SVD\n"
            ),
            (
                "    reference = cut_tokens(hidden_RND, tile_tokens), weight_SVD\n"
                "    policy = cut_tokens(reference_hidden_RND, tile_tokens), reference_weight_SVD\n"
            ),
        ),
        (
            "token_kl: soft caps of the two exchanged",
            "(bend, reference_bend), policy, reference)",
            "(reference_bend, bend), policy, reference)",
        ),
        (
            "token_kl: the gap is not rescaled when the maximum grows",
            "gap * shrink + (exponentials * apart)",
            "gap + (exponentials * apart)",
        ),
        (
            "token_kl: columns beyond the vocabulary count in the gap",
            "jnp.where(token_v[None] >= 0, reference_nv - logits_nv, 0.0)",
            "reference_nv - logits_nv",
        ),
        (
            "token_kl: the partition functions are subtracted as wholes, and round",
            "(reference_running.highest - running.highest) + jnp.log(reference_running.total / running.total)",
            "reference_running.value() - running.value()",
        ),
        (
            "token_kl: the gap is not divided by the partition function",
            "kl = gap / reference_running.total - fall",
            "kl = gap - fall",
        ),
        (
            "token_kl: gradient with a swapped sign",
            "jnp.exp(logits_nv - lse_n[:, None]) - jnp.exp(reference_nv - reference_lse_n[:, None])",
            "jnp.exp(reference_nv - reference_lse_n[:, None]) - jnp.exp(logits_nv - lse_n[:, None])",
        ),
        ("token_kl: the gradient from above is dropped", "return excess * gradient_n[:, None]", "return excess"),
        (
            "token_kl: gradient flows into the reference",
            "return pull_back(tiling, d_logits, (lse, reference_lse, gradient), *sides), None",
            (
                "ours = pull_back(tiling, d_logits, (lse, reference_lse, gradient), *sides)\n"
                "    swapped = lambda tokens, v, z, other: -d_logits(tokens, v, other, z)\n"
                "    return ours, pull_back(tiling, swapped, (lse, reference_lse, gradient), *sides[::-1])"
            ),
        ),
        ("token_log_sum_sq: squares rescaled like first powers", "squares * shrink**2", "squares * shrink"),
        ("token_log_sum_sq: sums of first powers", "(exponentials**2).sum(axis=-1)", "exponentials.sum(axis=-1)"),
        (
            "token_log_sum_sq: divided by the sum once, not twice",
            "jnp.log(squares) - 2.0 * jnp.log(running.total)",
            "jnp.log(squares) - jnp.log(running.total)",
        ),
        (
            "token_log_sum_sq: gradient flows",
            "jax.lax.stop_gradient((cut_tokens(hidden_RND, tile_tokens), weight_SVD))",
            "(cut_tokens(hidden_RND, tile_tokens), weight_SVD)",
        ),
    ),
    *planted(
        "logprobs/tiling.py",
        ("tests/logprobs",),
        (
            "lse: the total is not rescaled when the maximum grows",
            "self.total * shrink + exponentials.sum(axis=-1)",
            "self.total + exponentials.sum(axis=-1)",
        ),
        (
            "tiling: columns beyond the vocabulary count",
            "(within >= wanted) & (tokens < tiling.vocabulary)",
            "within >= wanted",
        ),
        (
            "tiling: the last, overlapping tile counts twice",
            "(within >= wanted) & (tokens < tiling.vocabulary)",
            "tokens < tiling.vocabulary",
        ),
        ("tiling: the soft cap is not differentiated", "bend.scale * (1.0 - bent * bent)", "bend.scale"),
        (
            "tiling: the scale is missing in the soft cap's derivative",
            "bend.soft_cap * bent, bend.scale * (1.0",
            "bend.soft_cap * bent, (1.0",
        ),
        (
            "tiling: vocabulary shards are interleaved",
            "jnp.arange(tiling.shards)[:, None] * tiling.per_shard + within",
            "jnp.arange(tiling.shards)[:, None] + within * tiling.shards",
        ),
        (
            "tiling: bfloat16 is summed in bfloat16",
            "jnp.result_type(jnp.float32, *(side.hidden for side in sides))",
            "sides[0].hidden.dtype",
        ),
        (
            "tiling: tokens come back in the order of the tiles",
            ".swapaxes(0, 1).reshape(rows, -1)[:, :scored]",
            ".reshape(rows, -1)[:, :scored]",
        ),
        (
            "tiling: tokens are cut across rows",
            "array.reshape(rows, tiles, tile, *rest).swapaxes(0, 1).reshape",
            "array.reshape(tiles, rows, tile, *rest).reshape",
        ),
    ),
    *planted(
        "logprobs/responses.py",
        ("tests/logprobs/test_responses.py",),
        (
            "head_mask: one token too many",
            "place_RN - first[response_RN] < shortest",
            "place_RN - first[response_RN] <= shortest",
        ),
        (
            "head_mask: one token short",
            "place_RN - first[response_RN] < shortest",
            "place_RN - first[response_RN] + 1 < shortest",
        ),
        (
            "head_mask: places counted from the row, not the response",
            "place_RN - first[response_RN] < shortest",
            "place_RN < shortest",
        ),
        (
            "head_mask: as long as the longest response",
            "response_tokens_BP.min(axis=1)",
            "response_tokens_BP.max(axis=1)",
        ),
        (
            "head_mask: the shortest of the first two responses",
            "response_tokens_BP.min(axis=1)",
            "response_tokens_BP[:, :2].min(axis=1)",
        ),
        ("head_mask: padding counts", "(response_RN >= 0) & (place", "(place"),
        (
            "head_mask: lengths of another pair",
            "jnp.repeat(response_tokens_BP.min(axis=1), slots)",
            "jnp.tile(response_tokens_BP.min(axis=1), slots)",
        ),
        (
            "batch_scores: heads are whole responses",
            "for values_RN in (logps_RN, heads_RN)",
            "for values_RN in (logps_RN, logps_RN)",
        ),
        (
            "batch_scores: no gradient through the heads",
            "head_mask(batch.response_RN, batch.response_tokens_BP), logps_RN, 0.0)",
            "head_mask(batch.response_RN, batch.response_tokens_BP), jax.lax.stop_gradient(logps_RN), 0.0)",
        ),
        ("response_logps: responses of another slot", "sums.reshape(pairs, slots)", "sums.reshape(slots, pairs).T"),
        (
            "response_logps: the likeliest token alone",
            "jax.ops.segment_sum(token_logps_RN.ravel(),",
            "jax.ops.segment_max(token_logps_RN.ravel(),",
        ),
        (
            "scored_hidden: the hidden state of the token itself (mask shifted)",
            "batch.source_RN[..., None], axis=1)",
            "batch.source_RN[..., None] + 1, axis=1)",
        ),
    ),
    *planted(
        "logprobs/tokens.py",
        ("tests/logprobs/test_tokens.py",),
        (
            "token_logps: gradient without the target",
            "hit - jnp.exp(logits_nv - lse_n[:, None])",
            "-jnp.exp(logits_nv - lse_n[:, None])",
        ),
        (
            "token_logps: not normalised",
            "    return hit - lse, (hidden, target, weight_SVD, lse)",
            "    return hit, (hidden, target, weight_SVD, lse)",
        ),
        (
            "token_logps: the gradient from above is dropped",
            "jnp.exp(logits_nv - lse_n[:, None])) * gradient_n[:, None]",
            "jnp.exp(logits_nv - lse_n[:, None]))",
        ),
    ),
]
