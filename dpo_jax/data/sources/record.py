"""Parts of every kind of source: the keys of its mapping, its records, and the rows that a layout makes of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from dpo_jax import files
from dpo_jax.errors import BadRow, Skipped, UserError, nearest
from dpo_jax.types import Completion, PictureRow, PreferencePair, Prompt, UnpairedCompletion

Spec = Mapping[str, Any]
"""A source, `{path: pairs.jsonl, weight: 0.5}`."""

_MOST_COPIES = 1_000_000  # of a row

Value = TypeVar("Value")
Default = TypeVar("Default", str, None)
Row = TypeVar("Row", PreferencePair, Completion, UnpairedCompletion, Prompt, PictureRow)


class Record(NamedTuple):
    """One row as its source holds it: values by column. `where` names file and line, or file and row from 1."""

    where: str
    values: Mapping[str, Any]
    root: Path | None = None  # the folder at which paths in its cells start


ON_ERROR = ("stop", "skip")
"""What may be done at a bad row; one that is skipped is counted."""


Records = Iterator[Record | BadRow]


class Kind(NamedTuple):
    """One kind of source: what yields its records, and the keys that it has beside those of all."""

    read: Callable[..., Records]
    keys: tuple[str, ...] = ()


class Layout(NamedTuple, Generic[Row]):
    """Rows of one form: their columns, what makes them of a record, and options of a source with their values."""

    columns: tuple[str, ...]
    make: Callable[..., list[Row]]
    options: Mapping[str, tuple[str | bool, ...]] = {}
    flipped: Callable[[Row], Row] | None = None  # the row with the wrong label, where it has one


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


def check_keys(spec: Spec, keys: Sequence[str], layout: Layout[Row] | None = None) -> None:
    """Raise UserError if the source has another key than these, and than those that rows of the layout have."""
    allowed = (*keys, *(layout.options if layout else ()), *(["flip"] if layout and layout.flipped else []))
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


def text_of(spec: Spec, key: str, default: Default, *, wanted: str = "text") -> str | Default:
    """Text of an option that is not empty; the default where the source says nothing."""
    value = spec.get(key, default)
    if value != "" and (isinstance(value, str) or key not in spec):
        return value
    raise UserError(f"data source {dict(spec)}: {key} is {value!r}, not {wanted}.")


def number_of(spec: Spec, key: str, default: float, fits: Callable[[float], bool], wanted: str) -> float:
    """Number of an option, if it fits; the default where the source says nothing."""
    value = spec.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
        raise UserError(f"data source {dict(spec)}: {key} is {value!r}; it must be {wanted}.")
    return value


def limited(spec: Spec, items: Sequence[Value]) -> Sequence[Value]:
    """Return the first `limit` items of a split; all where the source says nothing."""
    limit = spec.get("limit", len(items))
    if type(limit) is not int or not 0 < limit <= len(items):
        raise UserError(f"data source {dict(spec)}: limit is {limit!r}. Allowed: 1 to {len(items)}, the split's size.")
    return items[:limit]


def head(spec: Spec, records: Records) -> Records:
    """Return the first `limit` records; all where the source says nothing, or has fewer."""
    if "limit" not in spec:
        return records
    fits = "a whole number above 0"
    return islice(
        records, int(number_of(spec, "limit", 1, lambda rows: isinstance(rows, int) and 0 < rows < 2**63, fits))
    )


def of_source(place: int, rows: Iterator[Value | BadRow]) -> Iterator[Value | BadRow]:
    """Yield the rows of a source; each of its errors, yielded or raised, is told the place of the source."""
    try:
        for row in rows:
            if isinstance(row, BadRow):
                row.source = place
            yield row
    except UserError as error:
        error.source = place
        raise


def column_names(spec: Spec, wanted: Iterable[str]) -> dict[str, str]:
    """Map each wanted name to the column of the source: its namesake, unless the spec's `columns` renames it."""
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


def rows_of(
    layout: Layout[Row], spec: Spec, kind: str, records: Records, *, seed: int, **given: object
) -> Iterator[tuple[list[Row], int] | BadRow]:
    """Yield the rows of each record, and how often they come; those of a bad one as the error that it would raise.

    `seed` draws the rows where the source has a weight or wrong labels; `given` is what else `layout.make` takes.
    """
    columns = column_names(spec, layout.columns)
    options = {name: option(spec, name, allowed) for name, allowed in layout.options.items()}
    most = f"a number above 0, such as 0.5, and at most {_MOST_COPIES:,}"
    weight = number_of(spec, "weight", 1.0, lambda weight: 0 < weight <= _MOST_COPIES, most)
    flip = number_of(spec, "flip", 0.0, lambda share: 0 <= share <= 1, "a share of the rows, such as 0.2")
    name = text_of(spec, "name", Path(str(spec[kind])).name.partition(".")[0])
    for number, record in enumerate(records if kind == "package" else head(spec, records)):
        draw = f"{seed} {name} {number}"
        try:
            if isinstance(record, BadRow):
                raise record
            rows = layout.make(record, columns, **options, **given)
        except BadRow as bad:
            yield bad
            continue
        if layout.flipped and is_drawn(flip, f"flip {draw}"):
            rows = [layout.flipped(row) for row in rows]
        named = [row if isinstance(row, Prompt) else row._replace(source=name) for row in rows]
        yield named, copies(weight, draw)


def sound(rows: Iterable[Value | BadRow], on_error: str, skipped: Skipped) -> Iterator[Value]:
    """Yield the rows that can be used; at another one stop, or count the reason in `skipped`.

    Raises:
        ValueError: `on_error` is unknown.
        BadRow: a row cannot be used, and `on_error` is stop.
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error is {on_error!r}. {nearest(str(on_error), ON_ERROR)}")
    for row in rows:
        if not isinstance(row, BadRow):
            yield row
        elif on_error == "stop":
            raise row
        else:
            skipped.count_row(row)


def no_rows(specs: Sequence[Spec], skipped: Skipped, ties: int = 0) -> UserError:
    """The error of sources of which no row is left, with the reasons why."""
    reasons = [f"{count} skipped: {reason}" for reason, count in skipped.items()] + [f"{ties} ties"] * bool(ties)
    held = "; ".join(reasons) or "they are empty"
    return UserError(f"data sources {[dict(spec) for spec in specs]} hold no rows ({held}).{skipped.in_words()}")


def copies(weight: float, row: str) -> int:
    """Round `weight` up or down, so that it is the mean over many rows; `row` (seed, source, number) decides."""
    whole, rest = divmod(weight, 1.0)
    return int(whole) + is_drawn(rest, row)


def is_drawn(share: float, row: str) -> bool:
    """Return True if this row is among that share of many; one that is drawn is drawn for every larger share too."""
    return int(files.digest(row.encode()), 16) < share * 2.0**128
