"""Traces of training steps: which steps are in them, what they say, and when they end."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dpo_jax.training.loop import traced


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the profiler is told and which steps run, in order."""
    found: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **_: found.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("stop"))
    monkeypatch.setattr(jax, "block_until_ready", lambda tree: found.append("wait"))
    return found


def steps(calls: list[str], *, done: int, until: int, start_step: int, num_steps: int) -> list[str]:
    def step(state: Any, batch: Any, knobs: Any) -> tuple[Any, Any]:
        if batch == "bad":
            raise FloatingPointError("no loss")
        calls.append(str(state + 1))
        return state + 1, {}

    with traced(step, Path("nowhere"), done=done, start_step=start_step, num_steps=num_steps) as watched:
        for state in range(done, until):
            assert watched(state, None, None) == (state + 1, {})
    return calls


@pytest.mark.parametrize(
    ("done", "until", "start_step", "num_steps", "expected"),
    [
        (0, 6, 2, 3, "1 2 wait start 3 4 5 wait stop 6"),
        (0, 2, 0, 1, "wait start 1 wait stop 2"),
        (0, 3, 2, 5, "1 2 wait start 3 stop"),  # the run ends in the middle
        (2, 4, 2, 1, "wait start 3 wait stop 4"),  # resumed where the trace begins
        (3, 6, 2, 3, "4 5 6"),  # resumed behind that
        (0, 2, 0, 0, "1 2"),
    ],
)
def test_which_steps_are_traced(calls, done: int, until: int, start_step: int, num_steps: int, expected: str):
    assert steps(calls, done=done, until=until, start_step=start_step, num_steps=num_steps) == expected.split()


def test_a_trace_ends_where_training_fails(calls):
    def step(state: Any, batch: Any, knobs: Any) -> tuple[Any, Any]:
        raise FloatingPointError("no loss")

    failing = traced(step, Path("nowhere"), done=0, start_step=0, num_steps=5)
    with pytest.raises(FloatingPointError), failing as watched:
        watched(0, None, None)
    assert calls == ["wait", "start", "stop"]


def test_the_files_are_what_tensorboard_and_perfetto_open(tmp_path: Path):
    @jax.jit
    def step(state: Any, batch: Any, knobs: Any) -> tuple[Any, Any]:
        with jax.named_scope("a_name_of_ours"):
            return state @ state + batch, {"loss": knobs}

    state = jnp.ones((32, 32))
    with traced(step, tmp_path, done=0, start_step=2, num_steps=2) as watched:
        for number in range(6):
            state, _ = watched(state, 1.0, float(number))
    (space,) = tmp_path.glob("process_0/plugins/profile/*/*.xplane.pb")
    assert b"a_name_of_ours" in space.read_bytes()
    with gzip.open(space.parent / "perfetto_trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert [event["args"]["step_num"] for event in events if event.get("name") == "step"] == ["3", "4"]
