"""Top-k and top-p: which tokens may be drawn.

Either keeps all tokens from some score up, and that score is searched for by halves. A sort would take ten times as
long on a CPU, and on a mesh it would want the whole vocabulary of a row on one device.

Dimension key: R rows, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def least_drawn(
    logits_RV: jax.Array,
    temperature: jax.Array | float,
    *,
    top_p: jax.Array | float,
    top_k: jax.Array | int,
) -> jax.Array:
    """Least float32 logit in each row, [R], that may be drawn at this temperature, above 0; -inf where any may.

    `top_k` keeps the k best tokens, 0 all. Of these `top_p` then keeps the fewest best whose probability, among them,
    reaches p; 1 keeps all. At least one is kept. Tokens that tie with the last one kept are kept too: what is drawn
    does not depend on where a token stands in the vocabulary. The order is that of transformers, and so are the tokens,
    but for ties in top-p, of which it keeps some.
    """
    all_R = jnp.full(logits_RV.shape[0], -jnp.inf)

    def best_k() -> jax.Array:
        return _least_kept(logits_RV, jnp.ones_like(logits_RV), jnp.full_like(all_R, top_k))

    def nucleus(least_R: jax.Array) -> jax.Array:
        mass_RV = jnp.exp((logits_RV - jnp.max(logits_RV, axis=-1, keepdims=True)) / temperature)
        mass_RV = jnp.where(logits_RV < least_R[:, None], 0.0, mass_RV)
        return _least_kept(logits_RV, mass_RV, top_p * jnp.sum(mass_RV, axis=-1))

    # Branches that are not taken cost nothing, and neither copies the logits.
    least_R = jax.lax.cond(top_k > 0, best_k, lambda: all_R)
    return jax.lax.cond(top_p < 1, nucleus, lambda least_R: least_R, least_R)


def _least_kept(scores_RV: jax.Array, weight_RV: jax.Array, wanted_R: jax.Array) -> jax.Array:
    """The highest score in each row such that the weights from there up come to what is wanted; -inf if none is."""

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_R, high_R = ends
        middle_R = (low_R | high_R) - ((low_R ^ high_R) >> 1)  # their mean, rounded up, without overflow
        above_RV = scores_RV >= _score(middle_R)[:, None]
        enough_R = jnp.sum(jnp.where(above_RV, weight_RV, 0.0), axis=-1) >= wanted_R
        return jnp.where(enough_R, middle_R, low_R), jnp.where(enough_R, high_R, middle_R - 1)

    highest_R = _rank(jnp.max(scores_RV, axis=-1))
    lowest_R = jnp.full_like(highest_R, _rank(jnp.float32(-jnp.inf)))
    # A row's least score that is kept is among 2 ** 32 float32 numbers, and a pass leaves half of them.
    return _score(jax.lax.fori_loop(0, 32, halve, (lowest_R, highest_R))[0])


def _rank(score: jax.Array) -> jax.Array:
    """Integers in the order of the float32 numbers: the bits of a negative one count downwards."""
    bits = jax.lax.bitcast_convert_type(score, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _score(rank: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(jnp.where(rank < 0, rank ^ 0x7FFFFFFF, rank), jnp.float32)
