"""dpo_jax, used through its command line, computes what TRL computes: same weights, rows and settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

from tests.parity.awkward_rows import ROWS, add_bos, write_rows
from tests.parity.trl_run import TrlRun, run_trl
from tests.tiny import make_hf_folder

MAX_TOKENS = 64
STEPS = 20
EOS_ID = 2
pytestmark = pytest.mark.slow("two trainings by TRL, and ours")
BATCH_PAIRS = 4  # divides the number of rows: TRL ends every epoch with a smaller step otherwise


class Case(NamedTuple):
    """One training run, in the words of both."""

    tied: bool
    bos: bool
    beta: float
    learning_rate: float
    micro_batch_pairs: int
    optimizer: dict[str, Any]  # ours
    trl: dict[str, Any]  # the same for DPOConfig


CASES = {
    "plain": Case(
        tied=False, bos=False, beta=0.1, learning_rate=2e-4, micro_batch_pairs=BATCH_PAIRS, optimizer={}, trl={}
    ),
    "accumulated": Case(
        tied=True,
        bos=True,
        beta=0.3,
        learning_rate=5e-4,
        micro_batch_pairs=1,
        optimizer={"schedule": "linear", "warmup_steps": 3, "weight_decay": 0.1, "clip_norm": 0.5},
        trl={"lr_scheduler_type": "linear", "warmup_steps": 3, "weight_decay": 0.1, "max_grad_norm": 0.5},
    ),
}


class Ours(NamedTuple):
    """Results that the commands wrote."""

    reference: list[dict[str, Any]]
    steps: list[dict[str, float]]
    weights: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=CASES)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrlRun, Ours, Path]:
    """The same run by both, and the model's folder."""
    case = CASES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    folder = make_hf_folder(root / "model", tied=case.tied)
    if case.bos:
        add_bos(folder)
    rows = write_rows(root / "pairs.jsonl")
    trl = run_trl(
        folder,
        rows,
        root / "trl",
        max_length=MAX_TOKENS,
        beta=case.beta,
        learning_rate=case.learning_rate,
        steps=STEPS,
        batch=case.micro_batch_pairs,
        accumulation=BATCH_PAIRS // case.micro_batch_pairs,
        **case.trl,
    )
    return trl, run_ours(case, folder, rows, root), folder


