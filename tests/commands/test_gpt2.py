"""The commands on a tiny GPT-2 of the old spelling, and the limit of its positions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from dpo_jax import cli, config
from dpo_jax.errors import UserError
from dpo_jax.experiments.texts import TextExperiment
from tests.tiny_gpt2 import CONFIG, make_gpt2_folder


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_gpt2_folder(tmp_path / "model", old=True)
    rows = [{"prompt": f"Row {n}:", "chosen": " it is good.", "rejected": " it was bad."} for n in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "workdir": "run",
        "model": {"weights": "model"},
        "data": {"train": [{"path": "pairs.jsonl"}], "max_prompt_tokens": 32, "max_tokens": CONFIG["n_positions"]},
        "loss": {"name": "dpo"},
        "train": {"batch_pairs": 4, "steps": 2},
    }
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "e.yaml"


@pytest.mark.slow("every command on one more family")
def test_from_rows_to_the_exported_folder(experiment: Path):
    cli.main(["train", str(experiment)])
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-5) and rows[1]["loss"] < rows[0]["loss"]
    cli.main(["export", str(experiment)])
    before, after = load_file("model/model.safetensors"), load_file("run/export/model.safetensors")
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    assert "h.1.attn.c_attn.weight" in moved and "wpe.weight" in moved and "h.0.attn.bias" not in after


def test_rows_longer_than_the_table_of_positions_are_refused(experiment: Path):
    _ = TextExperiment(*config.load(str(experiment)), command="train").model  # as long as the table
    setup = TextExperiment(*config.load(str(experiment), ["--data.max_tokens", "65"]), command="train")
    says = "command line: data.max_tokens is 65, but model has learned only 64 positions. Set it to 64 or less"
    with pytest.raises(UserError, match=says):
        _ = setup.model


AUTO = '{"name": "alpha_dpo", "options": {"alpha": "auto", "kl_budget": 1, "kl_max_new_tokens": NEW}}'


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["--evaluation.samples", "2", "--evaluation.max_new_tokens", "NEW"], "evaluation.max_new_tokens"),
        (["--loss", AUTO], "loss.0.options.kl_max_new_tokens"),
    ],
)
def test_samples_that_would_be_longer_than_the_table_are_refused_before_training(
    experiment: Path, settings: list[str], key: str, capsys: pytest.CaptureFixture[str]
):
    """Prompts have up to 32 tokens and the table 64 rows; the last of 33 new tokens is never looked up."""

    def asked(new: int) -> list[str]:
        rows = ["--data.eval", '[{"path": "pairs.jsonl"}]']
        return [*rows, *(setting.replace("NEW", str(new)) for setting in settings)]

    _ = TextExperiment(*config.load(str(experiment), asked(33)), command="train").model
    with pytest.raises(SystemExit):
        cli.main(["train", str(experiment), *asked(34)])
    said = capsys.readouterr().err
    assert (
        f"command line: {key} is 34 and data.max_prompt_tokens 32, but model has learned only 64 positions. "
        f"Set {key} to 33 or less, or data.max_prompt_tokens lower." in said
    )
    assert not Path("run/checkpoints").exists() and not Path("run/metrics.jsonl").exists()


def test_only_the_sample_command_asks_for_the_tokens_of_sampling(experiment: Path, capsys: pytest.CaptureFixture[str]):
    Path("prompts.jsonl").write_text('{"instruction": "Row 1:"}\n')
    settings = yaml.safe_load(experiment.read_text()) | {"sampling": {"max_new_tokens": 34}}
    experiment.write_text(yaml.safe_dump(settings))
    _ = TextExperiment(*config.load(str(experiment)), command="train").model
    sample = ["sample", str(experiment), "--model", "reference", "--prompts", "prompts.jsonl"]
    with pytest.raises(SystemExit):
        cli.main(sample)
    line = experiment.read_text().splitlines().index("  max_new_tokens: 34") + 1
    assert f"e.yaml:{line}: sampling.max_new_tokens is 34" in capsys.readouterr().err
    cli.main([*sample, "--sampling.max_new_tokens", "33"])
    assert len(Path("run/samples.jsonl").read_text().splitlines()) == 1


def test_samples_that_are_not_asked_for_are_not_checked(experiment: Path):
    _ = TextExperiment(*config.load(str(experiment), ["--evaluation.max_new_tokens", "999"]), command="train").model
