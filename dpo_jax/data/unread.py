"""What the messages of a row say and a chat template does not write: refused, or counted by name."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from dpo_jax.errors import BadRow
from dpo_jax.types import Message

BOOKKEEPING = ("role", "id", "tool_call_id", "type", "index")
"""Keys of messages and calls that templates may leave out: they say nothing to the model."""

_SAID = ("content", "tool_calls", "reasoning_content", "thinking", "reasoning")
"""Keys of an answer that the model is to learn."""

_MOST_SHAPES = 10_000

Render = Callable[[Sequence[Message]], str]
Path = tuple[str | int, ...]


class Lost(NamedTuple):
    """What a template does not write of conversations of one shape: places and keys of messages, and roles."""

    keys: frozenset[tuple[int, str]]
    roles: frozenset[str]


class Seen(NamedTuple):
    """A conversation and its text; `answer` is empty where it is a prompt alone."""

    prompt: Sequence[Message]
    answer: Sequence[Message]
    text: str
    where: str


class Reader:
    """The check of one chat template. `render` makes text of messages, or raises BadRow where it refuses them."""

    def __init__(self) -> None:
        self._known: dict[object, Lost | None] = {}

    def unread(self, render: Render, seen: Seen, *, key: object) -> set[str]:
        """Return the names of what the text does not hold and can be done without.

        `key` stands for all that decides what `render` writes beside the messages. Roles, names, reasoning of earlier
        turns and the like can be done without: many templates leave them out with intent.

        Raises:
            BadRow: content or calls of a message, or anything that an answer says, are not in the text.
        """
        prompt, answer, text, where = seen
        turns = [*prompt, *answer]
        shape = key, tuple((turn["role"], *(path for path, _ in _leaves(turn))) for turn in turns), len(prompt)
        if shape not in self._known:
            if len(self._known) > _MOST_SHAPES:
                self._known.clear()
            self._known[shape] = _probe(turns, render)
        lost = self._known[shape]
        names = {f"role {role}" for role in lost.roles} if lost else set()
        for place, turn in enumerate(turns):
            for name in turn.keys() - set(BOOKKEEPING):
                is_lost = (place, name) in lost.keys if lost else not _holds(text, turn[name])
                is_cut = is_lost
                if name == "content":  # of which some templates cut what stands before `</think>`, for example
                    is_cut = not _holds(text, turn[name])
                    is_lost &= is_cut
                is_said = name in _SAID and is_cut and place >= len(prompt)
                if is_said or (is_lost and name in ("content", "tool_calls")):
                    raise _unwritten(place, turn, name, where)
                if is_cut:
                    names.add(name)
        return names


def _unwritten(place: int, turn: Message, key: str, where: str) -> BadRow:
    return BadRow(
        where,
        "unread by the chat template",
        f"message {place + 1} ({turn['role']}) has {key}, which the chat template does not write, or not all of it: "
        "the model would not see it.",
        "Name a template that does in {chat_template}, or take it out of the row.",
    )


def _probe(turns: Sequence[Message], render: Render) -> Lost | None:
    """Render the same conversation with a word of its own in place of each value; None where that is refused."""
    numbers = itertools.count()
    words: dict[str, tuple[int, str]] = {}

    def worded(value: object, place: int, key: str) -> object:
        if isinstance(value, Mapping):
            return {
                name: item if name in BOOKKEEPING else worded(item, place, key or name) for name, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [worded(item, place, key) for item in value]
        if value == "":
            return value
        word = f"qz{next(numbers)}zq"
        words[word] = place, key
        return word

    try:
        text = render([worded(turn, place, "") for place, turn in enumerate(turns)]).lower()  # type: ignore[misc]
    except BadRow:
        return None
    keys = frozenset(words[word] for word in words if word not in text)
    return Lost(keys, frozenset(role for role in {turn["role"] for turn in turns} if not _reads(role, turns, render)))


def _reads(role: str, turns: Sequence[Message], render: Render) -> bool:
    """True if a template refuses, or writes otherwise, the turns of this role under a role that there is not."""
    try:
        other = render([{**turn, "role": "qzrole"} if turn["role"] == role else turn for turn in turns])
    except BadRow:
        return True
    return other != render(turns)


def _holds(text: str, value: object) -> bool:
    """True if the text holds all that a value says, with other white space perhaps, or as JSON does."""
    said = [str(leaf) for _, leaf in _leaves({"value": value})]
    if all(leaf.strip() in text for leaf in said):
        return True
    dense = _dense(text)
    return all(
        any(
            _dense(form) in dense for form in (leaf, json.dumps(leaf)[1:-1], json.dumps(leaf, ensure_ascii=False)[1:-1])
        )
        for leaf in said
    )


def _dense(text: str) -> str:
    return "".join(text.split())


def _leaves(value: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Return each value that says something, with the keys and places that lead to it."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in BOOKKEEPING:
                yield from _leaves(item, (*path, key))
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _leaves(item, (*path, place))
    elif value != "":
        yield path, value
