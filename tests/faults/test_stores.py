"""A reference store made by another setting: refused with the name of what differs, and never trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from dpo_jax import cli
from dpo_jax.reference import fingerprint
from tests import tiny_experiment

pytestmark = pytest.mark.fault("a store that does not match")
REFUSED = "refused by the name of what differs; no step, no metrics"


@pytest.fixture
def folder(run: Path) -> Path:
    """The current folder, with a model, rows, an experiment and its store, and no run."""
    shutil.rmtree(run)
    return Path()


def weights(folder: Path) -> None:
    """One number, by the smallest step that there is."""
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    norm = tensors["model.norm.weight"]
    tensors["model.norm.weight"] = norm.copy()
    tensors["model.norm.weight"][3] = np.nextafter(norm[3], np.float32(2))
    save_file(tensors, path, metadata={"format": "pt"})


def edited(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        held = json.loads((folder / "model" / name).read_text())
        change(held)
        (folder / "model" / name).write_text(json.dumps(held))

    return apply


def rows(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        lines = (folder / "pairs.jsonl").read_text().splitlines()
        (folder / "pairs.jsonl").write_text("\n".join(change(lines)) + "\n")

    return apply


def other_rope(folder: Path) -> None:
    edited("config.json", lambda held: held.update(rope_theta=20000.0))(folder)


Case = tuple[Callable[[Path], Any] | None, list[str], str]
CHANGES: dict[str, Case] = {
    "weights": (weights, [], "weights"),
    "the config beside the weights": (other_rope, [], "model"),
    "tokenizer": (edited("tokenizer.json", lambda held: held["model"]["merges"].pop()), [], "tokenizer"),
    "a token more": (
        edited("tokenizer_config.json", lambda held: held.update(additional_special_tokens=["<new>"])),
        [],
        "vocabulary",
    ),
    "end of a response": (
        edited("tokenizer_config.json", lambda held: held.update(eos_token="<|im_start|>")),
        [],
        "eos",
    ),
    "template": (None, ["--data.template", "tokenizer"], "template"),
    "truncation of all": (None, ["--data.max_tokens", "60"], "truncation"),
    "truncation of prompts": (None, ["--data.max_prompt_tokens", "31"], "truncation"),
    "what is too long is dropped": (None, ["--data.truncation", "drop"], "truncation"),
    "special tokens that are meant": (None, ["--data.special_tokens", "allow"], "special tokens of rows"),
    "dtype": (None, ["--model.dtype", "bfloat16"], "dtype"),
    "a row changed": (rows(lambda lines: [lines[0].replace("the warm", "the cold"), *lines[1:]]), [], "rows"),
    "a row is missing": (rows(lambda lines: lines[:-1]), [], "rows"),
    "a row more": (rows(lambda lines: [*lines, lines[0]]), [], "rows"),
    "row order": (rows(lambda lines: lines[::-1]), [], "rows"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_store_of_something_else(name: str, folder: Path, capsys: pytest.CaptureFixture[str], held):
    change, arguments, names = CHANGES[name]
    if change:
        change(folder)
    refused(capsys, arguments, names)
    held(1, REFUSED)


def test_a_store_of_another_scorer(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch, held):
    monkeypatch.setattr(fingerprint, "SCORER_VERSION", "0")
    refused(capsys, [], "scorer version")
    held(1, REFUSED)


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], names: str) -> None:
    said = tiny_experiment.refused(capsys, "train", "e.yaml", *arguments)
    assert f"  {names}: the store has" in said, said
    assert not Path("runs/demo/metrics.jsonl").exists() and not Path("runs/demo/checkpoints").exists()


@pytest.mark.slow("two trainings")
def test_a_store_of_the_base_is_that_of_an_adapter_on_it(trials, folder: Path, held):
    """The reference of an adapter is the base under it, whatever its rank: the same numbers, so the store is used."""
    trials(0, 1)
    held_before = [path.read_bytes() for path in Path("runs/stores").rglob("manifest.json")]
    for rank in ("2", "4"):
        cli.main(["train", "e.yaml", "--lora.rank", rank, "--workdir", f"runs/{rank}"])
    assert [path.read_bytes() for path in Path("runs/stores").rglob("manifest.json")] == held_before
    held(1, "an adapter: the reference is its base, whose store is used as it is")


def test_an_adapter_that_was_trained_first_is_another_reference(
    trials: Callable, folder: Path, capsys: pytest.CaptureFixture[str], held
):
    """Fine-tuning by an adapter, merged, is the reference: with another learning rate it is another one."""
    trials(0, 1)
    sft = {"data": {"train": [{"path": "sft.jsonl"}]}, "train": {"batch_pairs": 8, "steps": 1}, "lora": {"rank": 2}}
    (folder / "sft.yaml").write_text((folder / "e.yaml").read_text() + yaml.safe_dump({"sft": sft}))
    (folder / "sft.jsonl").write_text('{"prompt": "the lamp ", "completion": "was warm"}\n' * 8)
    cli.main(["reference", "sft.yaml"])
    shutil.rmtree("runs/demo")
    said = tiny_experiment.refused(capsys, "train", "sft.yaml", "--sft.optimizer.learning_rate", "0.01")
    assert "  weights: the store has" in said and not Path("runs/demo/metrics.jsonl").exists(), said
    held(1, REFUSED)


@pytest.mark.slow("two reference passes")
def test_the_padding_side_of_a_tokenizer_changes_nothing(folder: Path, held):
    """Rows are put into batches by us, pads always last: what the tokenizer would do is not asked."""
    edited("tokenizer_config.json", lambda config: config.update(padding_side="left"))(folder)
    cli.main(["reference", "e.yaml", "--reference.store", "runs/other", "--jsonl", "again.jsonl"])
    assert Path("again.jsonl").read_bytes() == Path("scores.jsonl").read_bytes()
    cli.main(["train", "e.yaml"])
    held(1, "padding side: the same scores bit by bit, and the store is used")
