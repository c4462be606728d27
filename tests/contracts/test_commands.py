"""Every command, for texts and for pictures: help, and mistakes in one sentence, in process."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from dpo_jax import cli
from dpo_jax.commands.table import COMMANDS
from tests import tiny_experiment

ROOT = Path(__file__).parents[2]
(TABLE,) = [action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)]
PARSERS: dict[str, argparse.ArgumentParser] = TABLE.choices
ACTIONS = {"config": ["show"], "store": ["ls"]}  # the word between command and file
NO_CONFIG = ("losses", "store", "verify", "doctor", "init", "configs")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    (said,) = tiny_experiment.refused(capsys, *arguments).splitlines()
    return said


@pytest.mark.parametrize("name", PARSERS)
def test_help(name: str, capsys: pytest.CaptureFixture[str]):
    (short,) = [shown.help for shown in TABLE._choices_actions if shown.dest == name]
    assert short, f"say in the table what {name} does"
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0
    for action in PARSERS[name]._actions:
        if action.option_strings:
            assert action.help and action.option_strings[-1] in said, f"say what {name} {action.option_strings} does"


@pytest.mark.parametrize("name", PARSERS)
def test_mistakes(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    call = [name, *ACTIONS.get(name, [])]
    Path("e.yaml").write_text("workdir: run\nmodel: {weights: w}\ndata: {train: [{path: x}]}\nloss: {name: dpo}\n")
    file = [] if name in NO_CONFIG else ["e.yaml"]
    assert "no-such-flag" in refused(capsys, *call, *file, "--no-such-flag", "1")
    if name not in NO_CONFIG:
        assert "missing.yaml: there is no such" in refused(capsys, *call, "missing.yaml")
        assert "CONFIG" in refused(capsys, *call)
    assert [path.name for path in Path().iterdir()] == ["e.yaml"]


@pytest.mark.parametrize("name", COMMANDS)
def test_pictures(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    call = [name, str(ROOT / "configs/image_brighter.yaml"), "--workdir", str(tmp_path / "run")]
    if "pictures" in COMMANDS[name].kinds:
        assert "no-such-flag" in refused(capsys, *call, "--no-such-flag", "1")
    else:
        assert f"{name} is not for experiments on pictures" in refused(capsys, *call)
    assert not list(tmp_path.iterdir())
