"""The commands on a tiny GPT-2 of the old spelling, and the limit of its positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dpo_jax import cli
from dpo_jax.errors import UserError
from tests.tiny_experiment import amend, make_experiment, metrics, opened, refused
from tests.tiny_gpt2 import CONFIG, make_gpt2_folder


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"batch_pairs": 4, "micro_batch_pairs": None, "steps": 2}
    make_experiment(tmp_path, model={"weights": "gpt2"}, data={"max_tokens": CONFIG["n_positions"]}, train=sizes)
    make_gpt2_folder(tmp_path / "gpt2", old=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow("every command on one more family")
def test_from_rows_to_the_exported_folder():
    cli.main(["train", "e.yaml"])
    rows = metrics()
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-5) and rows[1]["loss"] < rows[0]["loss"]
    cli.main(["export", "e.yaml"])
    before, after = load_file("gpt2/model.safetensors"), load_file("runs/demo/export/model.safetensors")
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    assert "h.1.attn.c_attn.weight" in moved and "wpe.weight" in moved and "h.0.attn.bias" not in after


def test_rows_longer_than_the_table_of_positions_are_refused():
    _ = opened().model  # as long as the table
    setup = opened("--data.max_tokens", "65")
    says = "command line: data.max_tokens is 65, but gpt2 has learned only 64 positions. Set it to 64 or less"
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
    settings: list[str], key: str, capsys: pytest.CaptureFixture[str]
):
    """Prompts have up to 32 tokens and the table 64 rows; the last of 33 new tokens is never looked up."""

    def asked(new: int) -> list[str]:
        rows = ["--data.eval", '[{"path": "pairs.jsonl"}]']
        return [*rows, *(setting.replace("NEW", str(new)) for setting in settings)]

    _ = opened(*asked(33)).model
    said = refused(capsys, "train", "e.yaml", *asked(34))
    assert (
        f"command line: {key} is 34 and data.max_prompt_tokens 32, but gpt2 has learned only 64 positions. "
        f"Set {key} to 33 or less, or data.max_prompt_tokens lower." in said
    )
    assert not Path("runs/demo/checkpoints").exists() and not Path("runs/demo/metrics.jsonl").exists()


def test_only_the_sample_command_asks_for_the_tokens_of_sampling(capsys: pytest.CaptureFixture[str]):
    Path("prompts.jsonl").write_text('{"instruction": "Row 1:"}\n')
    amend(sampling={"max_new_tokens": 34})
    _ = opened().model
    sample = ["sample", "e.yaml", "--model", "reference", "--prompts", "prompts.jsonl"]
    said = refused(capsys, *sample)
    line = Path("e.yaml").read_text().splitlines().index("  max_new_tokens: 34") + 1
    assert f"e.yaml:{line}: sampling.max_new_tokens is 34" in said
    cli.main([*sample, "--sampling.max_new_tokens", "33"])
    assert len(Path("runs/demo/samples.jsonl").read_text().splitlines()) == 1


def test_samples_that_are_not_asked_for_are_not_checked():
    _ = opened("--evaluation.max_new_tokens", "999").model
