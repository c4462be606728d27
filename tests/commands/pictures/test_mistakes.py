"""Mistakes in experiments on pictures are one sentence."""

from __future__ import annotations

import re

import pytest

from tests.tiny_experiment import refused


@pytest.mark.slow("a training for each setting")
def test_other_settings_are_refused(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "pairs.samples" in refused(capsys, "train", policy, "--pairs.samples", "3")
    assert "holds the beginning of another run" in refused(capsys, "train", policy, "--loss.options.beta", "7")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["--pictures.classes", "5", "--pictures.text_width", "4"], "leave out one of the two"),
        (["--model.patch", "3"], "3 does not divide pictures.height, 8"),
        (["--model.schedule", "flow"], "velocity is what schedule flow predicts"),
        (["--loss.temporal_weight", "0.5"], "pictures have no neighbouring frames"),
        (["--loss.name", "dpo"], "'dpo' is unknown"),
        (["--loss.options.beta", "-1"], "a number in (0, inf)"),
        (["--loss.options.gamma", "1"], "diffusion_dpo has no such option"),
        (["--sft", "null"], "there are no weights"),
        (["--pairs", "null"], "name sources of pairs"),
        (["--data.train", "[{images: here}]"], "names other pairs"),
        (["--evaluation.judge", "{name: scorer}"], "add `reward:`"),
        (["--model.weights", "nowhere"], "nowhere"),
        (["--sft.train.micro_batch_pairs", "3"], "does not divide"),
        (["--lora.rank", "2", "--lora.targets", "[q_proj]"], "'q_proj' names no linear map"),
        (["--optimiser.learning_rate", "1"], "the key is unknown"),
    ],
)
def test_mistakes_are_one_sentence(
    overrides: list[str], says: str, experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "train", experiment, *overrides).splitlines()[-1]
    assert says in line, line


def test_a_judge_of_what_pictures_do_not_have(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    judge = "{name: quality, weights: {flicker: 1}}"
    assert "'flicker' is unknown here" in refused(capsys, "pairs", experiment, "--evaluation.judge", judge)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["--evaluation.judge", "{name: scorer, model: nowhere}"],
            "evaluation.judge.model: nowhere: there is no scorer",
        ),
        (["--pairs.judge", "{name: quality, weights: {flicker: 1}}"], "'flicker' is unknown here"),
        (["--evaluation.classifier", "[{images: nowhere}]"], "evaluation.classifier.0: .*nowhere does not exist"),
    ],
)
def test_what_is_opened_last_is_looked_at_first(
    overrides: list[str], says: str, experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "run", experiment, *overrides)
    assert re.search(says, said.splitlines()[-1]) and "compiles" not in said
