"""What one step does to the two responses of a pair, and of which pairs the chosen response became less likely.

A step that moves the parameters by D moves a log-prob y by <grad y, D>, to first order. Where it is one of plain
gradient descent, D = -rate grad L, that is a sum over all responses of the batch: each pulls the others along as far as
their gradients are alike. A chosen response falls where the push on rejected ones that look like it is the stronger.

Dimension key: B pairs, P slot in the pair, R rows, T tokens, N scored tokens, D width, n rows of data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.logprobs import scored_hidden
from dpo_jax.types import PairBatch, Params


class Pulls(NamedTuple):
    """The pulls on the log-probs of one pair, [P] each.

    `first_order` is <grad y, change> of the change that was made, nats. The others are of plain gradient descent, nats
    by unit of its learning rate: what comes through each response of the same pair, and from the other pairs.
    """

    first_order: jax.Array
    own_chosen: jax.Array
    own_rejected: jax.Array
    others: jax.Array


def pair_pulls(
    forward: Callable[[Params], tuple[jax.Array, Any]], params: Params, slopes: Any, gradient: Params, change: Params
) -> Pulls:
    """The pulls on one pair, from the gradients of its two log-probs.

    Args:
        forward: the log-probs [P] of the pair under parameters, and all that the loss reads of it, a tree of [1, P].
        params: where the step begins.
        slopes: dL / d what the loss reads, where the step begins; a tree like it.
        gradient: of the loss of the whole batch, this pair among it.
        change: parameters after the step less those before.
    """
    (logps_P, read), pull = jax.vjp(forward, params)
    slots = jnp.eye(len(logps_P), dtype=logps_P.dtype)
    nothing = jax.tree.map(jnp.zeros_like, read)
    of_logps = [pull((slot_P, nothing))[0] for slot_P in slots]
    through = [pull((0 * slot_P, jax.tree.map(lambda x, s=slot_P: x * s[None], slopes)))[0] for slot_P in slots]

    def along(direction: Params) -> jax.Array:
        return jnp.stack([_inner(own, direction) for own in of_logps])

    chosen_P, rejected_P = (-along(own) for own in through)
    return Pulls(along(change), chosen_P, rejected_P, -along(gradient) - chosen_P - rejected_P)


def _inner(one: Params, other: Params) -> jax.Array:
    products = jax.tree.map(lambda a, b: jnp.sum(a * b, dtype=jnp.promote_types(a.dtype, jnp.float32)), one, other)
    return jax.tree.reduce(jnp.add, products)


class Bin(NamedTuple):
    """Pairs of about one similarity."""

    low: float
    high: float
    pairs: int
    fell: int  # whose chosen log-prob is below the reference's
    chosen: float  # mean log-ratio, nats
    rejected: float
    places: np.ndarray  # of the pairs


def by_similarity(similarity_n: np.ndarray, log_ratios_nP: np.ndarray, *, bins: int = 4) -> list[Bin]:
    """Which pairs lost their chosen response, in bins of equal size, those whose responses are least alike first.

    A tie may lie on both sides of a border.
    """
    parts = []
    for picks in np.array_split(np.argsort(similarity_n, kind="stable"), min(bins, len(similarity_n))):
        own_n, (chosen, rejected) = similarity_n[picks], log_ratios_nP[picks].mean(axis=0)
        fell = int((log_ratios_nP[picks, 0] < 0).sum())
        parts.append(Bin(float(own_n[0]), float(own_n[-1]), len(picks), fell, float(chosen), float(rejected), picks))
    return parts


def edit_similarity(one: np.ndarray, other: np.ndarray) -> float:
    """1 less the edits (tokens put in, taken out or replaced) that turn one into the other, by the longer length."""
    places = np.arange(len(other) + 1)
    row = places
    for number, token in enumerate(one, 1):
        kept_or_replaced = np.concatenate([[number], np.minimum(row[1:] + 1, row[:-1] + (other != token))])
        row = np.minimum.accumulate(kept_or_replaced - places) + places  # then whatever is put in
    return 1.0 - float(row[-1]) / max(len(one), len(other), 1)


def hidden_means(hidden_RTD: jax.Array, batch: PairBatch) -> jax.Array:
    """The mean over each response of the last hidden states, those that predict its tokens; [B, P, D]."""
    pairs, slots = batch.response_tokens_BP.shape
    hidden_RND = scored_hidden(hidden_RTD, batch).astype(jnp.float32)
    ids = batch.response_RN.ravel()  # -1 on padding is dropped
    sums = jax.ops.segment_sum(hidden_RND.reshape(ids.size, -1), ids, num_segments=pairs * slots)
    return sums.reshape(pairs, slots, -1) / jnp.maximum(batch.response_tokens_BP, 1)[..., None]


def ches(means_BPD: np.ndarray) -> np.ndarray:
    """CHES scores [B], length-normalised: <m_w, m_l> - |m_w|^2 of mean hidden states m, under the initial model.

    The higher, the more chosen and rejected look alike from inside, and the likelier the chosen one is displaced.

    References: Razin et al. 2024, arXiv:2410.08847.
    """
    chosen_BD, rejected_BD = means_BPD[:, 0], means_BPD[:, 1]
    return (chosen_BD * (rejected_BD - chosen_BD)).sum(axis=1)


def rank_correlation(one_n: np.ndarray, other_n: np.ndarray) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN where one side is all ties."""

    def ranks(values_n: np.ndarray) -> np.ndarray:
        _, place_n, counts = np.unique(values_n, return_inverse=True, return_counts=True)
        centred = (np.cumsum(counts) - (counts - 1) / 2)[place_n] - (len(values_n) + 1) / 2
        return centred

    a_n, b_n = ranks(one_n), ranks(other_n)
    size = np.sqrt((a_n**2).sum() * (b_n**2).sum())
    return float((a_n * b_n).sum() / size) if size else float("nan")
