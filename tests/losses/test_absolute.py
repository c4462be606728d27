"""apo_down, the level of bco_pair, and losses that look at each response: by law."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dpo_jax.losses import PairLogps, apo_down, apo_zero, bco_pair, cal_dpo, nca_pair, sppo_hard
from tests.losses.by_hand import POLICY, REFERENCE

# With beta = 0.5, beta a = 0.5 and -1, beta b = -1 and 2; 1 / (2 beta) = 1.


def test_the_level_of_bco_pair_gets_no_gradient():
    gradient = jax.grad(lambda delta: bco_pair(POLICY, REFERENCE, delta=delta).sum())(jnp.asarray(0.3))
    assert gradient == 0


def test_apo_down_presses_both_responses_where_the_pair_is_already_apart():
    apart = PairLogps(jnp.array([0.0]), jnp.array([-10.0]))
    gradient = jax.grad(lambda p: apo_down(p, PairLogps(jnp.zeros(1), jnp.zeros(1)), beta=1.0).sum())(apart)
    assert gradient.chosen[0] > 0.2 and 0 < gradient.rejected[0] < 1e-3


def test_losses_that_look_at_each_response_notice_a_shift_of_both():
    """Unlike DPO's, their rewards are not free up to a function of the prompt."""
    moved = POLICY._replace(chosen=POLICY.chosen + 2, rejected=POLICY.rejected + 2)
    for loss in (nca_pair, bco_pair, sppo_hard, apo_zero, apo_down, cal_dpo):
        shift = loss(moved, REFERENCE, beta=0.5) - loss(POLICY, REFERENCE, beta=0.5)
        assert (jnp.abs(shift) > 0.01).all(), loss
