"""Quantities of each scored token: its log-probability, the KL of two distributions there, the sum of squares of one.

Dimension key: R rows, N scored tokens, V vocabulary, S vocabulary shards, D width; in a tile n scored tokens and v
columns of the vocabulary.
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp

from dpo_jax.logprobs.tiling import (
    TILE_TOKENS,
    TILE_VOCABULARY,
    Bend,
    RunningLse,
    Side,
    Tiling,
    cut_tokens,
    cut_vocabulary,
    fold,
    join_tokens,
    pull_back,
    wide,
)
from dpo_jax.types import Unembedding


def token_logps(
    hidden_RND: jax.Array,
    target_RN: jax.Array,
    unembedding: Unembedding,
    *,
    tile_tokens: int = TILE_TOKENS,
    tile_vocabulary: int = TILE_VOCABULARY,
) -> jax.Array:
    """Log-probability of each target under its hidden state, nats, at least float32, [R, N].

    Args:
        hidden_RND: the hidden states that predict the targets.
        target_RN: token ids.
        unembedding: see `Unembedding`; its soft cap is differentiated.
        tile_tokens: tokens (over all rows of a device) whose logits exist at one time.
        tile_vocabulary: columns of the vocabulary that exist at one time.
    """
    chex.assert_equal_shape_prefix([hidden_RND, target_RN], 2)
    if unembedding.weight_VD is None:
        return jnp.take_along_axis(_log_probs(hidden_RND), target_RN[..., None], axis=-1)[..., 0]
    chex.assert_equal(unembedding.weight_VD.shape[1], hidden_RND.shape[2])
    tiling, bend, weight_SVD = cut_vocabulary(unembedding, tile_vocabulary)
    hidden, target = cut_tokens(hidden_RND, tile_tokens), cut_tokens(target_RN, tile_tokens)
    logps: jax.Array = _tiled_logps(tiling, bend, hidden, target, weight_SVD)
    return join_tokens(logps, *target_RN.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tiled_logps(tiling: Tiling, bend: Bend, hidden: jax.Array, target: jax.Array, weight_SVD: jax.Array) -> jax.Array:
    """`token_logps` on tiles of tokens: hidden [tiles, n, D], target [tiles, n] -> [tiles, n]."""
    return _forward(tiling, bend, hidden, target, weight_SVD)[0]


def _forward(tiling: Tiling, bend: Bend, hidden: jax.Array, target: jax.Array, weight_SVD: jax.Array) -> tuple:
    def update(carry: tuple, target_n: jax.Array, token_v: jax.Array, logits_nv: jax.Array) -> tuple:
        running, hit = carry
        is_target = token_v[None] == target_n[:, None]
        return running.add(logits_nv)[0], hit + jnp.where(is_target, logits_nv, 0.0).sum(axis=-1)

    side = Side(bend, hidden, weight_SVD)
    zeros = jnp.zeros(target.shape, wide(side))
    running, hit = fold(tiling, update, (RunningLse.start(zeros), zeros), target, side)
    lse = running.value()
    return hit - lse, (hidden, target, weight_SVD, lse)


def _backward(tiling: Tiling, bend: Bend, saved: tuple, gradient: jax.Array) -> tuple:
    hidden, target, weight_SVD, lse = saved

    def d_logits(tokens: tuple, token_v: jax.Array, logits_nv: jax.Array) -> jax.Array:
        target_n, lse_n, gradient_n = tokens
        hit = (token_v[None] == target_n[:, None]).astype(logits_nv.dtype)
        return (hit - jnp.exp(logits_nv - lse_n[:, None])) * gradient_n[:, None]

    side = Side(bend, hidden, weight_SVD)
    d_hidden, d_weight_SVD = pull_back(tiling, d_logits, (target, lse, gradient), side)
    return d_hidden, None, d_weight_SVD


_tiled_logps.defvjp(_forward, _backward)


def token_kl(
    hidden_RND: jax.Array,
    unembedding: Unembedding,
    reference_hidden_RND: jax.Array,
    reference_unembedding: Unembedding,
    *,
    tile_tokens: int = TILE_TOKENS,
    tile_vocabulary: int = TILE_VOCABULARY,
) -> jax.Array:
    """KL(reference || policy) over the whole vocabulary at each scored token, nats, at least float32, [R, N].

    sum_v p_ref(v) * (log p_ref(v) - log p_pol(v)): the sequential KL of TDPO, arXiv:2404.11999. Rounding can take it
    a little below zero. Only the policy's hidden states and weight get gradient; that of the reference's is zero.

    Args:
        hidden_RND: the policy's hidden states.
        unembedding: the policy's; its soft cap is differentiated.
        reference_hidden_RND: the reference's at the same tokens; its width may differ.
        reference_unembedding: of the same vocabulary and as many columns.
        tile_tokens: tokens (over all rows of a device) whose logits exist at one time.
        tile_vocabulary: columns of the vocabulary that exist at one time.
    """
    chex.assert_equal_shape_prefix([hidden_RND, reference_hidden_RND], 2)
    if unembedding.weight_VD is None or reference_unembedding.weight_VD is None:
        assert unembedding.weight_VD is None and reference_unembedding.weight_VD is None  # models of one kind
        policy_RNV = _log_probs(hidden_RND)
        reference_RNV = jax.lax.stop_gradient(_log_probs(reference_hidden_RND))
        return (jnp.exp(reference_RNV) * (reference_RNV - policy_RNV)).sum(axis=-1)
    chex.assert_equal(unembedding.weight_VD.shape[1], hidden_RND.shape[2])
    chex.assert_equal(reference_unembedding.weight_VD.shape[1], reference_hidden_RND.shape[2])
    tiling, bend, weight_SVD = cut_vocabulary(unembedding, tile_vocabulary)
    reference_tiling, reference_bend, reference_weight_SVD = cut_vocabulary(reference_unembedding, tile_vocabulary)
    chex.assert_equal(tiling, reference_tiling)
    policy = cut_tokens(hidden_RND, tile_tokens), weight_SVD
    reference = cut_tokens(reference_hidden_RND, tile_tokens), reference_weight_SVD
    kl: jax.Array = _tiled_kl(tiling, (bend, reference_bend), policy, reference)
    return join_tokens(kl, *hidden_RND.shape[:2])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tiled_kl(tiling: Tiling, bends: tuple[Bend, Bend], policy: tuple, reference: tuple) -> jax.Array:
    """`token_kl` on tiles of tokens, each side a hidden [tiles, n, D] and a weight_SVD -> [tiles, n]."""
    return _kl_forward(tiling, bends, policy, reference)[0]


def _kl_forward(tiling: Tiling, bends: tuple[Bend, Bend], policy: tuple, reference: tuple) -> tuple:
    def update(carry: tuple, _: tuple, token_v: jax.Array, logits_nv: jax.Array, reference_nv: jax.Array) -> tuple:
        running, reference_running, gap = carry
        reference_running, shrink, exponentials = reference_running.add(reference_nv)
        apart = jnp.where(token_v[None] >= 0, reference_nv - logits_nv, 0.0)
        return running.add(logits_nv)[0], reference_running, gap * shrink + (exponentials * apart).sum(axis=-1)

    sides = Side(bends[0], *policy), Side(bends[1], *reference)
    zeros = jnp.zeros(policy[0].shape[:2], wide(*sides))
    start = (RunningLse.start(zeros), RunningLse.start(zeros), zeros)
    running, reference_running, gap = fold(tiling, update, start, (), *sides)
    # The two log-sum-exps subtracted by parts: both are large, and rounded, where their difference is small.
    fall = (reference_running.highest - running.highest) + jnp.log(reference_running.total / running.total)
    kl = gap / reference_running.total - fall
    return kl, (policy, reference, running.value(), reference_running.value())


def _kl_backward(tiling: Tiling, bends: tuple[Bend, Bend], saved: tuple, gradient: jax.Array) -> tuple:
    policy, reference, lse, reference_lse = saved

    def d_logits(tokens: tuple, _: jax.Array, logits_nv: jax.Array, reference_nv: jax.Array) -> jax.Array:
        lse_n, reference_lse_n, gradient_n = tokens
        excess = jnp.exp(logits_nv - lse_n[:, None]) - jnp.exp(reference_nv - reference_lse_n[:, None])
        return excess * gradient_n[:, None]

    sides = Side(bends[0], *policy), Side(bends[1], *reference)
    return pull_back(tiling, d_logits, (lse, reference_lse, gradient), *sides), None


_tiled_kl.defvjp(_kl_forward, _kl_backward)


def token_log_sum_sq(
    hidden_RND: jax.Array,
    unembedding: Unembedding,
    *,
    tile_tokens: int = TILE_TOKENS,
    tile_vocabulary: int = TILE_VOCABULARY,
) -> jax.Array:
    """log sum_v p(v)^2 at each scored token, nats, at least float32, [R, N]; it has no gradient.

    WPO weighs a token by p(target) / sum_v p(v)^2, arXiv:2406.11827. From -log(vocabulary), all tokens alike, to 0,
    one token certain. Arguments as in `token_kl`.
    """
    if unembedding.weight_VD is None:
        return jax.nn.logsumexp(2.0 * jax.lax.stop_gradient(_log_probs(hidden_RND)), axis=-1)
    chex.assert_equal(unembedding.weight_VD.shape[1], hidden_RND.shape[2])
    tiling, bend, weight_SVD = cut_vocabulary(unembedding, tile_vocabulary)
    side = Side(bend, *jax.lax.stop_gradient((cut_tokens(hidden_RND, tile_tokens), weight_SVD)))

    def update(carry: tuple, _: tuple, token_v: jax.Array, logits_nv: jax.Array) -> tuple:
        running, squares = carry
        running, shrink, exponentials = running.add(logits_nv)
        return running, squares * shrink**2 + (exponentials**2).sum(axis=-1)

    zeros = jnp.zeros(side.hidden.shape[:2], wide(side))
    running, squares = fold(tiling, update, (RunningLse.start(zeros), zeros), (), side)
    return join_tokens(jnp.log(squares) - 2.0 * jnp.log(running.total), *hidden_RND.shape[:2])


def _log_probs(logits: jax.Array) -> jax.Array:
    """Log-probabilities of logits that are there already, at least float32, over the last axis."""
    return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
