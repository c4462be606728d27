"""The lists of bugs by name."""

from __future__ import annotations

from tests.contracts.mutants import (
    analysis,
    attention,
    data,
    logprobs,
    lora,
    losses_batch,
    losses_free,
    losses_pairwise,
    losses_parts,
    losses_tables,
    losses_unpaired,
    planning,
    reference,
    reward,
    sampling,
    sources,
    stages,
    stages_train,
    training,
    vision,
    weights,
)
from tests.contracts.mutants.mutant import Mutant

LISTS: dict[str, list[Mutant]] = {
    "losses_pairwise": losses_pairwise.MUTANTS,
    "losses_batch": losses_batch.MUTANTS,
    "losses_free": losses_free.MUTANTS,
    "losses_unpaired": losses_unpaired.MUTANTS,
    "losses_parts": losses_parts.MUTANTS,
    "losses_tables": losses_tables.MUTANTS,
    "logprobs": logprobs.MUTANTS,
    "data": data.MUTANTS,
    "sources": sources.MUTANTS,
    "reference": reference.MUTANTS,
    "sampling": sampling.MUTANTS,
    "attention": attention.MUTANTS,
    "lora": lora.MUTANTS,
    "reward": reward.MUTANTS,
    "training": training.MUTANTS,
    "stages": stages.MUTANTS,
    "stages_train": stages_train.MUTANTS,
    "weights": weights.MUTANTS,
    "vision": vision.MUTANTS,
    "planning": planning.MUTANTS,
    "analysis": analysis.MUTANTS,
}
