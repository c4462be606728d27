"""What a planted bug is."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One bug: in `file`, `old` becomes `new`. `tests` are run in order, the likely first, until one fails."""

    name: str  # the bug in words
    file: str  # under dpo_jax/
    old: str  # stands there exactly once
    new: str
    tests: tuple[str, ...]  # each one files and options for pytest


def planted(file: str, tests: tuple[str, ...], *bugs: tuple[str, str, str]) -> list[Mutant]:
    """Bugs (name, old, new) of one file, to be found by the same tests."""
    return [Mutant(name, file, old, new, tests) for name, old, new in bugs]
