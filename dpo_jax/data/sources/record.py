"""What every kind of source is and yields: the keys of its mapping, and records, or the reason why a row is none."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dpo_jax import files
from dpo_jax.errors import UserError, nearest

Spec = Mapping[str, Any]
"""A source, `{path: pairs.jsonl, weight: 0.5}`."""

Value = TypeVar("Value")

LONGEST_ROW = 1 << 26
"""Bytes; no row is longer, and a small file may be packed from any number of them."""


class Record(NamedTuple):
    """One row as its source holds it: values by column. `where` names file and line, or file and row from 1."""

    where: str
    values: Mapping[str, Any]


class BadRow(UserError):
    """A row that cannot be used. `reason` is short and the same for all rows of its kind: skipped rows count by it.

    `advice` names settings in braces, {score}; `in_section` says which section of a configuration they stand in.
    """

    def __init__(self, where: str, reason: str, detail: str, advice: str = "", *, section: str = ""):
        named = re.sub(r"\{(\w+)\}", rf"{section}\1", advice and f" {advice}")
        super().__init__(
            f"{where}: {_shown(detail)}{named} Mend the row, or set on_error: skip to leave such rows out, counted."
        )
        self.reason, self._parts = reason, (where, reason, detail, advice)

    def in_section(self, section: str) -> BadRow:
        """Return the same error with each setting named as `section.setting`."""
        return BadRow(*self._parts, section=f"{section}.")


def _shown(text: str) -> str:
    """A text that may quote a row: no longer than can be read, and nothing in it that a terminal obeys."""
    cut = text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in cut)


_LONGEST = 600

ON_ERROR = ("stop", "skip")
"""What may be done at a bad row; one that is skipped is counted."""

Records = Iterator[Record | BadRow]


def kind_of(spec: Spec, kinds: Collection[str], *, example: str = "{path: pairs.jsonl}") -> str:
    """Return the one of these kinds whose key the source has."""
    if not isinstance(spec, Mapping):
        raise UserError(f"data source {spec!r} is not a mapping. Write it as {example}.")
    named = [key for key in spec if key in kinds]
    if not named:
        key = str(next(iter(spec), ""))
        raise UserError(f"data source {dict(spec)} is of no known kind: unknown key {key!r}. {nearest(key, kinds)}")
    if len(named) > 1:
        raise UserError(f"data source {dict(spec)} is of two kinds: {' and '.join(named)}. Make two sources of it.")
    return named[0]


def check_keys(spec: Spec, allowed: Sequence[str]) -> None:
    """Raise UserError if the source has another key."""
    for key in spec:
        if key not in allowed:
            raise UserError(f"data source {dict(spec)}: unknown key {key!r}. {nearest(str(key), allowed)}")


def option(spec: Spec, name: str, allowed: Sequence[Value]) -> Value:
    """Value of an option, of what is allowed; the first of it, which may be None, where the source says nothing."""
    value = spec.get(name, allowed[0])
    for known in allowed:
        if value is known or (isinstance(value, str) and value == known):
            return known
    words = [str(known).lower() if isinstance(known, bool) else str(known) for known in allowed if known is not None]
    raise UserError(f"data source {dict(spec)}: {name} is {value!r}. {nearest(str(value), words)}")


def weight_of(spec: Spec) -> float:
    """Number of times that each row of the source comes."""
    weight = spec.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise UserError(f"data source {dict(spec)}: weight is {weight!r}; it must be a number above 0, such as 0.5.")
    return float(weight)


def flip_of(spec: Spec) -> float:
    """Share of the records of the source whose label is wrong."""
    share = spec.get("flip", 0.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise UserError(f"data source {dict(spec)}: flip is {share!r}; it must be a share of the rows, such as 0.2.")
    return float(share)


def name_of(spec: Spec, kind: str) -> str:
    """Name of the source in metrics: as it says, or the last part of what it is read from."""
    name = spec.get("name", Path(str(spec[kind])).name.partition(".")[0])
    if not isinstance(name, str) or not name:
        raise UserError(f"data source {dict(spec)}: name is {name!r}, not text.")
    return name


def copies(weight: float, row: str) -> int:
    """Round `weight` up or down, so that it is the mean over many rows; `row` (seed, source, number) decides."""
    whole, rest = divmod(weight, 1.0)
    return int(whole) + is_drawn(rest, row)


def is_drawn(share: float, row: str) -> bool:
    """Return True if this row is among that share of many; one that is drawn is drawn for every larger share too."""
    return int(files.digest(row.encode()), 16) < share * 2.0**128
