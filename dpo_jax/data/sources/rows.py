"""One row of any source: its columns checked as text, its id taken from its content."""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from dpo_jax import files
from dpo_jax.errors import UserError, nearest
from dpo_jax.types import Completion, PreferencePair, Prompt, UnpairedCompletion

PAIR_COLUMNS = ("prompt", "chosen", "rejected")
COMPLETION_COLUMNS = ("prompt", "completion")
UNPAIRED_COLUMNS = (*COMPLETION_COLUMNS, "label")
PROMPT_COLUMNS = ("prompt", "instruction")


class BadRow(UserError):
    """A row that cannot be used. `reason` is short and the same for all rows of its kind: skipped rows count by it."""

    def __init__(self, where: str, reason: str, detail: str):
        super().__init__(f"{where}: {detail} Mend the row, or set on_error: skip to leave such rows out, counted.")
        self.reason = reason


def column_names(spec: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, str]:
    """Which column of the source fills each wanted one: its namesake, unless the spec's `columns` renames it."""
    names = {name: name for name in wanted}
    renamed = spec.get("columns") or {}
    if not isinstance(renamed, Mapping):
        raise UserError(f"data source: columns is {renamed!r}, not a mapping such as {{completion: chosen}}.")
    for name, column in renamed.items():
        if name not in names:
            raise UserError(f"data source: columns has an unknown name {name!r}. {nearest(str(name), names)}")
        if not isinstance(column, str):
            raise UserError(f"data source: columns.{name} is {column!r}, not the name of a column.")
    return {**names, **renamed}


def pair(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> PreferencePair:
    """A preference pair from the columns that `columns` names; raises BadRow."""
    texts = _texts(row, columns, where)
    if texts["chosen"] == texts["rejected"]:
        names = f"{columns['chosen']!r} and {columns['rejected']!r}"
        raise BadRow(where, "identical responses", f"columns {names} are identical, so nothing is preferred.")
    return PreferencePair(_row_id(texts), **texts, where=where)


def completion(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> Completion:
    """A prompt and its completion from the columns that `columns` names; raises BadRow."""
    texts = _texts(row, columns, where)
    return Completion(_row_id(texts), **texts, where=where)


def unpaired(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> UnpairedCompletion:
    """A labelled completion from the columns that `columns` names; raises BadRow."""
    if columns["completion"] not in row and {"chosen", "rejected"} <= row.keys():
        detail = f"no column {columns['completion']!r} but a pair. To read each pair as two rows, write unpair: true."
        raise BadRow(where, "a pair, without unpair: true", detail)
    values = _values(row, columns, where)
    label = values.pop("label")
    _check_texts(values, columns, where)
    if not isinstance(label, bool | int | float) or label not in (0, 1):
        found = f"column {columns['label']!r} is {reprlib.repr(label)}"
        raise BadRow(where, "not a label", f"{found}; it must be true or false (1 or 0), without quotes.")
    return labelled(**values, desirable=bool(label), where=where)


def prompt(row: Mapping[str, Any], where: str) -> Prompt:
    """A prompt from the first of PROMPT_COLUMNS that is there; raises BadRow."""
    column = next((column for column in PROMPT_COLUMNS if column in row), None)
    if column is None:
        near = [near for column in PROMPT_COLUMNS for near in difflib.get_close_matches(column, row, n=1)]
        hint = f" Rename {near[0]!r}, if that is it." if near else ""
        present = ", ".join(sorted(row)) or "none"
        detail = f"no column {' or '.join(map(repr, PROMPT_COLUMNS))}.{hint} Columns of the row: {present}."
        raise BadRow(where, "missing column", detail)
    _check_text(row[column], f"column {column!r}", where)
    return Prompt(row[column], row.get("dataset"), where)


def labelled(
    prompt: str, completion: str, *, desirable: bool, where: str, mismatched: str | None = None
) -> UnpairedCompletion:
    """A labelled completion, its id taken from all of it: its log-probs in a store are of its mismatched one too."""
    content = {"prompt": prompt, "completion": completion, "label": desirable}
    if mismatched is not None:
        content["mismatched"] = mismatched
    return UnpairedCompletion(_row_id(content), prompt, completion, desirable, mismatched, where)


def halves(pair: PreferencePair) -> tuple[UnpairedCompletion, UnpairedCompletion]:
    """A pair as two completions: chosen desirable, rejected undesirable."""
    return (
        labelled(pair.prompt, pair.chosen, desirable=True, where=pair.where),
        labelled(pair.prompt, pair.rejected, desirable=False, where=pair.where),
    )


def _row_id(content: Mapping[str, str | bool]) -> str:
    return files.digest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def _texts(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> dict[str, str]:
    values = _values(row, columns, where)
    _check_texts(values, columns, where)
    return values


def _values(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> dict[str, Any]:
    for name, column in columns.items():
        if column not in row:
            near = difflib.get_close_matches(column, row, n=1)
            hint = f" Did you mean {near[0]!r}? Then set columns: {{{name}: {near[0]}}}." if near else ""
            present = ", ".join(sorted(row)) or "none"
            raise BadRow(where, "missing column", f"no column {column!r}.{hint} Columns of the row: {present}.")
    return {name: row[column] for name, column in columns.items()}


def _check_texts(values: Mapping[str, Any], columns: Mapping[str, str], where: str) -> None:
    for name, text in values.items():
        _check_text(text, f"column {columns[name]!r}", where)


def _check_text(text: Any, column: str, where: str) -> None:
    if text is None:
        raise BadRow(where, "null value", f"{column} is null; it must be a string with text in it.")
    if not isinstance(text, str):
        raise BadRow(where, "not a string", f"{column} is a {type(text).__name__}, not a string.")
    if not text.strip():
        raise BadRow(where, "empty value", f"{column} is empty.")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise BadRow(where, "not Unicode", f"{column} holds half of a surrogate pair, which is no character.")
