"""The supervised term of a mixed objective: the negative log-likelihood of the chosen responses.

Dimension key: B pairs.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from dpo_jax.losses.knobs import check_knobs
from dpo_jax.losses.pairs import token_counts, widened
from dpo_jax.losses.statistics import AxisName, mean
from dpo_jax.types import PairLogps

Reduction = Literal["token", "sequence", "sum"]


def sft(
    policy: PairLogps,
    *,
    nll_reduction: Reduction = "token",
    mean_tokens: jax.Array | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Negative log-likelihood of the chosen responses, in the reduction that is asked for.

    token: -C / mean(n_w), so that the mean over pairs is a mean over all tokens.  sequence: -C / n_w.  sum: -C.

    token lets long responses count more, sequence lets all responses count alike, sum makes the term grow with length.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each, with token counts unless the sum is taken.
        nll_reduction: token, sequence or sum.
        mean_tokens: for token, the mean of n_w over all pairs of the batch, if these are only a part of it (one
            micro-batch of several); it is taken over these pairs otherwise.
        where: which pairs are real, bool [B]; the others do not count in the mean of n_w.
        axis_name: inside `shard_map`, the mesh axes over which the batch is split.

    Returns:
        One loss per pair, [B], nats.

    Example:
        >>> import jax.numpy as jnp
        >>> tokens = jnp.array([1.0, 3.0])
        >>> pair = PairLogps(jnp.array([-2.0, -9.0]), jnp.zeros(2), tokens, tokens)
        >>> [float(sft(pair, nll_reduction=way).mean()) for way in ("token", "sequence", "sum")]  # 11/4, (2+3)/2, 11/2
        [2.75, 2.5, 5.5]
    """
    check_knobs(sft, nll_reduction=nll_reduction)
    chosen_B, _ = widened(policy.chosen, policy.rejected)
    if nll_reduction == "sum":
        return -chosen_B
    n_w_B, _ = token_counts(policy)
    if nll_reduction == "sequence":
        return -chosen_B / n_w_B
    if mean_tokens is None:
        mean_tokens = jnp.maximum(mean(n_w_B, where=where, axis_name=axis_name), 1)  # without a real pair it is 0
    return -chosen_B / mean_tokens
