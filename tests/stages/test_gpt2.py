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
from dpo_jax.stages.setup import Setup
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


def test_from_rows_to_the_exported_folder(experiment: Path):
    cli.main(["train", str(experiment)])
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-5) and rows[1]["loss"] < rows[0]["loss"]
    cli.main(["export", str(experiment)])
    before, after = load_file("model/model.safetensors"), load_file("run/export/model.safetensors")
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    assert "h.1.attn.c_attn.weight" in moved and "wpe.weight" in moved and "h.0.attn.bias" not in after


def test_rows_longer_than_the_table_of_positions_are_refused(experiment: Path):
    _ = Setup(*config.load(str(experiment)), command="train").model  # as long as the table
    setup = Setup(*config.load(str(experiment), ["--data.max_tokens", "65"]), command="train")
    says = "command line: data.max_tokens is 65, but model has learned only 64 positions. Set it to 64 or less"
    with pytest.raises(UserError, match=says):
        _ = setup.model
