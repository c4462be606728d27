"""`dpo-jax sweep`, as a user runs it, on a tiny Llama folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_jax import cli
from dpo_jax.errors import UserError
from dpo_jax.reporting.numbers import nats
from dpo_jax.stages import sft, sweep, train
from dpo_jax.stages.grid import label_of, read_points
from tests.stages.test_pipeline import write_rows
from tests.tiny import make_hf_folder


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    make_hf_folder(tmp_path / "model")
    write_rows(tmp_path / "pairs.jsonl", 8)
    write_rows(tmp_path / "eval.jsonl", 6, seed=1)
    config = {
        "workdir": "runs/demo",
        "model": {"weights": "model"},
        "data": {
            "train": [{"path": "pairs.jsonl"}],
            "eval": [{"path": "eval.jsonl"}],
            "max_prompt_tokens": 32,
            "max_tokens": 64,
        },
        "loss": {"name": "dpo", "options": {"beta": 0.1}},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"batch_pairs": 8, "steps": 2},
    }
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(config))
    return "e.yaml"


def results() -> list[dict[str, Any]]:
    return json.loads(Path("runs/demo/sweep.json").read_text())


def losses_of(label: str) -> list[float]:
    lines = Path("runs/demo/sweep", label, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_every_combination_over_one_store(
    experiment: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    trained = []
    run_train = train.run
    monkeypatch.setattr(train, "run", lambda setup: (trained.append(str(setup.workdir)), run_train(setup)))
    grid = ["--grid", "loss.name=dpo,sppo_hard,unknown", "--grid", "loss.options.beta=0.1,0.5"]
    cli.main(["sweep", experiment, *grid])
    labels = [f"name={name},beta={beta}" for name in ("dpo", "sppo_hard", "unknown") for beta in (0.1, 0.5)]
    found = results()
    assert [each["label"] for each in found] == labels
    assert all("evaluation" in each for each in found[:4])
    assert all("'unknown' is unknown" in each["failed"] for each in found[4:])
    assert len(list(Path("runs/demo/stores").iterdir())) == 1
    assert found[1]["compiled"] == 0  # another beta compiles nothing again
    assert losses_of(labels[0])[1] != losses_of(labels[1])[1]
    assert Path("runs/demo/sweep.md").read_text().count("\n| ") == 4 + 1
    assert "<svg" in Path("runs/demo/sweep.html").read_text()

    before, trained[:] = found, []
    monkeypatch.setattr(train, "run", lambda setup: pytest.fail(f"{setup.workdir} is trained again"))
    capfd.readouterr()
    cli.main(["sweep", experiment, *grid[:1], "loss.name=dpo,sppo_hard", *grid[2:]])
    assert results() == before[:4]
    assert capfd.readouterr().err.count("is done already") == 4


def test_a_point_is_the_run_of_the_same_settings(experiment: str) -> None:
    small = ("--train.batch_pairs", "4")  # else every batch holds all rows, and the seed moves nothing
    cli.main(["sweep", experiment, *small, "--grid", "loss.options.beta=0.5", "--grid", "seed=0,1"])
    cli.main(["train", experiment, *small, "--workdir", "runs/alone", "--loss.options.beta", "0.5", "--seed", "1"])
    alone = [json.loads(line)["loss"] for line in Path("runs/alone/metrics.jsonl").read_text().splitlines()]
    assert losses_of("beta=0.5,seed=1") == alone
    assert losses_of("beta=0.5,seed=0") != alone
    table = Path("runs/demo/sweep.md").read_text().splitlines()
    assert table[0].startswith("| beta | seeds |") and table[2].startswith("| 0.5 | 2 |")


def test_points_share_the_fine_tuning_unless_they_change_it(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"prompt": "the", "completion": f" {word}"}) for word in ("lamp", "room", "film", "plot")]
    Path("sft.jsonl").write_text("\n".join(lines) + "\n")
    config = yaml.safe_load(Path(experiment).read_text())
    config["sft"] = {"data": {"train": [{"path": "sft.jsonl"}]}, "train": {"batch_pairs": 4, "steps": 1}}
    Path(experiment).write_text(yaml.safe_dump(config))
    folders = []
    run_sft = sft.run
    monkeypatch.setattr(sft, "run", lambda setup: (folders.append(setup.sft_folder.name), run_sft(setup)))
    cli.main(["sweep", experiment, "--lean", "--grid", "loss.options.beta=0.1,0.5", "--grid", "sft.train.steps=1,2"])
    assert folders[0] == folders[2] == "sft"
    assert folders[1] == folders[3] != "sft"
    assert not list(Path("runs/demo/sweep").glob("*/checkpoints"))
    assert len(list(Path("runs/demo").glob("sft*/checkpoints"))) == 2


def test_the_frontier_has_the_best_of_n_beside_the_points(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("judge.py").write_text("def score(prompts, responses):\n    return [len(text) for text in responses]\n")
    judged = ["--evaluation.samples", "4", "--evaluation.max_new_tokens", "6", "--evaluation.best_of", "4"]
    judged += ["--evaluation.judge", "{name: python, function: 'judge.py:score'}"]
    cli.main(["sweep", experiment, *judged, "--grid", "loss.options.beta=0.1"])
    table = [line.split(" | ") for line in Path("runs/demo/sweep.md").read_text().splitlines()[2:]]
    assert [row[0].strip("| ") for row in table[:4]] == ["0.1", *(f"best of {n} (KL: at most)" for n in (1, 2, 4))]
    assert len(table) == 4 + 6  # softer choices among the same responses
    rows = json.loads(Path("runs/demo/best_of.json").read_text())["best_of"]
    assert rows[0]["score"] < rows[1]["score"] < rows[2]["score"]
    assert "best_of" not in results()[0]["evaluation"]
    monkeypatch.setattr(sweep, "measure_best_of", lambda *_: pytest.fail("it is measured again"))
    cli.main(["sweep", experiment, *judged, "--grid", "loss.options.beta=0.1"])
    assert Path("runs/demo/sweep.md").read_text().count("best of") == 3 + 6
    cli.main(["sweep", experiment, *judged, "--grid", "loss.options.beta=0.1", "--grid", "data.train.0.flip=0,1"])
    assert Path("runs/demo/sweep.md").read_text().count("best of") == 3 + 6  # other labels, the same start
    with pytest.raises(pytest.fail.Exception):  # other prompts
        cli.main(["sweep", experiment, *judged, "--grid", "loss.options.beta=0.2", "--data.eval.0.path", "pairs.jsonl"])
    cli.main(["sweep", experiment, *judged, "--grid", "data.max_tokens=60,64"])
    assert "best of" not in Path("runs/demo/sweep.md").read_text()


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ([], "name what varies"),
        (["loss.options.beta"], "write a key and its values"),
        (["loss.options.beta="], "write a key and its values"),
        (["=1"], "write a key and its values"),
        (["seed=1,1"], "a value is there twice"),
        (["seed=1,2", "seed=3"], "is given twice"),
        (["seed=[1"], "these are no values"),
        (["seed= "], "there is no value behind"),
        (["seed=2026-01-01"], "no point could be run"),
        (["sede=1"], "no point could be run. The first: command line: sede: the key is unknown"),
    ],
)
def test_nonsense_is_refused(experiment: str, grid: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["sweep", experiment, *(word for text in grid for word in ("--grid", text))])
    assert stopped.value.code == 2
    assert says in capfd.readouterr().err


def test_without_held_out_pairs_there_is_nothing_to_compare(experiment: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(["sweep", experiment, "--grid", "seed=1", "--data.eval", "[]"])


def of(*grid: str) -> list[dict[str, Any]]:
    return read_points(grid, (), {})


def test_small_numbers_are_numbers() -> None:
    assert of("optimizer.learning_rate=1e-5,3e-5") == [
        {"optimizer.learning_rate": 1e-5},
        {"optimizer.learning_rate": 3e-5},
    ]
    assert of("loss.name=dpo,ipo")[1] == {"loss.name": "ipo"}


def test_names_of_folders() -> None:
    points = of("loss.options.beta=0.1", "optimizer.beta1=0.9")
    assert label_of(points[0], points) == "beta=0.1,beta1=0.9"
    points = of("sft.train.steps=1", "train.steps=2")
    assert label_of(points[0], points) == "sft.train.steps=1,train.steps=2"
    points = of("data.train.0.path=../up/x y.jsonl")
    assert label_of(points[0], points).startswith("path=.._up_x_y.jsonl-")
    with pytest.raises(UserError, match="name what varies"):
        of()


SECTION = [
    {"loss.name": "dpo", "loss.options.beta": [0.1, "1e-1x"], "seed": [0, 1]},
    {"loss.name": ["simpo"], "optimizer.learning_rate": "1e-5"},
]


def test_the_section_holds_grids_that_differ() -> None:
    points = read_points((), SECTION, {})
    assert len(points) == 5 and points[-1] == {"loss.name": "simpo", "optimizer.learning_rate": 1e-5}
    assert [label_of(point, points) for point in points][1::3] == [
        "name=dpo,beta=0.1,seed=1",
        "name=simpo,learning_rate=1e-05",
    ]
    assert read_points(["seed=4"], SECTION, {}) == [{"seed": 4}]  # the command line comes instead


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ([{"seed": []}], r"sweep\.0\.seed: there is no value behind it"),
        ([{"seed": 1}, {"seed": [2, 2]}], r"sweep\.1\.seed: a value is there twice"),
        ([{"seed": [1, 2]}, {"seed": 2}], "seed=2 is there twice"),
        ([{}, {}], "is there twice"),
    ],
)
def test_nonsense_in_the_section(section: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_points((), section, {})


def test_a_sweep_of_the_section(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_train = train.run
    config = yaml.safe_load(Path(experiment).read_text())
    config["sweep"] = [
        {"loss.name": "dpo", "loss.options.beta": [0.1]},
        {"loss": [[{"name": "sft"}, {"name": "orpo"}]], "seed": [0, 1]},
    ]
    Path(experiment).write_text(yaml.safe_dump(config))
    cli.main(["sweep", experiment])
    assert results()[0]["settings"] == {"loss.name": "dpo", "loss.options.beta": 0.1}
    assert [each["config"]["loss"][-1]["name"] for each in results()] == ["dpo", "orpo", "orpo"]
    rows = Path("runs/demo/sweep.md").read_text().splitlines()
    assert rows[0].startswith("| name | beta | loss | seeds |") and len(rows) == 2 + 2
    config["sweep"].append({"seed": 7})  # points that are done are not run again because others join
    Path(experiment).write_text(yaml.safe_dump(config))
    monkeypatch.setattr(train, "run", lambda setup: pytest.fail() if setup.config.seed != 7 else run_train(setup))
    kept = Path("runs/demo/sweep/name=dpo,beta=0.1/point.json")
    point = json.loads(kept.read_text())
    del point["config"]["analysis"], point["config"]["logging"]  # as a version wrote it that did not know them
    kept.write_text(json.dumps(point))
    cli.main(["sweep", experiment])
    assert len(results()) == 4
    with pytest.raises(pytest.fail.Exception):
        cli.main(["sweep", experiment, "--train.steps", "3"])


def test_points_are_analysed_where_the_configuration_asks_for_it(
    experiment: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(Path(experiment).read_text())
    Path(experiment).write_text(yaml.safe_dump(config | {"analysis": {"rows": 4, "pairs": 2}}))
    cli.main(["sweep", experiment, "--grid", "loss.name=dpo,kto"])
    assert "kto is trained on labelled completions" in results()[1]["failed"]
    found = json.loads(Path("runs/demo/sweep/name=dpo/analysis.json").read_text())
    assert results()[0]["evaluation"]["halves"] == found["halves"]
    heads, _, row, *_ = Path("runs/demo/sweep.md").read_text().splitlines()
    cells = dict(zip(*([cell.strip() for cell in line.split("|")] for line in (heads, row)), strict=True))
    assert cells["chosen in training"] == nats(found["halves"]["measured"]["chosen"])
    assert cells["rejected by the field of log-probs"] != cells["rejected by the field of probabilities"]
    cli.main(["sweep", experiment, "--grid", "loss.name=dpo,kto"])
    assert "is done already" in capfd.readouterr().err
