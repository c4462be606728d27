"""The checks before the first step, and the moves of TR-DPO's reference."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.config import LossConfig
from dpo_jax.errors import UserError
from dpo_jax.experiments.heldout import check_losses
from dpo_jax.experiments.losses import read_terms
from dpo_jax.experiments.stores import check_scores
from dpo_jax.objectives.preference import moving
from dpo_jax.reference.store import Scores

ROWS = 3
LOGPS = np.array([[-10.0, -20.0], [-11.0, -21.0], [-12.0, -22.0]], np.float32)
HEADS = LOGPS / 2


def start(*, at_reference: Any = None, **stored: np.ndarray) -> None:
    """The checks of three pairs, of which the policy says LOGPS and HEADS; the store says the same, or `stored`."""
    fields = {"logps_nP": LOGPS, "tokens_nP": np.full((ROWS, 2), 2, np.int32), "heads_nP": HEADS}
    now, then = Scores(**fields), Scores(**fields | stored)
    (term,) = read_terms([LossConfig(name="dpo")], {})
    if at_reference is not None:
        term = term._replace(entry=term.entry._replace(at_reference=at_reference))
    check_scores([f"{i}" for i in range(ROWS)], now, then, where="stores/one", dtype="float32")
    check_losses([term], now, then, None, where="stores/one", dtype="float32")


def test_step_zero_agrees():
    start()


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
    refresh = moving(3, 0.25)
    policy, frozen = {"w": jnp.array([8.0])}, {"w": jnp.array([4.0], jnp.bfloat16)}
    moved = [refresh(policy, frozen, jnp.asarray(done))["w"] for done in (1, 2, 3, 4, 6)]
    assert [float(w[0]) for w in moved] == [4.0, 4.0, 5.0, 4.0, 5.0]  # 4 + (8 - 4) / 4
    assert all(w.dtype == jnp.bfloat16 for w in moved)
