"""Verdicts of a judge in an evaluation; the tables of judges agree."""

from __future__ import annotations

from typing import get_args, get_type_hints

from dpo_jax.config.evaluation import JUDGE_OPTIONS, JudgeConfig
from dpo_jax.evaluation.judges import Comparing, Scoring
from dpo_jax.experiments.judging import JUDGES, judged
from dpo_jax.types import Prompt


def test_every_judge_of_the_configuration_is_in_the_tables():
    names = set(get_args(get_type_hints(JudgeConfig)["name"]))
    assert names == set(JUDGES) == set(JUDGE_OPTIONS)
    options = {option for options in JUDGE_OPTIONS.values() for option in options}
    assert options | {"name"} == set(JudgeConfig.__dataclass_fields__)


def test_scores_and_shares_belong_to_their_side():
    judge = Scoring("length", lambda prompts, responses: [len(response) for response in responses], neutral=2.0)
    prompts = [Prompt("one", None, ""), Prompt("two", None, "")]
    found, of_each = judged(judge, prompts, ["aaa", "aaaa"], ["b", "bbb"])
    assert found["policy"]["positive"] == 1.0 and found["reference"]["positive"] == found["difference"] == 0.5
    assert found["policy"]["score"] == 3.5 and found["reference"]["score"] == 2.0 and found["win_rate"] == 1.0
    assert of_each[0] == {"reference_score": 1.0, "policy_score": 3.0}


def test_of_a_judge_that_compares_the_order_shows():
    judge = Comparing("first", lambda prompts, first, second: [1.0] * len(first), usage=lambda: {"requests": 4})
    found, of_each = judged(judge, [Prompt("one", None, ""), Prompt("two", None, "")], ["a ", "b"], [" a", "c"])
    order = found["order"]
    assert (order["flipped"], order["first_preferred"]) == (0.5, 0.75) and found["usage"] == {"requests": 4}
    assert (order["policy_first"], order["policy_second"]) == (0.75, 0.25)
    assert found["win_rate"] == 0.5 and of_each == [{"verdict": 0.5}] * 2  # the same but for white space is a tie
    assert found["length_controlled"]["longer"] == 0.0 and "policy" not in found
