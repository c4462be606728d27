"""What a row may hold, checked: texts, conversations, numbers, tools. Each mistake names the column and the turn."""

from __future__ import annotations

import decimal
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_jax.errors import BadRow, each_once, fits_float32, nearest
from dpo_jax.types import Message, Text

ROLES = ("system", "developer", "user", "assistant", "tool")


def check(value: object, column: str, where: str) -> Text:
    """Return a text as it is, or the turns of a conversation; raises BadRow. `column` says what is checked."""
    return check_turns(value, column, where) if isinstance(value, list | tuple) else check_text(value, column, where)


def check_text(value: object, column: str, where: str) -> str:
    """Return a text that holds something; raises BadRow."""
    if value is None:
        raise BadRow(where, "null value", f"{column} is null; it must be a string with text in it.")
    if not isinstance(value, str):
        kind = type(value).__name__
        raise BadRow(where, "not a string", f"{column} is a {kind}, not a string and no list of messages.")
    if not value.strip():
        raise BadRow(where, "empty value", f"{column} is empty.")
    _check_unicode(value, column, where)
    return value


def check_turns(value: Sequence[object], column: str, where: str) -> tuple[Message, ...]:
    """Return the turns of a conversation, without the keys that are null; raises BadRow."""
    if not value:
        raise BadRow(where, "empty value", f"{column} is a list without a message.")
    return tuple(_turn(turn, f"{column}, message {number}", where) for number, turn in enumerate(value, 1))


