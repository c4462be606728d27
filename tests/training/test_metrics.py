"""Metrics: means are divided late and NaN is never hidden; a resumed file equals the unbroken one."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dpo_jax.errors import UserError
from dpo_jax.training.metrics import JsonlSink, TensorBoardSink, add, divide
from dpo_jax.types import Mean


def _mean(total: float, weight: float) -> Mean:
    return Mean(jnp.float32(total), jnp.float32(weight))


def _write(path: Path, steps: range, *, resume_step: int | None = None) -> None:
    sink = JsonlSink(path, resume_step=resume_step)
    for step in steps:
        sink.write(step, {"loss": 1.0 / step, "grad_norm": math.nan if step == 2 else 1.5})
    sink.close()


def _events(file: Path) -> list:
    """The events of one file; a record is length (8 bytes), its checksum (4), data, its checksum (4)."""
    from tensorboardX.proto import event_pb2

    data, events = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        # protobuf makes its classes when it is imported, so pyright cannot know them
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))  # pyright: ignore[reportAttributeAccessIssue]
        data = data[16 + length :]
    return events


def scalars(file: Path) -> list[tuple[int, str, float]]:
    """Step, name and value of each scalar of an event file."""
    return [(event.step, value.tag, value.simple_value) for event in _events(file) for value in event.summary.value]


def test_means_of_unequal_parts_are_weighted() -> None:
    # 3 pairs with mean 2, 1 pair with mean 6: (6 + 6) / 4 = 3; the mean of the two means would be 4.
    both = jax.jit(add)({"loss": _mean(6, 3)}, {"loss": _mean(6, 1)})
    assert jax.jit(divide)(both)["loss"] == 3.0


@pytest.mark.parametrize("total", [0.0, 5.0])
def test_a_mean_of_nothing_is_nan(total: float) -> None:
    assert jnp.isnan(divide({"loss": _mean(total, 0)})["loss"])


def test_nan_passes_through() -> None:
    both = add({"loss": _mean(math.nan, 1)}, {"loss": _mean(1, 1)})
    assert jnp.isnan(divide(both)["loss"])


def test_adding_different_metrics_is_refused() -> None:
    with pytest.raises(ValueError):
        add({"loss": _mean(1, 1)}, {"lost": _mean(1, 1)})


def test_rows_are_json_lines_flushed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write(3, {"loss": jnp.float32(0.5), "grad_norm": math.nan, "rewards/margins": math.inf})
    text = path.read_text()
    sink.close()
    assert text == '{"step": 3, "loss": 0.5, "grad_norm": NaN, "rewards/margins": Infinity}\n'


@pytest.mark.parametrize("cut", ["", '{"step": 6, "lo', '{"step": 6, "loss": 0.25}'])
def test_a_resumed_file_equals_the_unbroken_one(tmp_path: Path, cut: str) -> None:
    unbroken, resumed = tmp_path / "unbroken.jsonl", tmp_path / "resumed.jsonl"
    _write(unbroken, range(1, 8))
    _write(resumed, range(1, 6))
    with resumed.open("a") as file:
        file.write(cut)
    _write(resumed, range(4, 8), resume_step=3)
    assert resumed.read_text() == unbroken.read_text()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["resumed.jsonl", "unbroken.jsonl"]


def test_a_whole_last_row_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}')
    _write(path, range(2, 4), resume_step=1)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_new_run_begins_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 6))
    _write(path, range(1, 3))
    assert len(path.read_text().splitlines()) == 2


def test_resuming_without_a_file_begins_one(tmp_path: Path) -> None:
    _write(tmp_path / "metrics.jsonl", range(4, 6), resume_step=3)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_damaged_line_is_named_and_nothing_is_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        JsonlSink(path, resume_step=3)
    assert '{"ste\n' in path.read_text()


def test_tensorboard_holds_every_scalar_and_a_resume_adds_a_file(tmp_path: Path) -> None:
    for resume_step, steps in ((None, (1, 2)), (1, (2, 3))):
        sink = TensorBoardSink(tmp_path, resume_step=resume_step)
        for step in steps:
            sink.write(step, {"loss": 0.25 * step, "rewards/margins": math.nan})
        sink.close()
    first, second = (scalars(file) for file in sorted(tmp_path.iterdir()))
    assert first[0] == (1, "loss", 0.25) and first[1][:2] == (1, "rewards/margins") and math.isnan(first[1][2])
    assert [row[0] for row in second if row[1] == "loss"] == [2, 3]
    assert len(first) == len(second) == 4


def test_tensorboard_is_told_to_hide_the_steps_after_the_resumed_one(tmp_path: Path) -> None:
    TensorBoardSink(tmp_path, resume_step=7).close()
    (file,) = tmp_path.iterdir()
    assert [event.step for event in _events(file) if event.HasField("session_log")] == [8]
