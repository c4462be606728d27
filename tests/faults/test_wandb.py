"""A training that logs to W&B is killed: its run there goes on, and lacks no step and has none twice, offline too."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_jax.training.metrics import JsonlSink, WandbSink
from tests.commands.test_sinks import Wandb
from tests.tiny_experiment import read_lines

NAMED = {"project": "p", "group": "g", "stage": "train", "config": {}}


@pytest.mark.fault("kill -9 of a training that logs to W&B, {mode}")
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_the_run_goes_on(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: Callable):
    package, path = Wandb(offline=mode == "offline"), tmp_path / "metrics.jsonl"
    monkeypatch.setitem(sys.modules, "wandb", package)
    for done, steps in (
        (None, range(1, 7)),
        (4, range(5, 10)),
        (8, range(9, 12)),
    ):  # killed twice
        sinks = [WandbSink(tmp_path, **NAMED, metrics=path, resume_step=done), JsonlSink(path, resume_step=done)]
        for step in steps:
            for sink in sinks:
                sink.write(step, {"loss": 1.0 / step})
        sinks[1].close()  # which writes nothing more
    wanted = [(step, {"loss": 1.0 / step}) for step in range(1, 12)]
    assert [(row.pop("step"), row) for row in read_lines(path)] == wanted
    assert len({run.id for run in package.runs}) == 1
    if mode == "offline":  # the copy that is sent last takes the place of the others
        assert package.runs[-1].logged == wanted
    else:  # W&B drops the steps that it has
        sent = dict[int, dict[str, float]]()
        for run in package.runs:
            sent = dict(run.logged) | sent
        assert sorted(sent.items()) == wanted and [len(run.logged) for run in package.runs] == [6, 5, 3]
    held(2, "the same run there, every step of metrics.jsonl once")
