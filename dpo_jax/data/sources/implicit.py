"""Prompts that rows do not name: where chosen and rejected begin alike, cut between messages, lines or words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dpo_jax.types import Message, Text

_BOUNDARY = re.compile(r"(?<=\n)|(?=[ \t])")  # behind a line's end; before the space that a token begins with


def split(chosen: Text, rejected: Text) -> tuple[Text, Text, Text] | None:
    """(prompt, chosen, rejected), or None where they share no beginning that can be a prompt."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        cut = _text_cut(chosen, rejected)
    elif not isinstance(chosen, str) and not isinstance(rejected, str):
        cut = _turn_cut(chosen, rejected)
    else:
        return None
    return (chosen[:cut], chosen[cut:], rejected[cut:]) if cut else None


def _text_cut(chosen: str, rejected: str) -> int:
    letters = enumerate(zip(chosen, rejected, strict=False))
    shared = next((place for place, (a, b) in letters if a != b), min(len(chosen), len(rejected)))
    for place in reversed([match.start() for match in _BOUNDARY.finditer(chosen[: shared + 1])]):
        fits = place <= shared and _BOUNDARY.match(rejected, place) and chosen[:place].strip()
        if fits and chosen[place:].strip() and rejected[place:].strip():
            return place
    return 0


def _turn_cut(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """The last place up to which all turns are the same, and where the assistant answers in both."""
    cut = 0
    for place, (one, other) in enumerate(zip(chosen, rejected, strict=False)):
        if one["role"] == other["role"] == "assistant":
            cut = place
        if one != other:
            break
    return cut
