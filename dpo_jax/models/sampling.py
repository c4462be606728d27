"""Sampling from a model with a key/value cache: prompts in, responses out.

Dimension key: R rows, T prompt tokens, M new tokens, V vocabulary in N blocks of W, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.mesh import constrain
from dpo_jax.models.attention import Cache
from dpo_jax.models.model import Model
from dpo_jax.types import Params, Unembedding

_BLOCK = 256

Sampler = jax.stages.Wrapped
"""`sample(params, prompt_RT, prompt_lengths_R, key, temperature, first_row=0, *, top_p=1, top_k=0)`: `make_sampler`."""


def make_sampler(model: Model, *, max_new_tokens: int, stop_tokens: tuple[int, ...]) -> Sampler:
    """Return a jitted `Sampler` for right-padded prompts; only new shapes compile anew.

    It gives tokens [R, M], 0 after the end, and lengths [R]: a response has M tokens, or ends with, and includes, its
    first stop token. Temperature 0 takes the likeliest token; `top_p` and `top_k` are those of `least_drawn`. Row r
    draws from the stream of `key` and `first_row + r`, whatever the other rows are. On a mesh rows, cache and
    vocabulary are split, and every device gets all that is returned.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; a response has at least one token")
    return jax.jit(_Sampling(model, max_new_tokens, stop_tokens).sample)


def compile_ahead(sampler: Sampler, params: Params, prompts: Sequence[np.ndarray], *, batch_rows: int) -> None:
    """Compile what `generate` is about to run with these parameters and prompts, so that its time is of sampling."""
    batch = _batch(prompts[:1], max(map(len, prompts)), batch_rows)
    sampler.lower(params, *batch, jax.random.key(0), 1.0, 0, top_p=1.0, top_k=0).compile()


def generate(
    sampler: Sampler,
    params: Params,
    prompts: Sequence[np.ndarray],
    *,
    key: jax.Array,
    batch_rows: int,
    samples: int = 1,
    temperature: float = 1.0,
    progress: Callable[[int], None] = lambda responses: None,
    **cut: float,
) -> list[np.ndarray]:
    """Return `samples` responses (int32 ids, with their stop token if they came to one) to each prompt, in order.

    Response i to prompt p is row `p * samples + i` and draws from that row's stream; `batch_rows` sets speed alone.
    All batches have one shape, so that one compilation serves them: the longest prompt sets the width, and the last
    batch repeats its last prompt. `progress` is called with the number of responses so far; `cut` are `top_p` and
    `top_k` of `draw`.

    Raises:
        ValueError: a prompt has no tokens.
    """
    responses: list[np.ndarray] = []
    for batch in generate_batches(
        sampler,
        params,
        prompts,
        key=key,
        batch_rows=batch_rows,
        samples=samples,
        temperature=temperature,
        first=0,
        **cut,
    ):
        responses += batch
        progress(len(responses))
    return responses


def generate_batches(
    sampler: Sampler,
    params: Params,
    prompts: Sequence[np.ndarray],
    *,
    key: jax.Array,
    batch_rows: int,
    samples: int = 1,
    temperature: float = 1.0,
    first: int = 0,
    **cut: float,
) -> Iterator[list[np.ndarray]]:
    """Yield the responses of `generate` batch after batch, from row `first` on, with which a batch begins."""
    if not all(map(len, prompts)):
        raise ValueError(f"prompt {[len(prompt) for prompt in prompts].index(0)} has no tokens")
    width, cut = max(map(len, prompts), default=0), {"top_p": 1.0, "top_k": 0, **cut}
    rows = [prompt for prompt in prompts for _ in range(samples)]
    for start in range(first, len(rows), batch_rows):
        real = rows[start : start + batch_rows]
        batch = _batch(real, width, batch_rows)
        sampled = sampler(params, *batch, key, temperature, start, **cut)
        tokens_RM, lengths_R = jax.device_get(sampled)
        yield [tokens_RM[row, : lengths_R[row]] for row in range(len(real))]


