"""`dpo-jax report` as a user runs it: what is on disk is on the page, and what made the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_jax import cli
from tests.reporting.test_report import Page
from tests.stages.test_pipeline import write_rows
from tests.tiny import make_hf_folder


def make_experiment(folder: Path) -> dict[str, Any]:
    """The settings of a tiny run with fine-tuning, held-out rows, samples and a judge, and the files it names."""
    make_hf_folder(folder / "model")
    write_rows(folder / "pairs.jsonl", 8)
    write_rows(folder / "held.jsonl", 4, seed=1)
    (folder / "sft.jsonl").write_text('{"prompt": "a", "completion": " warm lamp"}\n' * 2)
    (folder / "mine.py").write_text("def score(prompts, responses):\n    return [len(text) for text in responses]\n")
    return {
        "workdir": "runs/a",
        "model": {"weights": "model"},
        "data": {
            "train": [{"path": "pairs.jsonl"}],
            "eval": [{"path": "held.jsonl"}],
            "max_prompt_tokens": 32,
            "max_tokens": 64,
        },
        "reference": {"store": "runs/stores"},
        "loss": {"name": "dpo"},
        "optimizer": {"learning_rate": 0.01},
        "train": {"batch_pairs": 4, "steps": 2},
        "sft": {"data": {"train": [{"path": "sft.jsonl"}]}, "train": {"batch_pairs": 2, "steps": 1}},
        "evaluation": {
            "samples": 4,
            "max_new_tokens": 5,
            "judge": {"name": "python", "function": "mine.py:score"},
        },
    }


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was trained, went on for a step, was evaluated and reported."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "a.yaml").write_text(yaml.safe_dump(make_experiment(folder)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments in (["train"], ["train", "--train.steps", "3"], ["evaluate"], ["report"]):
            cli.main([arguments[0], "a.yaml", *arguments[1:]])
    return folder


@pytest.fixture(autouse=True)
def _inside(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(house)


def test_the_page_has_what_is_on_disk(house: Path) -> None:
    text = Page(Path("runs/a/report.html").read_text()).text
    fitted = json.loads(Path("runs/a/fitted.json").read_text())
    assert fitted["responses"] == 8 and fitted["perplexity"] > 1 and isinstance(fitted["fitted"], bool)
    assert f"{fitted['before_fine_tuning']:.0f} before fine-tuning"[-25:] in text.replace(",", "")
    for words in ("Judged by python", "Distance, length and repetition", "Data check", "After: policy", "rows kept"):
        assert words in text
    assert ("Fine-tuning had not fitted" in text) != fitted["fitted"]


def test_the_commands_that_trained_it_are_named_not_the_one_that_reports(house: Path) -> None:
    sessions = json.loads(Path("runs/a/history.json").read_text())
    assert [(each["command"], each["from_step"]) for each in sessions] == [
        ("dpo-jax train a.yaml", 0),
        ("dpo-jax train a.yaml --train.steps 3", 2),
    ]
    text = Page(Path("runs/a/report.html").read_text()).text
    assert "dpo-jax train a.yaml    #" in text and "--train.steps 3    #" in text and "from step 2" in text
    assert "dpo-jax report" not in text and sessions[1]["environment"]["devices"] in text


def test_the_same_run_has_the_same_bytes(house: Path) -> None:
    before = Path("runs/a/report.html").read_bytes()
    cli.main(["report", "a.yaml", "--workdir", "runs/a"])
    assert Path("runs/a/report.html").read_bytes() == before


def test_the_data_is_kept_without_its_rows(house: Path) -> None:
    splits = json.loads(Path("runs/a/data.json").read_text())
    assert [split["name"] for split in splits] == ["data.train", "data.eval"]
    assert all(split["examples"] == [] and ["rows kept", "8", False] in splits[0]["facts"] for split in splits)


def test_the_best_of_n_stands_beside_the_run(house: Path) -> None:
    assert "best of n responses" not in Path("runs/a/report.html").read_text()
    cli.main(["train", "a.yaml", "--workdir", "runs/best"])
    cli.main(["evaluate", "a.yaml", "--workdir", "runs/best", "--evaluation.best_of", "2"])
    cli.main(["report", "a.yaml", "--workdir", "runs/best"])
    page = Page(Path("runs/best/report.html").read_text())
    assert "mean reward against sequence KL" in [attrs.get("aria-label") for _, attrs in page.tags]
    assert ">best of n<" in Path("runs/best/report.html").read_text()


def compare(capsys: pytest.CaptureFixture[str], *others: str) -> str:
    """What is said where that is refused."""
    arguments = [word for other in others for word in ("--compare", other)]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", "a.yaml", *arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_several_runs_on_one_page(house: Path) -> None:
    other = ["b.yaml", "--loss.options.beta", "0.5"]
    Path("b.yaml").write_text(Path("a.yaml").read_text().replace("runs/a", "runs/b"))
    for command in ("train", "evaluate"):
        cli.main([command, *other])
    before = Path("runs/a/report.html").read_bytes()
    cli.main(["report", "a.yaml", "--compare", "b.yaml"])
    by_file = Path("runs/a/comparison.html").read_text()
    cli.main(["report", "a.yaml", "--compare", "runs/b"])
    page = Path("runs/a/comparison.html").read_text()
    assert by_file.replace("--compare b.yaml", "--compare runs/b") == page
    assert Path("runs/a/report.html").read_bytes() == before
    text = Page(page).text
    for words in ("2 runs compared", "loss.options.beta", "0.5", "Gain against cost", "dpo-jax train b.yaml"):
        assert words in text
    found = [json.loads(Path("runs", name, "evaluation.json").read_text()) for name in "ab"]
    assert found[0]["rows"] == found[1]["rows"] and "not evaluated alike" not in text
    assert all(each["samples"][0]["policy"] in text for each in found)

    cli.main(["evaluate", *other, "--evaluation.temperature", "0.5", "--data.eval.0.path", "pairs.jsonl"])
    cli.main(["report", "a.yaml", "--compare", "runs/b"])
    text = Page(Path("runs/a/comparison.html").read_text()).text
    assert "evaluation.temperature" in text and "rows B" in text and "Gain against cost" not in text


def test_what_is_no_run_is_refused(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "runs/nowhere: there is no such working directory" in compare(capsys, "runs/nowhere")
    assert "nowhere.yaml: there is no such configuration file" in compare(capsys, "nowhere.yaml")
    assert "model: is no run: there is no config.yaml" in compare(capsys, "model")
    assert "runs/a is named twice" in compare(capsys, "a.yaml")
    bare = Path("runs/bare")
    bare.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (bare / name).write_bytes(Path("runs/a", name).read_bytes())
    assert "runs/bare: the run has no evaluation yet; run `dpo-jax evaluate`" in compare(capsys, "runs/bare")
