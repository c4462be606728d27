"""Progress as a person sees it: a live line on a terminal, lines in a log, and one for what fails beside it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from dpo_jax.errors import printable, told
from dpo_jax.masking import mask

_QUIET_SECONDS = 10.0
_LONGEST = 300  # characters of what other libraries say

console = Console(stderr=True, highlight=False, soft_wrap=True)


_said: set[tuple[str, str]] | None = None


@contextlib.contextmanager
def each_once() -> Iterator[None]:
    """The context in which no line about the data or the model is printed twice, as where one run follows another."""
    global _said
    before, _said = _said, set()
    try:
        yield
    finally:
        _said = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The context in which nothing is said, as where settings are tried."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


def say(stage: str, message: str) -> None:
    """Print one line of what a stage does or found."""
    if _said is not None and stage in ("data", "model"):
        if (stage, message) in _said:
            return
        _said.add((stage, message))
    console.print(f"[bold]{stage:>9}[/bold]  ", end="")
    console.print(printable(mask(message), lines=True), markup=False)


class Progress:
    """Progress of one stage's work; used as a context manager."""

    def __init__(self, stage: str, total: int, *, done: int = 0, unit: str = "steps"):
        self._stage, self._total, self._unit = stage, total, unit
        self._first, self._start, self._said = done, time.perf_counter(), time.perf_counter()
        columns = (
            TextColumn(f"[bold]{stage:>9}[/bold] "),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bars = Bars(*columns, console=console, transient=True) if console.is_terminal else None
        self._task = self._bars.add_task(stage, total=total, completed=done, text="") if self._bars else None

    def __enter__(self) -> Progress:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def update(self, done: int, text: str = "") -> None:
        """Show how much is done, and a short text such as the loss."""
        if self._bars and self._task is not None:
            self._bars.update(self._task, completed=done, text=printable(mask(text)))
            return
        now = time.perf_counter()
        if now - self._said < _QUIET_SECONDS and done < self._total:
            return
        self._said = now
        left = (now - self._start) / max(1, done - self._first) * (self._total - done)
        say(self._stage, f"{done}/{self._total} {self._unit}  {text}  {left:.0f} s left")


def tell_briefly() -> None:
    """Shorten what other libraries say of failed threads, from now on and in the whole process.

    Of a disk that takes nothing more every thread and task of a write would speak: once is enough, for the main thread
    ends with the sentence on it.
    """

    def tell(failed: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
        if _is_news(str(failed.exc_value)):
            name = getattr(failed.exc_type, "__name__", failed.exc_type)
            say("beside", f"{name}: {_first_line(str(failed.exc_value))}")

    threading.excepthook = tell
    sys.unraisablehook = tell
    logging.getLogger("absl").addFilter(_shortened)  # Orbax logs the traceback of each thread that fails
    logging.getLogger("asyncio").addFilter(_first_of_its_kind)  # and leaves behind a task for each array


# What a write that failed leaves behind: tasks and files whose loop has ended, and a count of what failed.
_FOLLOWS = ("Event loop is closed", "handle is closed", "Handler Commit operations")
_DISK_ERRORS = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS))


def _is_news(text: str) -> bool:
    if any(words in text for words in _FOLLOWS):
        return False
    error = next((words for words in _DISK_ERRORS if words in text), None)
    return error is None or _is_first(error)


def _is_first(kind: object) -> bool:
    first = kind not in _told
    _told.add(kind)
    return first


def _first_of_its_kind(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return _shortened(record)
    if not _is_first(type(error)):
        return False
    record.msg, record.args = f"{type(error).__name__}: {error}", ()
    return _shortened(record)


def _shortened(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    record.msg, record.args = _first_line(text), ()
    record.exc_info = record.exc_text = record.stack_info = None
    return _is_news(text)


_told: set[object] = set()


def _first_line(text: str) -> str:
    return told(text.partition("\n")[0], _LONGEST)
