"""alpha_dpo, beta_dpo, running_mean: against a plain numpy re-telling over several batches, and by law."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.losses import AlphaDPOState, PairLogps, RunningMean, alpha_dpo, beta_dpo, dpo, running_mean, simpo
from tests.losses.by_hand import random_pairs


def statistics(policy: PairLogps, reference: PairLogps) -> tuple[np.ndarray, np.ndarray]:
    """p and g of alpha-DPO in numpy."""
    C, R, n_w, n_l = map(np.asarray, policy)
    c, r = map(np.asarray, reference[:2])
    p = C / n_w - R / n_l
    return p, p - (c / n_w - r / n_l)


def retold(batches, *, beta, gamma, alpha, decay, floor, corrected):
    """(losses, d losses / d chosen, mean, std) of alpha-DPO after each batch."""
    mu = sd = 0.0
    for count, (policy, reference) in enumerate(batches, start=1):
        p, g = statistics(policy, reference)
        mu = decay * mu + (1 - decay) * g.mean()
        sd = decay * sd + (1 - decay) * (g.std(ddof=1) if g.size > 1 else 0.0)
        whole = 1 - decay**count if corrected else 1.0
        z = (g - mu / whole) / (sd / whole) if sd / whole > floor else np.zeros_like(g)
        x = beta * (p - (alpha * z + gamma / beta))
        yield np.logaddexp(0, -x), -beta / (1 + np.exp(x)) / np.asarray(policy.chosen_tokens), mu, sd


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("alpha", [0.2, -0.3])
def test_alpha_dpo_over_several_batches(corrected: bool, alpha: float, x64):
    knobs = {"beta": 2.0, "gamma": 1.2, "alpha": alpha, "decay": 0.8}
    batches = [random_pairs(seed) for seed in range(5)]

    def total(policy: PairLogps, reference: PairLogps, state: AlphaDPOState):
        losses, state = alpha_dpo(policy, reference, state, bias_correction=corrected, **knobs)
        return losses.sum(), (losses, state)

    step, state = jax.jit(jax.grad(total, has_aux=True)), jax.tree.map(np.float64, AlphaDPOState())
    expectations = retold(batches, floor=1e-4, corrected=corrected, **knobs)
    for (policy, reference), expected in zip(batches, expectations, strict=True):
        gradient, (losses, state) = step(policy, reference, state)
        for ours, theirs in zip((losses, gradient.chosen, state.mean, state.std), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    assert state.count == 5


def test_alpha_zero_is_exactly_simpo(x64):
    policy, reference = random_pairs(0)
    state = AlphaDPOState(np.float64(0.3), np.float64(0.2), np.float64(4))
    ours = jax.value_and_grad(lambda p: alpha_dpo(p, reference, state, beta=2.0, gamma=1.0, alpha=0.0)[0].sum())
    theirs = jax.value_and_grad(lambda p: simpo(p, beta=2.0, gamma=1.0).sum())
    for one, other in zip(jax.tree.leaves(ours(policy)), jax.tree.leaves(theirs(policy)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13)


def test_a_deviation_up_to_the_floor_counts_as_none(x64):
    policy, reference = random_pairs(4)
    found, state = alpha_dpo(policy, reference, AlphaDPOState(), std_floor=5.0)
    assert 0 < state.std < 5
    np.testing.assert_allclose(found, simpo(policy, beta=2.5, gamma=1.5), rtol=1e-12)


def test_what_is_not_real_has_no_alpha_dpo_loss():
    policy, reference = random_pairs(3)
    real = jnp.arange(8) % 3 > 0
    found, _ = alpha_dpo(policy, reference, AlphaDPOState(), where=real)
    assert (found[~real] == 0).all() and (found[real] > 0).all()


def test_the_gradient_of_each_pair_is_a_positive_multiple_of_simpos(x64):
    policy, reference = random_pairs(1)
    ours = jax.grad(lambda p: alpha_dpo(p, reference, AlphaDPOState(), alpha=1.5)[0].sum())(policy)
    theirs = jax.grad(lambda p: simpo(p, beta=2.5, gamma=1.5).sum())(policy)
    ratio = ours.chosen / theirs.chosen
    np.testing.assert_allclose(ours.rejected / theirs.rejected, ratio, rtol=1e-10)
    assert (ratio > 0).all() and jnp.ptp(ratio) > 0.1


def test_no_gradient_reaches_the_reference_or_leaves_the_state():
    """The state after a batch is a constant to whoever differentiates, and so is all that the reference does."""
    policy, reference = random_pairs(2)
    key = jax.random.key(0)
    for loss in (alpha_dpo, lambda *args: beta_dpo(*args, key=key)):
        slope = jax.grad(lambda policy, loss=loss: sum(loss(policy, reference, AlphaDPOState())[1]))(policy)
        np.testing.assert_array_equal(slope.chosen, 0.0)
    slope = jax.grad(lambda reference: alpha_dpo(policy, reference, AlphaDPOState())[0].sum())(reference)
    np.testing.assert_array_equal(slope.chosen, 0.0)


@pytest.mark.parametrize("corrected", [False, True])
def test_policy_equal_to_reference_gives_simpo_and_no_nan(corrected: bool):
    policy, _ = random_pairs(3)
    state = AlphaDPOState()
    for _ in range(2):
        value, gradient = jax.value_and_grad(
            lambda p, state=state: alpha_dpo(p, policy, state, bias_correction=corrected)[0].sum()
        )(policy)
        np.testing.assert_allclose(value, simpo(policy, beta=2.5, gamma=1.5).sum(), rtol=1e-6)
        assert all(jnp.isfinite(leaf).all() for leaf in (gradient.chosen, gradient.rejected))
        _, state = alpha_dpo(policy, policy, state, bias_correction=corrected)
    assert state.mean == 0 and state.std == 0 and state.count == 2


@pytest.mark.parametrize("corrected", [False, True])
def test_one_pair_per_batch_is_simpo(corrected: bool):
    """The deviation of one pair is 0, so the margin is not moved, however far the pair has."""
    state = AlphaDPOState()
    for seed in range(3):
        policy, reference = random_pairs(seed, n=1)
        losses, state = alpha_dpo(policy, reference, state, bias_correction=corrected)
        np.testing.assert_allclose(losses, simpo(policy, beta=2.5, gamma=1.5), rtol=1e-6)


def test_bias_correction_standardises_the_first_batch_with_its_own_statistics(x64):
    policy, reference = random_pairs(4)
    p, g = statistics(policy, reference)
    losses, _ = alpha_dpo(policy, reference, AlphaDPOState(), beta=2.0, gamma=1.0, alpha=0.4, bias_correction=True)
    z = (g - g.mean()) / g.std(ddof=1)
    np.testing.assert_allclose(losses, np.logaddexp(0, -(2.0 * p - 2.0 * 0.4 * z - 1.0)), rtol=1e-10)


def test_a_cold_start_inflates_the_margins_and_the_correction_does_not(x64):
    """On one batch again and again: the mean loss falls towards that of a warm state, or is it from the first."""
    policy, reference = random_pairs(5)

    def mean_losses(corrected: bool) -> list[float]:
        step = jax.jit(lambda state: alpha_dpo(policy, reference, state, alpha=2.0, bias_correction=corrected))
        state, found = AlphaDPOState(), []
        for _ in range(40):
            losses, state = step(state)
            found.append(float(losses.mean()))
        return found

    falling, steady = mean_losses(False), mean_losses(True)
    assert falling[0] > 2 * falling[-1] and falling[:6] == sorted(falling[:6], reverse=True)
    np.testing.assert_allclose(steady, steady[0], rtol=1e-9)
    np.testing.assert_allclose(falling[-1], steady[0], rtol=0.1)


def test_beta_dpo_that_leaves_nothing_out_and_follows_nothing_is_dpo(x64):
    policy, reference = random_pairs(0)
    losses, _ = beta_dpo(
        policy, reference, AlphaDPOState(), key=jax.random.key(0), beta=0.3, a=0.0, filter_fraction=0.0
    )
    np.testing.assert_allclose(losses, dpo(policy, reference, beta=0.3), rtol=1e-12)


@pytest.mark.parametrize(("pairs", "traced"), [(1, True), (5, True), (7, True), (10, True), (10, False), (20, True)])
def test_beta_dpo_draws_as_many_pairs_as_it_says(pairs: int, traced: bool):
    """int(B (1 - f)), at least one, with a float32 fraction too; the drawn weigh B / k."""
    policy, reference = random_pairs(1, n=pairs)
    h = np.asarray((policy.chosen - reference.chosen) - (policy.rejected - reference.rejected), np.float64)

    def call(fraction):
        knobs = {"key": jax.random.key(1), "beta": 0.3, "a": 0.0, "filter_fraction": fraction}
        return beta_dpo(policy, reference, AlphaDPOState(), **knobs)[0]

    drawing = jax.jit(call)
    # A traced 10 * (1 - 0.6) is below 4 in float32, and 10 * (1 - 0.9) is below 1 even in float64.
    exactly = {
        1: {0.5: 1},
        5: {0.2: 4, 0.6: 2, 0.9: 1},
        7: {0.5: 3},
        10: {0.1: 9, 0.3: 7, 0.6: 4, 0.8: 2, 0.9: 1},
        20: {0.3: 14, 0.35: 13, 0.85: 3},
    }
    for fraction, kept in exactly[pairs].items():
        losses = drawing(fraction) if traced else call(fraction)
        drawn = np.asarray(losses) > 0
        assert drawn.sum() == kept
        np.testing.assert_allclose(losses, drawn * np.logaddexp(0, -0.3 * h) * pairs / kept, rtol=1e-5)


def test_beta_dpo_over_several_batches(x64):
    """The beta that was used, from the drawn pairs alone, and the averages, re-told in numpy."""
    mu = sd = 0.0
    knobs = {"beta": 0.2, "a": 0.4, "filter_fraction": 0.25, "decay": 0.8}

    def total(policy: PairLogps, reference: PairLogps, state: AlphaDPOState, key: jax.Array):
        losses, state = beta_dpo(policy, reference, state, key=key, **knobs)
        return losses.sum(), (losses, state)

    step, state = jax.jit(jax.grad(total, has_aux=True)), jax.tree.map(np.float64, AlphaDPOState())
    for seed in range(4):
        policy, reference = random_pairs(seed)
        h = np.asarray((policy.chosen - reference.chosen) - (policy.rejected - reference.rejected))
        mu, sd = 0.8 * mu + 0.2 * h.mean(), 0.8 * sd + 0.2 * h.std(ddof=1)
        gradient, (losses, state) = step(policy, reference, state, jax.random.key(seed))
        drawn = np.asarray(losses) > 0
        beta_used = max(1e-3, 0.2 * (1 + 0.4 * (h[drawn].mean() - mu)))
        weight = drawn * 8 / 6
        np.testing.assert_allclose(losses, weight * np.logaddexp(0, -beta_used * h), rtol=1e-10)
        # beta_used is a constant to the gradient.
        np.testing.assert_allclose(gradient.chosen, -weight * beta_used / (1 + np.exp(beta_used * h)), rtol=1e-10)
        np.testing.assert_allclose([state.mean, state.std, state.count], [mu, sd, seed + 1], rtol=1e-10)


def test_beta_stays_above_its_floor():
    policy, reference = random_pairs(2)
    losses, _ = beta_dpo(policy, reference, AlphaDPOState(), key=jax.random.key(0), a=-1e6, filter_fraction=0.0)
    rising, _ = beta_dpo(policy, reference, AlphaDPOState(), key=jax.random.key(0), a=1e6, filter_fraction=0.0)
    floor = dpo(policy, reference, beta=1e-3)
    assert np.allclose(losses, floor, rtol=1e-5) != np.allclose(rising, floor, rtol=1e-5)


def drawn_shares(policy: PairLogps, reference: PairLogps, state: AlphaDPOState, lots: int) -> np.ndarray:
    """How often each pair is drawn."""
    draw = jax.vmap(lambda key: beta_dpo(policy, reference, state, key=key, filter_fraction=0.75, decay=0.99)[0] > 0)
    return np.asarray(jax.jit(draw)(jax.random.split(jax.random.key(7), lots))).mean(axis=0)


def test_lots_favour_margins_near_the_usual_one():
    """One of four is drawn, so the shares are the weights exp(-0.5 z^2), normalised."""
    h = np.array([0.0, 1.0, -1.5, 3.0])
    policy, reference = PairLogps(jnp.asarray(h, jnp.float32), jnp.zeros(4)), PairLogps(jnp.zeros(4), jnp.zeros(4))
    state = AlphaDPOState(np.float32(0.0), np.float32(1.0), np.float32(50.0))
    mu, sd = 0.01 * h.mean(), 0.99 + 0.01 * h.std(ddof=1)
    weights = np.exp(-0.5 * ((h - mu) / sd) ** 2)
    lots = 4000
    shares = drawn_shares(policy, reference, state, lots)
    noise = np.sqrt(weights / weights.sum() / lots)
    np.testing.assert_array_less(np.abs(shares - weights / weights.sum()), 4 * noise + 1e-9)


def test_lots_fall_on_real_pairs_alone():
    policy, reference = random_pairs(5, n=10)
    real = jnp.arange(10) % 2 > 0
    for seed in range(5):
        found, _ = beta_dpo(
            policy, reference, AlphaDPOState(), key=jax.random.key(seed), filter_fraction=0.4, where=real
        )
        assert (found[~real] == 0).all() and (found[real] > 0).sum() == 3  # int(5 * 0.6)


def test_lots_are_fair_where_no_margin_deviates():
    zero = PairLogps(jnp.zeros(4), jnp.zeros(4))
    shares = drawn_shares(zero, zero, AlphaDPOState(), 4000)
    np.testing.assert_allclose(shares, 0.25, atol=4 * np.sqrt(0.25 / 4000))


def test_running_mean_is_the_mean_of_all_values_so_far():
    state, seen = RunningMean(), np.zeros(0)
    for values in ([4.0, 6.0], [1.0], [-2.0, 0.0, 3.0, 7.0]):
        seen = np.append(seen, values)
        mean, state = running_mean(jnp.array(values), state)
        np.testing.assert_allclose(mean, seen.mean(), rtol=1e-6)
        assert state.mean == mean and state.count == seen.size


def test_running_mean_of_a_constant_stays_where_it_is():
    """Thousands of updates do not let it drift, as a sum divided anew each time would."""
    values = jnp.full(7, 0.1)
    first, state = running_mean(values, RunningMean())
    step = jax.jit(lambda state: jax.lax.fori_loop(0, 3000, lambda _, state: running_mean(values, state)[1], state))
    assert step(state).mean == first and step(state).count == 7 * 3001


def test_running_mean_still_moves_after_millions_of_values():
    mean, _ = running_mean(jnp.full(1000, 3000.0), RunningMean(np.float32(1000.0), np.float32(1e7)))
    np.testing.assert_allclose(mean, 1000.2, rtol=1e-7)


def test_running_mean_carries_no_gradient_and_widens():
    assert jax.grad(lambda v: running_mean(v, RunningMean())[0])(jnp.ones(3)).tolist() == [0.0, 0.0, 0.0]
    mean, state = running_mean(jnp.ones(3, jnp.bfloat16), RunningMean())
    assert mean.dtype == state.mean.dtype == state.count.dtype == jnp.float32
