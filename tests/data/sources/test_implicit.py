"""Prompts that rows do not name: cut between words, lines and messages, never inside."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_jax.data.sources.rows import split_prompt


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("the lamp is warm", "the lamp is cold", "the lamp is"),  # the space begins the response, as in a token
        ("the lamp is warm", "the lamp was warm", "the lamp"),
        ("the warmer", "the warmth", "the"),  # never mid-word
        ("say x?", "say x!", "say"),
        ("Q: a\nb", "Q: a\nc", "Q: a\n"),  # a line's end belongs to the prompt
        ("Q: a\n b", "Q: a\n c", "Q: a\n"),
        ("a b", "a b c", "a"),  # neither response is left empty
        ("a\n\nb", "a\nb", "a\n"),
        ("\n\nHuman: hi\n\nAssistant: Yes.", "\n\nHuman: hi\n\nAssistant: No.", "\n\nHuman: hi\n\nAssistant:"),
        ("a\tb", "a\tc", "a"),
        ("ab", "ac", None),
        (" a", " b", None),  # white space alone is no prompt
        ("a b", "c d", None),
        ("a", "a b", None),
        ("a  ", "a b", None),
    ],
)
def test_texts_by_hand(chosen, rejected, prompt):
    for one, other in ((chosen, rejected), (rejected, chosen)):
        found = split_prompt(one, other)
        assert found == (None if prompt is None else (prompt, one[len(prompt) :], other[len(prompt) :]))


WORDS = st.text("ab \n", max_size=12)


@given(WORDS, WORDS, WORDS)
def test_a_cut_is_at_a_boundary_and_loses_nothing(start, one, other):
    found = split_prompt(start + one, start + other)
    if found is None:
        return
    prompt, chosen, rejected = found
    assert (prompt + chosen, prompt + rejected) == (start + one, start + other)
    assert prompt.strip() and chosen.strip() and rejected.strip()
    assert prompt.endswith("\n") or (chosen[0] in " \t" and rejected[0] in " \t")


def turns(text):
    """u, a, s and t with a letter each: "ux ay" is a question x and an answer y."""
    roles = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return tuple({"role": roles[turn[0]], "content": turn[1:]} for turn in text.split())


@pytest.mark.parametrize(
    ("chosen", "rejected", "cut"),
    [
        ("ux ay", "ux az", 1),
        ("s1 ux ay", "s1 ux az", 2),
        ("ux ay uv a1", "ux ay uv a2", 3),
        ("ux ay uv a1", "ux az uv a1", 1),
        ("ux ay uv a1", "ux ay", 1),  # back to where both answer
        ("ux ay uv a1", "ux ay uw a1", 1),
        ("ux ay tz a1", "ux ay tz a2", 3),
        ("ux ay", "uv az", None),
        ("ay", "az", None),
        ("ux uy", "ux uz", None),
        ("ux ay", "ux uz", None),
    ],
)
def test_messages_by_hand(chosen, rejected, cut):
    one, other = turns(chosen), turns(rejected)
    assert split_prompt(one, other) == (None if cut is None else (one[:cut], one[cut:], other[cut:]))


def test_text_and_messages_share_nothing():
    assert split_prompt("a b", turns("ux ay")) is None
