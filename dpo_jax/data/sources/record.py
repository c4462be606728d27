"""What every kind of source yields: one record after the other, or the reason why a row is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dpo_jax.errors import UserError

Spec = Mapping[str, Any]


class Record(NamedTuple):
    """One row as its source holds it: values by column. `where` names file and line, or file and row from 1."""

    where: str
    values: Mapping[str, Any]


class BadRow(UserError):
    """A row that cannot be used. `reason` is short and the same for all rows of its kind: skipped rows count by it."""

    def __init__(self, where: str, reason: str, detail: str):
        super().__init__(f"{where}: {detail} Mend the row, or set on_error: skip to leave such rows out, counted.")
        self.reason = reason


Records = Iterator[Record | BadRow]
