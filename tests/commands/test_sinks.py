"""Weights & Biases as a user has it, by a stand-in for the package: a run a training, with which a resume goes on."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from dpo_jax import cli
from dpo_jax.experiments import training
from dpo_jax.experiments.training import open_sinks
from tests.tiny_experiment import FINE_TUNING, amend, opened, read_lines, refused


class Wandb(SimpleNamespace):
    """The part of the package that is used: what it was told."""

    class Error(Exception):
        pass

    def __init__(self, *, offline: bool = False) -> None:
        super().__init__()
        self.runs: list[SimpleNamespace] = []
        self.offline = offline

    def init(self, **settings: Any) -> SimpleNamespace:
        run = SimpleNamespace(settings=settings, id=settings["id"] or f"id{len(self.runs)}", logged=[], finished=[])
        run.resumed = bool(settings["resume"]) and not self.offline
        run.log = lambda values, step: run.logged.append((step, values))
        run.finish = lambda exit_code: run.finished.append(exit_code)
        self.runs.append(run)
        return run


@pytest.fixture
def wandb(scored: str, monkeypatch: pytest.MonkeyPatch) -> Wandb:
    amend(logging={"wandb": "my-project"}, train={"steps": 2})
    package = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


@pytest.mark.slow("two trainings")
def test_the_same_numbers_go_there_and_a_resume_goes_on_in_the_same_run(wandb: Wandb) -> None:
    amend(sft=FINE_TUNING)
    cli.main(["train", "e.yaml"])
    sft, first = wandb.runs
    assert [run.settings["job_type"] for run in wandb.runs] == ["sft", "train"]
    assert first.settings["project"] == "my-project" and first.settings["group"] == sft.settings["group"] == "demo"
    assert first.settings["config"]["loss"][0]["name"] == "dpo" and first.settings["id"] is None
    cli.main(["train", "e.yaml", "--train.steps", "3"])
    *_, again = wandb.runs
    assert len(wandb.runs) == 3 and again.settings["id"] == first.id != sft.id and again.settings["resume"] == "allow"
    rows = read_lines("runs/demo/metrics.jsonl")
    assert [{"step": step, **values} for step, values in [*first.logged, *again.logged]] == rows
    assert all(run.finished == [0] for run in wandb.runs)


def test_a_training_that_fails_is_not_called_finished(wandb: Wandb, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("harmed on purpose")

    monkeypatch.setattr(training, "train_loop", fail)
    with pytest.raises(SystemExit):
        cli.main(["train", "e.yaml"])
    assert [run.finished for run in wandb.runs] == [[1]]


def test_nobody_is_told_where_it_is_off(wandb: Wandb, tmp_path: Path) -> None:
    setup = opened("--logging.wandb", "null")
    for sink in open_sinks(setup, "train", tmp_path, resume_step=None):
        sink.close()
    assert wandb.runs == []


def test_a_training_that_begins_anew_begins_a_new_run(wandb: Wandb) -> None:
    setup = opened()
    folder = Path("runs/new")
    for resume_step in (None, None, 4):
        for sink in open_sinks(setup, "train", folder, resume_step=resume_step):
            sink.close()
    assert [run.id for run in wandb.runs] == ["id0", "id1", "id1"]
    assert all(run.settings["settings"] == {"x_disable_meta": True} for run in wandb.runs)  # no command line


def test_one_process_alone_tells_it(wandb: Wandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert open_sinks(opened(), "train", Path("x"), resume_step=None) == [] == wandb.runs


def test_without_the_package_nothing_is_begun(
    wandb: Wandb, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = refused(capsys, "train", "e.yaml")
    assert "e.yaml:" in said and "pip install wandb" in said
    assert not Path("runs/demo/checkpoints").exists()


def test_a_run_that_wandb_does_not_open_is_a_mistake_of_the_user(
    wandb: Wandb, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**settings: Any) -> None:
        raise Wandb.Error("api_key not configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    said = refused(capsys, "train", "e.yaml")
    assert "WANDB_MODE=offline" in said
    assert re.search(r"e\.yaml:\d+: logging\.wandb: api_key not configured", said)
