"""Traces of training steps, for TensorBoard's profile plugin and for Perfetto."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

Step = Callable[[Any, Any, Any], tuple[Any, Any]]


@contextlib.contextmanager
def traced(step: Step, folder: Path, *, done: int, start_step: int, num_steps: int) -> Iterator[Step]:
    """`step`, which writes a trace of `num_steps` calls behind step `start_step`; leaving the context ends the trace.

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

    def watched(state: Any, batch: Any, knobs: Any) -> tuple[Any, Any]:
        nonlocal done, on
        if done == start_step:
            jax.block_until_ready(state)  # what was asked for before is not in the trace
            start(folder / f"process_{jax.process_index()}")
            on = True
        done += 1
        with jax.profiler.StepTraceAnnotation("step", step_num=done):
            found = step(state, batch, knobs)
        if on and done == start_step + num_steps:
            jax.block_until_ready(found)
            jax.profiler.stop_trace()
            on = False
        return found

    try:
        yield watched
    finally:
        if on:
            jax.profiler.stop_trace()


def start(folder: Path) -> None:
    """Begins a trace without Python's own calls, of which there are too many to read."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
