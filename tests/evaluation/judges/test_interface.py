"""Both natures of judges give verdicts; an order that matters is averaged out, nonsense is refused."""

from __future__ import annotations

import numpy as np
import pytest

from dpo_jax.errors import UserError
from dpo_jax.evaluation.judges import Comparing, Judge, Scoring
from dpo_jax.evaluation.records import Usage
from dpo_jax.types import Prompt

PROMPTS = [Prompt(f"question {i}", None, "here") for i in range(4)]
A, B = ["aaa", "b", "same", "dd"], ["a", "bbb", "same ", "d"]


def by_length(prompts, responses):
    return [len(response.strip()) for response in responses]


def test_the_higher_score_wins_and_equal_ones_tie():
    judge: Judge = Scoring("length", by_length)
    assert judge.verdicts(PROMPTS, A, B).tolist() == [1.0, 0.0, 0.5, 1.0]
    assert judge.verdicts([], [], []).shape == (0,)


def test_both_orders_are_asked_and_averaged():
    asked = []

    def likes_the_first(prompts, first, second):
        asked.extend(zip((prompt.text for prompt in prompts), first, second, strict=True))
        return [1.0 if len(one) >= 3 else 0.75 for one in first]

    judge = Comparing("first", likes_the_first)
    found = judge.orders(PROMPTS, A, B)
    assert found.a_first.tolist() == [1.0, 0.75, 0.5, 0.75] and found.b_first.tolist() == [0.25, 0.0, 0.5, 0.25]
    assert judge.verdicts(PROMPTS, A, B).tolist() == [0.625, 0.375, 0.5, 0.5]
    assert ("question 1", "b", "bbb") in asked and ("question 1", "bbb", "b") in asked and len(asked) == 2 * 2 * 3


def test_the_same_responses_are_a_tie_and_nobody_is_asked():
    def asked(*_):
        raise AssertionError("asked")

    assert Comparing("none", asked).verdicts(PROMPTS[:1], ["same"], ["same\n"]).tolist() == [0.5]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (lambda n: [1.0] * (n - 1), "numbers are wanted"),
        (lambda n: ["x"] * n, "no numbers"),
        (lambda n: [float("nan")] * n, "number 1 of . is nan"),
        (lambda n: None, "no numbers|numbers are wanted|not finite"),
    ],
)
def test_what_is_no_verdict_is_refused(raw, says):
    with pytest.raises(UserError, match=f"judge odd: .*({says})"):
        Scoring("odd", lambda prompts, responses: raw(len(responses))).verdicts(PROMPTS, A, B)
    with pytest.raises(UserError, match=f"judge odd: .*({says})"):
        Comparing("odd", lambda prompts, a, b: raw(len(a))).verdicts(PROMPTS, A, B)


@pytest.mark.parametrize("verdict", [1.5, -0.5])
def test_a_verdict_beyond_its_bounds_is_refused(verdict: float):
    with pytest.raises(UserError, match=f"the verdict {verdict} is not within"):
        Comparing("odd", lambda prompts, a, b: np.full(len(a), verdict)).verdicts(PROMPTS, A, B)


def test_a_judge_asked_through_another_process_is_the_same_judge():
    calls = []

    def through(call):
        calls.append(call)
        return call()

    scoring = Scoring("length", by_length, neutral=2.0).through(through)
    assert scoring.neutral == 2.0 and scoring.verdicts(PROMPTS, A, B).tolist() == [1.0, 0.0, 0.5, 1.0]
    comparing = Comparing("first", lambda prompts, a, b: [1.0] * len(a), usage=lambda: Usage(requests=6))
    comparing = comparing.through(through)
    assert comparing.verdicts(PROMPTS, A, B).tolist() == [0.5] * 4 and comparing.usage().requests == 6
    assert len(calls) == 2
