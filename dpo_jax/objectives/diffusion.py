"""Objectives on pictures: denoising, preferences between denoised samples, and scores.

Dimension key: B rows, P members of a row (0 chosen, 1 rejected; samples alone have P = 1), R = B P samples; X stands
for all axes of a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp

from dpo_jax.diffusion.denoising import Predict, denoise_pairs
from dpo_jax.diffusion.draws import Draw, draw, dropped, row_keys
from dpo_jax.diffusion.embeddings import Condition, present
from dpo_jax.diffusion.schedules import Prediction, Schedule
from dpo_jax.losses import Loss, LossInputs, PairLogps, preference_score
from dpo_jax.scorers.networks import Scorer
from dpo_jax.scorers.quality import temporal_consistency
from dpo_jax.types import Counts, Knobs, LossState, Mean, Metrics, Objective, Params, PictureBatch, join

Apply = Callable[[Params, jax.Array, jax.Array, Condition | None, jax.Array | None], jax.Array]
"""`apply(params, noisy_RX, time_R, condition, key)`: prediction of a diffusion model, in the shape of the samples."""


class Noise(TypedDict):
    """Noise schedule, and kind of prediction."""

    schedule: Schedule
    prediction: Prediction


class Errors(NamedTuple):
    """Denoising errors [B, P] of the policy and, where it ran, of the reference; and changes in the clean clips."""

    policy_BP: jax.Array
    reference_BP: jax.Array | None
    temporal_B: jax.Array | None  # mean squared difference of neighbouring frames of the first members


def pixels(samples: jax.Array) -> jax.Array:
    """uint8 to float32 in [-1, 1], as networks see them."""
    return samples.astype(jnp.float32) / 127.5 - 1.0


def shown(batch: PictureBatch) -> Condition | None:
    """Condition of the rows of a batch, what they are to show."""
    return None if batch.shown_B is None else present(batch.shown_B)


def draws_of(batch: PictureBatch, *, seed: int, draws: int = 0) -> tuple[jax.Array, Draw]:
    """The key of each row and what it draws in this epoch; with `draws`, epochs repeat themselves after so many."""
    epoch_B = batch.epoch_B % draws if draws else batch.epoch_B
    keys_B = row_keys(batch.words_BW, seed=seed, epoch=epoch_B)
    return keys_B, draw(keys_B, batch.samples_BPX.shape[2:])


def denoising_objective(
    apply: Apply, *, schedule: Schedule, prediction: Prediction, seed: int, drop: float, average: float
) -> Objective:
    """The mean error of what is predicted; `drop` is the share of rows without condition.

    With `average`, the parameters without gradient are the moving average of the others, with that decay.
    """

    def forward(params: Params, frozen: Params | None, batch: PictureBatch, key: jax.Array) -> jax.Array:
        keys_B, drawn = draws_of(batch, seed=seed)
        condition = shown(batch)
        if condition is not None:
            condition = condition._replace(absent_B=dropped(keys_B, rate=drop))
        predict = _predictor(apply, params, None)
        clean_BPX = pixels(batch.samples_BPX)
        return denoise_pairs(predict, clean_BPX, drawn, condition, schedule=schedule, prediction=prediction)[0]

    def loss(
        errors_BP: jax.Array, batch: PictureBatch, knobs: Knobs, counts: Counts, state: LossState, key: jax.Array
    ) -> tuple[jax.Array, Metrics, LossState]:
        return _mean(errors_BP[:, 0], batch, counts), {}, state

    def refresh(params: Params, frozen: Params, step: jax.Array) -> Params:
        return moved_average(frozen, params, step, decay=average)

    return Objective(_weigh, forward, loss, refresh=refresh if average else None)


def preference_objective(
    apply: Apply,
    entry: Loss,
    *,
    adapter: bool,
    noise: Noise,
    seed: int,
    draws: int,
    temporal_weight: float,
) -> Objective:
    """A loss of the table on denoising errors: of pairs, or, where it reads labels, of labelled samples.

    The reference's errors are those of the batch, or those of `frozen`, which with an `adapter` is the base under it.
    `draws` is as in `draws_of`. `temporal_weight` is that of the difference of
    neighbouring frames of clean clips as the policy sees them behind the noise of the chosen member; where rejected
    samples are rows of their own, those of all.
    """

    def forward(params: Params, frozen: Params | None, batch: PictureBatch, key: jax.Array) -> Errors:
        _, drawn = draws_of(batch, seed=seed, draws=draws)
        clean_BPX, condition = pixels(batch.samples_BPX), shown(batch)
        still = None if frozen is None else jax.lax.stop_gradient(frozen)
        whole = join(still, params) if adapter and still is not None else params
        errors_BP, clean_seen = denoise_pairs(
            _predictor(apply, whole, key if adapter else None), clean_BPX, drawn, condition, **noise
        )
        temporal_B = temporal_consistency((clean_seen[:, 0] + 1.0) / 2.0) if temporal_weight else None
        if batch.reference_errors_BP is not None:
            return Errors(errors_BP, None, temporal_B)
        assert still is not None
        with jax.named_scope("reference"):
            frozen_BP, _ = denoise_pairs(_predictor(apply, still, None), clean_BPX, drawn, condition, **noise)
        return Errors(errors_BP, frozen_BP, temporal_B)

    def loss(
        errors: Errors, batch: PictureBatch, knobs: Knobs, counts: Counts, state: LossState, key: jax.Array
    ) -> tuple[jax.Array, Metrics, LossState]:
        reference_BP = batch.reference_errors_BP if errors.reference_BP is None else errors.reference_BP
        assert reference_BP is not None
        policy, reference = (
            PairLogps(errors_BP[:, 0], errors_BP[:, -1]) for errors_BP in (errors.policy_BP, reference_BP)
        )
        inputs = LossInputs(policy, reference, where=batch.weight_B > 0, desirable_B=batch.desirable_B)
        losses_B, _ = entry.call(inputs, **knobs["options"])
        watched = _of_samples(inputs) if entry.reads_labels else _of_pairs(errors.policy_BP, reference_BP)
        if errors.temporal_B is not None:
            losses_B += temporal_weight * errors.temporal_B
            watched["temporal_consistency"] = errors.temporal_B
        return _mean(losses_B, batch, counts), _means(watched, batch), state

    return Objective(_weigh, forward, loss, whole_batch=entry.reads_labels)


def scoring_objective(scorer: Scorer) -> Objective:
    """The logistic loss on differences of scores of pairs."""

    def forward(params: Params, frozen: Params | None, batch: PictureBatch, key: jax.Array) -> jax.Array:
        rows, members = batch.samples_BPX.shape[:2]
        samples_RX = pixels(batch.samples_BPX).reshape(rows * members, *batch.samples_BPX.shape[2:])
        return scorer.scores(params, samples_RX).reshape(rows, members)

    def loss(
        scores_BP: jax.Array, batch: PictureBatch, knobs: Knobs, counts: Counts, state: LossState, key: jax.Array
    ) -> tuple[jax.Array, Metrics, LossState]:
        chosen_B, rejected_B = scores_BP[:, 0], scores_BP[:, 1]
        losses_B = preference_score(chosen_B, rejected_B, **knobs["options"])
        right_B = (chosen_B > rejected_B).astype(jnp.float32)
        watched = {"rewards/margins": chosen_B - rejected_B, "rewards/accuracies": right_B}
        return _mean(losses_B, batch, counts), _means(watched, batch), state

    return Objective(_weigh, forward, loss)


def _weigh(batch: PictureBatch) -> Counts:
    return {"pairs": batch.weight_B.sum()}


def _mean(losses_B: jax.Array, batch: PictureBatch, counts: Counts) -> jax.Array:
    weighed_B = losses_B if batch.loss_weight_B is None else losses_B * batch.loss_weight_B
    return (weighed_B * batch.weight_B).sum() / counts["pairs"]


def _means(watched: dict[str, jax.Array], batch: PictureBatch) -> Metrics:
    weights = batch.weight_B.sum()
    return {name: Mean((of_B * batch.weight_B).sum(), weights) for name, of_B in watched.items()}


def _predictor(apply: Apply, params: Params, key: jax.Array | None) -> Predict:
    return lambda noisy_RX, time_R, condition: apply(params, noisy_RX, time_R, condition, key)


def _of_pairs(policy_BP: jax.Array, reference_BP: jax.Array) -> dict[str, jax.Array]:
    """Metrics of pairs: errors, and by how much more the policy prefers the chosen member."""
    gained_BP = jax.lax.stop_gradient(reference_BP - policy_BP)
    margin_B = gained_BP[:, 0] - gained_BP[:, 1]
    return {
        "errors/chosen": policy_BP[:, 0],
        "errors/rejected": policy_BP[:, 1],
        "gained/chosen": gained_BP[:, 0],
        "gained/rejected": gained_BP[:, 1],
        "rewards/margins": margin_B,
        "rewards/accuracies": (margin_B > 0).astype(jnp.float32),
    }


def _of_samples(inputs: LossInputs) -> dict[str, jax.Array]:
    """Metrics of labelled samples."""
    assert inputs.reference is not None and inputs.desirable_B is not None
    gained_B = jax.lax.stop_gradient(inputs.reference.chosen - inputs.policy.chosen)
    signed_B = jnp.where(inputs.desirable_B > 0, gained_B, -gained_B)
    return {"errors": inputs.policy.chosen, "gained": gained_B, "rewards/signed": signed_B}


def moved_average(
    average: Params, params: Params, steps: int | jax.Array, *, decay: float | jax.Array = 0.9999
) -> Params:
    """The average after one more step, in the dtype in which it is held.

    average + (1 - d) (params - average), d = min(decay, (1 + steps) / (10 + steps)).

    The first steps count more, so that the average soon forgets where it began.

    Args:
        average: before this step; at first the parameters themselves.
        params: after this step.
        steps: how many steps there were, this one among them; may be traced.
        decay: 0 is the parameters themselves, towards 1 ever more steps are averaged, about 1 / (1 - decay).

    Example:
        >>> import jax.numpy as jnp
        >>> float(moved_average({"w": jnp.array(0.0)}, {"w": jnp.array(8.0)}, 2, decay=0.9)["w"])  # d = 3 / 12
        6.0
    """
    steps = jnp.asarray(steps, jnp.float32)
    share = 1.0 - jnp.minimum(decay, (1.0 + steps) / (10.0 + steps))

    def moved(old: jax.Array, new: jax.Array) -> jax.Array:
        return (old + share * (new - old)).astype(old.dtype)

    return jax.tree.map(moved, average, params)