def _batch(real: Sequence[np.ndarray], width: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts [R, T] padded with 0, and their lengths [R]; the last prompt fills the rows that are left."""
    filled = [*real, *[real[-1]] * (rows - len(real))]
    prompt_RT = np.stack([np.pad(row, (0, width - len(row))) for row in filled]).astype(np.int32)
    return prompt_RT, np.array([len(row) for row in filled], np.int32)


def draw(
    logits_RV: jax.Array,
    keys_R: jax.Array,
    temperature: jax.Array | float,
    *,
    top_p: jax.Array | float = 1.0,
    top_k: jax.Array | float = 0,
) -> jax.Array:
    """A token id per row from softmax(logits / temperature), each row with its own key; temperature 0: the likeliest.

    `top_p` and `top_k` draw from what `least_drawn` leaves of it.

    A block of the vocabulary is drawn first, then a token inside it: noise for N + W numbers instead of V, which for
    49,152 tokens is about twenty times faster on a CPU than one draw among all.
    """
    rows, vocabulary = logits_RV.shape
    divisor = jnp.where(temperature > 0, temperature, 1.0)
    least_R = least_drawn(logits_RV, divisor, top_p=top_p, top_k=top_k)
    scaled_RV = jnp.where(logits_RV < least_R[:, None], -jnp.inf, logits_RV) / divisor
    padding = ((0, 0), (0, -vocabulary % _BLOCK))
    scaled_RNW = jnp.pad(scaled_RV, padding, constant_values=-jnp.inf).reshape(rows, -1, _BLOCK)
    keys_R2 = jax.vmap(jax.random.split)(keys_R)
    categorical = jax.vmap(jax.random.categorical)
    block_R = categorical(keys_R2[:, 0], jax.nn.logsumexp(scaled_RNW, axis=-1))
    inside_RW = jnp.take_along_axis(scaled_RNW, block_R[:, None, None], axis=1)[:, 0]
    drawn_R = block_R * _BLOCK + categorical(keys_R2[:, 1], inside_RW)
    return jnp.where(temperature > 0, drawn_R, jnp.argmax(logits_RV, axis=-1)).astype(jnp.int32)


def next_logits(hidden_RD: jax.Array, unembedding: Unembedding) -> jax.Array:
    """Float32 logits [R, V] of the next token; columns beyond the vocabulary are -inf."""
    weight_VD, vocabulary, scale, soft_cap = unembedding
    if weight_VD is None:
        return hidden_RD.astype(jnp.float32)
    logits_RV = scale * jnp.einsum("rd,vd->rv", hidden_RD, weight_VD, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        logits_RV = soft_cap * jnp.tanh(logits_RV / soft_cap)
    real_V = jnp.arange(weight_VD.shape[0]) < vocabulary
    return jnp.where(real_V[None], logits_RV, -jnp.inf)


class Streamer:
    """One response, token after token as they are drawn: those of `generate` for the same key.

    Two programs for each width of prompts, compiled when it is first met.
    """

    def __init__(self, model: Model, *, max_new_tokens: int, stop_tokens: tuple[int, ...]):
        sampling = _Sampling(model, max_new_tokens, stop_tokens)
        self._begin, self._advance = jax.jit(sampling.begin), jax.jit(sampling.advance, donate_argnums=1)
        self._max_new_tokens = max_new_tokens

    def stream(
        self, params: Params, prompt: np.ndarray, *, width: int, key: jax.Array, temperature: float = 1.0, **cut: float
    ) -> Iterator[int]:
        """Yield the tokens of a response to a prompt that is padded to `width`; `cut` are `top_p` and `top_k`."""
        cut = {"top_p": 1.0, "top_k": 0, **cut}
        state = self._begin(params, *_batch([prompt], width, 1), key, temperature, **cut)
        for step in range(self._max_new_tokens):
            tokens_RM, done_R = jax.device_get((state.tokens_RM, state.done_R))
            yield int(tokens_RM[0, step])
            if done_R[0] or step + 1 == self._max_new_tokens:
                return
            state = self._advance(params, state, temperature, **cut)


class _State(NamedTuple):
    step: jax.Array
    tokens_RM: jax.Array
    lengths_R: jax.Array
    done_R: jax.Array
    cache: Cache
    prompt_lengths_R: jax.Array
    keys_R: jax.Array


class _Sampling(NamedTuple):
    model: Model
    max_new_tokens: int
    stop_tokens: tuple[int, ...]

    def sample(
        self,
        params: Params,
        prompt_RT: jax.Array,
        prompt_lengths_R: jax.Array,
        key: jax.Array,
        temperature: jax.Array | float,
        first_row: jax.Array | int = 0,
        *,
        top_p: jax.Array | float = 1.0,
        top_k: jax.Array | int = 0,
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens [R, M] and lengths [R]; see `make_sampler`."""
        cut = {"top_p": top_p, "top_k": top_k}
        state = self.begin(params, prompt_RT, prompt_lengths_R, key, temperature, first_row, **cut)

        def goes_on(now: _State) -> jax.Array:
            return (now.step < self.max_new_tokens) & ~jnp.all(now.done_R)

        state = jax.lax.while_loop(goes_on, lambda now: self.advance(params, now, temperature, **cut), state)
        return constrain(state.tokens_RM, None, None), constrain(state.lengths_R, None)

    def begin(
        self,
        params: Params,
        prompt_RT: jax.Array,
        prompt_lengths_R: jax.Array,
        key: jax.Array,
        temperature: jax.Array | float,
        first_row: jax.Array | int = 0,
        **cut: jax.Array | float,
    ) -> _State:
        """Read the prompts, and draw the first token of each response."""
        chex.assert_rank([prompt_RT, prompt_lengths_R], [2, 1])
        rows, width = prompt_RT.shape
        keys_R = jax.vmap(jax.random.fold_in, (None, 0))(key, first_row + jnp.arange(rows))
        positions_RT = jnp.broadcast_to(jnp.arange(width), (rows, width))
        cache = self.model.empty_cache(rows, width + self.max_new_tokens - 1)
        hidden_RTD, unembedding, cache = self.model.extend(params, prompt_RT, positions_RT, cache)
        last_RD = hidden_RTD[jnp.arange(rows), prompt_lengths_R - 1]
        token_R = _drawn(last_RD, unembedding, keys_R, 0, temperature, **cut)
        tokens_RM = jnp.zeros((rows, self.max_new_tokens), jnp.int32).at[:, 0].set(token_R)
        lengths_R = jnp.ones(rows, jnp.int32)
        return _State(jnp.int32(1), tokens_RM, lengths_R, self._stops(token_R), cache, prompt_lengths_R, keys_R)

    def advance(
        self, params: Params, state: _State, temperature: jax.Array | float, **cut: jax.Array | float
    ) -> _State:
        """Draw the next token of each response that goes on."""
        step, tokens_RM, lengths_R, done_R, cache, prompt_lengths_R, keys_R = state
        # Each position is written before it is read, so what the prompt's padding left in the cache is never seen.
        positions_R1 = (prompt_lengths_R + step - 1)[:, None]
        last_R1 = tokens_RM[:, step - 1][:, None]
        hidden_R1D, unembedding, cache = self.model.extend(params, last_R1, positions_R1, cache)
        drawn_R = _drawn(hidden_R1D[:, 0], unembedding, keys_R, step, temperature, **cut)
        token_R = jnp.where(done_R, 0, drawn_R)
        return state._replace(
            step=step + 1,
            tokens_RM=tokens_RM.at[:, step].set(token_R),
            lengths_R=lengths_R + ~done_R,
            done_R=done_R | self._stops(token_R),
            cache=cache,
        )

    def _stops(self, token_R: jax.Array) -> jax.Array:
        return jnp.isin(token_R, jnp.array(self.stop_tokens, jnp.int32))


def _drawn(
    hidden_RD: jax.Array,
    unembedding: Unembedding,
    keys_R: jax.Array,
    step: jax.Array | int,
    temperature: jax.Array | float,
    **cut: jax.Array | float,
) -> jax.Array:
    step_keys_R = jax.vmap(jax.random.fold_in, (0, None))(keys_R, step)
    return draw(next_logits(hidden_RD, unembedding), step_keys_R, temperature, **cut)


def least_drawn(
    logits_RV: jax.Array,
    temperature: jax.Array | float,
    *,
    top_p: jax.Array | float,
    top_k: jax.Array | float,
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
