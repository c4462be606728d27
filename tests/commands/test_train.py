"""What is checked before the first step, and how the reference of TR-DPO moves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.commands.train import check_start
from dpo_jax.config import LossConfig
from dpo_jax.data.batches import evaluation_batches
from dpo_jax.errors import UserError
from dpo_jax.experiments.losses import read_terms
from dpo_jax.experiments.rows import DataRows
from dpo_jax.experiments.training import _refresh
from dpo_jax.reference.score import Scorer
from dpo_jax.reference.store import Scores
from dpo_jax.types import TokenRow

ROWS = 3
LOGPS = np.array([[-10.0, -20.0], [-11.0, -21.0], [-12.0, -22.0]], np.float32)
HEADS = LOGPS / 2


def start(*, at_reference: Any = None, **stored: np.ndarray) -> None:
    """`check_start` of three pairs, of which the policy says LOGPS and HEADS; the store says the same, or `stored`."""

    def score(params: Any, batch: Any) -> Any:
        picks = np.maximum(batch.segments_RT.sum(axis=1)[: 2 * len(batch.weight_B) : 2] - 3, 0)
        return LOGPS[picks], HEADS[picks]

    def lookup(row_ids: list[str]) -> Scores:
        picks = [int(row_id) for row_id in row_ids]
        fields = {"logps_nP": LOGPS, "tokens_nP": np.full((ROWS, 2), 2, np.int32), "heads_nP": HEADS} | stored
        return Scores(**{name: field[picks] for name, field in fields.items()})

    (term,) = read_terms([LossConfig(name="dpo")], {})
    if at_reference is not None:
        term = term._replace(entry=term.entry._replace(at_reference=at_reference))
    rows = [TokenRow(f"{i}", np.zeros(1 + i, np.int32), (np.zeros(2, np.int32),) * 2) for i in range(ROWS)]
    setup: Any = SimpleNamespace(
        train_data=DataRows(rows, []),
        config=SimpleNamespace(reference=SimpleNamespace(batch_pairs=2), model=SimpleNamespace(dtype="float32")),
        scorer=Scorer(score, lambda rows: evaluation_batches(rows, pairs=2), lambda batch: batch),
        terms=[term],
    )
    check_start(setup, {}, lookup, "stores/one")


def test_step_zero_agrees(capsys):
    start()
    assert "policy and reference agree on 3 rows" in capsys.readouterr().err


@pytest.mark.parametrize("field", ["logps_nP", "heads_nP"])
def test_step_zero_names_the_row_whose_log_probs_are_others(field: str):
    wrong = (LOGPS if field == "logps_nP" else HEADS).copy()
    wrong[1, 1] += 0.1
    with pytest.raises(UserError, match=r"step 0: row 1 has log-probs \[-11.0, -21.0\]"):
        start(**{field: wrong})


def test_step_zero_notices_other_token_counts():
    with pytest.raises(UserError, match="step 0: row"):
        start(tokens_nP=np.array([[2, 2], [2, 3], [2, 2]], np.int32))


def test_step_zero_notices_a_loss_that_is_not_what_it_must_be():
    with pytest.raises(UserError, match=r"step 0: the dpo loss is 0\.693147; .* it is 0\.500000"):
        start(at_reference=lambda pairs, **knobs: 0.5)


def test_the_reference_moves_by_its_share_every_so_many_steps():
    reference = SimpleNamespace(update_every=3, update_share=0.25)
    setup: Any = SimpleNamespace(config=SimpleNamespace(reference=reference))
    refresh = _refresh(setup)
    assert refresh is not None
    policy, frozen = {"w": jnp.array([8.0])}, {"w": jnp.array([4.0], jnp.bfloat16)}
    moved = [refresh(policy, frozen, jnp.asarray(done))["w"] for done in (1, 2, 3, 4, 6)]
    assert [float(w[0]) for w in moved] == [4.0, 4.0, 5.0, 4.0, 5.0]  # 4 + (8 - 4) / 4
    assert all(w.dtype == jnp.bfloat16 for w in moved)
    reference.update_every = None
    assert _refresh(setup) is None
