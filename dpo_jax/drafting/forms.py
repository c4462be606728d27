"""The form of rows: what the readers make of a file, told by its columns, and how its source is written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from dpo_jax.data.sources import COMPLETIONS, KINDS, PAIRS, PROMPTS, UNPAIRED, Layout, stream
from dpo_jax.data.sources.cells import is_alpaca
from dpo_jax.data.sources.formats import FORMATS
from dpo_jax.data.sources.record import Record, kind_of
from dpo_jax.errors import BadRow, Skipped, UserError, shown
from dpo_jax.types import Text

_PROBED = 64  # records whose columns are looked at
LOOKED_AT = 10_000
"""Rows of a source that are read."""

LAYOUTS: dict[str, Layout[Any]] = {
    "pairs": PAIRS,
    "labelled": UNPAIRED,
    "completions": COMPLETIONS,
    "prompts": PROMPTS,
}
"""What rows may be."""
_ALLOWED = (
    "Allowed: pairs (prompt, chosen, rejected), rankings (prompt, responses), labelled ones (prompt, completion, "
    "label), completions (prompt, completion; messages; text), and what the formats hh, sharegpt and alpaca call so. "
    "Other names of columns: `columns: {chosen: NAME}` in the source."
)
_ALSO_CALLED = {
    "chosen": ("chosen_response", "response_chosen", "preferred", "better", "best", "accepted", "winner"),
    "rejected": ("rejected_response", "response_rejected", "dispreferred", "worse", "worst", "refused", "loser"),
    "completion": ("response", "output", "answer"),
    "label": ("kto_tag", "desirable", "is_good", "good"),
    "prompt": ("question", "query", "instruction", "input"),
}
_TRANSCRIPT = "\n\nHuman:"
_HELD_OUT = re.compile(r"(^|[^a-z])(eval|evaluation|test|valid|validation|val|dev|held|heldout|held-out)([^a-z]|$)")


class Form(NamedTuple):
    """The rows of one source: what they are, as what it is written, the first of them, and those that are bad."""

    kind: str  # of LAYOUTS
    source: dict[str, Any]
    rows: list[Any]
    skipped: Skipped
    more: bool  # than LOOKED_AT, of which the rest was not read
    columns: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file or data set."""
        return str(next(iter(self.source.values())))

    @property
    def is_held_out(self) -> bool:
        """True if its name says that its rows are kept apart from training."""
        split = str(self.source.get("split", ""))
        return any(_HELD_OUT.search(each.lower()) for each in (Path(self.name).name.partition(".")[0], split))

    @property
    def is_of_turns(self) -> bool:
        """True if some row is a conversation."""
        return any(not isinstance(row.prompt, str) for row in self.rows)

    def in_words(self) -> str:
        """How many rows of what."""
        count = f"{'more than ' * self.more}{len(self.rows):,}"
        what = {"pairs": "pairs", "labelled": "labelled completions"}.get(self.kind, self.kind)
        return f"{count} {what} of {'messages' if self.is_of_turns else 'texts'}"


def source_of(name: str) -> dict[str, Any]:
    """A source as the command line names it: a file, a folder, `package:NAME`, or a hub id.

    Raises:
        UserError: it is none of these.
    """
    path = Path(name)
    if name.startswith("package:"):
        return {"package": name.removeprefix("package:"), "split": "pairs"}
    if path.is_dir() or (not path.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not path.suffix):
        return {"hub": name}
    return {"path": name}


def find_form(source: dict[str, Any], *, unpair: bool = False) -> Form:
    """Read the first rows of a source in the form that its columns tell.

    Raises:
        UserError: it cannot be opened, its columns tell no form, or none of its rows can be used.
    """
    records = list(islice(KINDS[kind_of(source, KINDS)].read(source), _PROBED))
    good = [each for each in records if isinstance(each, Record)]
    if not good:
        bad = next((each for each in records if isinstance(each, BadRow)), None)
        raise bad or UserError(f"data source {source} holds no rows: it is empty.")
    found = {name: None for record in good for name in record.values}
    source, names = _with_format(source, good, list(found))
    kind = _kind(names)
    if kind is None:
        told = f"rows of no known form, with the columns {', '.join(map(shown, found))}"
        raise UserError(f"{good[0].where}: {told}. {_ALLOWED}")
    if unpair and kind == "pairs":
        kind, source = "labelled", {**source, "unpair": True}
    skipped = Skipped()
    rows = list(islice(stream(LAYOUTS[kind], [source], on_error="skip", skipped=skipped), LOOKED_AT + 1))
    if not rows:
        raise _first_mistake(kind, source)
    return Form(kind, source, rows[:LOOKED_AT], skipped, len(rows) > LOOKED_AT, tuple(found))


def _with_format(source: dict[str, Any], records: list[Record], found: list[str]) -> tuple[dict[str, Any], set[str]]:
    """The source with its format or with names for its columns, and the names that rows have then."""
    if "format" in source:
        return source, set().union(*_converted(str(source["format"]), records))
    if known := _format(records):
        return {**source, "format": known}, set().union(*_converted(known, records))
    columns = _renamed(set(found))
    return ({**source, "columns": columns} if columns else source), {*found, *columns}


def _renamed(names: set[str]) -> dict[str, str]:
    """The columns of rows that are called otherwise, by the names that they should have."""
    columns: dict[str, str] = {}

    def take(*wanted: str) -> bool:
        """Find all of these, or none."""
        called = [next((each for each in (name, *_ALSO_CALLED[name]) if each in names), None) for name in wanted]
        if None in called:
            return False
        columns.update({name: each for name, each in zip(wanted, called, strict=True) if each and name != each})
        return True

    paired = _pair(names) or take("chosen", "rejected")
    answered = not paired and not names & {"messages", "text"} and take("completion")
    if answered:
        take("label")
    if paired or answered:
        take("prompt")
    return columns


def _pair(names: set[str]) -> bool:
    return {"chosen", "rejected"} <= names or "responses" in names


def _format(records: list[Record]) -> str | None:
    """The format that these rows are plainly written in; None where they are plain."""
    every = [record.values for record in records]
    if any(isinstance(cell, str) and cell.startswith(_TRANSCRIPT) for row in every for cell in row.values()):
        return "hh"
    if any("conversations" in row or _answers_beside(row) for row in every):
        return "sharegpt"
    return "alpaca" if any(map(is_alpaca, every)) else None


def _answers_beside(row: Mapping[str, Any]) -> bool:
    """True for a conversation in `messages` and what may follow it in `chosen`, a turn or text."""
    return "messages" in row and "prompt" not in row and isinstance(row.get("chosen"), str | Mapping)


def _converted(name: str, records: list[Record]) -> Iterator[set[str]]:
    for record in records:
        try:
            yield set(FORMATS[name](record).values)
        except BadRow:
            continue


def _kind(names: set[str]) -> str | None:
    """What rows with these columns are."""
    if _pair(names):
        return "pairs"
    if {"completion", "label"} <= names:
        return "labelled"
    if names & {"completion", "messages", "text"}:
        return "completions"
    return "prompts" if names & {"prompt", "instruction"} else None


def _first_mistake(kind: str, source: dict[str, Any]) -> UserError:
    try:
        for _ in stream(LAYOUTS[kind], [source]):
            break
    except UserError as error:
        return UserError(f"{str(error).partition(' Mend the row, or set ')[0]} No row of {source} can be used.")
    return UserError(f"data source {source} holds no rows.")


def letters(text: Text) -> int:
    """Characters of a text, or of the words of a conversation."""
    return len(text) if isinstance(text, str) else sum(len(str(turn.get("content") or "")) for turn in text)
