"""Mistakes in experiments on pictures are one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_jax import cli
from dpo_jax.files import read_sealed, write_sealed


def test_a_store_of_other_weights_is_refused(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["reference", experiment, "--reference.draws", "2"])
    (folder,) = Path("runs/demo/stores").iterdir()
    manifest = read_sealed(folder / "manifest.json")
    manifest["fingerprint"]["weights"] = "0" * 64
    write_sealed(folder / "manifest.json", manifest)
    with pytest.raises(SystemExit):
        cli.main(["train", experiment, "--reference.draws", "2"])
    assert "weights: the store has" in capsys.readouterr().err


def test_pairs_of_other_settings_are_refused(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", experiment, "--pairs.samples", "3"])
    assert "pairs.samples" in capsys.readouterr().err
    cli.main(["train", experiment])
    with pytest.raises(SystemExit):
        cli.main(["train", experiment, "--loss.options.beta", "7"])
    assert "holds the beginning of another run" in capsys.readouterr().err


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
        (["--evaluation.judge", "{name: quality, weights: {flicker: 1}}"], "'flicker' is unknown here"),
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
    with pytest.raises(SystemExit) as left:
        cli.main(["train", experiment, "--workdir", "runs/next", *overrides])
    told = capsys.readouterr().err
    assert left.value.code == 2 and says in told.splitlines()[-1], told


@pytest.mark.parametrize("command", ["plan", "analyse", "scratch"])
def test_what_is_of_texts_says_so(command: str, experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--topology", "gpu:8"] if command == "plan" else []
    with pytest.raises(SystemExit):
        cli.main([command, experiment, *flags])
    assert f"{command} is not for experiments on pictures" in capsys.readouterr().err
