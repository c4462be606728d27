"""What is minimised: a loss of the table, or the negative log-likelihood, joined to a model.

Dimension key: B pairs, P slot in the pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from dpo_jax.config import LossConfig
from dpo_jax.errors import UserError, nearest
from dpo_jax.logprobs import batch_logps
from dpo_jax.losses import PAIRWISE, PairLogps, PairwiseLoss, preference_metrics
from dpo_jax.models.decoder import Model
from dpo_jax.reading import Origins, locate
from dpo_jax.training.step import Knobs, Objective
from dpo_jax.types import Mean, Metrics, PairBatch, Params


def _logps(model: Model, params: Params, batch: PairBatch) -> jax.Array:
    hidden_RTD, unembedding = model.apply(params, batch.tokens_RT, batch.positions_RT, batch.segments_RT)
    return batch_logps(hidden_RTD, unembedding, batch)


def completion_objective(model: Model) -> Objective:
    """Negative log-likelihood of the responses, a mean over all scored tokens of the batch."""

    def weigh(batch: PairBatch) -> dict[str, jax.Array]:
        return {"tokens": batch.response_tokens_BP.sum()}

    def loss(params: Params, batch: PairBatch, knobs: Knobs, counts: dict, key: jax.Array) -> tuple[jax.Array, Metrics]:
        total = -_logps(model, params, batch).sum()
        return total / counts["tokens"], {"nll": Mean(total, batch.response_tokens_BP.sum())}

    return Objective(weigh, loss)


def preference_objective(model: Model, losses: Sequence[LossConfig]) -> Objective:
    """A weighted sum of pairwise losses, meant over the pairs of the batch; rewards take the beta of the first one."""
    table = [PAIRWISE[term.name] for term in losses]
    weights = [term.weight for term in losses]

    def weigh(batch: PairBatch) -> dict[str, jax.Array]:
        return {"pairs": batch.weight_B.sum()}

    def loss(params: Params, batch: PairBatch, knobs: Knobs, counts: dict, key: jax.Array) -> tuple[jax.Array, Metrics]:
        policy = as_pair(_logps(model, params, batch), batch)
        reference = as_pair(batch.reference_logps_BP, batch)
        losses_B = sum(
            weight * entry.function(policy, reference, **options)
            for weight, entry, options in zip(weights, table, knobs["losses"], strict=True)
        )
        watched = preference_metrics(policy, reference, beta=knobs["losses"][0]["beta"])
        pairs = batch.weight_B.sum()
        metrics = {name: Mean((value_B * batch.weight_B).sum(), pairs) for name, value_B in watched.items()}
        return (losses_B * batch.weight_B).sum() / counts["pairs"], metrics

    return Objective(weigh, loss)


def as_pair(logps_BP: Any, batch: PairBatch) -> PairLogps:
    """Columns 0 and 1 as chosen and rejected, with their token counts."""
    tokens_BP = batch.response_tokens_BP
    return PairLogps(logps_BP[:, 0], logps_BP[:, 1], tokens_BP[:, 0], tokens_BP[:, 1])


def loss_knobs(losses: Sequence[LossConfig], origins: Origins) -> list[dict[str, float]]:
    """The traced numbers of each loss, defaults filled in.

    Raises:
        UserError: a loss or an option is unknown, or an option is out of its range.
    """
    knobs = []
    for index, term in enumerate(losses):
        at = locate(f"loss.{index}", origins)
        if term.name not in PAIRWISE:
            raise UserError(f"{at}: loss.name: {term.name!r} is unknown. {nearest(term.name, PAIRWISE)}")
        entry = PAIRWISE[term.name]
        for name, value in term.options.items():
            _check_option(term.name, entry, name, value, locate(f"loss.{index}.options.{name}", origins))
        knobs.append({**entry.knobs, **{name: float(value) for name, value in term.options.items()}})
    return knobs


def _check_option(loss: str, entry: PairwiseLoss, name: str, value: Any, at: str) -> None:
    if name not in entry.knobs:
        raise UserError(f"{at}: loss.options.{name}: {loss} has no such option. {nearest(name, entry.knobs)}")
    low, high = entry.ranges[name]
    try:
        fits = low <= float(value) <= high and not isinstance(value, bool)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise UserError(f"{at}: loss.options.{name}: a number from {low:g} to {high:g} is wanted, not {value!r}.")
