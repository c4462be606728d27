"""Settings with their reasons, as YAML."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import NamedTuple

from dpo_jax.errors import printable
from dpo_jax.masking import mask
from dpo_jax.reading import as_yaml

_WIDTH, _COLUMN = 120, 44


class Line(NamedTuple):
    """A setting by its dotted key, in which numbers are places of a list, its value, and the reason."""

    key: str
    value: object
    why: str = ""


def as_text(head: Iterable[str], lines: Iterable[Line]) -> str:
    """The YAML of these settings, those of a section together, each with its reason beside or above it."""
    written, opened = [comment for each in head for comment in _comment(each, "")], list[str]()
    for line in lines:
        *sections, last = line.key.split(".")
        shared = next((n for n, pair in enumerate(zip(sections, opened, strict=False)) if len({*pair}) > 1), None)
        shared = min(len(sections), len(opened)) if shared is None else shared
        written += [f"{'  ' * depth}{sections[depth]}:" for depth in range(shared, len(sections))]
        opened, indent = sections, "  " * len(sections)
        label = "-" if last.isdecimal() else f"{last}:"
        value = as_yaml(line.value, default_flow_style=True).removesuffix("...\n").strip()
        text = f"{indent}{label} {value}"
        why = _plain(line.why)
        beside = f"{text:<{_COLUMN}}  # {why}"
        if len(beside) <= _WIDTH or not why:
            written.append(beside if why else text)
        else:
            written += [*_comment(why, indent), text]
    return "\n".join(written) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        _plain(text), _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_on_hyphens=False
    )


def _plain(text: str) -> str:
    return " ".join(printable(mask(text)).split())
