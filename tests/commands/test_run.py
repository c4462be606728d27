"""The order of what `dpo-jax run` does; the commands themselves have tests of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_jax import cli
from dpo_jax.commands import report, results, training
from dpo_jax.experiments.text_steps import TextSteps
from tests.tiny_experiment import refused

CONFIG: dict[str, Any] = {
    "workdir": "runs/a",
    "model": {"weights": "model"},
    "data": {"train": [{"path": "pairs.jsonl"}], "eval": [{"path": "held.jsonl"}]},
    "loss": {"name": "dpo"},
}


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the commands that were run."""
    monkeypatch.chdir(tmp_path)
    names = list[str]()
    for module, commands in ((training, ("train", "reward")), (results, ("evaluate", "analyse", "export"))):
        for name in commands:
            monkeypatch.setattr(module, name, lambda experiment, name=name: names.append(name))
    monkeypatch.setattr(report, "run", lambda experiment: names.append("report"))
    monkeypatch.setattr(TextSteps, "prepare", lambda self: None)
    monkeypatch.setattr(TextSteps, "check_inputs", lambda self: None)
    return names


def configure(changes: dict[str, Any]) -> None:
    Path("e.yaml").write_text(yaml.safe_dump({**CONFIG, **changes}))


@pytest.mark.parametrize(
    ("analysis", "analyses"), [({}, True), ({"pairs": 4}, True), (None, False), ("left out", False)]
)
def test_it_analyses_before_the_report_where_the_file_has_the_section(
    called: list[str], analysis: Any, analyses: bool
) -> None:
    configure({} if analysis == "left out" else {"analysis": analysis})
    cli.main(["run", "e.yaml"])
    assert called == ["train", "evaluate", *(["analyse"] if analyses else []), "export", "report"]


def test_what_cannot_be_analysed_is_refused_before_the_training(
    called: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    configure({"analysis": {}, "loss": {"name": "kto"}})
    assert "kto is trained on labelled completions" in refused(capsys, "run", "e.yaml") and called == []
    configure({"loss": {"name": "kto"}})
    cli.main(["run", "e.yaml"])
    assert called[0] == "train"
