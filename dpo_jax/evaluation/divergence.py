"""The divergence of the policy from the reference, measured on the policy's own samples.

Each is summed over the tokens of a response, and a mean over samples then estimates KL(policy || reference) of whole
responses. `exact` takes at each token the expectation over the vocabulary, so that only the contexts are sampled.

Dimension key: B pairs, P slot in the pair, R rows, T tokens, N scored tokens, n samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.evaluation.intervals import mean_interval
from dpo_jax.evaluation.records import Divergence, Entropy, Evaluation
from dpo_jax.logprobs import response_logps, scored_hidden, token_kl, token_logps
from dpo_jax.types import PairBatch, Unembedding

_LARGEST_EXPONENT = 80.0

Seen = tuple[jax.Array, Unembedding]
"""A model's view of a batch: hidden states [R, T, D] and its unembedding."""


class Divergences(NamedTuple):
    """Sums over the tokens of each sampled response, nats, [B, P] on the device or [n]."""

    policy_logps: jax.Array
    exact: jax.Array  # sum over the vocabulary of p (log p - log r)
    k1: jax.Array  # x = log p - log r of the sampled token
    k2: jax.Array  # x^2 / 2: small variance, biased
    k3: jax.Array  # exp(-x) - 1 + x: never below zero, unbiased


def sample_divergences(policy: Seen, reference: Seen, batch: PairBatch, **tiles: int) -> Divergences:
    """The divergences of each response of a batch that the policy sampled, [B, P].

    No array of shape [R, N, V] exists; `tiles` as in `token_logps`.

    References: Schulman 2020, Approximating KL divergence, joschu.net/blog/kl-approx.html (k1, k2, k3).
    """
    pairs, slots = batch.response_tokens_BP.shape
    policy_RND, reference_RND = (scored_hidden(hidden_RTD, batch) for hidden_RTD, _ in (policy, reference))
    logps_RN = token_logps(policy_RND, batch.target_RN, policy[1], **tiles)
    ratios_RN = logps_RN - token_logps(reference_RND, batch.target_RN, reference[1], **tiles)
    # token_kl is that of its second pair of arguments from its first.
    exact_RN = token_kl(reference_RND, reference[1], policy_RND, policy[1], **tiles)
    of_tokens = Divergences(logps_RN, exact_RN, *kl_of_ratios(ratios_RN))
    return Divergences(*(response_logps(each_RN, batch.response_RN, pairs=pairs, slots=slots) for each_RN in of_tokens))


def kl_of_ratios(ratios: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """k1, k2 and k3 of log-ratios of sampled tokens, as `losses.kl_estimates` has them of sampled responses."""
    # Bounded as there: one token that the reference excludes must not make the estimate of all infinite.
    return ratios, ratios**2 / 2, jnp.expm1(jnp.minimum(-ratios, _LARGEST_EXPONENT)) + ratios


def divergence_metrics(sums: Divergences, tokens_n: np.ndarray, groups_n: np.ndarray | None = None) -> Evaluation:
    """An evaluation of `kl`, nats per response, `entropy` of the policy, nats per token, and `tokens` alone.

    `sequence_kl` is k1, the mean log-ratio. The entropy is estimated by the log-probs of the samples, all tokens alike.

    Args:
        sums: of the samples, [n] each.
        tokens_n: how many tokens each has, its end included.
        groups_n: of the intervals: samples of one prompt belong together.

    Raises:
        ValueError: there are no samples.
    """
    if not len(tokens_n):
        raise ValueError("no samples, no divergence")
    values = {name: np.asarray(value, np.float64) for name, value in sums._asdict().items()}
    tokens_n = np.asarray(tokens_n, np.float64)
    kl: dict[str, Any] = {}
    for name in ("exact", "k1", "k2", "k3"):
        kl |= {name: float(values[name].mean()), f"{name}_interval": mean_interval(values[name], groups_n)}
    return Evaluation(
        kl=Divergence(sequence_kl=kl["k1"], interval=kl["k1_interval"], samples=len(tokens_n), **kl),
        entropy=Entropy(
            token=float(-values["policy_logps"].sum() / tokens_n.sum()),
            sequence=float(-values["policy_logps"].mean()),
            sequence_interval=mean_interval(-values["policy_logps"], groups_n),
        ),
        tokens=float(tokens_n.mean()),
        tokens_interval=mean_interval(tokens_n, groups_n),
    )
