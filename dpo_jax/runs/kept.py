"""Values that a command computes one after the other, on disk as they come: one that is killed goes on from there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dpo_jax.errors import UserError
from dpo_jax.files import add_to, digest, write_atomic

Facts = Mapping[str, str]
"""All that decides values, by name: digests of weights, of prompts, options as text."""

Keeper = Callable[[Facts], "Kept"]
"""Opens the file of the values that these facts decide."""


class Kept:
    """Plain values by their keys, which hold for the facts that they were computed from, and for no others.

    On disk it is JSON Lines: the facts, then each value with a digest of its own. Where the facts have changed it
    begins anew; a line that a crash cut short or that was damaged ends it. Who has locked the folder writes, and of the
    processes of a run the first one. `agreed` says whether all of these see the same number; without that, nothing in
    the file counts, for they compute together.
    """

    def __init__(self, path: Path, facts: Facts, *, agreed: Callable[[int], bool] = lambda number: True):
        self._path, self._known = path, dict[str, Any]()
        try:
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            sound = self._read(lines, _line("facts", dict(facts)))
            if not agreed(int(digest(b"".join(sound))[:7], 16)):
                self._known, sound = {}, []
            if len(sound) != len(lines) or not sound:
                write_atomic(path, b"".join(sound) or _line("facts", dict(facts)))
        except OSError as error:
            raise UserError(f"{path}: cannot be read or written: {error.strerror}.") from None

    def _read(self, lines: list[bytes], head: bytes) -> list[bytes]:
        """Learn the values; return the lines that count."""
        if lines[:1] != [head]:
            return []
        for number, line in enumerate(lines[1:], 1):
            try:
                value = json.loads(line)
                sound = line == _line(value["key"], value["value"])
            except (ValueError, LookupError, TypeError, RecursionError):
                sound = False
            if not sound:
                return lines[:number]
            self._known[value["key"]] = value["value"]
        return lines

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def put(self, values: Mapping[str, object]) -> None:
        """Keep values, on disk before this returns."""
        self._known |= values
        try:
            add_to(self._path, b"".join(_line(key, value) for key, value in values.items()))
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written: {error.strerror}.") from None


def _line(key: str, value: object) -> bytes:
    said = json.dumps([key, value], sort_keys=True)
    return json.dumps({"digest": digest(said.encode()), "key": key, "value": value}, sort_keys=True).encode() + b"\n"
