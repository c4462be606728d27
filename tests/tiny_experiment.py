"""A tiny experiment on texts: its files, changes to it, and commands on it as a user runs them.

Its batches have one shape whatever the rows, so that a program is compiled once for all tests that run a command.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from dpo_jax import cli, config
from tests.tiny import make_hf_folder

if TYPE_CHECKING:
    from dpo_jax.experiments.text_steps import TextSteps

WORDS = ("the", "was", "warm", "and", "quiet", "a", "ending", "is", "old", "day")  # a token each
TRAIN_ROWS, EVAL_ROWS = 20, {"held": 5, "other": 3}


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
            dict(prompt=f"the {words(12, 13)}\n", chosen=f"the warm {words(1, 5)}", rejected=f"a old {words(1, 5)}")
            for _ in range(count)
        ],
    )


EVALUATED = {"eval": [{"path": f"{name}.jsonl"} for name in EVAL_ROWS]}
"""Joins `data` where held-out rows are looked at."""
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


def make_experiment(folder: Path, *, rows: int = TRAIN_ROWS, held: int = EVAL_ROWS["held"], **sections: Any) -> Path:
    """A model, rows, held-out rows, a judge and e.yaml in a folder; `sections` change or join those of the file."""
    make_hf_folder(folder / "model")
    for seed, (name, count) in enumerate({"pairs": rows, **EVAL_ROWS, "held": held}.items()):
        write_pairs(folder / f"{name}.jsonl", count, seed=seed)
    (folder / "mine.py").write_text(
        "def score(prompts, responses):\n    return [len(text) for text in responses]\n"
        "def compare(prompts, first, second):\n"
        "    return [0.5 + 0.5 * (len(a) > len(b)) - 0.5 * (len(a) < len(b)) for a, b in zip(first, second)]\n"
    )
    settings: dict[str, Any] = {
        "workdir": "runs/demo",
        "model": {"weights": "model"},
        "data": {"train": [{"path": "pairs.jsonl"}], "max_prompt_tokens": 32, "max_tokens": 64},
        "reference": {"store": "runs/stores", "rows_per_shard": 8, "batch_pairs": 8},
        "loss": {"name": "dpo"},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"batch_pairs": 8, "micro_batch_pairs": 4, "steps": 4},
    }
    (folder / "e.yaml").write_text(yaml.safe_dump(_merged(settings, sections)))
    return folder


def end_soon(model: str | Path = "model") -> None:
    """As if a third of all tokens ended a response: most do within six tokens, and some are cut there."""
    path = Path(model, "generation_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": list(range(2, 340, 3))}))


def amend(**sections: Any) -> None:
    """Changes the experiment file of this folder; a section that is None is taken out."""
    path = Path("e.yaml")
    path.write_text(yaml.safe_dump(_merged(yaml.safe_load(path.read_text()), sections)))


def _merged(settings: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for name, section in sections.items():
        both = isinstance(section, dict) and isinstance(settings.get(name), dict)
        merged[name] = {**settings[name], **section} if both else section
    return {name: section for name, section in merged.items() if section is not None}


def opened(*overrides: str) -> TextSteps:
    """The experiment of this folder, as a command has it."""
    from dpo_jax.experiments.text_steps import TextSteps

    return TextSteps(*config.load("e.yaml", overrides), command="test")


def run(folder: Path, command: str, workdir: str, *arguments: str) -> list[dict[str, Any]]:
    """Runs a command on the experiment of a folder; returns the metrics of the training in `workdir`."""
    with contextlib.chdir(folder):
        cli.main([command, "e.yaml", "--workdir", workdir, *arguments])
        return metrics(workdir) if Path(workdir, "metrics.jsonl").exists() else []


def refused(captured: pytest.CaptureFixture[str], *arguments: str) -> str:
    """All that is said when a command stops at a mistake of the user: with exit code 2, and no traceback."""
    captured.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    said = captured.readouterr()
    assert stopped.value.code == 2 and "Traceback" not in said.err, said.err
    return said.out + said.err


def metrics(workdir: str | Path = "runs/demo") -> list[dict[str, Any]]:
    """The logged rows, without the clock's part; NaN, which equals nothing, as a word."""
    return [
        {name: "NaN" if value != value else value for name, value in row.items() if "per_second" not in name}
        for row in read_lines(Path(workdir, "metrics.jsonl"))
    ]


def forget(workdir: str | Path, step: int) -> None:
    """As if the run had been killed before this step was saved."""
    Path(workdir, "checkpoints", f"{step}.json").unlink()
