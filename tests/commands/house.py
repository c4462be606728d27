"""A folder as a user has it, with a tiny model, rows of one length and an experiment; and commands in it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import yaml

from dpo_jax import cli
from tests.tiny import make_hf_folder, write_even_rows

TIMED = ("tokens_per_second", "pairs_per_second")


def make_house(folder: Path, *, rows: int = 20, held: int = 0, **sections: Any) -> Path:
    """Writes e.yaml, DPO on pairs.jsonl with these sections in place of its own, and `held` rows to held.jsonl."""
    make_hf_folder(folder / "model")
    write_even_rows(folder / "pairs.jsonl", rows)
    write_even_rows(folder / "held.jsonl", held, seed=1)
    settings: dict[str, Any] = {
        "workdir": "runs/demo",
        "model": {"weights": "model"},
        "data": {"train": [{"path": "pairs.jsonl"}], "max_prompt_tokens": 32, "max_tokens": 64},
        "loss": {"name": "dpo"},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"batch_pairs": 8, "micro_batch_pairs": 4, "steps": 2},
    }
    (folder / "e.yaml").write_text(yaml.safe_dump(settings | sections))
    return folder


def run(folder: Path, command: str, workdir: str, *arguments: str) -> list[dict[str, float]]:
    """Runs a command on e.yaml; returns the metrics of the training in `workdir`."""
    with contextlib.chdir(folder):
        cli.main([command, "e.yaml", "--workdir", workdir, *arguments])
    path = folder / workdir / "metrics.jsonl"
    return read_lines(path) if path.exists() else []


def read_lines(path: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def untimed(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in TIMED} for row in rows]


def forget(workdir: Path | str, step: int) -> None:
    """As if the run had been killed before this step was saved."""
    Path(workdir, "checkpoints", f"{step}.json").unlink()