def run_ours(case: Case, folder: Path, rows: Path, root: Path) -> Ours:
    """The reference pass, the training and the export, by their commands on one experiment file."""
    experiment = {
        "workdir": str(root / "run"),
        "seed": 0,
        "model": {"weights": str(folder), "dtype": "float32"},
        "data": {
            "train": [{"path": str(rows)}],
            "template": "plain",
            "order": "sequential",
            "max_prompt_tokens": MAX_TOKENS - 1,
            "max_tokens": MAX_TOKENS,
            "special_tokens": "allow",  # TRL takes a row that writes them as text
        },
        "reference": {"store": str(root / "stores")},
        "loss": {"name": "dpo", "options": {"beta": case.beta}},
        "optimizer": {
            "name": "adamw",
            "learning_rate": case.learning_rate,
            "schedule": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "clip_norm": 1.0,
            **case.optimizer,
        },
        "train": {
            "batch_pairs": BATCH_PAIRS,
            "micro_batch_pairs": case.micro_batch_pairs,
            "steps": STEPS,
            "save_every": 50,
            "log_every": 1,
        },
        "mesh": {"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1},
    }
    config = root / "experiment.yaml"
    config.write_text(yaml.safe_dump(experiment), encoding="utf8")
    commands = [["reference", config, "--jsonl", root / "reference.jsonl"], ["train", config], ["export", config]]
    run_commands([[str(word) for word in command] for command in commands])
    weights = read_weights(root / "run" / "export")
    return Ours(read_jsonl(root / "reference.jsonl"), read_jsonl(root / "run" / "metrics.jsonl"), weights)


def run_commands(commands: list[list[str]]) -> None:
    """Runs them as a user does, on one device and without what tests forbid, in one process to start it once."""
    flags = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUMPY_RANK_PROMOTION"}
    code = f"from dpo_jax import cli\nfor command in {commands!r}: cli.main(command)"
    environment |= {"XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf8") as lines:
        return [json.loads(line) for line in lines]


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def column(objects: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([each[name] for each in objects])


def test_rows_are_as_awkward_as_they_should_be(runs):
    """The comparison means something: some rows are cut, some prompts lose tokens to the response."""
    from transformers import AutoTokenizer

    trl, _, folder = runs
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos = len(tokenizer("").input_ids)
    assert len(trl.reference) == len(ROWS)
    whole = [[len(tokenizer(prompt + each).input_ids) for each in responses] for prompt, *responses in ROWS]
    assert sum(length > MAX_TOKENS for lengths in whole for length in lengths) >= 3
    responses_alone = [len(tokenizer(chosen).input_ids) - bos + 1 for _, chosen, _ in ROWS]
    assert np.sum(column(trl.reference, "chosen_tokens") != responses_alone) >= 6


def test_reference_log_probs(runs):
    trl, ours, _ = runs
    assert len(ours.reference) == len(trl.reference)
    for slot in ("chosen", "rejected"):
        np.testing.assert_array_equal(
            column(ours.reference, f"{slot}_tokens"), column(trl.reference, f"{slot}_tokens"), err_msg=slot
        )
        np.testing.assert_allclose(
            column(ours.reference, f"{slot}_logps"), column(trl.reference, f"{slot}_logps"), rtol=1e-4, err_msg=slot
        )
    assert set(ours.reference[0]) == {"row_id", "chosen_logps", "rejected_logps", "chosen_tokens", "rejected_tokens"}
    assert ours.reference[0] == ours.reference[1]  # the duplicate is there, under the same id
    assert ours.reference[1]["row_id"] != ours.reference[2]["row_id"]


def test_first_step(runs):
    trl, ours, _ = runs
    for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
        np.testing.assert_allclose(ours.steps[0][name], trl.steps[0][name], rtol=1e-4, err_msg=name)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        np.testing.assert_allclose(ours.steps[0][name], 0.0, atol=1e-4, err_msg=name)


def test_every_step(runs):
    trl, ours, _ = runs
    np.testing.assert_array_equal(column(ours.steps, "step"), np.arange(1, STEPS + 1))
    np.testing.assert_allclose(
        column(ours.steps, "learning_rate"), column(trl.steps, "learning_rate"), rtol=1e-6, atol=1e-12
    )
    for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
        np.testing.assert_allclose(column(ours.steps, name), column(trl.steps, name), rtol=0.01, err_msg=name)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        # Rewards start at zero: an absolute bound, a thousandth of where they end, stands in for the first steps.
        bound = 1e-3 * np.abs(column(trl.steps, name)).max()
        np.testing.assert_allclose(
            column(ours.steps, name), column(trl.steps, name), rtol=0.01, atol=bound, err_msg=name
        )
    moved = np.abs(column(trl.steps, "rewards/margins")) > 1e-3  # a tie is decided by rounding
    np.testing.assert_array_equal(
        column(ours.steps, "rewards/accuracies")[moved], column(trl.steps, "rewards/accuracies")[moved]
    )


def test_final_weights(runs):
    """Both moved the weights to the same place: the difference is small beside the way."""
    trl, ours, folder = runs
    start = read_weights(folder)
    assert set(ours.weights) == set(start)
    for name, before in start.items():
        # transformers' embedding drops the gradient of the pad token where it is read, and here EOS is the pad token.
        kept = np.arange(len(before)) != EOS_ID if "embed_tokens" in name else slice(None)
        way = np.linalg.norm((trl.weights[name] - before)[kept])
        assert way > 0, name
        assert np.linalg.norm((ours.weights[name] - trl.weights[name])[kept]) < 0.005 * way, name
