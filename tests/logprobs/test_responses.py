"""From scored tokens to responses, in every layout: sums, heads, and the position that predicts a token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.logprobs import batch_logps, batch_scores, head_mask, response_logps, scored_hidden
from dpo_jax.types import PairBatch, Unembedding
from tests.logprobs import naive
from tests.logprobs.naive import assert_trees_close, example


def test_response_sums_by_hand():
    # two pairs: responses 0 and 1 in row 0, 3 in row 1; -1 is padding, whose value is not even a number
    tokens = jnp.array([[-1.0, -2.0, -4.0, jnp.nan], [-8.0, -16.0, jnp.inf, jnp.nan]])
    response = jnp.array([[0, 0, 1, -1], [3, 3, -1, -1]])
    np.testing.assert_array_equal(response_logps(tokens, response, pairs=2, slots=2), [[-3.0, -4.0], [0.0, -24.0]])


def test_heads_by_hand_where_pairs_share_rows():
    # Pair 0 has 3 and 2 tokens, m = 2; pair 1 has 1 and 2, m = 1; pair 2 only fills the batch. Row 0 holds the chosen
    # of pair 0 and the rejected of pair 1, row 1 the other two in the other order, row 2 nothing.
    response = jnp.array([[0, 0, 0, 3, 3, -1], [-1, 2, 1, 1, -1, -1], [-1] * 6])
    tokens_BP = jnp.array([[3.0, 2.0], [1.0, 2.0], [0.0, 0.0]])
    wanted = [[1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0] * 6]
    np.testing.assert_array_equal(head_mask(response, tokens_BP), np.array(wanted, bool))


def test_the_shortest_of_all_slots_counts():
    response = jnp.array([[0, 0, 0], [1, 1, 1], [2, 2, -1]])
    np.testing.assert_array_equal(head_mask(response, jnp.array([[3.0, 3.0, 2.0]])), [[True, True, False]] * 3)
    alone = head_mask(response, jnp.array([[3.0], [3.0], [2.0]]))
    np.testing.assert_array_equal(alone, response >= 0)


def packed_batch() -> PairBatch:
    """Two pairs packed into two rows: responses of 3 and 1, and of 2 and 3 tokens."""
    return PairBatch(
        tokens_RT=jnp.zeros((2, 9), jnp.int32),
        positions_RT=jnp.zeros((2, 9), jnp.int32),
        segments_RT=jnp.ones((2, 9), jnp.int32),
        source_RN=jnp.array([[1, 2, 3, 5, 6], [1, 4, 5, 6, 0]]),
        target_RN=jnp.array([[3, 9, 4, 1, 7], [2, 30, 8, 36, 0]]),
        response_RN=jnp.array([[0, 0, 0, 2, 2], [1, 3, 3, 3, -1]]),
        response_tokens_BP=jnp.array([[3.0, 1.0], [2.0, 3.0]]),
        weight_B=jnp.ones(2),
    )


def test_scores_of_a_packed_batch_and_their_gradient():
    with jax.enable_x64(True):
        hidden, _, weight, _ = example(rows=2, scored=9)
        batch, unembedding = packed_batch(), Unembedding(weight, 37)

        weights_BP = jnp.array([[1.0, -2.0], [3.0, 5.0]])

        def plain(hidden):
            logps = naive.token_logps(hidden[jnp.arange(2)[:, None], batch.source_RN], batch.target_RN, unembedding)
            whole = [[logps[0, :3].sum(), logps[1, 0]], [logps[0, 3:].sum(), logps[1, 1:4].sum()]]
            heads = [[logps[0, 0], logps[1, 0]], [logps[0, 3:].sum(), logps[1, 1:3].sum()]]
            return jnp.array(whole), jnp.array(heads)

        def with_gradient_of_heads(form):
            total = lambda hidden: ((form(hidden)[1] * weights_BP).sum(), form(hidden))  # noqa: E731
            return jax.jit(jax.value_and_grad(total, has_aux=True))(hidden)

        ours = with_gradient_of_heads(lambda hidden: batch_scores(hidden, unembedding, batch, tile_vocabulary=7))
        assert_trees_close(ours, with_gradient_of_heads(plain), atol=1e-12)
        logps_BP = jax.jit(lambda hidden: batch_logps(hidden, unembedding, batch))(hidden)
        np.testing.assert_allclose(logps_BP, ours[0][1][0], atol=1e-12)


def test_the_source_position_is_the_one_before_the_target():
    # A model whose hidden state at a position is the one-hot of the token there, and whose unembedding is ten times
    # the identity: after token t it says t itself with log-prob 10 - log(e^10 + V - 1).
    vocabulary, tokens = 6, jnp.array([[2, 2, 5, 5]])
    hidden = jax.nn.one_hot(tokens, vocabulary)
    batch = PairBatch(
        tokens_RT=tokens,
        positions_RT=jnp.arange(4)[None],
        segments_RT=jnp.ones((1, 4), jnp.int32),
        source_RN=jnp.array([[0, 1, 2]]),  # predict tokens 1, 2, 3
        target_RN=jnp.array([[2, 5, 5]]),
        response_RN=jnp.array([[0, 0, 0]]),
        response_tokens_BP=jnp.array([[3.0]]),
        weight_B=jnp.ones(1),
    )
    logps = jax.jit(lambda *a: batch_logps(a[0], Unembedding(a[1], vocabulary), batch))(hidden, 10.0 * jnp.eye(6))
    lse = jnp.log(jnp.exp(10.0) + vocabulary - 1)
    np.testing.assert_allclose(logps, [[(10 - lse) + (0 - lse) + (10 - lse)]], rtol=1e-6)
    np.testing.assert_array_equal(scored_hidden(hidden, batch), hidden[:, :3])
