"""The keys of a source, `{path: pairs.jsonl, weight: 0.5}`: which kind it is of, which keys it knows, what they say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_jax.data.sources.record import Spec
from dpo_jax.errors import UserError, nearest


def kind_of(spec: Spec, kinds: Collection[str], *, example: str = "{path: pairs.jsonl}") -> str:
    """The one of these kinds whose key the source has."""
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
    """Raises UserError if the source has another key."""
    for key in spec:
        if key not in allowed:
            raise UserError(f"data source {dict(spec)}: unknown key {key!r}. {nearest(str(key), allowed)}")


def option(spec: Spec, name: str, allowed: Sequence[Any]) -> Any:
    """What the source says, of what is allowed; the first of it, which may be None, where it says nothing."""
    value = spec.get(name, allowed[0])
    if not any(value is known or (isinstance(value, str) and value == known) for known in allowed):
        words = [str(known).lower() if isinstance(known, bool) else known for known in allowed if known is not None]
        raise UserError(f"data source {dict(spec)}: {name} is {value!r}. {nearest(str(value), words)}")
    return value


def weight_of(spec: Spec) -> float:
    """How often each of its rows comes."""
    weight = spec.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise UserError(f"data source {dict(spec)}: weight is {weight!r}; it must be a number above 0, such as 0.5.")
    return float(weight)


def flip_of(spec: Spec) -> float:
    """In which share of its records the label is wrong."""
    share = spec.get("flip", 0.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise UserError(f"data source {dict(spec)}: flip is {share!r}; it must be a share of the rows, such as 0.2.")
    return float(share)


def name_of(spec: Spec, kind: str) -> str:
    """What the source is called in metrics: as it says, or the last part of what it is read from."""
    name = spec.get("name", Path(str(spec[kind])).name.partition(".")[0])
    if not isinstance(name, str) or not name:
        raise UserError(f"data source {dict(spec)}: name is {name!r}, not text.")
    return name
