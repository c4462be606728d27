"""Verdicts of a judge in an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_jax.config import as_mapping, load
from dpo_jax.evaluation.judges import Comparing, Scoring
from dpo_jax.evaluation.records import Usage
from dpo_jax.experiments.text_evaluation import judged
from dpo_jax.types import Prompt


@pytest.mark.parametrize(
    "judge",
    [
        {"name": "lexicon"},
        {"name": "http", "url": "http://u", "model": "m", "retries": 2},
        {"name": "classifier", "data": [{"path": "x"}]},
    ],
)
def test_a_judge_is_written_with_the_options_of_all_and_read_from_that(tmp_path: Path, judge: dict[str, Any]):
    config = {"workdir": "r", "model": {"weights": "w"}, "data": {"train": [{"path": "x"}]}, "loss": {"name": "dpo"}}
    (tmp_path / "e.yaml").write_text(json.dumps({**config, "pairs": {"judge": judge}}))
    first, _ = load(str(tmp_path / "e.yaml"))
    written = as_mapping(first)["pairs"]["judge"]
    assert len(written) == 17 and {name: written[name] for name in judge} == judge and written["parallel"] == 8
    (tmp_path / "e.yaml").write_text(json.dumps({**config, "pairs": {"judge": written}}))
    assert load(str(tmp_path / "e.yaml"))[0] == first


def test_scores_and_shares_belong_to_their_side():
    judge = Scoring("length", lambda prompts, responses: [len(response) for response in responses], neutral=2.0)
    prompts = [Prompt("one", None, ""), Prompt("two", None, "")]
    found, of_each = judged(judge, prompts, ["aaa", "aaaa"], ["b", "bbb"])
    assert found.policy.positive == 1.0 and found.reference.positive == found.difference == 0.5
    assert found.policy.score == 3.5 and found.reference.score == 2.0 and found.win_rate == 1.0
    assert of_each[0] == {"reference_score": 1.0, "policy_score": 3.0}


def test_of_a_judge_that_compares_the_order_shows():
    judge = Comparing("first", lambda prompts, first, second: [1.0] * len(first), usage=lambda: Usage(requests=4))
    found, of_each = judged(judge, [Prompt("one", None, ""), Prompt("two", None, "")], ["a ", "b"], [" a", "c"])
    order = found.order
    assert (order.flipped, order.first_preferred) == (0.5, 0.75) and found.usage == Usage(requests=4)
    assert (order.policy_first, order.policy_second) == (0.75, 0.25)
    assert found.win_rate == 0.5 and of_each == [{"verdict": 0.5}] * 2  # the same but for white space is a tie
    assert found.length_controlled.longer == 0.0 and not found.policy
