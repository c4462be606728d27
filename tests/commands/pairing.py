"""One process of a run on several hosts: prints the log-probs of rows under a model that answers with their numbers.

JAX_COORDINATOR_ADDRESS=... python -m tests.commands.pairing
"""

from __future__ import annotations

import json
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.data.batches import Batches, evaluation_batches
from dpo_jax.data.shapes import Packing
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.logprobs import batch_scores
from dpo_jax.mesh import constrain, make_mesh
from dpo_jax.reference.score import make_scorer, score_rows
from dpo_jax.runtime.hosts import join_run
from dpo_jax.types import PairBatch, TokenRow, Unembedding

COUNT, PAIRS, MICRO = 20, 8, 4
CASES: dict[str, dict[str, int]] = {
    "padded": {"data": 8, "fsdp": 1},
    "packed": {"fsdp": 4, "sequence": 2},
    "shared": {"slice": 2, "fsdp": 2, "tensor": 2},
}


def make_rows() -> list[TokenRow]:
    """Row n holds n + 2 in its prompt, once or up to five times; chosen is 0 1, rejected 1 0."""
    responses = np.array([0, 1], np.int32), np.array([1, 0], np.int32)
    return [TokenRow(f"{n:032x}", np.full(1 + n % 5, n + 2, np.int32), responses) for n in range(COUNT)]


def expected(row_id: str) -> list[float]:
    """The log-probs of both responses: of 0 and 1, behind tokens that say how likely they are."""

    def logp(target: int, token: int) -> float:
        return -float(np.logaddexp(0, -score(token) if target == 0 else score(token)))

    first = int(row_id, 16) + 2
    return [logp(0, first) + logp(1, 0), logp(1, first) + logp(0, 1)]


def score(token: Any) -> Any:
    """The logit of 0 behind a token, where that of 1 is 0."""
    return (token - 12) / 8


def apply(
    params: Any, tokens_RT: jax.Array, positions_RT: jax.Array, segments_RT: jax.Array, sequences: Any = None
) -> tuple:
    """A model with two words."""
    hidden_RT = constrain(score(tokens_RT.astype(jnp.float32)), "rows", "length")
    return jnp.stack([hidden_RT, 0 * hidden_RT], axis=-1), Unembedding(jnp.eye(2), 2)


@jax.jit
def trained(batch: PairBatch) -> jax.Array:
    """Log-probs of a training batch, micro-batch after micro-batch, as the step takes them."""

    def micro(index: jax.Array) -> jax.Array:
        own = jax.tree.map(lambda x: x[index], batch)
        return batch_scores(*apply(None, own.tokens_RT, own.positions_RT, own.segments_RT), own)[0]

    return constrain(jax.lax.map(micro, jnp.arange(PAIRS // MICRO)).reshape(PAIRS, 2), None, None)


def main() -> None:
    """Prints, for each layout on a mesh of its own, the log-probs of every row as scored and as trained, by row id."""
    join_run()
    found = []
    for layout, axes in CASES.items():
        mesh = make_mesh(**axes)
        setup = cast(
            TextExperiment, type("OnThisMesh", (TextExperiment,), {"__init__": lambda self: None, "mesh": mesh})()
        )
        packing = Packing(layout, setup.row_multiple)
        with jax.set_mesh(mesh):
            batches = evaluation_batches(make_rows(), pairs=PAIRS, packing=packing)
            row_ids, scores = score_rows(make_scorer(apply), {}, batches, place=setup.place)
            step = Batches(make_rows(), batch_pairs=PAIRS, micro_batch_pairs=MICRO, seed=0, packing=packing).batch(1)
            logps_BP = jax.device_get(trained(setup.place(step.arrays, micro_batches=True)))
        pairs = [*zip(row_ids, scores.logps_nP.tolist(), strict=True)]
        found.append([*pairs, *zip(step.row_ids, logps_BP.tolist(), strict=True)])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
