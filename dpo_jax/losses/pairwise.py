"""Losses on the margin of pairs: by how much more the policy than the reference prefers the chosen response.

Notation as in `pairs`: a and b are the log-ratios, h is the margin, n_w and n_l are token counts, e is the label
smoothing, ls log sigmoid.

Dimension key: B pairs.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from dpo_jax.losses.knobs import Interval, Knob, NotNegative, Positive, Real, Smoothing, check_knobs
from dpo_jax.losses.pairs import log_ratios, margin, smoothed, token_counts
from dpo_jax.types import PairLogps


def dpo(
    policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.0
) -> jax.Array:
    """Logistic loss on the margin: direct preference optimisation.

    loss = -(1 - e) ls(beta h) - e ls(-beta h), with e = label_smoothing.

    A small beta lets the policy move far from the reference for a given gain, a large one holds it close. e = 0 trusts
    every label; e near 0.5 trusts none (conservative DPO, cDPO).

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, > 0; a scalar or [B].
        label_smoothing: probability that a label is wrong, in [0, 0.5]; or [B], each 1 - its soft label, in [0, 1].

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
    check_knobs(dpo, beta=beta, label_smoothing=label_smoothing)
    return smoothed(beta * margin(policy, reference), label_smoothing)


def robust_dpo(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Positive = 0.1,
    label_smoothing: Annotated[Knob, Interval(0.0, 0.5, without_high=True)] = 0.1,
) -> jax.Array:
    """The DPO loss made unbiased under labels that are flipped with a known probability.

    loss = [-(1 - e) ls(beta h) + e ls(-beta h)] / (1 - 2e), with e = label_smoothing.

    e = 0 is DPO; towards 0.5 the loss grows without bound, and for e > 0 it has no lower bound either.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, > 0; a scalar or [B].
        label_smoothing: rate of flipped labels, in [0, 0.5); a scalar or [B].

    Returns:
        One loss per pair, [B]; log 2 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> pair, zero = PairLogps(jnp.array([30.0]), jnp.array([0.0])), PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(robust_dpo(pair, zero)[0]), 5)  # (0.9 softplus(-3) - 0.1 softplus(3)) / 0.8
        -0.32641

    References:
        Chowdhury et al. 2024, arXiv:2403.00409.
    """
    check_knobs(robust_dpo, beta=beta, label_smoothing=label_smoothing)
    x_B = beta * margin(policy, reference)
    flipped_B = label_smoothing * log_sigmoid(-x_B)
    return (flipped_B - (1.0 - label_smoothing) * log_sigmoid(x_B)) / (1.0 - 2.0 * label_smoothing)


def ipo(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, average: bool = True) -> jax.Array:
    """Squared distance of the margin from a target: identity preference optimisation.

    loss = (a / n_w - b / n_l - 1 / (2 beta))^2; with average=False, (h - 1 / (2 beta))^2.

    The target margin 1 / (2 beta) is finite, so that certain labels do not drive the policy to a corner. The two forms
    want different betas: one counts nats per token, the other nats per response.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each; with token counts if `average`.
        reference: the same under the frozen reference.
        beta: the larger, the smaller the margin that is wanted, > 0; a scalar or [B].
        average: log-ratios per token (as TRL does), or of whole responses (as in the paper).

    Returns:
        One loss per pair, [B]; 1 / (4 beta^2) where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> pair, zero = PairLogps(jnp.array([4.0]), jnp.array([0.0])), PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> float(ipo(pair, zero, beta=0.5, average=False)[0])  # (4 - 1)^2
        9.0

    References:
        Azar et al. 2023, arXiv:2310.12036, equation 17.
    """
    check_knobs(ipo, beta=beta, average=average)
    a_B, b_B = log_ratios(policy, reference)
    if average:
        n_w_B, n_l_B = token_counts(policy)
        a_B, b_B = a_B / n_w_B, b_B / n_l_B
    return (a_B - b_B - 1.0 / (2.0 * beta)) ** 2


def hinge(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1) -> jax.Array:
    """Hinge loss on the margin (SLiC normalised by the reference, RSO).

    loss = max(0, 1 - beta h).

    1 / beta is the margin in nats from which on a pair no longer counts.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: the slope, > 0; a scalar or [B].

    Returns:
        One loss per pair, [B]; 1 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> pair, zero = PairLogps(jnp.array([4.0]), jnp.array([0.0])), PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(hinge(pair, zero, beta=0.1)[0]), 5)
        0.6

    References:
        Liu et al. 2023, arXiv:2309.06657.
    """
    check_knobs(hinge, beta=beta)
    return jax.nn.relu(1.0 - beta * margin(policy, reference))


