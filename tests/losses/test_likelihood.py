"""sft: its three reductions by hand, and a batch that comes in parts."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.losses import PairLogps, sft
from tests.losses.by_hand import random_pairs

# 2, 9 and 1 nats over 1, 3 and 2 tokens; the rejected ones do not matter.
PAIRS = PairLogps(jnp.array([-2.0, -9.0, -1.0]), jnp.full(3, -50.0), jnp.array([1.0, 3.0, 2.0]), jnp.full(3, 9.0))


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("token", [1.0, 4.5, 0.5]), ("sequence", [2.0, 3.0, 0.5]), ("sum", [2.0, 9.0, 1.0])],  # mean(n_w) = 2
)
def test_reductions_by_hand(reduction: str, expected: list[float]):
    np.testing.assert_allclose(sft(PAIRS, nll_reduction=reduction), expected)


def test_the_token_form_is_a_mean_over_tokens():
    np.testing.assert_allclose(sft(PAIRS).mean(), 12.0 / 6)


def test_a_zero_length_counts_as_one_token():
    empty = PairLogps(jnp.array([0.0, -4.0]), jnp.zeros(2), jnp.array([0.0, 3.0]), jnp.ones(2))
    np.testing.assert_allclose(sft(empty), [0.0, 2.0])


def test_what_is_not_real_does_not_count_in_the_mean_length():
    found = sft(PAIRS, where=jnp.array([True, False, True]))
    np.testing.assert_allclose(found[jnp.array([0, 2])], [2.0 / 1.5, 1.0 / 1.5], rtol=1e-6)


def test_micro_batches_of_unequal_tokens_add_up_to_the_whole(x64):
    policy, _ = random_pairs(0)
    assert policy.chosen_tokens[:4].sum() != policy.chosen_tokens[4:].sum()
    tokens = policy.chosen_tokens.mean()
    parts = [PairLogps(*(x[part] for x in policy)) for part in (slice(4), slice(4, 8))]
    halves = [sft(part, mean_tokens=tokens).mean() for part in parts]
    np.testing.assert_allclose(np.mean(halves), sft(policy).mean(), rtol=1e-12)
    np.testing.assert_allclose(sft(policy).mean(), -policy.chosen.sum() / policy.chosen_tokens.sum(), rtol=1e-12)
    alone = [sft(part).mean() for part in parts]
    assert abs(np.mean(alone) / sft(policy).mean() - 1) > 1e-3  # each over its own tokens: not the same
