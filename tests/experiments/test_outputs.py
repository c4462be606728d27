"""Responses in the files of AlpacaEval and Arena-Hard, judged and written by `dpo-jax evaluate`; no model is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dpo_jax import cli
from dpo_jax.evaluation.length_controlled import length_controlled
from tests.tiny_experiment import read_lines, refused, write_lines

CONFIG = {
    "workdir": "runs/demo",
    "model": {"weights": "nowhere"},
    "data": {"train": [{"path": "none.jsonl"}]},
    "loss": {"name": "dpo"},
}
BY_LENGTH = "{name: python, function: mine.py:score}"


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("e.yaml").write_text(yaml.safe_dump(CONFIG))
    Path("mine.py").write_text("def score(prompts, responses):\n    return [len(r) for r in responses]\n")


def command(policy: str, reference: str, **more: str) -> list[str]:
    outputs = json.dumps({"policy": policy, "reference": reference, **more})
    return ["evaluate", "e.yaml", "--evaluation.outputs", outputs, "--evaluation.judge", BY_LENGTH]


def evaluated(policy: str, reference: str, **more: str) -> dict[str, Any]:
    cli.main(command(policy, reference, **more))
    return json.loads(Path("runs/demo/evaluation.json").read_text())


def lines(path: str) -> list[dict[str, Any]]:
    return read_lines(Path("runs/demo/outputs", path))


PROMPTS = ["what is warm", "what is cold", "what is warm"]


def alpaca(texts: list[str], generator: str) -> list[dict[str, Any]]:
    return [{"instruction": p, "output": t, "generator": generator} for p, t in zip(PROMPTS, texts, strict=True)]


def test_outputs_of_others_are_judged_without_a_model():
    Path("policy.json").write_text(json.dumps(alpaca(["aaa", "b", "cccc"], "ours")))
    write_lines("reference.jsonl", list(reversed(alpaca(["a", "bb", "cc"], "theirs"))))
    found = evaluated("policy.json", "reference.jsonl")
    # the first answer to a prompt is compared with the first: aaa with cc, b with bb, cccc with a
    shown = [(row["policy"], row["reference"]) for row in found["samples"]]
    assert shown == [("aaa", "cc"), ("b", "bb"), ("cccc", "a")]
    assert found["judged"]["win_rate"] == pytest.approx(2 / 3) and "heldout" not in found and "kl" not in found
    written = json.loads(Path("runs/demo/outputs/alpaca_eval/policy.json").read_text())
    assert written == alpaca(["aaa", "b", "cccc"], "ours")
    answers = lines("arena_hard/model_answer/reference.jsonl")
    assert [row["messages"][-1]["content"]["answer"] for row in answers] == ["cc", "bb", "a"]
    assert len(lines("arena_hard/question.jsonl")) == 2


def test_what_was_written_is_read_back_and_judged_alike():
    Path("policy.json").write_text(json.dumps(alpaca(["aaa", "b", "cccc"], "ours")))
    write_lines("reference.jsonl", alpaca(["a", "bb", "cc"], "theirs"))
    found = evaluated("policy.json", "reference.jsonl")
    folder = Path("runs/demo/outputs").rename("written")
    again = evaluated(
        str(folder / "arena_hard/model_answer/policy.jsonl"),
        str(folder / "alpaca_eval/reference.json"),
        questions=str(folder / "arena_hard/question.jsonl"),
    )
    assert again["judged"] == found["judged"] and again["samples"] == found["samples"]


def test_difficulties_are_read_in_the_order_of_the_policy(capsys):
    rows = [{"instruction": f"prompt {n}", "output": "x" * (3 + n % 5)} for n in range(40)]
    write_lines("policy.jsonl", rows)
    write_lines("reference.jsonl", [row | {"output": "y" * (5 - n // 10)} for n, row in enumerate(rows)][::-1])
    values = [n / 40 for n in range(40)]
    Path("hard.csv").write_text(",instruction_difficulty\n" + "".join(f"{n},{v}\n" for n, v in enumerate(values)))
    found = evaluated("policy.jsonl", "reference.jsonl", difficulty="hard.csv")
    scores = np.array([[row["policy_score"], row["reference_score"]] for row in found["samples"]])
    texts = ([row[name] for row in found["samples"]] for name in ("policy", "reference", "prompt"))
    wanted = length_controlled((1 + np.sign(scores[:, 0] - scores[:, 1])) / 2, *texts, difficulty_n=np.array(values))
    assert found["judged"]["length_controlled"]["win_rate"] == wanted.win_rate
    for text, says in (("a\n1\n", "instruction_difficulty"), ("instruction_difficulty\n1\n", "has 1 rows; 40 finite")):
        Path("hard.csv").write_text(text)
        assert says in refused(capsys, *command("policy.jsonl", "reference.jsonl", difficulty="hard.csv"))


def test_both_forms_of_arena_hard_are_read_and_our_samples_get_its_ids():
    asked, texts = PROMPTS[:2], {"old": ["a", "bb"], "new": ["aaa", "b"], "ours": ["xx", "y"]}
    write_lines("questions.jsonl", [{"question_id": f"q{n}", "turns": [{"content": p}]} for n, p in enumerate(asked)])
    write_lines(
        "old.jsonl",
        [
            {"question_id": f"q{n}", "model_id": "old", "choices": [{"index": 0, "turns": [{"content": t}]}]}
            for n, t in enumerate(texts["old"])
        ],
    )
    turns = [
        [{"role": "user", "content": p}, {"role": "assistant", "content": {"answer": t}}]
        for p, t in zip(asked, texts["new"], strict=True)
    ]
    write_lines("new.jsonl", [{"uid": f"q{n}", "model": "new", "messages": both} for n, both in enumerate(turns)])
    write_lines("ours.jsonl", [{"prompt": p, "output": t} for p, t in zip(asked, texts["ours"], strict=True)])
    for policy, scores in (("new.jsonl", [3, 1]), ("ours.jsonl", [2, 1])):
        found = evaluated(policy, "old.jsonl", questions="questions.jsonl")
        assert [row["policy_score"] for row in found["samples"]] == scores
        assert [row["reference_score"] for row in found["samples"]] == [1, 2]
        assert [row["uid"] for row in lines("arena_hard/model_answer/policy.jsonl")] == ["q0", "q1"]
    assert {row["model"] for row in lines("arena_hard/model_answer/reference.jsonl")} == {"old"}


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ([{"instruction": "what is warm", "output": "x"}], "no.jsonl has no response to 1 of the prompts"),
        ([{"instruction": p, "output": "x"} for p in ("what is warm", "else")], "reference.jsonl has no response to 1"),
        ([{"instruction": "what is warm"}], "no.jsonl:1: no response of a known form"),
        ([{"question_id": "q", "choices": []}], "no.jsonl:1: question 'q' is not in evaluation.outputs.questions"),
        ([], "no.jsonl holds no responses"),
    ],
)
def test_outputs_that_do_not_match_are_refused(capsys, policy: list[dict[str, Any]], says: str):
    write_lines("no.jsonl", policy)
    write_lines("reference.jsonl", alpaca(["a", "bb", "cc"], "theirs")[:2])
    assert says in refused(capsys, *command("no.jsonl", "reference.jsonl"))
