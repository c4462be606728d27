"""The divergence of the policy from the reference on its own samples: both models in one pass over them.

Dimension key: n samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dpo_jax.evaluation.divergence import Divergences, divergence_metrics, sample_divergences
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.mesh import constrain
from dpo_jax.runtime.translate import sized_by
from dpo_jax.types import PairBatch, Params, TokenRow


@sized_by("reference.batch_pairs")
def measure_divergence(
    experiment: TextExperiment, rows: Sequence[TokenRow], policy: Params, frozen: Params
) -> Mapping[str, Any]:
    """`kl`, `entropy` and token counts of sampled responses, see `divergence_metrics`."""
    apply, tiles = experiment.model.apply, experiment.tiles

    @jax.jit
    def measure(policy: Params, frozen: Params, batch: PairBatch) -> Divergences:
        inputs = (batch.tokens_RT, batch.positions_RT, batch.segments_RT)
        ours, theirs = (apply(params, *inputs, sequences=batch.sequences) for params in (policy, frozen))
        found = sample_divergences(ours, theirs, batch, **tiles)
        return Divergences(*(constrain(each_BP, None, None) for each_BP in found))  # every host reads them

    parts, tokens = list[Divergences](), list[np.ndarray]()
    for batch in experiment.scoring_batches(rows):
        count = len(batch.row_ids)  # pairs that only fill the batch come last
        found = jax.device_get(measure(policy, frozen, experiment.place(batch.arrays)))
        parts.append(jax.tree.map(lambda each_BP, count=count: each_BP[:count, 0], found))
        tokens.append(np.asarray(batch.arrays.response_tokens_BP)[:count, 0])
    joined = jax.tree.map(lambda *each: np.concatenate(each), *parts)
    return divergence_metrics(joined, np.concatenate(tokens))
