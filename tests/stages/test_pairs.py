"""`dpo-jax pairs`: from a model and a judge to rows that training reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_jax import cli
from tests.stages.test_sweep import experiment  # noqa: F401

JUDGE = """
def score(prompts, responses):
    return [len(response) for response in responses]

def compare(prompts, first, second):
    return [float(len(a) > len(b)) + 0.5 * (len(a) == len(b)) for a, b in zip(first, second)]
"""
SAMPLING = ("--sampling.samples", "3", "--sampling.max_new_tokens", "8", "--sampling.temperature", "1.5")
BY_LENGTH = ("--pairs.judge", "{name: python, function: 'judge.py:score'}")


@pytest.fixture
def judged(experiment: str) -> str:  # noqa: F811
    Path("judge.py").write_text(JUDGE)
    return experiment


def rows(path: str = "runs/demo/pairs.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_best_answer_against_the_worst(judged: str) -> None:
    cli.main(["pairs", judged, *SAMPLING, *BY_LENGTH])
    found = rows()
    prompts = [json.loads(line)["prompt"] for line in Path("pairs.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in found] == [prompt for prompt in prompts if prompt in {r["prompt"] for r in found}]
    assert len(found) > 4
    for row in found:
        assert row["chosen_score"] == len(row["chosen"].strip()) > len(row["rejected"].strip()) == row["rejected_score"]


def test_all_pairs_and_a_gap(judged: str) -> None:
    cli.main(["pairs", judged, *SAMPLING, *BY_LENGTH, "--pairs.select", "all", "--output", "all.jsonl"])
    cli.main(["pairs", judged, *SAMPLING, *BY_LENGTH, "--pairs.select", "all", "--pairs.min_gap", "5"])
    every, wide = rows("all.jsonl"), rows()
    gaps = [row["chosen_score"] - row["rejected_score"] for row in every]
    assert len(every) > 8 and min(gaps) > 0
    assert wide == [row for row, gap in zip(every, gaps, strict=True) if gap > 5]


def test_a_judge_that_compares_gives_the_same_extremes(judged: str) -> None:
    compares = ("--pairs.judge", "{name: python, function: 'judge.py:compare', compares: true}")
    cli.main(["pairs", judged, *SAMPLING, *BY_LENGTH, "--output", "scored.jsonl"])
    cli.main(["pairs", judged, *SAMPLING, *compares, "--output", "compared.jsonl"])
    scored, compared = rows("scored.jsonl"), rows("compared.jsonl")
    lengths = [
        [(len(row["chosen"].strip()), len(row["rejected"].strip())) for row in each] for each in (scored, compared)
    ]
    assert lengths[0] == lengths[1]
    assert all(0 <= row["rejected_score"] < row["chosen_score"] <= 1 for row in compared)


def test_a_second_round_is_two_commands(judged: str, capfd: pytest.CaptureFixture[str]) -> None:
    cli.main(["train", judged])
    cli.main(["pairs", judged, *SAMPLING, *BY_LENGTH])
    assert "from the trained policy" in capfd.readouterr().err
    cli.main(["train", judged, "--data.train.0.path", "runs/demo/pairs.jsonl", "--workdir", "runs/second"])
    assert "done: 2 steps" in capfd.readouterr().err


def test_prompts_of_ones_own_need_no_training_rows(judged: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("prompts.jsonl").write_text('{"prompt": "the lamp"}\n{"prompt": "one clever"}\n')
    cli.main(
        [
            *("pairs", judged, *SAMPLING, *BY_LENGTH, "--data.train.0.path", "not-there.jsonl"),
            *("--pairs.prompts", "[{path: prompts.jsonl}]"),
        ]
    )
    assert {row["prompt"] for row in rows()} <= {"the lamp", "one clever"}
    assert "from the model with which training starts" in capfd.readouterr().err


def test_conversations_stay_conversations(judged: str) -> None:
    turns = [{"role": "user", "content": "the lamp"}]
    Path("chats.jsonl").write_text("".join(json.dumps({"prompt": turns, "n": n}) + "\n" for n in range(2)))
    asked = ("--pairs.prompts", "[{path: chats.jsonl}]", "--data.template", "tokenizer")
    cli.main(["pairs", judged, *SAMPLING, *BY_LENGTH, *asked])
    for row in rows():
        assert row["prompt"] == turns
        assert [turn["role"] for turn in row["chosen"] + row["rejected"]] == ["assistant", "assistant"]
    cli.main(["check-data", judged, "--data.train.0.path", "runs/demo/pairs.jsonl", "--data.template", "tokenizer"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (SAMPLING, "nobody says which response is better: name pairs.judge"),
        ((*SAMPLING[2:], *BY_LENGTH), "sampling.samples: a pair needs 2 responses"),
        ((*SAMPLING, *BY_LENGTH, "--output", "."), "--output . is a directory"),
        ((*SAMPLING, "--pairs.judge", "{name: python}"), "pairs.judge.function: the judge python needs it"),
        ((*SAMPLING, "--pairs.judge", "{name: reward, model: nowhere}"), "pairs.judge.model: weights 'nowhere'"),
        ((*SAMPLING, *BY_LENGTH, "--pairs.min_gap", "1000"), "finds no response better than another"),
        ((*SAMPLING, *BY_LENGTH, "--pairs.select", "some"), "Allowed: all, extremes"),
    ],
)
def test_nonsense_is_refused(
    judged: str, arguments: tuple[str, ...], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["pairs", judged, *arguments])
    assert stopped.value.code == 2
    assert says in capfd.readouterr().err
    assert not Path("runs/demo/pairs.jsonl").exists()
