"""A judge is not asked again what it has answered, whatever ended the process in between."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_jax.evaluation.judges import Comparing, Scoring
from dpo_jax.experiments.memory import remembering
from dpo_jax.runs.kept import Kept
from dpo_jax.types import Prompt

PROMPTS = [Prompt(f"prompt {number % 5}", None, "here") for number in range(40)]
TEXTS = [f"text {number}" for number in range(40)]


class Killed(BaseException):
    """The end of a process."""


class Judge:
    """Scores texts by their number, notes the texts of each call, and is killed in one of them."""

    def __init__(self, killed_in: int | None = None):
        self.calls: list[list[str]] = []
        self._killed_in = killed_in

    def __call__(self, prompts: Sequence[Prompt], *texts: Sequence[str]) -> list[float]:
        self.calls.append(list(texts[-1]))
        if len(self.calls) - 1 == self._killed_in:
            raise Killed
        return [1 / (1 + int(text.split()[1])) for text in texts[-1]]

    def remembered(self, path: Path, *, at_once: int | None = None, kind: Any = Scoring, **facts: str) -> Any:
        judge = kind("mine", self, facts=lambda: facts)
        judge.at_once = at_once
        return remembering(judge, {"name": "python"}, functools.partial(Kept, path))


@pytest.mark.parametrize("at_once", [None, 7])
def test_after_a_kill_it_is_asked_the_rest(tmp_path: Path, at_once: int | None):
    whole, path = Judge(), tmp_path / "killed.jsonl"
    wanted = whole.remembered(tmp_path / "whole.jsonl", at_once=at_once).scores(PROMPTS, TEXTS)
    assert len(whole.calls) > 2 and wanted.tolist() == Judge()(PROMPTS, TEXTS)
    killed, again = Judge(killed_in=2), Judge()
    with pytest.raises(Killed):
        killed.remembered(path, at_once=at_once).scores(PROMPTS, TEXTS)
    np.testing.assert_array_equal(again.remembered(path, at_once=at_once).scores(PROMPTS, TEXTS), wanted)
    asked = [text for call in killed.calls[:2] + again.calls for text in call]
    assert sorted(asked) == sorted(TEXTS)
    if at_once:  # what is computed together is together as in one that nobody killed
        assert killed.calls[:2] + again.calls == whole.calls


def test_a_known_text_is_asked_once_and_for_its_prompt(tmp_path: Path):
    judge, path = Judge(), tmp_path / "kept.jsonl"
    prompts, texts = [PROMPTS[0], PROMPTS[1], PROMPTS[0]], ["text 1", "text 1", "text 1"]
    assert judge.remembered(path).scores(prompts, texts).tolist() == [0.5, 0.5, 0.5]
    assert judge.calls == [["text 1", "text 1"]]
    with_tools = Prompt(PROMPTS[0].prompt, None, "there", tools=({"name": "f"},))
    judge.remembered(path).scores([PROMPTS[0], with_tools], ["text 1", "text 1"])
    assert judge.calls[1:] == [["text 1"]]


def test_another_judge_is_asked_all(tmp_path: Path):
    path = tmp_path / "kept.jsonl"
    Judge().remembered(path, code="a").scores(PROMPTS, TEXTS)
    same, other = Judge(), Judge()
    same.remembered(path, code="a").scores(PROMPTS, TEXTS)
    other.remembered(path, code="b").scores(PROMPTS, TEXTS)
    assert not same.calls and [text for call in other.calls for text in call] == TEXTS


def test_comparisons_are_kept_in_both_orders(tmp_path: Path):
    path, other = tmp_path / "kept.jsonl", [f"other {number + 50}" for number in range(40)]
    wanted = Judge().remembered(path, kind=Comparing).orders(PROMPTS, TEXTS, other)
    again = Judge()
    known = again.remembered(path, kind=Comparing).orders(PROMPTS, TEXTS, other)
    np.testing.assert_array_equal(known, wanted)
    assert not again.calls and not np.array_equal(wanted.a_first, wanted.b_first)
