"""What a model has no embedding, no position or no rows for, as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_jax import cli
from tests.tiny_experiment import FINE_TUNING, amend, make_experiment, read_lines, refused, write_lines

ADDED = "<|tool|>"  # id 340; the model has 340 embeddings
BEYOND = f"token 340 ('{ADDED}') has no embedding: the tokenizer has 341 tokens, the model embeddings for 340"


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_experiment(tmp_path))


def change(name: str, **values: Any) -> None:
    path = Path("model", name)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def add_token() -> None:
    state = json.loads(Path("model/tokenizer.json").read_text())
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    change("tokenizer.json", added_tokens=[*state["added_tokens"], {"id": 340, "content": ADDED, **off}])


@pytest.mark.parametrize(
    ("command", "where"),
    [
        ("check-data", "pairs.jsonl:20: "),
        ("train", "pairs.jsonl:20: "),
        ("sft", "pairs.jsonl:20: "),
        ("pairs", "asked.jsonl:2: "),
    ],
)
def test_a_row_with_a_token_beyond_the_embedding_is_refused_by_name(
    command: str, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    add_token()
    rows = read_lines("pairs.jsonl")
    if command == "pairs":
        write_lines("asked.jsonl", [{"prompt": "the day"}, {"prompt": f"a {ADDED} day"}])
        judge = {"name": "python", "function": "mine.py:score"}
        amend(pairs={"prompts": [{"path": "asked.jsonl"}], "judge": judge}, sampling={"samples": 2})
    else:
        rows[-1]["chosen"] += ADDED
        write_lines("pairs.jsonl", rows)
        amend(sft=FINE_TUNING if command == "sft" else None, data={"on_error": "skip"})
    assert where + BEYOND in refused(capfd, command, "e.yaml")


@pytest.mark.parametrize("file", ["tokenizer_config.json", "generation_config.json"])
def test_a_stop_token_beyond_the_embedding_is_refused(file: str, capfd: pytest.CaptureFixture[str]) -> None:
    add_token()
    change(file, **({"eos_token": ADDED} if file == "tokenizer_config.json" else {"eos_token_id": [2, 340]}))
    assert f"model: eos_token_id: {BEYOND}" in refused(capfd, "check-data", "e.yaml", "--data.template", "tokenizer")


def test_turns_that_end_with_a_stop_token_of_the_generation_config_end(capfd: pytest.CaptureFixture[str]) -> None:
    change("tokenizer_config.json", eos_token="<|endoftext|>")  # turns end with <|im_end|>, id 2
    for stops, open_ended in (([0, 2], "0"), ([0], "40")):
        change("generation_config.json", eos_token_id=stops)
        cli.main(["check-data", "e.yaml", "--data.template", "tokenizer"])
        (said,) = (line for line in capfd.readouterr().out.splitlines() if "end with a stop token" in line)
        assert open_ended in said.split()


@pytest.mark.parametrize(("scaling", "limit"), [(None, 20), ({"rope_type": "linear", "factor": 2.0}, 40)])
def test_rows_beyond_the_positions_of_a_rotary_model_are_told(
    scaling: dict[str, Any] | None, limit: int, capfd: pytest.CaptureFixture[str]
) -> None:
    change("config.json", max_position_embeddings=20, rope_scaling=scaling)
    rows = [{"prompt": f"the {' a' * n} day\n", "chosen": "is warm", "rejected": "is old"} for n in (3, 20, 30)]
    write_lines("pairs.jsonl", rows)
    cli.main(["check-data", "e.yaml"])
    said = f"data.train: {2 if limit == 20 else 0} rows are longer than the {limit} positions"
    assert (said in capfd.readouterr().err) is (limit == 20)
    write_lines("pairs.jsonl", [{**row, "chosen": 3 * row["prompt"]} for row in rows[1:2]])
    cli.main(["check-data", "e.yaml"])
    assert f"data.train: 1 rows are longer than the {limit} positions" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "key", "sections"),
    [
        ("train", "train", {"train": {"batch_pairs": 24}}),
        ("sft", "sft.train", {"sft": {**FINE_TUNING, "train": {"batch_pairs": 24}}}),
        ("reward", "reward.train", {"reward": {"train": {"batch_pairs": 24}}}),
    ],
)
def test_a_batch_of_more_rows_than_there_are_is_refused(
    command: str, key: str, sections: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    amend(**sections)
    said = refused(capfd, command, "e.yaml")
    assert f"{key}.batch_pairs: is 24, but there are only 20 rows" in said and "Set it to 20 or less" in said
    assert not Path("runs").exists() or not list(Path("runs").rglob("checkpoints"))
