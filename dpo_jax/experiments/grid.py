"""The points of a sweep: every combination of the values of some settings, and a name for each."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence

from dpo_jax.config import Config
from dpo_jax.errors import UserError, fits_float32
from dpo_jax.files import digest
from dpo_jax.reading import Origins, Written, as_setting, locate, mistake, structure

Settings = dict[str, object]
"""Dotted key -> value, of one point."""


def read_points(
    grid: Sequence[str], grids: Sequence[Mapping[str, object]], origins: Origins, *, kind: type = Config
) -> list[Settings]:
    """The points of the command line's `KEY=VALUE,VALUE,...`, or else those of the configuration's section `sweep`.

    A grid is every combination of its values; the last key turns fastest. `kind` is that of the configuration, which
    says of a value whether it is text.

    Raises:
        UserError: there is no grid, one cannot be read, or a point is there twice.
    """
    axes = [_axes(grid, kind)] if grid else [_from_section(i, each, origins, kind) for i, each in enumerate(grids)]
    points = [dict(zip(each, values, strict=True)) for each in axes for values in itertools.product(*each.values())]
    if not points:
        raise UserError(
            "command line: sweep: name what varies, such as `--grid loss.options.beta=0.05,0.1,0.5`, or in a section "
            "`sweep` of the configuration."
        )
    labels = [label_of(point, points) for point in points]
    for label in labels:
        if labels.count(label) > 1:
            raise mistake("sweep", origins, f"{label} is there twice.")
    return points


def label_of(settings: Settings, points: Sequence[Settings]) -> str:
    """The name of a point, and of its folder: the last part of each key where that says which, and the value."""
    keys = list(dict.fromkeys(key for point in points for key in point))
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}
    label = ",".join(f"{short[key]}={value}" for key, value in settings.items())
    plain = re.sub(r"[^A-Za-z0-9._=,+-]", "_", label)[:100]
    return plain if plain == label else f"{plain}-{digest(label.encode())[:8]}"


def _axes(grid: Sequence[str], kind: type) -> dict[str, list[object]]:
    axes: dict[str, list[object]] = {}
    for text in grid:
        key, equals, values = text.partition("=")
        if not equals or not key or not values:
            raise UserError(f"command line: --grid {text!r}: write a key and its values, `loss.options.beta=0.1,0.5`.")
        if key in axes:
            raise UserError(f"command line: --grid {key}: is given twice; write all its values behind one `=`.")
        listed = structure(Written(f"[{values}]"))
        if not isinstance(listed, list):
            raise UserError(f"command line: --grid {text}: these are no values; separate them by commas.")
        read = [as_setting(kind, key, value) for value in listed]
        axes[key] = _values(read, f"command line: --grid {key}={values!r}")
    return axes


def _from_section(number: int, grid: Mapping[str, object], origins: Origins, kind: type) -> dict[str, list[object]]:
    axes: dict[str, list[object]] = {}
    for key, values in grid.items():
        where = f"sweep.{number}.{key}"
        at = f"{locate(where, origins)}: {where}"
        listed = values if isinstance(values, list | tuple) else [values]
        written = [Written(value) if isinstance(value, str) else value for value in listed]  # of one made in Python
        axes[key] = _values([as_setting(kind, key, value) for value in written], at)
    return axes


def _values(listed: Sequence[object] | None, at: str) -> list[object]:
    if not listed:
        raise UserError(f"{at}: there is no value behind it.")
    if len(listed) != len({json.dumps(value) for value in listed}):
        raise UserError(f"{at}: a value is there twice.")
    for value in listed:
        if isinstance(value, int | float) and not fits_float32(value):
            raise UserError(f"{at}: {value} is no number that float32 holds; numbers are finite.")
    return list(listed)
