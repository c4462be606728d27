"""What a person sees while it runs: a live line on a terminal, a line now and then in a log."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from dpo_jax.masking import mask

_QUIET_SECONDS = 10.0

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(stage: str, message: str) -> None:
    """One line of what a stage does or found."""
    console.print(f"[bold]{stage:>9}[/bold]  ", end="")
    console.print(mask(message), markup=False)


class Progress:
    """Counts one stage's work; used as a context manager."""

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
        """Shows how much is done, and a short text such as the loss."""
        if self._bars and self._task is not None:
            self._bars.update(self._task, completed=done, text=mask(text))
            return
        now = time.perf_counter()
        if now - self._said < _QUIET_SECONDS and done < self._total:
            return
        self._said = now
        left = (now - self._start) / max(1, done - self._first) * (self._total - done)
        say(self._stage, f"{done}/{self._total} {self._unit}  {text}  {left:.0f} s left")