def exo_pair(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Positive = 0.1,
    label_smoothing: Annotated[Knob, Interval(0.0, 0.5, without_low=True, without_high=True)] = 1e-3,
) -> jax.Array:
    """Reverse KL from the policy's choice between the two responses to the (smoothed) label.

    loss = s(x) [ls(x) - log(1 - e)] + s(-x) [ls(-x) - log e], with x = beta h and e = label_smoothing.

    The minimum, 0, lies where s(x) = 1 - e: a smaller e asks for a larger margin.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, > 0; a scalar or [B].
        label_smoothing: probability that a label is wrong, in (0, 0.5); a scalar or [B].

    Returns:
        One loss per pair, [B]; -log 2 - 0.5 log(e (1 - e)) where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> zero = PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(exo_pair(zero, zero, label_smoothing=0.1)[0]), 5)  # -log 2 - 0.5 log 0.09
        0.51083

    References:
        Ji et al. 2024, arXiv:2402.00856, equation 16.
    """
    check_knobs(exo_pair, beta=beta, label_smoothing=label_smoothing)
    x_B = beta * margin(policy, reference)
    e = jnp.asarray(label_smoothing, x_B.dtype)
    right_B = jax.nn.sigmoid(x_B) * (log_sigmoid(x_B) - jnp.log1p(-e))
    return right_B + jax.nn.sigmoid(-x_B) * (log_sigmoid(-x_B) - jnp.log(e))


def dpop(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.3, penalty: NotNegative = 50.0) -> jax.Array:
    """DPO that is punished where the chosen response becomes less likely than under the reference (Smaug).

    loss = -ls(beta (h - penalty max(0, c - C))).

    penalty = 0 is DPO. At c = C the penalty's slope is taken as 0.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, > 0; a scalar or [B].
        penalty: nats of margin lost per nat that the chosen response fell, >= 0; a scalar or [B].

    Returns:
        One loss per pair, [B]; log 2 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> pair, zero = PairLogps(jnp.array([-1.0]), jnp.array([-6.0])), PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(dpop(pair, zero, beta=0.1, penalty=2.0)[0]), 5)  # h = 5, less 2 * 1: -log sigmoid(0.3)
        0.55436

    References:
        Pal et al. 2024, arXiv:2402.13228.
    """
    check_knobs(dpop, beta=beta, penalty=penalty)
    a_B, b_B = log_ratios(policy, reference)
    return -log_sigmoid(beta * (a_B - b_B - penalty * jax.nn.relu(-a_B)))


def discopop(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Positive = 0.05,
    temperature: Annotated[Knob, Interval(0.0, 1.0, without_low=True)] = 0.05,
) -> jax.Array:
    """A blend of the logistic and the exponential loss that was found by search; not monotone in the margin.

    loss = -(1 - m) ls(x) + m exp(-x), with x = beta h and m = s(x / t), t = temperature.

    A small t switches sharply from logistic (x < 0) to exponential (x > 0).

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, > 0; a scalar or [B].
        temperature: width of the switch, in (0, 1]; a scalar or [B].

    Returns:
        One loss per pair, [B]; 0.5 log 2 + 0.5 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> zero = PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(discopop(zero, zero)[0]), 5)
        0.84657

    References:
        Lu et al. 2024, arXiv:2406.08414.
    """
    check_knobs(discopop, beta=beta, temperature=temperature)
    x_B = beta * margin(policy, reference)
    # m exp(-x) as one exponential: apart, 0 times infinity is NaN for x below -88 in float32.
    exponential_B = jnp.exp(log_sigmoid(x_B / temperature) - x_B)
    return -jax.nn.sigmoid(-x_B / temperature) * log_sigmoid(x_B) + exponential_B


def length_normalized_dpo(policy: PairLogps, reference: PairLogps, *, beta: Positive = 5.0) -> jax.Array:
    """DPO on log-ratios per token.

    loss = -ls(beta (a / n_w - b / n_l)).

    beta counts per nat per token: values that suit DPO, multiplied by a typical length, suit here.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each, with token counts.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, > 0; a scalar or [B].

    Returns:
        One loss per pair, [B]; log 2 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> two, five = jnp.array([2.0]), jnp.array([5.0])
        >>> pair = PairLogps(jnp.array([1.0]), jnp.array([-0.5]), two, five)
        >>> zero = PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(length_normalized_dpo(pair, zero, beta=0.5)[0]), 5)  # 0.5 + 0.1: -log sigmoid(0.3)
        0.55436

    References:
        Lambert et al. 2024 (Tulu 3), arXiv:2411.15124.
    """
    check_knobs(length_normalized_dpo, beta=beta)
    a_B, b_B = log_ratios(policy, reference)
    n_w_B, n_l_B = token_counts(policy)
    return -log_sigmoid(beta * (a_B / n_w_B - b_B / n_l_B))


def r_dpo(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, penalty: Real = 0.05) -> jax.Array:
    """DPO with a margin for length: a longer chosen response is pushed less, a shorter one more.

    loss = -ls(beta h + penalty (n_w - n_l)).

    penalty = 0 is DPO.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each, with token counts.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, > 0; a scalar or [B].
        penalty: logits per token of length difference; a scalar or [B].

    Returns:
        One loss per pair, [B]; -ls(penalty (n_w - n_l)) where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> zero = PairLogps(jnp.zeros(1), jnp.zeros(1), jnp.array([7.0]), jnp.array([1.0]))
        >>> round(float(r_dpo(zero, zero, penalty=0.05)[0]), 5)  # -log sigmoid(0.3)
        0.55436

    References:
        Park et al. 2024, arXiv:2403.19159.
    """
    check_knobs(r_dpo, beta=beta, penalty=penalty)
    n_w_B, n_l_B = token_counts(policy)
    return -log_sigmoid(beta * margin(policy, reference) + penalty * (n_w_B - n_l_B))
