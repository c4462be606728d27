"""`dpo-jax sweep`, as a user runs it, on a tiny Llama folder."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from dpo_jax import cli
from dpo_jax.commands import report, results, training
from dpo_jax.errors import UserError
from dpo_jax.experiments import text_evaluation
from dpo_jax.experiments.grid import label_of, read_points
from dpo_jax.experiments.text_steps import TextSteps
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.files import read_sealed, write_sealed
from dpo_jax.reporting.numbers import nats
from tests.commands.test_replaced import other_rows
from tests.reporting.test_analysis import made_up_analysis
from tests.tiny_experiment import EVALUATION, amend, metrics, refused

JUDGED = EVALUATION | {"samples": 4, "best_of": 4}
EVALUATED = {
    "kl": {"exact": 1.5, "exact_interval": [1.0, 2.0]},
    "judged": {name: {"reward": 9.0, "interval": [8.0, 10.0]} for name in ("policy", "reference")},
}
HALVES = {
    "measured": {"chosen": -0.5, "rejected": -1.5},
    "predicted": {"logp": {"rejected": -1.0}, "probability": {"rejected": -2.0}},
}


@pytest.fixture
def trained_points(scored: str, monkeypatch: pytest.MonkeyPatch) -> list[TextExperiment]:
    """The points that were trained: nothing is computed, and all are evaluated alike."""
    points: list[TextExperiment] = []

    def run_train(point: TextExperiment) -> None:
        points.append(point)
        for folder in (point.workdir, point.sft_folder):
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)

    def run_evaluate(point: TextExperiment) -> None:
        (point.workdir / "evaluation.json").write_text(json.dumps(EVALUATED))

    def run_analyse(point: TextExperiment) -> None:
        written = made_up_analysis(halves=HALVES).to_json()
        (point.workdir / "analysis.json").write_text(json.dumps(written))

    monkeypatch.setattr(training, "train", run_train)
    monkeypatch.setattr(results, "evaluate", run_evaluate)
    monkeypatch.setattr(results, "analyse", run_analyse)
    monkeypatch.setattr(report, "run", lambda point: None)
    return points


def run(*grid: str, more: tuple[str, ...] = (), code: int = 0) -> list[dict[str, Any]]:
    with pytest.raises(SystemExit) if code else contextlib.nullcontext() as left:
        cli.main(["sweep", "e.yaml", *more, *(word for text in grid for word in ("--grid", text))])
    assert left is None or left.value.code == code
    return json.loads(Path("runs/demo/sweep.json").read_text())


def table() -> list[str]:
    return Path("runs/demo/sweep.md").read_text().splitlines()


def losses_of(workdir: str) -> list[float]:
    return [row["loss"] for row in metrics(workdir)]


def test_a_point_that_cannot_be_run_is_told_before_the_first_one_runs(
    trained_points: list[TextExperiment], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    amend(evaluation=JUDGED)
    said: list[str] = []

    def train(point: TextExperiment) -> None:
        said.append(capfd.readouterr().err)
        (point.workdir / "checkpoints").mkdir(parents=True)

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(TextSteps, "shared_best_of", lambda self: [])
    judges = "{name: lexicon},{name: lexicon, words: none.txt}"
    found = run("loss.options.beta=0.1,0.2", f"evaluation.judge={judges}", code=2)
    assert said[0].count("is left out: command line: evaluation.judge.words") == 2
    assert [row.get("failed") is None for row in found] == [True, False, True, False]
    assert all("none.txt cannot be read" in row["failed"] for row in found if row.get("failed"))


@pytest.mark.slow("two whole runs")
def test_every_combination_over_one_store(
    scored: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    few, betas = ("--train.steps", "2"), "loss.options.beta=0.1,0.5"
    found = run("loss.name=dpo,unknown", betas, more=few, code=2)
    labels = [f"name={name},beta={beta}" for name in ("dpo", "unknown") for beta in (0.1, 0.5)]
    assert [each["label"] for each in found] == labels
    assert all("evaluation" in each for each in found[:2])
    assert all("'unknown' is unknown" in each["failed"] for each in found[2:])
    assert len(list(Path("runs/stores").iterdir())) == 1 and "scores" not in capfd.readouterr().err
    assert found[1]["compiled"] == 0  # another beta compiles nothing again
    assert "\n".join(table()).count("\n| ") == 2 + 1
    assert "<svg" in Path("runs/demo/sweep.html").read_text()

    # A point is the run of the same settings.
    cli.main(["train", scored, *few, "--workdir", "runs/alone", "--loss.options.beta", "0.5"])
    assert losses_of(f"runs/demo/sweep/{labels[1]}") == losses_of("runs/alone")
    assert losses_of(f"runs/demo/sweep/{labels[0]}") != losses_of("runs/alone")

    monkeypatch.setattr(training, "train", lambda setup: pytest.fail(f"{setup.workdir} is trained again"))
    capfd.readouterr()
    assert run("loss.name=dpo", betas, more=few) == found[:2]
    assert capfd.readouterr().err.count("is done already") == 2

    other_rows()  # under the same name
    again = run("loss.name=dpo", betas, more=few, code=2)
    assert all("rows of data.train: was 20 rows" in each["failed"] for each in again)


def test_points_share_the_fine_tuning_unless_they_change_it(trained_points: list[TextExperiment]) -> None:
    sft = {"data": {"train": [{"path": "pairs.jsonl", "columns": {"completion": "chosen"}}]}, "train": {"steps": 1}}
    amend(sft=sft)
    run("loss.options.beta=0.1,0.5", "sft.train.steps=1,2", more=("--lean",))
    folders = [point.sft_folder.name for point in trained_points]
    assert folders[0] == folders[2] == "sft"
    assert folders[1] == folders[3] != "sft"
    assert not list(Path("runs/demo/sweep").glob("*/checkpoints"))
    assert len(list(Path("runs/demo").glob("sft*/checkpoints"))) == 2


def test_the_frontier_has_the_best_of_n_beside_the_points(
    trained_points: list[TextExperiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    amend(evaluation=JUDGED)
    found = run("loss.options.beta=0.1")
    rows = [line.split(" | ") for line in table()[2:]]
    assert [row[0].strip("| ") for row in rows[:4]] == ["0.1", *(f"best of {n} (KL: at most)" for n in (1, 2, 4))]
    assert len(rows) == 4 + 6  # softer choices among the same responses
    best = json.loads(Path("runs/demo/best_of.json").read_text())["best_of"]
    assert 0 < best[0]["score"] < best[1]["score"] < best[2]["score"]
    assert found[0]["config"]["evaluation"]["best_of"] == 0  # the points do not measure it
    monkeypatch.setattr(text_evaluation, "measure_best_of", lambda *_: pytest.fail("it is measured again"))
    run("loss.options.beta=0.1")
    assert "\n".join(table()).count("best of") == 3 + 6
    run("loss.options.beta=0.1", "data.train.0.flip=0,1")
    assert "\n".join(table()).count("best of") == 3 + 6  # other labels, the same start
    with pytest.raises(pytest.fail.Exception):  # other prompts
        run("loss.options.beta=0.2", more=("--data.eval.0.path", "pairs.jsonl"))
    run("data.max_tokens=60,64")
    assert "best of" not in "\n".join(table())


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
def test_nonsense_is_refused(scored: str, grid: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capfd, "sweep", scored, *(word for text in grid for word in ("--grid", text)))


def test_without_held_out_pairs_there_is_nothing_to_compare(scored: str, capfd) -> None:
    assert "data.eval" in refused(capfd, "sweep", scored, "--grid", "seed=1", "--data.eval", "[]")


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


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e39", "1" + 400 * "0"])
def test_a_point_of_no_number_is_refused_before_any_is_run(value: str) -> None:
    for key in ("loss.options.beta", "optimizer.learning_rate", "train.steps"):
        with pytest.raises(UserError, match=f"command line: --grid {key}=.*is no number that float32 holds"):
            of(f"{key}=1,{value}")


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
        ([{"optimizer.learning_rate": [0.1, math.inf]}], r"sweep\.0\.optimizer\.learning_rate: inf is no number"),
        ([{"loss.options.beta": 1e39}], r"sweep\.0\.loss\.options\.beta: 1e\+39 is no number that float32 holds"),
    ],
)
def test_nonsense_in_the_section(section: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_points((), section, {})


def test_a_sweep_of_the_section(trained_points: list[TextExperiment]) -> None:
    section: list[dict[str, Any]] = [
        {"loss.name": "dpo", "loss.options.beta": [0.1]},
        {"loss": [[{"name": "sft"}, {"name": "orpo"}]], "seed": [0, 1]},
    ]
    amend(sweep=section)
    found = run()
    assert found[0]["settings"] == {"loss.name": "dpo", "loss.options.beta": 0.1}
    assert [each["config"]["loss"][-1]["name"] for each in found] == ["dpo", "orpo", "orpo"]
    assert table()[0].startswith("| name | beta | loss | seeds |") and "over the seeds alone" in table()[-1]
    assert len([line for line in table() if line.startswith("|")]) == 2 + 2
    amend(sweep=[*section, {"seed": 7}])  # points that are done are not run again because others join
    kept = Path("runs/demo/sweep/name=dpo,beta=0.1/point.json")
    point = read_sealed(kept)
    del point["config"]["analysis"], point["config"]["logging"]  # as a version wrote it that did not know them
    write_sealed(kept, point)
    trained_points.clear()
    assert len(run()) == 4 and [point.config.seed for point in trained_points] == [7]
    run(more=("--train.steps", "3"))
    assert len(trained_points) == 1 + 4
    kept.write_text(kept.read_text().replace('"win_rate"', '"win_ratE"').replace("1.5", "0.5"))
    found = run(more=("--train.steps", "3"), code=2)
    assert "damaged: not as it was written. Delete it, and the point is run again." in found[0]["failed"]


def test_points_are_analysed_where_the_configuration_asks_for_it(
    trained_points: list[TextExperiment], capfd: pytest.CaptureFixture[str]
) -> None:
    amend(analysis={"rows": 4, "pairs": 2})
    found = run("loss.name=dpo,kto", code=2)  # which says that a point is missing, once the others are done
    assert "To read each pair as two rows, write unpair: true" in found[1]["failed"]
    assert found[0]["evaluation"]["halves"] == HALVES
    heads, _, row, *_ = table()
    cells = dict(zip(*([cell.strip() for cell in line.split("|")] for line in (heads, row)), strict=True))
    assert cells["chosen in training"] == nats(-0.5) and cells["rejected in training"] == nats(-1.5)
    assert cells["rejected by the field of log-probs"] != cells["rejected by the field of probabilities"]
    run("loss.name=dpo,kto", code=2)
    assert "is done already" in capfd.readouterr().err
