"""The user's mistakes: what happened, where, what is allowed. The command line prints them and exits with 2."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class UserError(Exception):
    """A mistake in a configuration, in data or on disk that the user can mend; shown without a traceback."""


class Finding(NamedTuple):
    """One thing that was looked at: `good`, `warn`, `bad`, or `left`, which a killed process has left behind."""

    state: str
    what: str
    says: str


_SIZED = "sized by "


@contextlib.contextmanager
def sized_by(setting: str) -> Iterator[None]:
    """Note on an error from inside which setting decides the size of a batch; the innermost one counts."""
    try:
        yield
    except Exception as error:
        if size_setting(error) is None:
            error.add_note(_SIZED + setting)
        raise


def size_setting(error: BaseException) -> str | None:
    """The setting that `sized_by` noted; None where none did."""
    notes = getattr(error, "__notes__", ())
    return next((note.removeprefix(_SIZED) for note in notes if note.startswith(_SIZED)), None)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """End a message about an unknown name: the nearest known one, if any is near, and all that are allowed."""
    known = sorted(allowed)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Allowed: {', '.join(known)}."
