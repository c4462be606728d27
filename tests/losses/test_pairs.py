"""What losses on pairs are made of: arrays of other shapes and half of the counts are refused, not broadcast."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from dpo_jax.losses import PairLogps, dpo, length_normalized_dpo
from tests.losses.by_hand import POLICY, REFERENCE


@pytest.mark.parametrize("member", ["chosen", "rejected"])
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1), ()])
def test_log_probs_of_another_shape_are_refused(member: str, shape: tuple[int, ...]):
    for policy, reference in (
        (POLICY._replace(**{member: jnp.zeros(shape)}), REFERENCE),
        (POLICY, REFERENCE._replace(**{member: jnp.zeros(shape)})),
    ):
        with pytest.raises(AssertionError):
            dpo(policy, reference)


def test_log_probs_with_two_axes_are_refused():
    square = PairLogps(jnp.zeros((2, 2)), jnp.zeros((2, 2)))
    with pytest.raises(AssertionError, match="rank"):
        dpo(square, square)


@pytest.mark.parametrize("member", ["chosen_tokens", "rejected_tokens"])
def test_token_counts_of_another_shape_or_missing_ones_are_refused(member: str):
    with pytest.raises(AssertionError):
        length_normalized_dpo(POLICY._replace(**{member: jnp.ones(1)}), REFERENCE)
    with pytest.raises(ValueError, match="token counts"):
        length_normalized_dpo(POLICY._replace(**{member: None}), REFERENCE)
