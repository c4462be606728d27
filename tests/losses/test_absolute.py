"""nca_pair, bco_pair, sppo_hard, apo_zero, apo_down, cal_dpo: by hand and by law."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.losses import PairLogps, apo_down, apo_zero, bco_pair, cal_dpo, nca_pair, sppo_hard
from tests.losses.by_hand import POLICY, REFERENCE, random_pairs, sigmoid, softplus

# With beta = 0.5, beta a = 0.5 and -1, beta b = -1 and 2; 1 / (2 beta) = 1.


def test_nca_pair_by_hand():
    expected = [
        softplus(-0.5) + 0.5 * softplus(0.5) + 0.5 * softplus(-1.0),
        softplus(1.0) + 0.5 * softplus(-1.0) + 0.5 * softplus(2.0),
    ]
    np.testing.assert_allclose(nca_pair(POLICY, REFERENCE, beta=0.5), expected, rtol=1e-6)


def test_bco_pair_by_hand():
    # The level moves both rewards: 0.5 - 0.3 and -1 - 0.3; -1 - 0.3 and 2 - 0.3.
    expected = [softplus(-0.2) + softplus(-1.3), softplus(1.3) + softplus(1.7)]
    np.testing.assert_allclose(bco_pair(POLICY, REFERENCE, beta=0.5, delta=0.3), expected, rtol=1e-6)


def test_the_level_of_bco_pair_gets_no_gradient():
    gradient = jax.grad(lambda delta: bco_pair(POLICY, REFERENCE, delta=delta).sum())(jnp.asarray(0.3))
    assert gradient == 0


def test_sppo_hard_by_hand():
    # (1 - 1)^2 + (-2 + 1)^2 and (-2 - 1)^2 + (4 + 1)^2
    np.testing.assert_allclose(sppo_hard(POLICY, REFERENCE, beta=0.5), [1.0, 34.0], rtol=1e-6)


def test_apo_zero_by_hand():
    expected = [1 - sigmoid(0.5) + sigmoid(-1.0), 1 - sigmoid(-1.0) + sigmoid(2.0)]
    np.testing.assert_allclose(apo_zero(POLICY, REFERENCE, beta=0.5), expected, rtol=1e-6)


def test_apo_down_by_hand():
    # beta h = 1.5 and -3
    expected = [sigmoid(0.5) + 1 - sigmoid(1.5), sigmoid(-1.0) + 1 - sigmoid(-3.0)]
    np.testing.assert_allclose(apo_down(POLICY, REFERENCE, beta=0.5), expected, rtol=1e-6)


def test_cal_dpo_by_hand():
    # No beta in the first term: h = 3 and -6. Half of SPPO's squares beside it.
    np.testing.assert_allclose(
        cal_dpo(POLICY, REFERENCE, beta=0.5), [softplus(-3.0) + 0.5, softplus(6.0) + 17.0], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("loss", "chosen_sign", "rejected_sign"),
    [(apo_zero, -1, 1), (bco_pair, -1, 1)],
)
def test_direction_of_the_gradient(loss, chosen_sign: int, rejected_sign: int):
    policy, reference = random_pairs(0)
    gradient = jax.grad(lambda p: loss(p, reference).sum())(policy)
    np.testing.assert_array_equal(np.sign(gradient.chosen), chosen_sign)
    np.testing.assert_array_equal(np.sign(gradient.rejected), rejected_sign)


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
