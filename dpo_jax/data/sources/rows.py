"""One record to the rows that it holds: its columns found, its values checked, its ids taken from its content."""

from __future__ import annotations

import difflib
import itertools
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_jax.data.sources import messages
from dpo_jax.data.sources.cells import ClassNumber, is_alpaca, truth_of
from dpo_jax.data.sources.labels import TEMPLATE_COLUMNS, halves, labelled, row_id_of
from dpo_jax.data.sources.record import Record
from dpo_jax.errors import BadRow
from dpo_jax.types import Completion, Message, PreferencePair, Prompt, Ranking, Text, UnpairedCompletion

PAIR_COLUMNS = ("prompt", "chosen", "rejected", "responses", *TEMPLATE_COLUMNS, "weight", "margin", "soft_label")
COMPLETION_COLUMNS = ("prompt", "completion", "messages", "text", *TEMPLATE_COLUMNS, "weight")
UNPAIRED_COLUMNS = (*PAIR_COLUMNS, "completion", "label")  # those of a pair too, for `unpair`
PROMPT_COLUMNS = ("prompt", "instruction")
RANKINGS = ("all", "adjacent")

_LIKE_A_PROMPT = ("question", "query", "instruction", "input")
_BOUNDARY = re.compile(r"(?<=\n)|(?=[ \t])")  # behind a line's end; before the space that a token begins with
_INFINITE = math.inf
CUT = "length"
"""The finish_reason of a response that was cut at the most tokens, before it ended."""
_BOUNDS = {"weight": (0.0, _INFINITE), "margin": (-_INFINITE, _INFINITE), "soft_label": (0.0, 1.0)}


def pairs(record: Record, columns: Mapping[str, str], *, rankings: str = "all") -> list[PreferencePair]:
    """The preference pair of a record, or those of its ranking; raises BadRow.

    `rankings` says which pairs a ranking of K responses becomes: all K (K - 1) / 2, or the K - 1 of neighbours.
    """
    if _has(record, columns, "responses") and columns["chosen"] not in record.values:
        return pairs_of(ranking(record, columns), rankings)
    where, brings = record.where, _brings(record, columns)
    chosen, rejected = (_text(record, columns, name) for name in ("chosen", "rejected"))
    if messages.key_of(chosen) == messages.key_of(rejected):
        names = f"{columns['chosen']!r} and {columns['rejected']!r}"
        raise BadRow(where, "identical responses", f"columns {names} are identical, so nothing is preferred.")
    if _prompt_is_implicit(record, columns, chosen):
        parts = split_prompt(chosen, rejected)
        if parts is None:
            detail = (
                f"no column {columns['prompt']!r}, and 'chosen' and 'rejected' do not begin alike up to the end of a "
                "word, a line, or the turn before an answer of the assistant. " + _present(record.values)
            )
            raise BadRow(where, "no common prompt", detail)
        prompt, chosen, rejected = parts
    else:
        prompt = _prompt(record, columns)
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        messages.check_response(prompt, response, f"column {columns[name]!r}", where)
    return [_pair(prompt, chosen, rejected, where, brings)]


def split_prompt(chosen: Text, rejected: Text) -> tuple[Text, Text, Text] | None:
    """Split two responses that begin alike into (prompt, chosen, rejected); None where no beginning can be a prompt.

    They are cut between messages, lines or words.
    """
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


def ranking(record: Record, columns: Mapping[str, str]) -> Ranking:
    """A prompt and its responses, best first; raises BadRow."""
    where, name = record.where, f"column {columns['responses']!r}"
    ranked = record.values[columns["responses"]]
    if not isinstance(ranked, list | tuple) or len(ranked) < 2:
        raise BadRow(where, "no ranking", f"{name} is {reprlib.repr(ranked)}, not a list of two or more responses.")
    prompt = _prompt(record, columns)
    responses = []
    for place, response in enumerate(ranked, 1):
        column = f"{name}, response {place}"
        responses.append(messages.check_response(prompt, messages.check(response, column, where), column, where))
    if len(set(map(messages.key_of, responses))) < len(responses):
        raise BadRow(where, "identical responses", f"{name} holds a response twice, so neither is preferred.")
    brings = _brings(record, columns)
    for extra in ("margin", "soft_label"):
        if brings.pop(extra) is not None:
            raise BadRow(where, f"{extra} of a ranking", f"column {columns[extra]!r} is of one pair, not of a ranking.")
    return Ranking(prompt, tuple(responses), where, **brings)


