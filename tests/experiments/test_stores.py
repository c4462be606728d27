"""Stored scores compared with the model, log-probs and errors alike, on made-up ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dpo_jax.errors import UserError
from dpo_jax.experiments.stores import agree, score_again
from dpo_jax.reference.store import Errors, Scores

LOGPS = np.arange(40, dtype=np.float32).reshape(20, 2)
SCORES = {Scores: Scores(LOGPS, LOGPS.astype(np.int32), LOGPS), Errors: Errors(LOGPS)}


class Model:
    """An experiment of 20 rows, and its store."""

    folder = Path("stores/a")
    config = SimpleNamespace(seed=3, model=SimpleNamespace(dtype="float32"))
    train_data = SimpleNamespace(rows=[SimpleNamespace(row_id=f"row {number}") for number in range(20)])

    def __init__(self, scores: Any) -> None:
        self.scores, self.asked = scores, list[str]()

    def lookup(self, row_ids: list[str]) -> Any:
        places = [int(row_id.removeprefix("row ")) for row_id in row_ids]
        return type(self.scores)(*(values[places] for values in self.scores))

    def scorer(self, params: object, rows: Any) -> tuple[list[str], Any]:
        self.asked = [row.row_id for row in rows]
        return self.asked, self.lookup(self.asked)


@pytest.mark.parametrize("kind", SCORES)
def test_rows_drawn_by_the_seed_are_scored_again(kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    model = Model(SCORES[kind])
    score_again(model, model, {}, 6)
    assert "6 rows scored again: the largest difference is 0.00e+00" in capsys.readouterr().err
    first, other = model.asked, Model(SCORES[kind])
    assert len(set(first)) == 6 and first != [f"row {number}" for number in range(6)]
    other.config = SimpleNamespace(seed=4, model=model.config.model)
    score_again(other, other, {}, 6)
    assert other.asked != first
    score_again(model, model, {}, 30)
    assert len(set(model.asked)) == 20


@pytest.mark.parametrize(("kind", "name"), [(Scores, "log-probs"), (Errors, "errors")])
def test_a_row_that_is_off_is_named(kind: type, name: str) -> None:
    stored = SCORES[kind]._replace(**{kind._fields[0]: LOGPS + 0.2 * (np.arange(20)[:, None] == 7)})
    with pytest.raises(UserError, match=rf"row 7 has {name} \[14\.\d+, 15\.\d+\] there, and now \[14\.0, 15\.0\]"):
        score_again(Model(SCORES[kind]), Model(stored), {}, 20)


def test_what_agrees_by_hand():
    off = SCORES[Scores]._replace(tokens_nP=SCORES[Scores].tokens_nP + (np.arange(20)[:, None] == 2))
    assert np.flatnonzero(~agree(off, SCORES[Scores], "float32")).tolist() == [2]  # counts are the same, or are not
    near = Errors(LOGPS + np.where(np.arange(20)[:, None] == 5, np.float32(0.019), np.float32(0)))
    assert agree(near, Errors(LOGPS), "bfloat16").all()
    assert np.flatnonzero(~agree(near, Errors(LOGPS), "float32")).tolist() == [5]
