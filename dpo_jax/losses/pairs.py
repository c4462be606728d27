"""Parts of the losses on pairs: log-ratios, the margin, averages per token.

Notation, here and in every file beside: C, R are the chosen and rejected log-probs under the policy, c, r under the
reference (sums over response tokens, nats); n_w, n_l their token counts; a = C - c and b = R - r are the log-ratios,
h = a - b is the margin; s is the logistic sigmoid, ls its logarithm, e the label smoothing.

Dimension key: B pairs.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from dpo_jax.losses.knobs import Knob
from dpo_jax.types import PairLogps


def widened(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays [B] in one common type, at least float32."""
    chex.assert_rank(arrays, 1)
    chex.assert_equal_shape(arrays)
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return tuple(jnp.asarray(array, dtype) for array in arrays)


def log_ratios(policy: PairLogps, reference: PairLogps) -> tuple[jax.Array, jax.Array]:
    """a = C - c and b = R - r, [B] each."""
    C_B, R_B, c_B, r_B = widened(policy.chosen, policy.rejected, reference.chosen, reference.rejected)
    return C_B - c_B, R_B - r_B


def margin(policy: PairLogps, reference: PairLogps) -> jax.Array:
    """h = (C - c) - (R - r), [B]."""
    a_B, b_B = log_ratios(policy, reference)
    return a_B - b_B


def token_counts(pairs: PairLogps) -> tuple[jax.Array, jax.Array]:
    """n_w and n_l, at least 1, [B] each.

    Raises:
        ValueError: the pairs carry no counts.
    """
    if pairs.chosen_tokens is None or pairs.rejected_tokens is None:
        raise ValueError(
            "this loss averages over tokens: give PairLogps(chosen, rejected, chosen_tokens, rejected_tokens) the "
            "token counts of the responses under the policy"
        )
    chex.assert_equal_shape([pairs.chosen, pairs.chosen_tokens, pairs.rejected_tokens])
    dtype = jnp.promote_types(jnp.result_type(pairs.chosen, pairs.rejected), jnp.float32)
    counts = (pairs.chosen_tokens, pairs.rejected_tokens)
    n_w_B, n_l_B = (jnp.maximum(jnp.asarray(count, dtype), 1) for count in counts)
    return n_w_B, n_l_B


def averages(pairs: PairLogps) -> tuple[jax.Array, jax.Array]:
    """Log-probs per token, C / n_w and R / n_l, nats, [B] each; raises ValueError without counts."""
    n_w_B, n_l_B = token_counts(pairs)
    C_B, R_B = widened(pairs.chosen, pairs.rejected)
    return C_B / n_w_B, R_B / n_l_B


def smoothed(x_B: jax.Array, label_smoothing: Knob) -> jax.Array:
    """-(1 - e) ls(x) - e ls(-x): the logistic loss on x when a label is wrong with probability e, [B]."""
    return -(1.0 - label_smoothing) * log_sigmoid(x_B) - label_smoothing * log_sigmoid(-x_B)
