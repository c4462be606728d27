"""The loop: batches prefetched, metrics fetched one step late, checkpoints in the background."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from dpo_jax.training.state import TrainState

Log = Callable[[int, dict[str, float]], None]


class Placed(NamedTuple):
    """A batch on the mesh, and how much work it is: how many of what, such as pairs and tokens."""

    arrays: Any
    work: Mapping[str, int]


def prefetch(read: Callable[[int], Placed], start: int, stop: int, *, depth: int = 2) -> Iterator[Placed]:
    """Batches `start` to `stop`, the next ones being built and copied while a step runs."""
    with ThreadPoolExecutor(1) as worker:
        waiting: list[Future[Placed]] = []
        for step in range(start, stop + depth):
            if step < stop:
                waiting.append(worker.submit(read, step))
            if step >= start + depth:
                yield waiting.pop(0).result()


def run(
    step: Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]],
    state: TrainState,
    read: Callable[[int], Placed],
    knobs: Callable[[int], Any],
    *,
    steps: int,
    log: Log,
    log_every: int,
    save: Callable[[int, TrainState], None],
    save_every: int | None,
    after: Callable[[int, TrainState], tuple[TrainState, dict[str, float]]] | None = None,
) -> TrainState:
    """Trains from the state's step to `steps` and returns the last state.

    Args:
        read: step number -> its batch.
        knobs: step number -> its traced numbers.
        log: called with a step, counted from 1, and its numbers; among them, of each kind of work, how much was done
            per second since the last call. The numbers are fetched while the next step runs.
        save: called with the number of steps done, every `save_every` steps and after the last one.
        after: called after each step with the steps done and the state, before that is saved; gives back the state
            to go on with, and numbers that are logged with those of the step.

    Raises:
        FloatingPointError: the loss is not finite; nothing of that step is saved.
    """
    start = int(state.step)
    late: tuple[int, dict[str, jax.Array], dict[str, float]] | None = None
    clock, work = time.perf_counter(), Counter[str]()

    def fetch(done: int, numbers: dict[str, jax.Array], more: dict[str, float]) -> None:
        nonlocal clock
        values = {name: float(value) for name, value in jax.device_get(numbers).items()}
        if not abs(values["loss"]) < float("inf"):
            raise FloatingPointError(
                f"step {done}: the loss is {values['loss']}, the gradient norm {values['grad_norm']}"
            )
        if done % log_every == 0 or done == steps:
            seconds = time.perf_counter() - clock
            rates = {f"{kind}_per_second": count / seconds for kind, count in work.items()}
            clock = time.perf_counter()
            work.clear()
            log(done, values | rates | more)

    for done, batch in enumerate(prefetch(read, start, steps), start + 1):
        state, numbers = step(state, batch.arrays, knobs(done - 1))
        if late:
            fetch(*late)
        work.update(batch.work)
        state, more = after(done, state) if after else (state, {})
        late = (done, numbers, more)
        if done == steps or (save_every and done % save_every == 0):
            fetch(*late)  # a state that is not finite is never saved
            late = None
            save(done, state)
    if late:
        fetch(*late)
    return state
