"""What is looked at while a policy trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_jax import cli
from tests.stages.test_sweep import experiment  # noqa: F401

WATCH = ("--train.steps", "4", "--evaluation.every", "2", "--evaluation.max_new_tokens", "6")


def metrics(workdir: str) -> list[dict[str, Any]]:
    timed = ("tokens_per_second", "pairs_per_second")
    rows = [json.loads(line) for line in Path(workdir, "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


def test_the_policy_answers_the_same_prompts_again_and_again(experiment: str) -> None:  # noqa: F811
    cli.main(["train", experiment, *WATCH, "--evaluation.watched", "3", "--optimizer.learning_rate", "0.05"])
    files = sorted(Path("runs/demo/samples").iterdir())
    assert [file.name for file in files] == ["000002.jsonl", "000004.jsonl"]
    early, late = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert [row["instruction"] for row in early] == [row["instruction"] for row in late]
    assert len(early) == 3 and {row["step"] for row in early} == {2}
    assert [row["output"] for row in early] != [row["output"] for row in late]
    rows = metrics("runs/demo")
    assert [row["step"] for row in rows if "eval/sampled_tokens" in row] == [2, 4]
    assert all(1 <= row["eval/sampled_tokens"] <= 6 for row in rows if "eval/sampled_tokens" in row)


def test_looking_changes_nothing(experiment: str) -> None:  # noqa: F811
    cli.main(["train", experiment, "--train.steps", "4"])
    cli.main(["train", experiment, *WATCH, "--evaluation.watched", "3", "--workdir", "runs/watched"])
    seen = [{name: value for name, value in row.items() if "eval/" not in name} for row in metrics("runs/watched")]
    assert seen == metrics("runs/demo")


def test_samples_need_to_know_when(experiment: str, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    with pytest.raises(SystemExit):
        cli.main(["train", experiment, "--evaluation.watched", "3"])
    assert "command line: evaluation.watched: says what is sampled every evaluation.every" in capfd.readouterr().err
