"""One run of TRL's DPOTrainer on the CPU in float32, in data order and without dropout: the numbers to be equal to."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class TrlRun(NamedTuple):
    """Results of TRL: one object per data row, one per step, and the weights at the end."""

    reference: list[dict[str, float]]  # chosen_logps, rejected_logps (nats), chosen_tokens, rejected_tokens (scored)
    steps: list[dict[str, float]]  # TRL's log: loss, grad_norm, learning_rate, rewards/*, logps/*
    weights: dict[str, np.ndarray]  # by Hugging Face name


def run_trl(
    folder: Path,
    rows: Path,
    workdir: Path,
    *,
    max_length: int,
    beta: float,
    learning_rate: float,
    steps: int,
    batch: int,
    accumulation: int = 1,
    **arguments: Any,
) -> TrlRun:
    """Trains the model of `folder` on the JSONL `rows`; `batch` is the pairs of one micro-batch.

    TRL cuts the end of a row longer than `max_length` tokens. `arguments` are further fields of `DPOConfig`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what TRL and its libraries say about each other is not ours to mend
        trainer = _trainer(
            folder,
            rows,
            output_dir=str(workdir),
            max_length=max_length,
            beta=beta,
            learning_rate=learning_rate,
            max_steps=steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            **arguments,
        )
        trainer.train()
    reference = [_reference_row(row, max_length=max_length) for row in trainer.train_dataset]
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = {name: value.numpy() for name, value in trainer.model.state_dict().items()}
    return TrlRun(reference, log, weights)


def _trainer(folder: Path, rows: Path, **arguments: Any) -> Any:
    import datasets
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    fixed = {
        "bf16": False,  # TRL's default is True, on the CPU too
        "use_cpu": True,
        "disable_dropout": True,
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": True,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    config = DPOConfig(**{"lr_scheduler_type": "constant", **fixed, **arguments})
    with rows.open(encoding="utf8") as lines:
        pairs = [json.loads(line) for line in lines]
    columns = [{name: pair[name] for name in ("prompt", "chosen", "rejected")} for pair in pairs]
    return DPOTrainer(str(folder), args=config, train_dataset=datasets.Dataset.from_list(columns))


def _reference_row(row: dict[str, Any], *, max_length: int) -> dict[str, float]:
    """Log-probs and the number of scored tokens; the first token of a row has nothing that predicts it."""
    prompt, first = len(row["prompt_ids"]), int(not row["prompt_ids"])
    scored = {
        f"{slot}_tokens": min(prompt + len(row[f"{slot}_ids"]), max_length) - prompt - first
        for slot in ("chosen", "rejected")
    }
    return {**{f"{slot}_logps": row[f"ref_{slot}_logps"] for slot in ("chosen", "rejected")}, **scored}
