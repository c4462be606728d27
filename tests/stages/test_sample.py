"""`dpo-jax sample` as a user runs it: the file, where responses come from, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_jax import cli
from tests.tiny import make_hf_folder

PAIRS = [{"prompt": f"the {word} was\n", "chosen": "warm", "rejected": "cold"} for word in ("lamp", "film", "plot")]
LONG = 40 * "the lamp was warm and "


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment, run for two long steps."""
    folder = tmp_path_factory.mktemp("sample")
    make_hf_folder(folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    config = {
        "workdir": "runs/demo",
        "model": {"weights": "model"},
        "data": {"train": [{"path": "pairs.jsonl"}], "max_prompt_tokens": 24, "max_tokens": 48},
        "loss": {"name": "dpo"},
        "optimizer": {"learning_rate": 0.1},
        "train": {"batch_pairs": 2, "steps": 2},
        "sampling": {"max_new_tokens": 6, "batch_rows": 4},
    }
    (folder / "e.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["train", "e.yaml"])
    return folder


@pytest.fixture(autouse=True)
def _inside(trained: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(trained)
    Path("prompts.jsonl").unlink(missing_ok=True)


def write(*rows: object) -> None:
    Path("prompts.jsonl").write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def sampled(*arguments: str, output: str = "out/samples.jsonl") -> list[dict[str, Any]]:
    cli.main(["sample", "e.yaml", "--prompts", "prompts.jsonl", "--output", output, *arguments])
    return [json.loads(line) for line in Path(output).read_text(encoding="utf8").splitlines()]


def test_one_object_a_prompt_in_the_format_of_alpacaeval(capsys):
    rows = [
        {"instruction": "the lamp\u2028", "dataset": "helpful_base"},
        {"prompt": LONG, "x": 1},
        {"prompt": "the lamp"},
    ]
    write(*rows)
    found = sampled()
    assert [list(row) for row in found] == [
        ["instruction", "output", "generator", "dataset"],
        ["instruction", "output", "generator"],
        ["instruction", "output", "generator"],
    ]
    assert [row["instruction"] for row in found] == ["the lamp\u2028", LONG, "the lamp"]
    assert {row["generator"] for row in found} == {"demo"} and found[0]["dataset"] == "helpful_base"
    assert all(row["output"] == row["output"].strip() for row in found) and any(row["output"] for row in found)
    said = capsys.readouterr().err
    assert "1 of 3 prompts keep only their last 24 tokens" in said and "3/3 responses" in said
    counts = re.search(r"wrote 3 samples to out/samples.jsonl: (\d+) tokens in ([\d.]+) s, ([\d.]+) tokens/s", said)
    assert counts and 3 <= int(counts[1]) <= 18 and float(counts[3]) > 0
    assert [path.name for path in Path("out").iterdir()] == ["samples.jsonl"]  # no part is left behind


def test_a_conversation_is_answered_as_the_chat_template_formats_it():
    talk = [{"role": "user", "content": "the lamp"}, {"role": "assistant", "content": "x"}]
    write({"prompt": "the lamp"}, {"prompt": talk[:1]}, {"prompt": [*talk, {"role": "user", "content": "and?"}]})
    found = sampled("--data.template", "tokenizer", "--sampling.temperature", "0")
    assert found[0]["output"] == found[1]["output"]  # the same tokens
    assert [row["instruction"] for row in found] == [
        "the lamp",
        "user: the lamp",
        "user: the lamp\n\nassistant: x\n\nuser: and?",
    ]


def test_several_samples_to_a_prompt_are_numbered_and_the_seed_decides_them():
    write({"prompt": "the lamp"}, {"prompt": "a quiet film"})
    found = sampled("--sampling.samples", "5")
    assert [row["instruction"] for row in found] == ["the lamp"] * 5 + ["a quiet film"] * 5
    assert [row["sample"] for row in found] == [*range(5), *range(5)]
    assert len({row["output"] for row in found[:5]}) > 1
    assert sampled("--sampling.samples", "5", "--sampling.batch_rows", "1") == found
    assert sampled("--sampling.samples", "5", "--seed", "1") != found


def test_policy_and_reference_are_different_models():
    write({"prompt": "the lamp"}, {"prompt": "a quiet film"})
    greedy = ("--sampling.temperature", "0")
    policy, reference = (sampled(*greedy, "--model", model) for model in ("policy", "reference"))
    assert policy == sampled(*greedy) == sampled("--sampling.top_k", "1") == sampled("--sampling.top_p", "0.0")
    assert {row["generator"] for row in reference} == {"reference"}
    assert [row["output"] for row in policy] != [row["output"] for row in reference]
    # The reference is where training started: the same responses come from a folder that was never trained.
    assert reference == sampled(*greedy, "--model", "reference", "--workdir", "runs/untrained")
    assert sampled() != policy


def test_without_a_file_the_prompts_of_the_held_out_rows_are_answered_and_json_is_one_array():
    held_out = ("--data.eval", "[{path: pairs.jsonl}]")
    cli.main(["sample", "e.yaml", *held_out])
    found = [json.loads(line) for line in Path("runs/demo/samples.jsonl").read_text(encoding="utf8").splitlines()]
    assert [row["instruction"] for row in found] == [row["prompt"] for row in PAIRS]
    cli.main(["sample", "e.yaml", *held_out, "--output", "samples.json"])
    assert json.loads(Path("samples.json").read_text(encoding="utf8")) == found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["sample", "e.yaml", *arguments])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in said
    return said.split("dpo-jax: ", 1)[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --prompts FILE, or set data.eval"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--prompts", "runs"], "runs is a directory"),
        (["--prompts", "prompts.jsonl", "--output", "runs"], "--output runs is a directory"),
        (["--prompts", "prompts.jsonl", "--model", "refernce"], "'refernce' is unknown. Did you mean 'reference'"),
        (["--prompts", "prompts.jsonl", "--workdir", "runs/untrained"], "run `dpo-jax train` first"),
        (["--sampling.top_p", "1.5"], "sampling.top_p: must be at least 0 and at most 1, got 1.5"),
        (["--sampling.topp", "0.9"], "sampling.topp: the key is unknown. Did you mean 'top_p'"),
    ],
)
def test_nonsense(capsys, arguments: list[str], says: str):
    write({"prompt": "the lamp"})
    assert says in refused(capsys, *arguments)


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
def test_bad_rows_name_file_line_and_column_or_are_skipped_and_counted(capsys, row: object, says: str):
    write({"prompt": "the lamp"}, row)
    assert re.search(f"^prompts.jsonl:2: .*{says}", refused(capsys, "--prompts", "prompts.jsonl"))
    assert len(sampled("--data.on_error", "skip")) == 1
    assert "prompts.jsonl: 1 skipped" in capsys.readouterr().err
