"""`dpo-jax report` as a user runs it: what is on disk is on the page, and what made the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dpo_jax import cli
from tests.reporting.test_report import Page
from tests.tiny_experiment import refused


@pytest.fixture(scope="module")
def house(finished_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that went on for a step and was reported again."""
    folder = shutil.copytree(finished_folder, tmp_path_factory.mktemp("report"), dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["train", "e.yaml", "--train.steps", "5"])
        cli.main(["report", "e.yaml"])
    return folder


@pytest.fixture(autouse=True)
def _inside(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(house)


def shown() -> str:
    return Page(Path("runs/demo/report.html").read_text()).text


def test_the_page_has_what_is_on_disk() -> None:
    text = shown()
    fitted = json.loads(Path("runs/demo/fitted.json").read_text())
    assert fitted["responses"] == 20 and fitted["perplexity"] > 1 and isinstance(fitted["fitted"], bool)
    assert f"{fitted['before_fine_tuning']:.0f} before fine-tuning"[-25:] in text.replace(",", "")
    for words in ("Judged by python", "Distance, length and repetition", "Data check", "After: policy", "rows kept"):
        assert words in text
    assert ("Fine-tuning had not fitted" in text) != fitted["fitted"]
    # The data is kept without its rows.
    splits = json.loads(Path("runs/demo/data.json").read_text())
    assert [split["name"] for split in splits] == ["data.train", "data.eval"]
    assert all(split["examples"] == [] for split in splits) and ["rows kept", "20", False] in splits[0]["facts"]


def test_the_commands_that_trained_it_are_named_not_the_one_that_reports() -> None:
    sessions = json.loads(Path("runs/demo/history.json").read_text())
    assert [(each["command"], each["from_step"]) for each in sessions] == [
        ("dpo-jax train e.yaml", 0),
        ("dpo-jax train e.yaml --train.steps 5", 4),
    ]
    text = shown()
    assert "dpo-jax train e.yaml    #" in text and "--train.steps 5    #" in text and "from step 4" in text
    assert "dpo-jax report" not in text and sessions[1]["environment"]["devices"] in text


def test_an_evaluation_of_earlier_weights_is_not_that_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    words = "evaluation.json is of step 4, but the training has come to step 5"
    assert words in shown()
    shutil.copytree("runs/demo", "runs/copy")
    assert words in compare(capsys, "runs/copy")
    cli.main(["export", "e.yaml", "--dtype", "bfloat16"])
    card = Path("runs/demo/export-merged-step-5-bfloat16/README.md").read_text()
    assert words in card and "## Results" not in card and "wins" not in card


def test_an_evaluation_of_other_weights_of_the_same_step_is_told(tmp_path: Path) -> None:
    shutil.copytree("runs/demo", tmp_path / "again")
    path = tmp_path / "again" / "evaluation.json"
    measured = json.loads(path.read_text())
    assert set(measured) >= {"step", "checkpoint", "rows"}
    path.write_text(json.dumps(measured | {"step": 5}))
    cli.main(["report", "e.yaml", "--workdir", str(tmp_path / "again")])
    page = Page((tmp_path / "again" / "report.html").read_text()).text
    assert "evaluation.json is of step 5, but the training has come to another step 5" in page


@pytest.mark.slow("a training and samples")
def test_the_best_of_n_stands_beside_the_run(finished: str) -> None:
    assert "best of n responses" not in Path("runs/demo/report.html").read_text()
    cli.main(["evaluate", finished, "--evaluation.best_of", "2"])
    cli.main(["report", finished])
    page = Page(Path("runs/demo/report.html").read_text())
    assert "mean reward against sequence KL" in [attrs.get("aria-label") for _, attrs in page.tags]
    assert ">best of n<" in Path("runs/demo/report.html").read_text()


def compare(capsys: pytest.CaptureFixture[str], other: str) -> str:
    """Return the words with which a comparison is refused."""
    return refused(capsys, "report", "e.yaml", "--compare", other)


@pytest.mark.slow("two trainings")
def test_several_runs_on_one_page() -> None:
    shutil.copytree("runs/demo/sft", "runs/b/sft")
    other = ["b.yaml", "--loss.options.beta", "0.5"]
    Path("b.yaml").write_text(Path("e.yaml").read_text().replace("runs/demo", "runs/b"))
    for command in ("train", "evaluate"):
        cli.main([command, *other])
    cli.main(["evaluate", "e.yaml"])  # whose training has gone on
    before = Path("runs/demo/report.html").read_bytes()
    cli.main(["report", "e.yaml", "--compare", "b.yaml"])
    by_file = Path("runs/demo/comparison.html").read_text()
    cli.main(["report", "e.yaml", "--compare", "runs/b"])
    page = Path("runs/demo/comparison.html").read_text()
    assert by_file.replace("--compare b.yaml", "--compare runs/b") == page
    assert Path("runs/demo/report.html").read_bytes() == before
    text = Page(page).text
    for words in ("2 runs compared", "loss.options.beta", "0.5", "Gain against cost", "dpo-jax train b.yaml"):
        assert words in text
    found = [json.loads(Path("runs", name, "evaluation.json").read_text()) for name in ("demo", "b")]
    assert found[0]["rows"] == found[1]["rows"] and "not evaluated alike" not in text
    assert all(each["samples"][0]["policy"] in text for each in found)

    found[1]["settings"]["temperature"], found[1]["rows"] = 0.5, "others"  # as if it were evaluated anew
    Path("runs/b/evaluation.json").write_text(json.dumps(found[1]))
    cli.main(["report", "e.yaml", "--compare", "runs/b"])
    text = Page(Path("runs/demo/comparison.html").read_text()).text
    assert "evaluation.temperature" in text and "rows B" in text and "Gain against cost" not in text


def test_what_is_no_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "runs/nowhere: there is no such working directory" in compare(capsys, "runs/nowhere")
    assert "nowhere.yaml: there is no such configuration file" in compare(capsys, "nowhere.yaml")
    assert "model: is no run: there is no config.yaml" in compare(capsys, "model")
    assert "runs/demo is named twice" in compare(capsys, "e.yaml")
    bare = Path("runs/bare")
    bare.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (bare / name).write_bytes(Path("runs/demo", name).read_bytes())
    assert "runs/bare: the run has no evaluation yet; run `dpo-jax evaluate`" in compare(capsys, "runs/bare")
