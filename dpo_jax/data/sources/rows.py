"""One row of any source: its columns checked as text, its id taken from its content."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from dpo_jax import files
from dpo_jax.errors import UserError, nearest
from dpo_jax.types import Completion, PreferencePair

PAIR_COLUMNS = ("prompt", "chosen", "rejected")
COMPLETION_COLUMNS = ("prompt", "completion")


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


def _row_id(texts: Mapping[str, str]) -> str:
    return files.digest(json.dumps(texts, sort_keys=True, separators=(",", ":")).encode())


def _texts(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> dict[str, str]:
    for name, column in columns.items():
        if column not in row:
            near = difflib.get_close_matches(column, row, n=1)
            hint = f" Did you mean {near[0]!r}? Then set columns: {{{name}: {near[0]}}}." if near else ""
            present = ", ".join(sorted(row)) or "none"
            raise BadRow(where, "missing column", f"no column {column!r}.{hint} Columns of the row: {present}.")
    texts = {name: row[column] for name, column in columns.items()}
    for name, text in texts.items():
        _check_text(text, f"column {columns[name]!r}", where)
    return texts


def _check_text(text: Any, column: str, where: str) -> None:
    if text is None:
        raise BadRow(where, "null value", f"{column} is null; it must be a string with text in it.")
    if not isinstance(text, str):
        raise BadRow(where, "not a string", f"{column} is a {type(text).__name__}, not a string.")
    if not text.strip():
        raise BadRow(where, "empty value", f"{column} is empty.")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise BadRow(where, "not Unicode", f"{column} holds half of a surrogate pair, which is no character.")
