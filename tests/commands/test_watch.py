"""Samples that are watched while a policy trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_jax import cli
from tests.tiny_experiment import amend, metrics, read_lines, refused


@pytest.mark.slow("a training with and without samples")
def test_the_policy_answers_the_same_prompts_again_and_again_which_changes_nothing(scored: str) -> None:
    cli.main(["train", scored])
    assert not Path("runs/demo/samples").exists()
    watched = ("--evaluation.every", "2", "--evaluation.max_new_tokens", "6", "--evaluation.watched", "6")
    cli.main(["train", scored, *watched, "--workdir", "runs/watched"])
    files = sorted(Path("runs/watched/samples").iterdir())
    assert [file.name for file in files] == ["000002.jsonl", "000004.jsonl"]
    early, late = map(read_lines, files)
    assert [row["instruction"] for row in early] == [row["instruction"] for row in late]
    assert len(early) == 6 and {row["step"] for row in early} == {2}
    assert [row["output"] for row in early] != [row["output"] for row in late]
    rows = metrics("runs/watched")
    assert [row["step"] for row in rows if "eval/sampled_tokens" in row] == [2, 4]
    assert all(1 <= row["eval/sampled_tokens"] <= 6 for row in rows if "eval/sampled_tokens" in row)
    seen = [{name: value for name, value in row.items() if "eval/" not in name} for row in rows]
    assert seen == metrics("runs/demo")


def test_samples_need_to_know_when(scored: str, capfd: pytest.CaptureFixture[str]) -> None:
    amend(evaluation={"watched": 3})
    said = refused(capfd, "train", scored)
    assert "evaluation.watched: says what is sampled every evaluation.every" in said