def _turn(turn: object, column: str, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow(
            where, "not a message", f"{column} is a {type(turn).__name__}, not an object with role and content."
        )
    if "role" not in turn:
        hint = " For from and value, set format: sharegpt." if "from" in turn else ""
        raise BadRow(where, "no role", f"{column} has no role.{hint} Its keys: {', '.join(map(str, turn)) or 'none'}.")
    role = turn["role"]
    if role not in ROLES:
        raise BadRow(where, "unknown role", f"{column} has the role {reprlib.repr(role)}. {nearest(str(role), ROLES)}")
    turn = plain(turn, column, where)
    if "tool_calls" in turn:
        turn["tool_calls"] = _calls(turn["tool_calls"], column, where)
    # A call of a tool needs no words, and a tool may have none to return.
    if "content" not in turn and "tool_calls" in turn:
        turn["content"] = ""
    if isinstance(parts := turn.get("content"), list | tuple):
        turn["content"] = _joined(parts, f"{column} ({role})", where)
    _check_content(turn.get("content"), role, f"{column} ({role})", where, may_be_empty="tool_calls" in turn)
    return turn


def _calls(value: object, column: str, where: str) -> list[dict[str, object]]:
    """Return calls of tools with their arguments as objects; on OpenAI's wire these are JSON as text."""
    calls = _from_json(value, f"{column}: tool_calls", where)
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise BadRow(where, "not calls", f"{column}: tool_calls is {reprlib.repr(value)}, not a list of objects.")
    return [_with_arguments(call, f"{column}: tool_calls", where) for call in calls]


def _with_arguments(call: Mapping[str, object], column: str, where: str) -> dict[str, object]:
    call = dict(call)
    if isinstance(call.get("function"), Mapping):
        call["function"] = _with_arguments(call["function"], f"{column}, function", where)  # type: ignore[arg-type]
    if "arguments" in call:
        given = _from_json(call["arguments"], f"{column}, arguments", where)
        if not isinstance(given, Mapping):
            raise BadRow(where, "not arguments", f"{column}, arguments is {reprlib.repr(given)}, not an object.")
        call["arguments"] = given
    return call


def _from_json(value: object, column: str, where: str) -> object:
    """Return what a text says in JSON, which would be encoded twice, without what is null there; else the value."""
    if not isinstance(value, str):
        return value
    try:
        return _without_nulls(json.loads(value, object_pairs_hook=each_once))
    except (ValueError, RecursionError) as error:
        raise BadRow(where, "not JSON", f"{column} is text, but not JSON ({error}).") from error


_PART_KEYS = {"type", "text", "cache_control", "annotations"}  # of a text on OpenAI's and Anthropic's wires


def _joined(parts: Sequence[object], column: str, where: str) -> str:
    """Return the text of a content that is a list of text parts, which stand one right after the other."""
    for number, part in enumerate(parts, 1):
        says = f"{column}: part {number} of content is "
        if not isinstance(part, Mapping):
            raise BadRow(where, "content not text", f"{says}a {type(part).__name__}, not an object with type and text.")
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = reprlib.repr(part.get("type"))
            raise BadRow(
                where, "content not text", f"{says}of type {kind}, not a text, and models of texts read no other."
            )
        if unknown := [key for key in part if key not in _PART_KEYS]:
            raise BadRow(where, "content not text", f"{says}a text with {unknown[0]!r}, which nobody reads.")
    return "".join(part["text"] for part in parts)  # type: ignore[index]


def _check_content(content: object, role: str, column: str, where: str, *, may_be_empty: bool) -> None:
    if content is None:
        raise BadRow(where, "null content", f"{column} has no content, or it is null.")
    if not isinstance(content, str):
        raise BadRow(where, "content not text", f"{column}: content is a {type(content).__name__}, not a string.")
    if not content.strip() and role != "tool" and not may_be_empty:
        raise BadRow(where, "empty content", f"{column}: content is empty.")
    _check_unicode(content, column, where)


def _check_unicode(text: str, column: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        detail = f"{column} holds bytes, or half of a surrogate pair, that are no character."
        raise BadRow(where, "not Unicode", detail) from error


def check_prompt(prompt: Text, column: str, where: str) -> Text:
    """Return a prompt that waits for an answer; raises BadRow."""
    if not isinstance(prompt, str) and (role := prompt[-1]["role"]) not in ("user", "tool"):
        raise BadRow(where, "prompt without a question", f"{column} ends with a turn of {role}, not of user or tool.")
    return prompt


def check_response(prompt: Text, response: Text, column: str, where: str) -> Text:
    """Return a response that fits its prompt: both texts, or turns that begin and end with the assistant."""
    if isinstance(prompt, str) != isinstance(response, str):
        kinds = [("text" if isinstance(part, str) else "a list of messages") for part in (prompt, response)]
        raise BadRow(where, "text beside messages", f"the prompt is {kinds[0]} and {column} is {kinds[1]}.")
    if isinstance(response, str):
        return response
    for turn, place in ((response[0], "begins"), (response[-1], "ends")):
        if turn["role"] != "assistant":
            detail = f"{column} {place} with a turn of {turn['role']}, not of assistant."
            raise BadRow(where, f"response {place} without the assistant", detail)
    return response


def check_tools(value: object, column: str, where: str) -> tuple[Message, ...] | None:
    """Return descriptions of tools, None where there are none; raises BadRow. A text is read as JSON, as TRL does."""
    value = _from_json(value, column, where)
    if value is None:
        return None
    tools = None
    if isinstance(value, list | tuple):
        tools = [_from_json(tool, column, where) if str(tool).lstrip().startswith("{") else tool for tool in value]
    if tools is None or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRow(where, "not tools", f"{column} is {reprlib.repr(value)}, not a list of objects.")
    return tuple(_with_parameters(plain(tool, column, where), column, where) for tool in tools) or None  # type: ignore[arg-type]


def _with_parameters(tool: dict[str, object], column: str, where: str) -> dict[str, object]:
    """Return the tool with the schema of its parameters as an object."""
    if isinstance(tool.get("function"), dict):
        tool["function"] = _with_parameters(tool["function"], column, where)  # type: ignore[arg-type]
    if "parameters" in tool:
        tool["parameters"] = _from_json(tool["parameters"], f"{column}, parameters", where)
    return tool


def check_kwargs(value: object, column: str, where: str) -> Mapping[str, object] | None:
    """Return arguments of the chat template, without those that are null; raises BadRow."""
    value = _from_json(value, column, where)
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise BadRow(where, "not template arguments", f"{column} is a {type(value).__name__}, not an object.")
    return plain(value, column, where) or None


def check_number(value: object, column: str, where: str, *, low: float, high: float) -> float | None:
    """Return a number from `low` to `high`, or None where there is none; raises BadRow."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal):
        raise BadRow(where, "not a number", f"{column} is {reprlib.repr(value)}, not a number.")
    if not fits_float32(value) or not low <= value <= high:
        bounds = "finite" if low == -math.inf else f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
        raise BadRow(where, "number out of range", f"{column} is {reprlib.repr(value)}; it must be {bounds}.")
    return float(value)


def plain(value: Mapping[str, object], column: str, where: str) -> dict[str, object]:
    """Return the mapping as JSON has it, so that ids and templates see plain data; raises BadRow.

    Keys that are null are left out: in tables every object has the keys of all, with null for those it lacks.
    """
    try:
        return _without_nulls(json.loads(json.dumps(value)))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRow(where, "not plain data", f"{column} holds what JSON cannot say ({error}).") from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def key_of(text: Text) -> str:
    """Key of a text or conversation, to compare and to sort by."""
    return text if isinstance(text, str) else json.dumps(text, sort_keys=True)
