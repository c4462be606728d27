"""The loop: batches prefetched, metrics fetched one step late, checkpoints in the background, some steps traced."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dpo_jax.training.finite import NotFinite, first_not_finite
from dpo_jax.training.state import TrainState
from dpo_jax.types import Knobs

Step = Callable[[TrainState, Any, Knobs], tuple[TrainState, dict[str, jax.Array]]]
After = Callable[[int, TrainState], tuple[TrainState, dict[str, float]]]
"""Steps done and the state -> the state to go on with, and numbers that are logged with those of the step."""
_NAMED_ROWS = 64


class Placed(NamedTuple):
    """A batch on the mesh."""

    arrays: Any
    work: Mapping[str, int]  # kind -> count, such as pairs and tokens
    row_ids: Sequence[str] = ()


class _Late(NamedTuple):
    """A step whose numbers are still on their way."""

    done: int
    numbers: dict[str, jax.Array]
    more: dict[str, float]  # those that are logged beside them
    row_ids: Sequence[str]


def prefetch(read: Callable[[int], Placed], start: int, stop: int, *, depth: int = 2) -> Generator[Placed, None, None]:
    """Batches `start` to `stop`, the next ones being built and copied while a step runs."""
    with ThreadPoolExecutor(1) as worker:
        waiting: list[Future[Placed]] = []
        for step in range(start, stop + depth):
            if step < stop:
                waiting.append(worker.submit(read, step))
            if step >= start + depth:
                yield waiting.pop(0).result()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """The pace of a loop, and its patience."""

    log_every: int = 1
    save_every: int | None = None  # steps between checkpoints; the last step is always saved
    keep: int = 2  # checkpoints
    skips_allowed: int = 2  # steps in a row that are skipped, their loss or gradient not finite
    step_timeout_seconds: float = 1800.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Callbacks:
    """The functions that a loop calls as it goes.

    `log` gets a step, counted from 1, and its numbers; among them, of each kind of work, how much was done per second
    since the last call. The numbers are fetched while the next step runs. It hears of every step that was skipped.
    """

    log: Callable[[int, dict[str, float]], None]
    save: Callable[[int, TrainState], None]  # steps done, and the state after them
    after: After | None = None  # each step, before the state is saved
    stops: Callable[[], bool] = lambda: False  # asked after each step; the state is then saved and returned
    watched: Callable[[], AbstractContextManager[object]] = (
        nullcontext  # around each step and the numbers of the one before
    )


class TooManySkips(NotFinite):
    """More skipped steps in a row than are allowed; their rows are named."""


def train_loop(
    step: Step,
    state: TrainState,
    read: Callable[[int], Placed],
    knobs: Callable[[int], Knobs],
    *,
    steps: int,
    pace: Pace,
    callbacks: Callbacks,
) -> TrainState:
    """Train from the state's step to `steps` and return the last state.

    Args:
        step: `(state, batch, knobs) -> (state, metrics)`.
        read: step number -> its batch.
        knobs: step number -> its traced numbers.

    Raises:
        TooManySkips: the loss or the gradient of more than `pace.skips_allowed` steps in a row was not finite.
        NotFinite: parameters are not finite, which is why steps are skipped.
    """
    start = int(state.step)
    late: _Late | None = None
    clock, work = time.perf_counter(), Counter[str]()
    skips: list[int] = []  # the last steps, if none of them was finite

    def fetch(step: _Late) -> None:
        nonlocal clock
        values = {name: float(value) for name, value in jax.device_get(step.numbers).items()}
        skipped = not math.isfinite(values["loss"] + values["grad_norm"])
        skips[:] = [*skips, step.done] if skipped else []
        if step.done % pace.log_every == 0 or step.done == steps:
            seconds = time.perf_counter() - clock
            rates = {f"{kind}_per_second": count / seconds for kind, count in work.items()}
            clock = time.perf_counter()
            work.clear()
            callbacks.log(step.done, values | rates | step.more)
        elif skipped or step.more:
            callbacks.log(step.done, values | step.more)
        if len(skips) > pace.skips_allowed:
            if (name := first_not_finite(state.params)) is not None:
                raise NotFinite(f"step {step.done}: {name} is not finite, and so nothing that is computed with it.")
            raise TooManySkips(_too_many_skips(skips, values, step.row_ids))

    with closing(prefetch(read, start, steps)) as batches:
        for done in range(start + 1, steps + 1):
            with callbacks.watched():
                batch = next(batches)
                state, numbers = step(state, batch.arrays, knobs(done - 1))
                if late:
                    fetch(late)
            work.update(batch.work)
            state, more = callbacks.after(done, state) if callbacks.after else (state, {})
            late = _Late(done, numbers, more, batch.row_ids)
            leaves = callbacks.stops()
            if leaves or done == steps or (pace.save_every and done % pace.save_every == 0):
                with callbacks.watched():
                    fetch(late)
                late = None
                callbacks.save(done, state)
            if leaves:
                break
    return state


def _too_many_skips(skips: Sequence[int], values: Mapping[str, float], row_ids: Sequence[str]) -> str:
    which = f"step {skips[-1]} was" if len(skips) == 1 else f"steps {skips[0]} to {skips[-1]} were"
    more = f" and {len(row_ids) - _NAMED_ROWS} more" if len(row_ids) > _NAMED_ROWS else ""
    return (
        f"{which} skipped: the loss of the last is {values['loss']}, its gradient norm {values['grad_norm']}. The "
        f"parameters are as they were before. Its rows are {', '.join(row_ids[:_NAMED_ROWS])}{more}."
    )


@contextlib.contextmanager
def traced(step: Step, folder: Path, *, done: int, start_step: int, num_steps: int) -> Iterator[Step]:
    """Yield `step`, which writes a trace of `num_steps` calls behind step `start_step`; leaving the context ends it.

    Args:
        step: `(state, batch, knobs) -> (state, metrics)`.
        folder: each process writes into PROCESS/plugins/profile/TIME of its own below it; hosts may share the disk.
        done: steps done before the first call. A run that goes on behind `start_step` is not traced again.
        start_step: the last step before the trace, counted from 1.
        num_steps: how many steps are traced; 0: `step` comes back as it is.
    """
    if not num_steps:
        yield step
        return
    on = False

    def watched(state: TrainState, batch: object, knobs: Knobs) -> tuple[TrainState, dict[str, jax.Array]]:
        nonlocal done, on
        if done == start_step:
            jax.block_until_ready(state)  # what was asked for before is not in the trace
            _start_trace(folder / f"process_{jax.process_index()}")
            on = True
        done += 1
        with jax.profiler.StepTraceAnnotation("step", step_num=done):
            result = step(state, batch, knobs)
        if on and done == start_step + num_steps:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            on = False
        return result

    try:
        yield watched
    finally:
        if on:
            jax.profiler.stop_trace()


def _start_trace(folder: Path) -> None:
    """Begin a trace without Python's own calls, of which there are too many to read."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
