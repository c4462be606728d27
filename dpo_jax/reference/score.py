"""One pass of a frozen model over rows: response log-probs, without gradients.

Dimension key: B pairs, P slot in the pair, n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from dpo_jax.logprobs import batch_scores
from dpo_jax.mesh import constrain
from dpo_jax.reference.store import Scores
from dpo_jax.types import HostBatch, PairBatch, Params, TokenRow

Apply = Callable[..., tuple]
Score = Callable[[Params, PairBatch], tuple[jax.Array, jax.Array]]


def make_scorer(apply: Apply, **tiles: int) -> Score:
    """`score(params, batch) -> (logps_BP, heads_BP)`, jitted once for each shape.

    Args:
        apply: `(params, tokens_RT, positions_RT, segments_RT, sequences=) -> (hidden_RTD, unembedding)`.
        tiles: as in `batch_scores`.
    """

    @jax.jit
    def score(params: Params, batch: PairBatch) -> tuple[jax.Array, jax.Array]:
        rows = (batch.tokens_RT, batch.positions_RT, batch.segments_RT)
        hidden_RTD, unembedding = apply(params, *rows, sequences=batch.sequences)
        logps_BP, heads_BP = batch_scores(hidden_RTD, unembedding, batch, **tiles)
        return constrain(logps_BP, None, None), constrain(heads_BP, None, None)  # every host reads them

    return score


def score_rows(
    score: Score,
    params: Params,
    batches: Iterable[HostBatch],
    *,
    place: Callable[[PairBatch], PairBatch],
    progress: Callable[[int], None] = lambda rows: None,
) -> tuple[list[str], Scores]:
    """Score every row of the batches, which are of all rows; ids and scores come in the order of the rows.

    Pairs that only fill the last batch are left out. One batch is computed while the one before is fetched. `progress`
    is called with the rows done.
    """
    row_ids: list[str] = []
    places: list[int] = []
    logps: list[np.ndarray] = []
    heads: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    late: tuple[jax.Array, jax.Array] | None = None

    def fetch(late: tuple[jax.Array, jax.Array], rows: int) -> None:
        for values, fetched in zip((logps, heads), jax.device_get(late), strict=True):
            values.append(np.asarray(fetched)[:rows])
        progress(sum(map(len, logps)))

    rows_before = 0
    for batch in batches:
        rows = len(batch.row_ids)
        now = score(params, place(batch.arrays))
        if late is not None:
            fetch(late, rows_before)
        late, rows_before = now, rows
        row_ids.extend(batch.row_ids)
        places.extend(batch.places)
        tokens.append(np.asarray(batch.arrays.response_tokens_BP)[:rows])
    if late is not None:
        fetch(late, rows_before)
    order = np.argsort(places)
    scores = Scores(np.concatenate(logps), np.concatenate(tokens).astype(np.int32), np.concatenate(heads))
    return [row_ids[place] for place in order], Scores(*(values[order] for values in scores))


class Scorer(NamedTuple):
    """Response log-probs of rows under any parameters of a model: `scorer(params, rows) -> (row ids, scores)`."""

    score: Score
    batches: Callable[[Sequence[TokenRow]], Iterable[HostBatch]]
    place: Callable[[PairBatch], PairBatch]

    def __call__(
        self, params: Params, rows: Sequence[TokenRow], *, progress: Callable[[int], None] = lambda rows: None
    ) -> tuple[list[str], Scores]:
        """Every row once, in their order; as `score_rows`."""
        return score_rows(self.score, params, self.batches(rows), place=self.place, progress=progress)
