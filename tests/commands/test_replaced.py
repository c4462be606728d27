"""A file that is replaced under its old name: what was made of the old one is not continued, measured or exported."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from dpo_jax import cli
from tests.tiny_experiment import EVALUATED, amend, make_experiment, read_lines, refused, write_lines


def other_weights() -> None:
    """Another model of equal size: one number is another."""
    path = "model/model.safetensors"
    tensors = {name: tensor.copy() for name, tensor in load_file(path).items()}
    next(iter(tensors.values())).flat[0] += 0.01
    save_file(tensors, path, metadata={"format": "pt"})


def other_rows(path: str = "pairs.jsonl") -> None:
    rows = read_lines(path)
    rows[3]["chosen"] = "the warm day"
    write_lines(path, rows)


def another_order() -> None:
    write_lines("pairs.jsonl", read_lines("pairs.jsonl")[::-1])


def other_weights_of_rows() -> None:
    write_lines("pairs.jsonl", [{**row, "weight": 1.0 + (n == 2)} for n, row in enumerate(read_lines("pairs.jsonl"))])


def other_tokenizer() -> None:
    path = Path("model/tokenizer.json")
    tokenizer = json.loads(path.read_text())
    ids = tokenizer["model"]["vocab"]
    ids["day"], ids["old"] = ids["old"], ids["day"]
    path.write_text(json.dumps(tokenizer))


def trained(folder: Path, **sections: object) -> Path:
    make_experiment(folder, train={"steps": 2}, **{"reference": {"batch_pairs": 8}, "data": EVALUATED, **sections})
    with contextlib.chdir(folder):
        cli.main(["train", "e.yaml"])
    return folder


@pytest.fixture(scope="module")
def without_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained without a store, so that nothing but the checkpoint knows from what."""
    return trained(tmp_path_factory.mktemp("simpo"), loss={"name": "simpo"})


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("adapter"), lora={"rank": 2}, reference={"store": None, "batch_pairs": 8})


@pytest.fixture
def enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a copy of a folder the current directory."""
    return lambda folder: monkeypatch.chdir(shutil.copytree(folder, tmp_path, dirs_exist_ok=True))


@pytest.mark.parametrize(
    ("replace", "fact"),
    [
        (other_weights, "model.weights in float32: was"),
        (other_rows, "rows of data.train: was 20 rows"),
        (another_order, "rows of data.train: was 20 rows"),
        (other_weights_of_rows, "rows of data.train: was 20 rows"),
        (other_tokenizer, "tokenizer: was"),
    ],
)
def test_a_training_does_not_go_on(
    replace: Callable[[], None],
    fact: str,
    without_reference: Path,
    enter: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
):
    enter(without_reference)
    replace()
    said = refused(capsys, "train", "e.yaml", "--train.steps", "3")
    assert "runs/demo was trained on something else" in said and fact in said, said


@pytest.mark.parametrize("command", ["evaluate", "analyse", "export"])
@pytest.mark.parametrize("replace", [other_weights, other_tokenizer])
def test_an_adapter_is_not_used_over_another_base_or_with_other_tokens(
    command: str,
    replace: Callable[[], None],
    adapter: Path,
    enter: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
):
    enter(adapter)
    replace()
    assert "runs/demo was trained on something else" in refused(capsys, command, "e.yaml")


def test_deleting_the_store_does_not_lead_round_the_check(trained_folder: Path, enter, capsys):
    enter(trained_folder)
    other_weights()
    shutil.rmtree("runs/stores")
    said = refused(capsys, "train", "e.yaml", "--train.steps", "5")
    assert "sft: runs/demo/sft was trained on something else" in said and "model.weights" in said


def test_a_fine_tuning_on_other_rows_is_not_done_already(trained_folder: Path, enter, capsys):
    enter(trained_folder)
    amend(data={"train": [{"path": "other.jsonl"}]}, workdir="runs/demo")
    shutil.rmtree("runs/demo/checkpoints")
    other_rows()
    assert "rows of sft.data.train: was 20 rows" in refused(capsys, "sft", "e.yaml")


def test_new_held_out_rows_are_no_other_training(without_reference: Path, enter):
    enter(without_reference)
    other_rows("held.jsonl")
    cli.main(["evaluate", "e.yaml"])
    assert json.loads(Path("runs/demo/evaluation.json").read_text())["step"] == 2
