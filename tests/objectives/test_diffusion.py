"""The objectives on pictures by hand, with a network that predicts nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.diffusion.schedules import PREDICTIONS, SCHEDULES
from dpo_jax.losses import LOSSES
from dpo_jax.objectives.diffusion import denoising_objective, draws_of, moved_average, preference_objective
from dpo_jax.types import PictureBatch

NOISE: dict[str, Any] = {"schedule": SCHEDULES["cosine"], "prediction": PREDICTIONS["v"]}


def silent(params: Any, noisy: Any, time_B: Any, condition: Any, key: Any) -> Any:
    return 0.0 * noisy + params["b"]


def preferences(loss: str, **options: Any) -> Any:
    return preference_objective(silent, LOSSES[loss], adapter=False, noise=NOISE, seed=7, **options)


def batch(members: int, **more: Any) -> PictureBatch:
    dice = np.random.default_rng(0)
    return PictureBatch(
        samples_BPX=dice.integers(0, 256, (3, members, 4, 2, 2, 1)).astype(np.uint8),
        words_BW=dice.integers(0, 2**32, (3, 4), np.uint32),
        epoch_B=np.array([0, 1, 5], np.int32),
        weight_B=np.array([1, 1, 0], np.float32),
        **more,
    )  # type: ignore[arg-type]


def by_hand(rows: PictureBatch, *, draws: int = 0, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Errors [B, P] of a prediction 0, and the temporal consistency of the chosen clips as it sees them."""
    _, drawn = draws_of(rows, seed=seed, draws=draws)
    clean = np.asarray(rows.samples_BPX, np.float64) / 127.5 - 1.0
    signal = NOISE["schedule"](drawn.time_B)
    alpha, sigma = (np.asarray(x, np.float64)[:, None, None, None, None, None] for x in signal)
    noise = np.asarray(drawn.noise_BX, np.float64)[:, None]
    seen = alpha * (alpha * clean + sigma * noise)
    errors = np.square(alpha * noise - sigma * clean).mean(axis=(2, 3, 4, 5))
    light = (seen[:, 0] + 1.0) / 2.0
    return errors, np.square(light[:, 1:] - light[:, :-1]).mean(axis=(1, 2, 3, 4))


def loss_of(objective: Any, rows: PictureBatch, params: Any, frozen: Any, knobs: Any) -> tuple[float, Any]:
    key = jax.random.key(0)
    outputs = objective.forward(params, frozen, rows, key)
    value, metrics, _ = objective.loss(outputs, rows, knobs, objective.weigh(rows), (), key)
    return float(value), {name: float(mean.total / mean.weight) for name, mean in metrics.items()}


@pytest.mark.parametrize("draws", [0, 4])
def test_pairs_with_a_temporal_term(draws: int):
    objective = preferences("diffusion_dpo", draws=draws, temporal_weight=0.25)
    rows = batch(2)
    zero = {"b": jnp.zeros(())}
    value, metrics = loss_of(objective, rows, zero, zero, {"options": {"beta": 10.0}})
    errors, temporal = by_hand(rows, draws=draws)
    assert value == pytest.approx(np.log(2) + 0.25 * temporal[:2].mean(), rel=1e-5)
    assert metrics["temporal_consistency"] == pytest.approx(temporal[:2].mean(), rel=1e-5)
    assert metrics["errors/rejected"] == pytest.approx(errors[:2, 1].mean(), rel=1e-5)
    assert draws == 0 or not np.allclose(errors[2], by_hand(rows)[0][2])  # epoch 5 draws what epoch 1 does


def test_pairs_against_stored_errors():
    stored = np.array([[0.1, 0.4], [0.3, 0.2], [9.0, -9.0]], np.float32)
    rows = batch(2, reference_errors_BP=stored, loss_weight_B=np.array([2.0, 0.5, 1.0], np.float32))
    objective = preferences("diffusion_dpo", draws=4, temporal_weight=0.0)
    value, metrics = loss_of(objective, rows, {"b": jnp.zeros(())}, None, {"options": {"beta": 3.0}})
    errors, _ = by_hand(rows, draws=4)
    inside = -1.5 * ((errors[:, 0] - errors[:, 1]) - (stored[:, 0] - stored[:, 1]))
    losses = np.log1p(np.exp(-inside)) * [2.0, 0.5, 1.0]
    assert value == pytest.approx(losses[:2].sum() / 2, rel=1e-5)
    gained = stored - errors
    assert metrics["rewards/margins"] == pytest.approx((gained[:2, 0] - gained[:2, 1]).mean(), rel=1e-5)


def test_labelled_samples_against_stored_errors():
    stored = np.array([[0.5], [0.2], [9.0]], np.float32)
    rows = batch(1, reference_errors_BP=stored, desirable_B=np.array([1.0, 0.0, 1.0], np.float32))
    objective = preferences("diffusion_kto", draws=4, temporal_weight=0.0)
    value, _ = loss_of(objective, rows, {"b": jnp.zeros(())}, None, {"options": {"beta": 3.0}})
    gained = (stored - by_hand(rows, draws=4)[0])[:2, 0]
    inside = 3.0 * (gained - max(0.0, gained.mean())) * [1.0, -1.0]
    assert value == pytest.approx((1.0 - 1.0 / (1.0 + np.exp(-inside))).mean(), rel=1e-5)
    assert objective.whole_batch


def test_pre_training_and_its_average():
    rows = batch(1)
    objective = denoising_objective(silent, **NOISE, seed=7, drop=0.1, average=0.9)
    value, _ = loss_of(objective, rows, {"b": jnp.zeros(())}, None, {})
    assert value == pytest.approx(by_hand(rows)[0][:2].mean(), rel=1e-5)
    assert objective.refresh is not None
    moved = objective.refresh({"b": jnp.array(8.0)}, {"b": jnp.array(0.0)}, jnp.array(2))
    assert float(moved["b"]) == pytest.approx(6.0)
    assert denoising_objective(silent, **NOISE, seed=7, drop=0.1, average=0.0).refresh is None


def test_by_hand():
    average, params = {"a": {"w": jnp.array([1.0, 2.0])}}, {"a": {"w": jnp.array([3.0, -2.0])}}
    # d = min(0.9, 12 / 21) = 4/7 after 11 steps: 3/7 of the way.
    found = moved_average(average, params, 11, decay=0.9)["a"]["w"]
    np.testing.assert_allclose(found, [1 + 6 / 7, 2 - 12 / 7], rtol=1e-6)
    late = moved_average(average, params, 10**6, decay=0.9)["a"]["w"]
    np.testing.assert_allclose(late, [1.2, 1.6], rtol=1e-6)
    np.testing.assert_array_equal(moved_average(average, params, 10**6, decay=0.0)["a"]["w"], params["a"]["w"])


def test_what_stands_still_is_reached():
    step = jax.jit(moved_average)
    average = {"w": jnp.array(5.0)}
    for steps in range(1, 200):
        average = step(average, {"w": jnp.array(1.0)}, steps, decay=0.9)
    np.testing.assert_allclose(average["w"], 1.0, rtol=1e-6)


def test_a_small_share_is_not_lost():
    """decay * average + (1 - decay) * params would round twice; the dtype stays that of the average."""
    average = {"w": jnp.array(1.0, jnp.float32)}
    found = moved_average(average, {"w": jnp.array(1.5, jnp.bfloat16)}, 10**7, decay=0.9999)
    assert found["w"].dtype == jnp.float32
    np.testing.assert_allclose(found["w"] - 1.0, 5e-5, rtol=2e-2)
