"""Answers of language models, and the questions they are asked."""

from __future__ import annotations

import pytest

from dpo_jax.errors import UserError
from dpo_jax.evaluation.judges.wording import DEFAULT_TEMPLATE, check_template, fill, understand


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("A", 1.0),
        ("B", 0.0),
        (" b.\n", 0.0),
        ("**C**", 0.5),
        ("tie", 0.5),
        ('"A"', 1.0),
        ("Response B", 0.0),
        ("Verdict: A", 1.0),
        ("A is short, B is long. My final verdict is: [[B>A]]", 0.0),
        ("first [[A]], but then [[B]]", 0.0),
        ("[[A>>B]]", 1.0),
        ("[[a=b]]", 0.5),
        ("[[B>>A]]", 0.0),
        ("[[C]]", 0.5),
        ("<think>[[A]]? No:\n[[B]].</think>\n\nA", 1.0),
        ("<think>so it is [[A]], or", None),
        ("", None),
        ("Both are good.", None),
        ("A cat sat there", None),
        ("A or B", None),
        ("BA", None),
    ],
)
def test_answers(answer: str, verdict: float | None):
    assert understand(answer) == verdict


def test_texts_are_put_in_as_they_are():
    found = fill("{prompt}|{a}|{b}|{other}|{ }", prompt="{a}", a="{b}{prompt}", b="{}")
    assert found == "{a}|{b}{prompt}|{}|{other}|{ }"


def test_a_template_shows_all():
    check_template(DEFAULT_TEMPLATE)
    with pytest.raises(UserError, match=r"lacks \{prompt\} and \{b\}"):
        check_template("only {a}")
