"""The commands on pictures and clips, and what they write."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from dpo_jax import cli
from dpo_jax.experiments.picture_samples import encoded
from tests.commands.pictures.digits import PICTURES, SCORER, opened, written
from tests.tiny_experiment import metrics, refused


def evaluation(workdir: str) -> dict[str, Any]:
    return json.loads(Path(workdir, "evaluation.json").read_text())


def light(row: dict[str, Any]) -> list[float]:
    """The brightness of chosen and rejected."""
    return [np.asarray(Image.open(io.BytesIO(row[side]))).mean() / 255 for side in ("chosen", "rejected")]


def test_pairs_are_the_judges_best_and_worst(experiment: str) -> None:
    rows = parquet.read_table("runs/demo/pairs.parquet").to_pylist()
    assert len(rows) == 16 and [row["class"] for row in rows[:11]] == [*range(10), 0]
    for row in rows:
        chosen, rejected = light(row)
        assert chosen > rejected
        assert [chosen, rejected] == pytest.approx([row["chosen_score"], row["rejected_score"]], abs=1e-5)


def test_everything_in_order(policy: str) -> None:
    classifier = ["--evaluation.classifier", "[{package: digits, split: train, limit: 300}]"]
    cli.main(["run", policy, *SCORER, *classifier])
    workdir = Path("runs/demo")
    found = evaluation("runs/demo")
    assert found["heldout"]["pairs"] == 8 and found["heldout"]["draws"] == 2
    assert found["judged"]["samples"] == 16 and found["judged"]["judge"] == "quality, 1 brightness"
    assert 0 <= found["classes"]["policy"]["share"] <= 1 and found["classes"]["real"] > 0.5
    with np.load(workdir / "samples.npz") as arrays:
        means = {name: arrays[name].astype(float).mean() / 255 for name in ("policy", "reference")}
        assert arrays["policy"].shape == (16, 8, 8, 1) and list(arrays["shown"][:12]) == [*range(10), 0, 1]
    assert found["judged"]["policy"]["reward"] == pytest.approx(means["policy"], abs=1e-5)
    assert found["metrics"]["brightness"]["reference"] == pytest.approx(means["reference"], abs=1e-5)
    assert evaluation("runs/demo/reward")["heldout"]["pairs"] == 8
    assert (workdir / "export/config.json").exists()
    page = (workdir / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * 16 and "Scorer" in page and "the policy" in page.lower()


def test_held_out_pairs_are_others(experiment: str) -> None:
    setup = opened(experiment)
    ours, theirs = ({row.row_id for row in data.rows} for data in (setup.train_data, setup.eval_data) if data)
    assert len(ours) == 16 and len(theirs) == 8 and not ours & theirs


@pytest.mark.slow("a training of a scorer")
def test_a_scorer_judges_another_run(policy: str) -> None:
    shutil.copytree("runs/demo", "runs/next")
    cli.main(["reward", policy, *SCORER])
    shutil.move("runs/demo", "runs/moved")
    judge = ["--workdir", "runs/next", "--evaluation.judge", "{name: scorer, model: runs/moved}"]
    for command in ("pairs", "evaluate", "report"):
        cli.main([command, policy, *judge])
    assert evaluation("runs/next")["judged"]["judge"].startswith("scorer runs/moved, right on")
    assert "its scores may flatter" in Path("runs/next/report.html").read_text()
    rows = parquet.read_table("runs/next/pairs.parquet").to_pylist()
    assert all(row["chosen_score"] > row["rejected_score"] for row in rows)
    assert not all(chosen > rejected for chosen, rejected in map(light, rows))


def test_a_scorer_alone_needs_no_model(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--data", "{train: [{images: runs/demo/pairs.parquet}], eval: [{images: runs/demo/heldout.parquet}]}"]
    more += ["--pairs", "null", "--sft", "null", "--workdir", "runs/next", *SCORER]
    cli.main(["reward", experiment, *more])
    assert evaluation("runs/next/reward")["heldout"]["pairs"] == 8
    assert not Path("runs/next/sft").exists()
    assert "there are no weights" in refused(capsys, "train", experiment, *more)


def test_weights_fitted_to_preferences(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = ["--data", "{train: [{images: runs/demo/pairs.parquet}]}", "--pairs", "null"]
    cli.main(["evaluate", policy, *pairs, "--evaluation.judge", "{name: quality, metrics: [brightness]}"])
    assert "weights fitted to 16 pairs: brightness" in capsys.readouterr().err
    judge = evaluation("runs/demo")["judged"]["judge"]
    assert float(judge.split()[1]) > 0  # the brighter one was chosen in all of them


def test_check_data(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = parquet.read_table("runs/demo/pairs.parquet").to_pylist()
    with Path("more.jsonl").open("w") as file:
        for number, row in enumerate(rows[:3]):
            for side in ("chosen", "rejected"):
                Path(f"{number}{side}.png").write_bytes(row[side])
            same = {"chosen": f"{number}chosen.png", "rejected": f"{number}rejected.png", "class": row["class"]}
            file.write(json.dumps(same) + "\n")
        file.write(json.dumps({"chosen": "nowhere.png", "rejected": "0chosen.png", "class": 0}) + "\n")
    data = {"train": [{"images": "runs/demo/pairs.parquet"}], "eval": [{"images": "more.jsonl"}], "on_error": "skip"}
    cli.main(["check-data", experiment, "--pairs", "null", f"--data={json.dumps(data)}", "--workdir", "runs/next"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "16 rows (2 in each)" in lines and "! 3 rows that are training rows too" in lines
    assert "! 1 rows left out: unreadable file" in lines and "2 show class 1" in lines
    assert "! 100% of 16 chosen members have more brightness" in lines
    page = Path("runs/next/data.html").read_text()
    assert page.count("data:image/png") == 24 + 2 * 16 + 2 * 3


@pytest.mark.slow("trains a model of its own")
def test_what_texts_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dice = np.random.default_rng(0)
    rows = [
        {"image": encoded(dice.integers(0, 256, (8, 8, 1)).astype(np.uint8)), "embedding": dice.normal(size=4).tolist()}
        for _ in range(20)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), "said.parquet")
    config = PICTURES | {
        "pictures": {"height": 8, "width": 8, "channels": 1, "text_width": 4},
        "sft": PICTURES["sft"] | {"data": {"train": [{"images": "said.parquet"}]}},
        "sampling": {"steps": 3, "guidance": 2.0},
    }
    cli.main(["run", written(config, tmp_path)])
    asked = parquet.read_table("runs/demo/pairs.parquet").to_pylist()
    assert len(asked) == 16 and all("class" not in row for row in asked)
    for row, text in zip(asked, rows, strict=False):
        np.testing.assert_allclose(row["embedding"], text["embedding"], rtol=1e-6)
    assert metrics()[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert evaluation("runs/demo")["judged"]["samples"] == 16
    assert not Path("runs/demo/export").exists()  # Diffusers has no class for it


def test_samples_as_files(experiment: str) -> None:
    cli.main(["sample", experiment, "--model", "reference", "--output", "drawn"])
    assert len(list(Path("drawn").rglob("*.png"))) == 16 and Path("drawn/3/00013.png").exists()


@pytest.mark.slow("trains two policies")
def test_points_of_a_sweep_share_pre_training_and_pairs(experiment: str) -> None:
    cli.main(["sweep", experiment, "--grid", "seed=0,1", "--lean"])
    rows = Path("runs/demo/sweep.md").read_text().splitlines()
    assert len([row for row in rows if row.startswith("|")]) == 3 and "win rate" in rows[0] and "| 2 |" in rows[2]
    assert not list(Path("runs/demo/sweep").rglob("pairs.parquet"))
    assert not list(Path("runs/demo/sweep").rglob("sft"))
    assert len(list(Path("runs/demo/sweep").rglob("report.html"))) == 2
