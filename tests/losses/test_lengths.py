"""length_normalized_dpo and r_dpo: by law."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from dpo_jax.losses import length_normalized_dpo, r_dpo
from tests.losses.by_hand import POLICY, REFERENCE, random_pairs


def test_length_normalized_dpo_of_responses_repeated_is_that_of_one():
    """All sums and counts three times as large: the same averages."""
    tripled = [
        pairs._replace(**{k: 3 * v for k, v in pairs._asdict().items() if v is not None})
        for pairs in (POLICY, REFERENCE)
    ]
    np.testing.assert_allclose(length_normalized_dpo(*tripled), length_normalized_dpo(POLICY, REFERENCE), rtol=1e-5)


def test_r_dpo_asks_less_of_a_longer_chosen_response():
    policy, reference = random_pairs(0)
    longer = policy._replace(chosen_tokens=policy.chosen_tokens + 10)
    assert (r_dpo(longer, reference, penalty=0.05) < r_dpo(policy, reference, penalty=0.05)).all()
    whole = policy._replace(chosen_tokens=jnp.asarray(policy.chosen_tokens, jnp.int32))
    np.testing.assert_array_equal(r_dpo(whole, reference), r_dpo(policy, reference))
