"""Named formats: what others call their columns, turned into the columns that `rows` reads."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Mapping

from dpo_jax.data.sources import messages
from dpo_jax.data.sources.record import Record
from dpo_jax.errors import BadRow, each_once

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function_call": "assistant",
}
_QUESTIONS = ("instruction", "question", "query", "prompt")
_BESIDE = ("tools", "chat_template_kwargs", "weight", "margin", "soft_label")


def hh(record: Record) -> Record:
    r"""Turn transcripts as Anthropic's HH has them, "\n\nHuman: ...\n\nAssistant: ...", into messages.

    Every column of text that begins with a speaker is one; white space around a turn is dropped.
    """
    values = {
        name: _turns(value, name, record.where) if isinstance(value, str) and _SPEAKER.match(value) else value
        for name, value in record.values.items()
    }
    if values == dict(record.values):
        detail = f"no column begins with '\\n\\nHuman:' (columns: {', '.join(map(str, values)) or 'none'})."
        raise BadRow(record.where, "no transcript", detail)
    return record._replace(values=values)


def _turns(transcript: str, column: str, where: str) -> list[dict[str, str]]:
    _, *parts = _SPEAKER.split(transcript)
    turns = [
        {"role": _HH_ROLES[speaker], "content": words.strip()}
        for speaker, words in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"] and column == "prompt":
        turns.pop()  # "\n\nAssistant:" that waits for the response
    return turns


def sharegpt(record: Record) -> Record:
    """Turn ShareGPT's `conversations` of from and value, and what LLaMA-Factory puts beside them, into messages.

    With `chosen` and `rejected` (a turn each, or text) the conversation is the prompt; with `label` or `kto_tag` its
    last turn is the completion; else it is `messages`. `system` comes first. Turns of role and content are taken too.
    """
    where, values = record.where, record.values
    name = next((name for name in ("conversations", "messages") if name in values), None)
    if name is None:
        present = ", ".join(sorted(map(str, values))) or "none"
        raise BadRow(
            where, "missing column", f"no column 'conversations' or 'messages'. Columns of the row: {present}."
        )
    turns = _conversation(values[name], name, where)
    if values.get("system"):
        turns = [{"role": "system", "content": values["system"]}, *turns]
    beside = {key: values[key] for key in _BESIDE if key in values}
    label = next((values[key] for key in ("label", "kto_tag") if key in values), None)
    if "chosen" in values or "rejected" in values:
        answers = {key: _answer(values[key], key, where) for key in ("chosen", "rejected") if key in values}
        return Record(where, {"prompt": turns, **answers, **beside})
    if label is not None:
        return Record(where, {"prompt": turns[:-1], "completion": turns[-1:], "label": label, **beside})
    return Record(where, {"messages": turns, **beside})


def alpaca(record: Record) -> Record:
    """Turn Alpaca's `instruction`, `input`, `system` and `history` into messages, as LLaMA-Factory does.

    The question is the instruction and, below it, the input; `history` holds earlier questions with their answers. The
    answers are `chosen` and `rejected`, or `output`, with `label` or `kto_tag` a labelled one.
    """
    where, values = record.where, record.values
    name = next((name for name in _QUESTIONS if name in values), None)
    if name is None:
        present = ", ".join(sorted(map(str, values))) or "none"
        raise BadRow(where, "missing column", f"no column 'instruction'. Columns of the row: {present}.")
    asked = [(key, values.get(key)) for key in (name, "input")]
    lines = [messages.check_text(text, f"column {key!r}", where) for key, text in asked if text not in (None, "")]
    turns = [{"role": "system", "content": values["system"]}] if values.get("system") else []
    for exchange in values.get("history") or ():
        if not isinstance(exchange, list | tuple) or len(exchange) != 2:
            says = f"column 'history' holds {reprlib.repr(exchange)}, not a list of a question and its answer."
            raise BadRow(where, "not a history", says)
        turns += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), exchange, strict=True)]
    prompt = [*turns, {"role": "user", "content": "\n".join(lines)}]
    answers = {key: _answer(values[key], key, where) for key in ("chosen", "rejected") if key in values}
    written = next((key for key in ("output", "completion", "response") if key in values), None)
    if written is not None and not answers:
        answers["completion"] = _answer(values[written], written, where)
        label = next((key for key in ("label", "kto_tag") if key in values), None)
        answers |= {} if label is None else {"label": values[label]}
    beside = {key: values[key] for key in (*_BESIDE, "dataset") if key in values}
    return Record(where, {"prompt": prompt, **answers, **beside})


def _conversation(value: object, column: str, where: str) -> list[object]:
    if not isinstance(value, list | tuple):
        raise BadRow(where, "not messages", f"column {column!r} is {reprlib.repr(value)}, not a list of turns.")
    return [_turn(turn, f"column {column!r}, message {number}", where) for number, turn in enumerate(value, 1)]


def _answer(value: object, column: str, where: str) -> object:
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if isinstance(value, Mapping):
        return [_turn(value, f"column {column!r}", where)]
    return value if value is None else _conversation(value, column, where)


def _turn(turn: object, column: str, where: str) -> object:
    """A turn with role and content; what has no `from` is left for the checks that all messages get."""
    if not isinstance(turn, Mapping) or "from" not in turn:
        return turn
    speaker, words = turn["from"], turn.get("value")
    if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
        known = ", ".join(_SHAREGPT_ROLES)
        raise BadRow(where, "unknown role", f"{column} is from {reprlib.repr(speaker)}. Allowed: {known}.")
    if speaker != "function_call":
        return {"role": _SHAREGPT_ROLES[speaker], "content": words}
    try:
        call = json.loads(words or "", object_pairs_hook=each_once)
        return {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]}
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRow(where, "call not JSON", f"{column} is a function_call, but not of JSON ({error}).") from error


FORMATS: dict[str, Callable[[Record], Record]] = {"alpaca": alpaca, "hh": hh, "sharegpt": sharegpt}
"""Name of a format -> what turns its records into plain ones; without a name they are plain already."""