def pairs_of(ranked: Ranking, which: str) -> list[PreferencePair]:
    """The pairs of a ranking, the better response chosen; `which` is all or adjacent."""
    made = itertools.pairwise(ranked.responses) if which == "adjacent" else itertools.combinations(ranked.responses, 2)
    brings = {name: ranked._asdict()[name] for name in (*TEMPLATE_COLUMNS, "weight")}
    return [_pair(ranked.prompt, better, worse, ranked.where, brings) for better, worse in made]


def completions(record: Record, columns: Mapping[str, str]) -> list[Completion]:
    """A prompt and its completion, a conversation, or plain text; raises BadRow."""
    _check_ended(record)
    where, brings = record.where, _brings(record, columns)
    if _has(record, columns, "messages") and not _has(record, columns, "completion"):
        prompt, response = _conversation(record, columns)
    elif _has(record, columns, "text") and not _has(record, columns, "completion"):
        column = f"column {columns['text']!r}"
        prompt, response = "", messages.check_text(record.values[columns["text"]], column, where)
    else:
        response = _text(record, columns, "completion")
        prompt = _prompt(record, columns)
        messages.check_response(prompt, response, f"column {columns['completion']!r}", where)
    row_id = row_id_of({"prompt": prompt, "completion": response}, brings)
    return [Completion(row_id, prompt, response, where, **brings)]


def unpaired(record: Record, columns: Mapping[str, str], *, unpair: bool = False) -> list[UnpairedCompletion]:
    """A labelled completion, or, with `unpair`, the two of a pair; raises BadRow."""
    if unpair:
        if _has(record, columns, "responses"):
            detail = "a ranking does not say which responses are good: label them."
            raise BadRow(record.where, "a ranking to unpair", detail)
        return [half for pair in pairs(record, columns) for half in halves(pair)]
    where, values = record.where, record.values
    if columns["completion"] not in values and {"chosen", "rejected"} <= values.keys():
        detail = f"no column {columns['completion']!r} but a pair. To read each pair as two rows, write unpair: true."
        raise BadRow(where, "a pair, without unpair: true", detail)
    _check_ended(record)
    beside = {name: columns[name] for name in (*TEMPLATE_COLUMNS, "weight")}
    brings, response = _brings(record, beside), _text(record, columns, "completion")
    prompt = _prompt(record, columns)
    messages.check_response(prompt, response, f"column {columns['completion']!r}", where)
    label = value_of(record, columns, "label")
    desirable = truth_of(label)
    if desirable is None:
        value = f"column {columns['label']!r} is {label if isinstance(label, ClassNumber) else reprlib.repr(label)}"
        raise BadRow(where, "not a label", f"{value}; it must be true or false (1 or 0), without quotes.")
    return [labelled(prompt, response, desirable=desirable, where=where, **brings)]


def prompts(record: Record, columns: Mapping[str, str]) -> list[Prompt]:
    """A prompt from the first of PROMPT_COLUMNS that is there; raises BadRow."""
    where, values = record.where, record.values
    column = next((column for column in PROMPT_COLUMNS if column in values), None)
    if column is None:
        near = [near for column in PROMPT_COLUMNS for near in difflib.get_close_matches(column, values, n=1)]
        hint = f" Rename {near[0]!r}, if that is it." if near else ""
        wanted = " or ".join(map(repr, PROMPT_COLUMNS))
        raise BadRow(where, "missing column", f"no column {wanted}.{hint} {_present(values)}")
    prompt = messages.check(values[column], f"column {column!r}", where)
    messages.check_prompt(prompt, f"column {column!r}", where)
    return [Prompt(prompt, values.get("dataset"), where, **_brings(record, columns))]


