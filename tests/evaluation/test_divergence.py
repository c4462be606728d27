"""The estimators of the KL against whole distributions, by hand, and by drawing samples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.data.batches import evaluation_batches
from dpo_jax.data.shapes import Packing
from dpo_jax.evaluation.divergence import Divergences, divergence_metrics, kl_of_ratios, sample_divergences
from dpo_jax.losses import kl_estimates
from dpo_jax.types import TokenRow, Unembedding
from tests.objectives.toy import VOCABULARY, Toy, all_logps, parameters


@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_each_is_the_sum_over_the_tokens_of_a_response(x64, layout: str):
    random = np.random.default_rng(3)
    rows = [
        TokenRow(f"{n}", random.integers(0, VOCABULARY, 3), (random.integers(0, VOCABULARY, length),))
        for n, length in enumerate((4, 1, 6))
    ]
    (batch,) = evaluation_batches(rows, pairs=3, packing=Packing(layout))
    arrays, models = batch.arrays, (parameters(0), parameters(1))

    @jax.jit
    def measured() -> Divergences:
        seen = [Toy().apply(params, arrays.tokens_RT, arrays.positions_RT, arrays.segments_RT) for params in models]
        return sample_divergences(*seen, arrays, tile_tokens=4, tile_vocabulary=5)

    found = measured()
    ours, theirs = (np.asarray(all_logps(params, arrays)) for params in models)  # [R, N, V]
    targets = np.asarray(arrays.target_RN)
    for place, row_id in enumerate(batch.row_ids):
        where = np.argwhere(np.asarray(arrays.response_RN) == place)
        assert len(where) == len(rows[int(row_id)].responses[0])
        p, r = (np.array([logps[r, n, targets[r, n]] for r, n in where]) for logps in (ours, theirs))
        exact = sum((np.exp(ours[r, n]) * (ours[r, n] - theirs[r, n])).sum() for r, n in where)
        x = p - r
        wanted = Divergences(p.sum(), exact, x.sum(), (x**2 / 2).sum(), (np.exp(-x) - 1 + x).sum())
        for name, value in wanted._asdict().items():
            assert float(getattr(found, name)[place, 0]) == pytest.approx(value, rel=1e-9), name


def test_sampled_estimates_meet_the_exact_divergence_and_not_the_other_one(x64):
    policy, reference = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    exact = np.sum(policy * np.log(policy / reference))  # 0.6349 nats; the other way round it is 0.6760
    drawn = np.random.default_rng(0).choice(3, size=4000, p=policy)
    rows = [TokenRow(f"{n:04}", np.array([0]), (np.array([token]),)) for n, token in enumerate(drawn)]
    (batch,) = evaluation_batches(rows, pairs=4000)
    hidden_RTD = jnp.ones((*batch.arrays.tokens_RT.shape, 1))
    sides = [(hidden_RTD, Unembedding(jnp.log(jnp.asarray(p))[:, None], 3)) for p in (policy, reference)]
    measured = jax.jit(lambda: sample_divergences(*sides, batch.arrays))()
    found = Divergences(*(np.asarray(value)[:, 0] for value in measured))
    np.testing.assert_allclose(found.exact, exact, rtol=1e-9)
    metrics = divergence_metrics(found, np.ones(4000))
    assert metrics.kl.exact == pytest.approx(exact) and metrics.kl.samples == 4000
    for name in ("k1", "k3"):
        low, high = getattr(metrics.kl, f"{name}_interval")
        assert low < exact < high and high - low < 0.07
    x = np.log(policy / reference)
    assert metrics.kl.k2 == pytest.approx((policy * x**2 / 2).sum(), abs=0.03)
    low, high = metrics.entropy.sequence_interval
    assert low < -(policy * np.log(policy)).sum() < high
    assert found.k3.min() >= 0 > found.k1.min()


def test_metrics_by_hand():
    values = {name: np.array([1.0, 0.0, 5.0]) for name in Divergences._fields} | {
        "policy_logps": np.array([-4.0, -2, 0])
    }
    found = divergence_metrics(Divergences(**values), np.array([2, 2, 8]))
    assert found.kl.sequence_kl == found.kl.k1 == found.kl.exact == 2.0
    # standard deviation sqrt((1 + 4 + 9) / 2) = 2.64575, standard error 1.52753, times 4.30265 (Student, 2)
    np.testing.assert_allclose(found.kl.interval, (2 - 6.57241, 2 + 6.57241), atol=1e-5)
    assert found.entropy.token == 0.5 and found.entropy.sequence == 2.0  # 6 nats of 12 tokens, 3 samples
    assert found.tokens == 4.0
    with pytest.raises(ValueError, match="no samples"):
        divergence_metrics(Divergences(*[np.zeros(0)] * 5), np.zeros(0))


def test_estimates_of_tokens_are_those_of_the_losses_and_finite():
    """One definition in two rooms that may not import each other; a ratio of -200 nats would overflow float32."""
    ratios = jnp.array([-200.0, -3.0, 0.0, 0.5, 100.0])
    for ours, theirs in zip(kl_of_ratios(ratios), kl_estimates(ratios, jnp.zeros(5)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert np.isfinite(ours).all()
