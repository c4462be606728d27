"""Losses that compare distributions over the batch rather than each pair: alignment by optimal transport.

Dimension key: B pairs (of this shard), G pairs of all shards.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from dpo_jax.losses.knobs import Interval, Knob, Positive, check_knobs
from dpo_jax.losses.pairs import log_ratios, smoothed, widened
from dpo_jax.losses.statistics import AxisName, gathered, own, present
from dpo_jax.types import PairLogps

Smoothing = Annotated[Knob, Interval(0.0, 0.5)]
"""As for other losses, but of a rank: no pair has one of its own, and so no soft label."""


def aot(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Positive = 0.1,
    label_smoothing: Smoothing = 0.0,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """The policy's margins, sorted over the batch, set against the reference's, sorted: alignment by transport.

    u = sort(C - R) - sort(c - r);  loss = -(1 - e) ls(beta u) - e ls(-beta u).

    The distribution of margins is to dominate the reference's, quantile by quantile; no pair is compared with itself.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, > 0; a scalar, or [B] by rank.
        label_smoothing: probability that a label is wrong, in [0, 0.5]; a scalar, or [B] by rank.
        where: which pairs are real, bool [B]; the others do not count.
        axis_name: inside `shard_map`, the mesh axes over which the batch is split.

    Returns:
        One loss per rank of the whole batch, smallest first, [B]: its mean is the loss of the batch. With `where`, the
        ranks stand at the real pairs, and the rest is 0. log 2 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> pair = PairLogps(jnp.array([5.0, 1.0]), jnp.array([0.0, 0.0]))
        >>> zero = PairLogps(jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0]))
        >>> [round(float(x), 5) for x in aot(pair, zero)]  # u = [1, 5] - [1, 2] = [0, 3]
        [0.69315, 0.55436]

    References:
        Melnyk et al. 2024, arXiv:2406.05882.
    """
    check_knobs(aot, beta=beta, label_smoothing=label_smoothing)
    C_B, R_B, c_B, r_B = widened(policy.chosen, policy.rejected, reference.chosen, reference.rejected)
    return _by_rank(C_B - R_B, c_B - r_B, beta, label_smoothing, where, axis_name)


def aot_unpaired(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Positive = 0.1,
    label_smoothing: Smoothing = 0.0,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """As `aot`, but chosen log-ratios are set against rejected ones: the two need not answer the same prompts.

    u = sort(a) - sort(b);  loss = -(1 - e) ls(beta u) - e ls(-beta u).

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, > 0; a scalar, or [B] by rank.
        label_smoothing: probability that a label is wrong, in [0, 0.5]; a scalar, or [B] by rank.
        where: which pairs are real, bool [B]; the others do not count.
        axis_name: inside `shard_map`, the mesh axes over which the batch is split.

    Returns:
        One loss per rank, [B], as `aot` gives them; log 2 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> pair = PairLogps(jnp.array([5.0, 1.0]), jnp.array([1.0, 2.0]))
        >>> zero = PairLogps(jnp.zeros(2), jnp.zeros(2))
        >>> [round(float(x), 5) for x in aot_unpaired(pair, zero)]  # u = [1, 5] - [1, 2] = [0, 3]
        [0.69315, 0.55436]

    References:
        Melnyk et al. 2024, arXiv:2406.05882.
    """
    check_knobs(aot_unpaired, beta=beta, label_smoothing=label_smoothing)
    a_B, b_B = log_ratios(policy, reference)
    return _by_rank(a_B, b_B, beta, label_smoothing, where, axis_name)


def _by_rank(
    upper_B: jax.Array,
    lower_B: jax.Array,
    beta: Positive,
    label_smoothing: Smoothing,
    where: jax.Array | None,
    axis_name: AxisName,
) -> jax.Array:
    real_G = gathered(present(upper_B, where), axis_name)
    sorted_G = []
    for values_B in (upper_B, lower_B):
        values_G = gathered(values_B, axis_name)
        # Pairs that are not real sort behind all others, whatever they hold, and meet each other there.
        order_G = jnp.lexsort((jax.lax.stop_gradient(values_G), ~real_G))
        sorted_G.append(jnp.where(real_G, values_G, 0)[order_G])
    # The k-th rank stands at the place of the k-th real pair.
    rank_G = jnp.where(real_G, jnp.cumsum(real_G) - 1, real_G.size - 1)
    u_B = own((sorted_G[0] - sorted_G[1])[rank_G], upper_B, axis_name)
    losses_B = smoothed(beta * u_B, label_smoothing)
    return losses_B if where is None else jnp.where(where, losses_B, 0)
