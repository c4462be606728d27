"""Losses on pairs that compare the policy with a reference.

Notation: C, R are the chosen and rejected log-probs under the policy, c, r under the reference (sums over response
tokens, nats); a = C - c and b = R - r are the log-ratios, h = a - b is the margin; ls is log sigmoid.

Dimension key: B pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.nn import log_sigmoid

from dpo_jax.types import PairLogps

Knob = float | jax.Array


def _margin(policy: PairLogps, reference: PairLogps) -> jax.Array:
    """h = (C - c) - (R - r), [B]; at least float32."""
    chex.assert_rank([policy.chosen, reference.chosen], 1)
    chex.assert_equal_shape([policy.chosen, policy.rejected, reference.chosen, reference.rejected])
    dtype = jnp.promote_types(jnp.result_type(policy.chosen, policy.rejected), jnp.float32)
    chosen_B = policy.chosen.astype(dtype) - reference.chosen.astype(dtype)
    rejected_B = policy.rejected.astype(dtype) - reference.rejected.astype(dtype)
    return chosen_B - rejected_B


def _check(name: str, knob: Knob, allowed: bool | jax.Array, says: str) -> None:
    """Refuses a concrete knob out of range; a traced one cannot be looked at, its caller checks it."""
    if not isinstance(knob, Tracer) and not isinstance(allowed, Tracer) and not bool(jnp.all(allowed)):
        raise ValueError(f"{name} must be {says}, got {knob}")


def dpo(policy: PairLogps, reference: PairLogps, *, beta: Knob = 0.1, label_smoothing: Knob = 0.0) -> jax.Array:
    """Logistic loss on the margin: direct preference optimisation.

    loss = -(1 - e) ls(beta h) - e ls(-beta h), with e = label_smoothing.

    A small beta lets the policy move far from the reference for a given gain, a large one holds it close. e = 0 trusts
    every label; e near 0.5 trusts none (conservative DPO, cDPO).

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, > 0; a scalar or [B].
        label_smoothing: probability that a label is wrong, in [0, 0.5]; a scalar or [B].

    Returns:
        One loss per pair, [B]; log 2 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> policy = PairLogps(jnp.array([-10.0]), jnp.array([-14.0]))
        >>> reference = PairLogps(jnp.array([-11.0]), jnp.array([-12.0]))
        >>> round(float(dpo(policy, reference, beta=0.1)[0]), 5)  # h = 1 - (-2) = 3, -log sigmoid(0.3)
        0.55436

    References:
        Rafailov et al. 2023, arXiv:2305.18290, equation 7. Mitchell 2023, ericmitchell.ai/cdpo.pdf, equation 3.
    """
    _check("beta", beta, jnp.asarray(beta) > 0, "positive")
    _check("label_smoothing", label_smoothing, abs(jnp.asarray(label_smoothing) - 0.25) <= 0.25, "in [0, 0.5]")
    h_B = _margin(policy, reference)
    return -(1.0 - label_smoothing) * log_sigmoid(beta * h_B) - label_smoothing * log_sigmoid(-beta * h_B)


class PairwiseLoss(NamedTuple):
    """A loss of the table: its function, its knobs with defaults and ranges, its value where nothing is learned yet."""

    function: Callable[..., jax.Array]
    knobs: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]]  # inclusive; an open end is written as the nearest allowed number
    at_reference: Callable[[Mapping[str, Any]], float]  # the loss per pair when the policy is the reference


PAIRWISE: dict[str, PairwiseLoss] = {
    "dpo": PairwiseLoss(
        dpo,
        knobs={"beta": 0.1, "label_smoothing": 0.0},
        ranges={"beta": (1e-6, 1e6), "label_smoothing": (0.0, 0.5)},
        at_reference=lambda knobs: math.log(2.0),
    ),
}
"""Name in a configuration -> loss. To add one: write the function above, and its line here."""
