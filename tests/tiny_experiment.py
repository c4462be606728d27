"""A tiny experiment on texts: its files, and changes to it.

Its batches have one shape whatever the rows, so that a program is compiled once for all tests that run a command.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.tiny import make_hf_folder

WORDS = ("the", "was", "warm", "and", "quiet", "a", "ending", "is", "old", "day")  # a token each
TRAIN_ROWS, EVAL_ROWS = 20, {"held": 5, "other": 3}
TIMED = ("tokens_per_second", "pairs_per_second")


def write_lines(path: str | Path, rows: Iterable[object]) -> None:
    """JSON Lines; a text is a line as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf8")


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf8").splitlines()]


def write_pairs(path: str | Path, count: int, *, seed: int = 0) -> None:
    """Pairs of 18 to 21 tokens, 14 of them in the prompt and at most 7 in the response."""
    draw = np.random.default_rng(seed)

    def words(low: int, high: int) -> str:
        return " ".join(draw.choice(WORDS, draw.integers(low, high)))

    write_lines(
        path,
        [
            {
                "prompt": f"the {words(12, 13)}\n",
                "chosen": f"the warm {words(1, 5)}",
                "rejected": f"a old {words(1, 5)}",
            }
            for _ in range(count)
        ],
    )


FINE_TUNING = {
    "data": {"train": [{"path": "pairs.jsonl", "columns": {"completion": "chosen"}}]},
    "optimizer": {"learning_rate": 1e-3},
    "train": {"batch_pairs": 8, "steps": 2},
}
EVALUATION = {
    "every": 2,
    "samples": 6,
    "max_new_tokens": 6,
    "batch_rows": 8,
    "judge": {"name": "python", "function": "mine.py:score"},
}


def make_experiment(folder: Path, **sections: Any) -> Path:
    """A model, rows, a judge and an experiment file in a folder; `sections` change or join those of the experiment."""
    make_hf_folder(folder / "model")
    write_pairs(folder / "pairs.jsonl", TRAIN_ROWS)
    for seed, (name, count) in enumerate(EVAL_ROWS.items(), 1):
        write_pairs(folder / f"{name}.jsonl", count, seed=seed)
    (folder / "mine.py").write_text(
        "def score(prompts, responses):\n    return [len(text) for text in responses]\n"
        "def compare(prompts, first, second):\n"
        "    return [0.5 + 0.5 * (len(a) > len(b)) - 0.5 * (len(a) < len(b)) for a, b in zip(first, second)]\n"
    )
    config: dict[str, Any] = {
        "workdir": "runs/demo",
        "model": {"weights": "model"},
        "data": {
            "train": [{"path": "pairs.jsonl"}],
            "eval": [{"path": f"{name}.jsonl"} for name in EVAL_ROWS],
            "max_prompt_tokens": 32,
            "max_tokens": 64,
        },
        "reference": {"store": "runs/stores", "rows_per_shard": 8, "batch_pairs": 8},
        "loss": {"name": "dpo", "options": {"beta": 0.1}},
        "optimizer": {"learning_rate": 0.01},
        "train": {"batch_pairs": 8, "micro_batch_pairs": 4, "steps": 4, "save_every": 2},
    }
    (folder / "e.yaml").write_text(yaml.safe_dump(_merged(config, sections)))
    return folder


def amend(**sections: Any) -> None:
    """Changes the experiment file of this folder; a section that is None is taken out."""
    path = Path("e.yaml")
    path.write_text(yaml.safe_dump(_merged(yaml.safe_load(path.read_text()), sections)))


def _merged(config: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for name, section in sections.items():
        both = isinstance(section, dict) and isinstance(config.get(name), dict)
        merged[name] = {**config[name], **section} if both else section
    return {name: section for name, section in merged.items() if section is not None}


def metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """What was logged, without the clock's part of it."""
    rows = read_lines(Path(workdir, "metrics.jsonl"))
    return [{name: value for name, value in row.items() if name not in TIMED} for row in rows]
