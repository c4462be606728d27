"""`dpo-jax sample` as a user runs it: the file, where responses come from, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from dpo_jax import cli
from tests.tiny_experiment import amend, read_lines, refused, write_lines

LONG = 40 * "the lamp was warm and "
SAMPLE = ("sample", "e.yaml", "--prompts", "prompts.jsonl")
PROMPTS = [{"prompt": "the lamp"}, {"prompt": "a quiet film"}]


@pytest.fixture(scope="module")
def house(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(trained_folder, tmp_path_factory.mktemp("sample"), dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        amend(data={"eval": []}, evaluation=None, sampling={"max_new_tokens": 6, "batch_rows": 8})
    return folder


@pytest.fixture(autouse=True)
def _inside(house: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(house)
    write_lines("prompts.jsonl", PROMPTS)


def sampled(*arguments: str, output: str = "out/samples.jsonl") -> list[dict[str, Any]]:
    cli.main([*SAMPLE, "--output", output, *arguments])
    return read_lines(output)


def test_one_object_a_prompt_in_the_format_of_alpacaeval(capsys):
    rows = [
        {"instruction": "the lamp\u2028", "dataset": "helpful_base"},
        {"prompt": LONG, "x": 1},
        {"prompt": "the lamp"},
    ]
    write_lines("prompts.jsonl", rows)
    found = sampled()
    assert [list(row) for row in found] == [
        ["instruction", "output", "generator", "dataset", "finish_reason"],
        ["instruction", "output", "generator", "finish_reason"],
        ["instruction", "output", "generator", "finish_reason"],
    ]
    assert [row["instruction"] for row in found] == ["the lamp\u2028", LONG, "the lamp"]
    assert {row["generator"] for row in found} == {"demo"} and found[0]["dataset"] == "helpful_base"
    assert all(row["output"] == row["output"].strip() for row in found) and any(row["output"] for row in found)
    said = capsys.readouterr().err
    assert "1 of 3 prompts keep only their last 32 tokens" in said and "3/3 responses" in said
    counts = re.search(r"wrote 3 samples to out/samples.jsonl: (\d+) tokens in ([\d.]+) s, ([\d.]+) tokens/s", said)
    assert counts and 3 <= int(counts[1]) <= 18 and float(counts[3]) > 0
    assert [path.name for path in Path("out").iterdir()] == ["samples.jsonl"]  # no part is left behind


def test_a_conversation_is_answered_as_the_chat_template_formats_it():
    talk = [{"role": "user", "content": "the lamp"}, {"role": "assistant", "content": "x"}]
    asked = ["the lamp", talk[:1], [*talk, {"role": "user", "content": "and?"}]]
    write_lines("prompts.jsonl", [{"prompt": each} for each in asked])
    found = sampled("--data.template", "tokenizer", "--sampling.temperature", "0")
    assert found[0]["output"] == found[1]["output"]  # the same tokens
    assert [row["instruction"] for row in found] == [
        "the lamp",
        "user: the lamp",
        "user: the lamp\n\nassistant: x\n\nuser: and?",
    ]


@pytest.mark.slow("a sampler of its own")
def test_several_samples_to_a_prompt_are_numbered_and_the_seed_decides_them():
    found = sampled("--sampling.samples", "5")
    assert [row["instruction"] for row in found] == ["the lamp"] * 5 + ["a quiet film"] * 5
    assert [row["sample"] for row in found] == [*range(5), *range(5)]
    assert len({row["output"] for row in found[:5]}) > 1
    assert sampled("--sampling.samples", "5", "--sampling.batch_rows", "1") == found
    assert sampled("--sampling.samples", "5", "--seed", "1") != found


@pytest.mark.slow("a sampler each")
def test_policy_and_reference_are_different_models():
    greedy = ("--sampling.temperature", "0")
    policy, reference = (sampled(*greedy, "--model", model) for model in ("policy", "reference"))
    assert policy == sampled(*greedy) == sampled("--sampling.top_k", "1") == sampled("--sampling.top_p", "0.0")
    assert {row["generator"] for row in reference} == {"reference"}
    assert [row["output"] for row in policy] != [row["output"] for row in reference]
    # The reference is where training started: the same responses come from a folder that was never trained.
    shutil.copytree("runs/demo/sft", "runs/untrained/sft")
    assert reference == sampled(*greedy, "--model", "reference", "--workdir", "runs/untrained")
    assert sampled() != policy


def test_without_a_file_the_prompts_of_the_held_out_rows_are_answered_and_json_is_one_array():
    held_out = ("--data.eval", "[{path: held.jsonl}]")
    cli.main(["sample", "e.yaml", *held_out])
    found = read_lines("runs/demo/samples.jsonl")
    assert [row["instruction"] for row in found] == [row["prompt"] for row in read_lines("held.jsonl")]
    cli.main(["sample", "e.yaml", *held_out, "--output", "samples.json"])
    assert json.loads(Path("samples.json").read_text(encoding="utf8")) == found


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --prompts FILE, or set data.eval"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--prompts", "runs"], "runs is a directory"),
        (["--prompts", "prompts.jsonl", "--output", "runs"], "--output runs is a directory"),
        (["--prompts", "prompts.jsonl", "--model", "refernce"], "'refernce' is unknown. Did you mean 'reference'"),
        (["--prompts", "prompts.jsonl", "--workdir", "runs/new"], "run `dpo-jax train` first"),
        (["--sampling.top_p", "1.5"], "sampling.top_p: must be at least 0 and at most 1, got 1.5"),
    ],
)
def test_nonsense(capsys, arguments: list[str], says: str):
    assert says in refused(capsys, "sample", "e.yaml", *arguments)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{oops", "not JSON"),
        (
            {"promt": "x", "id": 1},
            "no column 'prompt' or 'instruction'. Rename 'promt', if that is it. Columns.*id, promt",
        ),
        ({"instructions": "x"}, "Rename 'instructions'"),
        ({"prompt": " \n"}, "column 'prompt' is empty"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "'prompt' ends with a turn of assistant"),
        ({"instruction": None}, "column 'instruction' is null"),
    ],
)
def test_bad_rows_name_file_line_and_column(capsys, row: object, says: str):
    write_lines("prompts.jsonl", [PROMPTS[0], row])
    assert re.search(f"dpo-jax: command line: --prompts: prompts.jsonl:2: .*{says}", refused(capsys, *SAMPLE))


def test_bad_rows_are_skipped_and_counted(capsys):
    write_lines("prompts.jsonl", [*PROMPTS, "{oops", {"instruction": None}])
    assert len(sampled("--data.on_error", "skip")) == 2
    said = capsys.readouterr().err
    assert "--prompts: 1 skipped (not JSON)" in said and "1 skipped (null value)" in said
