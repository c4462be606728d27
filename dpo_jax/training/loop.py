"""The loop: batches prefetched, metrics fetched one step late, checkpoints in the background."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax.errors import UserError
from dpo_jax.training.state import TrainState

Log = Callable[[int, dict[str, float]], None]
_NAMED_ROWS = 64


class Placed(NamedTuple):
    """A batch on the mesh, how much work it is (how many of what, such as pairs and tokens), and the rows in it."""

    arrays: Any
    work: Mapping[str, int]
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
    skips_allowed: int = 0,
    stops: Callable[[], bool] = lambda: False,
    watched: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> TrainState:
    """Trains from the state's step to `steps` and returns the last state.

    Args:
        read: step number -> its batch.
        knobs: step number -> its traced numbers.
        log: called with a step, counted from 1, and its numbers; among them, of each kind of work, how much was done
            per second since the last call. The numbers are fetched while the next step runs. It hears of every step
            that was skipped.
        save: called with the number of steps done, every `save_every` steps and after the last one.
        after: called after each step with the steps done and the state, before that is saved; gives back the state
            to go on with, and numbers that are logged with those of the step.
        skips_allowed: how many steps in a row may be skipped because their loss or gradient is not finite.
        stops: asked after each step; where it says so, the state is saved and returned before the last step.
        watched: entered for each step, in which its batch is awaited and the numbers of the step before.

    Raises:
        UserError: too many steps in a row were skipped, which names their rows; or parameters are not finite, and are
            not saved.
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
        if step.done % log_every == 0 or step.done == steps:
            seconds = time.perf_counter() - clock
            rates = {f"{kind}_per_second": count / seconds for kind, count in work.items()}
            clock = time.perf_counter()
            work.clear()
            log(step.done, values | rates | step.more)
        elif skipped or step.more:
            log(step.done, values | step.more)
        if len(skips) > skips_allowed:
            raise UserError(_too_many_skips(skips, values, step.row_ids))

    with closing(prefetch(read, start, steps)) as batches:
        for done in range(start + 1, steps + 1):
            with watched():
                batch = next(batches)
                state, numbers = step(state, batch.arrays, knobs(done - 1))
                if late:
                    fetch(late)
            work.update(batch.work)
            state, more = after(done, state) if after else (state, {})
            late = _Late(done, numbers, more, batch.row_ids)
            leaves = stops()
            if leaves or done == steps or (save_every and done % save_every == 0):
                with watched():
                    fetch(late)
                late = None
                if skips and not _finite(state.params):
                    raise UserError(f"step {done}: parameters are NaN or infinite; this state is not saved.")
                save(done, state)
            if leaves:
                break
    return state


@jax.jit
def _finite(params: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))


def _too_many_skips(skips: Sequence[int], values: Mapping[str, float], row_ids: Sequence[str]) -> str:
    which = f"step {skips[-1]} was" if len(skips) == 1 else f"steps {skips[0]} to {skips[-1]} were"
    more = f" and {len(row_ids) - _NAMED_ROWS} more" if len(row_ids) > _NAMED_ROWS else ""
    return (
        f"{which} skipped: the loss of the last is {values['loss']}, its gradient norm {values['grad_norm']}. The "
        f"parameters are as they were before. Its rows are {', '.join(row_ids[:_NAMED_ROWS])}{more}.\nLook at them, "
        "lower optimizer.learning_rate, or allow more in a row with train.skips_allowed."
    )
