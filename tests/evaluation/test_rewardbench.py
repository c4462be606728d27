"""RewardBench's sections by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dpo_jax.evaluation.rewardbench import SECTIONS, rewardbench


def test_sections_weigh_their_subsets_by_prompts():
    subsets = ["alpacaeval-easy", "mt-bench-med", "mt-bench-med", "mine", "math-prm", "hep-go"]
    found = rewardbench(np.array([True, True, False, False, True, False]), subsets)
    assert (found.rows, found.accuracy) == (6, 0.5)
    assert {name: each.accuracy for name, each in found.subsets.items()} == {
        "alpacaeval-easy": 1.0,
        "mt-bench-med": 0.5,
        "mine": 0.0,
        "math-prm": 1.0,
        "hep-go": 0.0,
    }
    assert found.sections.keys() == {"Chat", "Reasoning"} and found.score is None
    assert found.sections["Chat"].accuracy == pytest.approx((100 * 1.0 + 40 * 0.5) / 140)
    assert found.sections["Chat"].lacks == ("alpacaeval-length", "alpacaeval-hard", "mt-bench-easy")
    assert found.sections["Reasoning"].accuracy == pytest.approx(984 / (984 + 164))  # math as much as all code


def test_the_score_is_the_mean_of_the_sections_where_all_are_whole():
    names = [name for section in SECTIONS.values() for name in section]
    right = np.array([name in SECTIONS["Chat"] or name == "donotanswer" for name in names])
    found = rewardbench(right, names)
    assert len(names) == 23 and found.score == pytest.approx((1 + 0 + 136 / 740 + 0) / 4)
    assert rewardbench(right[1:], names[1:]).score is None
    chat = [name in SECTIONS["Chat"] for name in names]
    assert rewardbench(right[chat], [name for name in names if name in SECTIONS["Chat"]]).score is None


def test_every_row_needs_a_verdict():
    with pytest.raises(ValueError, match="need one each"):
        rewardbench(np.zeros(2), ["a"])
