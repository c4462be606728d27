"""The pass over rows: each row gets its own scores, whatever batch it falls into."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpo_jax.data.batches import evaluation_batches
from dpo_jax.reference.score import score_rows
from dpo_jax.types import TokenRow


def test_every_row_gets_its_own_scores_over_several_batches():
    rows = [
        TokenRow(f"{i}", np.zeros(1, np.int32), (np.zeros(1 + i, np.int32), np.zeros(1, np.int32))) for i in range(5)
    ]
    done: list[int] = []

    def score(params: Any, batch: Any) -> Any:
        tokens_BP = batch.response_tokens_BP
        return params * tokens_BP, tokens_BP - 0.5

    row_ids, scores = score_rows(
        score, -2.0, evaluation_batches(rows, pairs=2), place=lambda batch: batch, progress=done.append
    )
    tokens = np.array([[1, 1], [2, 1], [3, 1], [4, 1], [5, 1]])  # the sixth, which fills, is left out
    assert row_ids == ["0", "1", "2", "3", "4"] and done == [2, 4, 5]
    np.testing.assert_array_equal(scores.tokens_nP, tokens)
    np.testing.assert_array_equal(scores.logps_nP, -2.0 * tokens)
    np.testing.assert_array_equal(scores.heads_nP, tokens - 0.5)
