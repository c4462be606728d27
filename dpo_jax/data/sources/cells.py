"""The cells of a record: which of them were read, and what `datasets` and TFDS store otherwise than a row means it."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dpo_jax.errors import BadRow

_MEANT = re.compile(
    r"(system|developer)(_?(prompt|message))?|inputs?|history|contexts?|documents?|passages?|instructions?|questions?"
    r"|query|queries|(available_)?tools|functions|(image|img|picture|video|audio)s?(_?(path|url|file)s?)?",
    re.IGNORECASE,
)
"""Columns that are plainly meant for the model."""
_ALPACA = ("instruction", "question", "query", "prompt", "input", "system", "history")
_TURNS = ({"role", "content"}, {"from", "value"}, {"type", "function"})
_SURE = 32  # characters of a text that stands in a prompt by no accident
_GOOD = {"1", "true", "yes", "good", "chosen", "preferred", "accepted", "desirable", "positive", "pos"}
_BAD = {"0", "false", "no", "bad", "rejected", "dispreferred", "refused", "undesirable", "negative", "neg"}


class ClassNumber(int):
    """The number of a class, as `datasets` and TFDS store it, with the names of all classes."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, number: object, names: Sequence[str]) -> ClassNumber | None:
        """Make it of a cell; None where that is empty, or -1, which stands for no class."""
        if not isinstance(number, int) or not 0 <= number < len(names):
            return None
        made = cls(number)
        made.names = tuple(names)
        return made

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.names[self]

    def __repr__(self) -> str:
        return f"the class {self.name!r} of {', '.join(self.names)}"


def truth_of(label: object) -> bool | None:
    """Return True for good, False for bad; a class is read by its name. None: it is neither."""
    if isinstance(label, ClassNumber):
        name = label.name.strip().lower()
        return True if name in _GOOD else False if name in _BAD else None
    try:
        return bool(label) if label in (0, 1) and not isinstance(label, str) else None
    except (TypeError, ValueError):
        return None


class Cells(dict[str, Any]):
    """The values of a record by column, and the columns that somebody has read, in `read`."""

    def __init__(self, values: Mapping[str, object], read: set[str] | None = None):
        super().__init__(values)
        self.read: set[str] = set() if read is None else read

    def __getitem__(self, column: str) -> Any:
        self.read.add(column)
        return _upright(super().__getitem__(column))

    def get(self, column: str, default: object = None) -> Any:
        """The value of a column, which is then read; the default where there is no such column."""
        if column not in self:
            return default
        return self[column]


def _upright(value: object) -> object:
    """The turns of {role: [...], content: [...]}, as Arrow and TFDS store a sequence of structs."""
    if not isinstance(value, Mapping) or not any(keys <= value.keys() for keys in _TURNS):
        return value
    columns = list(value.values())
    if not all(isinstance(column, list | tuple) for column in columns) or len({len(column) for column in columns}) > 1:
        return value
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def unread_columns(cells: Cells, ignored: Collection[str], rows: Sequence[object], where: str) -> list[str]:
    """Return the columns with something in them that nobody has read, but for the ignored ones.

    Raises:
        BadRow: one of them is plainly meant for the model, and does not stand in the prompt.
    """
    unread = [column for column, value in cells.items() if column not in cells.read and not _is_blank(value)]
    unread = [column for column in unread if column not in ignored]
    for column in unread:
        value = dict.get(cells, column)
        if _MEANT.fullmatch(column) and not any(_stands_in(value, row) for row in rows):
            held = f"column {column!r} is not read, and holds {reprlib.repr(value)}, which is meant for the model."
            ignore = f"Where it is not wanted, say so in the source: ignore: [{column}]."
            raise BadRow(where, f"column not read: {column}", f"{held} {_advice(column.lower(), cells)} {ignore}")
    return unread


def _advice(column: str, cells: Cells) -> str:
    if column in _ALPACA and not any(isinstance(dict.get(cells, name), list) for name in ("prompt", "messages")):
        return "Set format: alpaca, which reads instruction, input, system and history."
    if column.endswith("tools") or column == "functions":
        return f"Set columns: {{tools: {column}}}."
    if re.match("image|img|picture|video|audio", column):
        return "A model of texts sees none of it."
    if column.startswith(("system", "developer")):
        return "Write it as the first message of the prompt."
    return "Write it into the prompt."


def is_alpaca(values: Mapping[str, object]) -> bool:
    """Return True for a row with an instruction and what Alpaca has beside it."""
    beside = ("input", "system", "history")
    asks = any(name in values for name in ("instruction", "question", "query"))
    return asks and ("output" in values or any(not _is_blank(values.get(name)) for name in beside))


def _is_blank(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | tuple | dict) and not value)


def _stands_in(value: Any, row: Any) -> bool:
    """True if a text is in the prompt already, as lines of it or at such a length that it is no accident."""
    if not isinstance(value, str):
        return False
    text, prompt = value.strip(), row.prompt or getattr(row, "completion", "")
    parts = [prompt] if isinstance(prompt, str) else [str(turn.get("content")) for turn in prompt]
    return any((len(text) >= _SURE and text in part) or f"\n{text}\n" in f"\n{part.strip()}\n" for part in parts)