def _pair(prompt: Text, chosen: Text, rejected: Text, where: str, brings: Mapping[str, Any]) -> PreferencePair:
    row_id = row_id_of({"prompt": prompt, "chosen": chosen, "rejected": rejected}, brings)
    return PreferencePair(row_id, prompt, chosen, rejected, where, **brings)


def _brings(record: Record, columns: Mapping[str, str]) -> dict[str, Any]:
    """Values beside the texts of a row, of the names in `columns`; None where it has none."""
    brings: dict[str, Any] = {}
    for name in (name for name in (*TEMPLATE_COLUMNS, *_BOUNDS) if name in columns):
        value, column = record.values.get(columns[name]), f"column {columns[name]!r}"
        if name == "tools":
            brings[name] = messages.check_tools(value, column, record.where)
        elif name == "chat_template_kwargs":
            brings[name] = messages.check_kwargs(value, column, record.where)
        else:
            low, high = _BOUNDS[name]
            brings[name] = messages.check_number(value, column, record.where, low=low, high=high)
    return brings


def _conversation(record: Record, columns: Mapping[str, str]) -> tuple[Text, Text]:
    """The turns before the first answer, and those from it on."""
    column = f"column {columns['messages']!r}"
    value = record.values[columns["messages"]]
    if not isinstance(value, list | tuple):
        raise BadRow(record.where, "not messages", f"{column} is a {type(value).__name__}, not a list of messages.")
    turns = messages.check_turns(value, column, record.where)
    first = next((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), 0)
    if not first:
        raise BadRow(record.where, "no answer", f"{column} has no turn of the assistant that answers another one.")
    prompt = messages.check_prompt(turns[:first], f"{column} up to the first answer", record.where)
    return prompt, messages.check_response(prompt, turns[first:], column, record.where)


def _prompt_is_implicit(record: Record, columns: Mapping[str, str], chosen: Text) -> bool:
    """TRL's rule, but a column that is called much like a prompt is a mistake to be mended."""
    if columns["prompt"] in record.values:
        return isinstance(record.values[columns["prompt"]], str) and not isinstance(chosen, str)
    near = difflib.get_close_matches(columns["prompt"], record.values, n=1)
    return not near and not any(name in record.values for name in _LIKE_A_PROMPT)


def _prompt(record: Record, columns: Mapping[str, str]) -> Text:
    return messages.check_prompt(_text(record, columns, "prompt"), f"column {columns['prompt']!r}", record.where)


def _text(record: Record, columns: Mapping[str, str], name: str) -> Text:
    return messages.check(value_of(record, columns, name), f"column {columns[name]!r}", record.where)


def _check_ended(record: Record) -> None:
    """Raise BadRow for a response that was cut: an EOS behind it would teach to stop anywhere."""
    if record.values.get("finish_reason") == CUT:
        detail = f"finish_reason is {CUT}: the response was cut before it ended, and training would end it there."
        raise BadRow(record.where, "cut response", detail)


def _has(record: Record, columns: Mapping[str, str], name: str) -> bool:
    return record.values.get(columns[name]) is not None


def value_of(record: Record, columns: Mapping[str, str], name: str) -> object:
    """Value in the column of this name; raises BadRow where it is missing."""
    column, values = columns[name], record.values
    if column not in values:
        near = difflib.get_close_matches(column, values, n=1)
        near = near or [like for like in _LIKE_A_PROMPT if name == "prompt" and like in values]
        hint = f" Did you mean {near[0]!r}? Then set columns: {{{name}: {near[0]}}}." if near else ""
        if is_alpaca(values) and name in ("prompt", "completion"):
            hint = " For instruction, input, system and history, set format: alpaca."
        raise BadRow(record.where, "missing column", f"no column {column!r}.{hint} {_present(values)}")
    return values[column]


def _present(values: Mapping[str, object]) -> str:
    known = None
    if "conversations" in values:
        known = "sharegpt"
    elif any(isinstance(value, str) and value.startswith("\n\nHuman:") for value in values.values()):
        known = "hh"
    hint = f" This looks like `format: {known}`, a key of the source." if known else ""
    return f"Columns of the row: {', '.join(sorted(map(str, values))) or 'none'}.{hint}"
