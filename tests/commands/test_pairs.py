"""`dpo-jax pairs`: from a model and a judge to rows that training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpo_jax import cli
from dpo_jax.experiments.texts import TextExperiment
from tests.tiny_experiment import amend, end_soon, read_lines, refused, write_lines

BY_LENGTH = ("--pairs.judge", "{name: python, function: 'mine.py:score'}")
COMPARED = ("--pairs.judge", "{name: python, function: 'mine.py:compare', compares: true}")
SAMPLING = {"samples": 3, "max_new_tokens": 6, "temperature": 1.5}


@pytest.fixture
def sampling(scored: str) -> str:
    amend(sampling=SAMPLING)
    end_soon()
    return scored


def made(*arguments: str) -> list[dict[str, Any]]:
    cli.main(["pairs", "e.yaml", *arguments])
    return read_lines("runs/demo/pairs.jsonl")


def test_better_against_worse(sampling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, kept = TextExperiment.sample, []

    def once(*arguments: Any) -> Any:
        kept[:] = kept or [sample(*arguments)]
        return kept[0]

    monkeypatch.setattr(TextExperiment, "sample", once)
    found = made(*BY_LENGTH)
    prompts = [row["prompt"] for row in read_lines("pairs.jsonl")]
    assert [row["prompt"] for row in found] == [prompt for prompt in prompts if prompt in {r["prompt"] for r in found}]
    assert len(found) > 4
    for row in found:
        assert row["chosen_score"] == len(row["chosen"].strip()) > len(row["rejected"].strip()) == row["rejected_score"]

    # A judge that compares finds the same extremes.
    compared = made(*COMPARED)
    lengths = [
        [(len(row["chosen"].strip()), len(row["rejected"].strip())) for row in each] for each in (found, compared)
    ]
    assert lengths[0] == lengths[1]
    assert all(0 <= row["rejected_score"] < row["chosen_score"] <= 1 for row in compared)

    every, wide = (made(*BY_LENGTH, "--pairs.select", "all", "--pairs.min_gap", gap) for gap in ("0", "5"))
    gaps = [row["chosen_score"] - row["rejected_score"] for row in every]
    assert len(every) > len(found) and min(gaps) > 0
    assert wide == [row for row, gap in zip(every, gaps, strict=True) if gap > 5]


@pytest.mark.slow("a second training")
def test_a_second_round_is_two_commands(trained: str, capfd: pytest.CaptureFixture[str]) -> None:
    amend(sampling=SAMPLING, sft=None, evaluation=None)
    end_soon()
    assert len(made(*BY_LENGTH)) > 8
    assert "from the trained policy" in capfd.readouterr().err
    second = ("--data.train.0.path", "runs/demo/pairs.jsonl", "--workdir", "runs/second", "--train.steps", "1")
    cli.main(["train", trained, *second])
    assert "done: 1 steps" in capfd.readouterr().err


def test_prompts_of_ones_own_need_no_training_rows_and_conversations_stay_conversations(
    sampling: str, capfd: pytest.CaptureFixture[str]
) -> None:
    turns = [{"role": "user", "content": "the lamp"}]
    write_lines("prompts.jsonl", [{"prompt": prompt, "n": n} for prompt in ("one clever", turns) for n in range(2)])
    asked = ("--pairs.prompts", "[{path: prompts.jsonl}]", "--data.template", "tokenizer")
    found = made(*BY_LENGTH, *asked, "--data.train.0.path", "not-there.jsonl")
    assert "from the model with which training starts" in capfd.readouterr().err
    chats = [row for row in found if row["prompt"] == turns]
    assert chats and {str(row["prompt"]) for row in found} == {"one clever", str(turns)}
    for row in chats:
        assert [turn["role"] for turn in row["chosen"] + row["rejected"]] == ["assistant", "assistant"]
    write_lines("chats.jsonl", chats)
    cli.main(["check-data", sampling, "--data.train.0.path", "chats.jsonl", "--data.template", "tokenizer"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "nobody says which response is better: name pairs.judge"),
        ((*BY_LENGTH, "--sampling.samples", "1"), "sampling.samples: a pair needs 2 responses"),
        ((*BY_LENGTH, "--output", "."), "--output . is a directory"),
        (("--pairs.judge", "{name: python}"), "pairs.judge.function: the judge python needs it"),
        (("--pairs.judge", "{name: reward, model: nowhere}"), "pairs.judge.model: weights 'nowhere'"),
        ((*BY_LENGTH, "--pairs.min_gap", "1000"), "finds no response better than another"),
        ((*BY_LENGTH, "--pairs.select", "some"), "Allowed: all, extremes"),
    ],
)
def test_nonsense_is_refused(
    sampling: str, arguments: tuple[str, ...], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capfd, "pairs", sampling, *arguments)
    assert not Path("runs/demo/pairs.jsonl").exists()


def test_a_response_that_was_cut_is_in_no_pair(sampling: str, capfd: pytest.CaptureFixture[str]) -> None:
    amend(sampling={**SAMPLING, "max_new_tokens": 1})
    Path("model/generation_config.json").write_text('{"eos_token_id": 2}')
    said = refused(capfd, "pairs", sampling, *BY_LENGTH)
    assert "finds no response better" in said and "59 of 60 were cut at sampling.max_new_tokens: raise it" in said


def test_a_cut_sample_is_no_completion_to_learn_from(sampling: str, capfd: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "the lamp", "completion": " was warm", "finish_reason": "length"}
    write_lines("cut.jsonl", [row, {**row, "finish_reason": "stop"}])
    data = ("--sft", "{data: {train: [{path: cut.jsonl}]}, train: {batch_pairs: 8}}")
    assert "cut.jsonl:1: finish_reason is length" in refused(capfd, "sft", sampling, *data)
