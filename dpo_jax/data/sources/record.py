"""What every kind of source yields: one record after the other, or the reason why a row is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dpo_jax.errors import UserError

Spec = Mapping[str, Any]

LONGEST_ROW = 1 << 26
"""Bytes; no row is longer, and a small file may be packed from any number of them."""


class Record(NamedTuple):
    """One row as its source holds it: values by column. `where` names file and line, or file and row from 1."""

    where: str
    values: Mapping[str, Any]


class BadRow(UserError):
    """A row that cannot be used. `reason` is short and the same for all rows of its kind: skipped rows count by it."""

    def __init__(self, where: str, reason: str, detail: str):
        super().__init__(
            f"{where}: {_shown(detail)} Mend the row, or set on_error: skip to leave such rows out, counted."
        )
        self.reason = reason


def _shown(text: str) -> str:
    """A text that may quote a row: no longer than can be read, and nothing in it that a terminal obeys."""
    cut = text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in cut)


_LONGEST = 600

Records = Iterator[Record | BadRow]
