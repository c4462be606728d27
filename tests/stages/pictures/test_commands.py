"""The commands on pictures and clips, and what they write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dpo_jax import cli
from tests.stages.pictures.digits import PICTURES, metrics, opened, written


def test_everything_in_order(experiment: str) -> None:
    more = ["--reward.train.steps", "2", "--reward.train.batch_pairs", "8", "--evaluation.samples", "20"]
    more += ["--evaluation.classifier", "[{package: digits, split: train, limit: 300}]"]
    cli.main(["run", experiment, *more])
    workdir = Path("runs/demo")
    found = json.loads((workdir / "evaluation.json").read_text())
    assert found["heldout"]["pairs"] == 8 and found["heldout"]["draws"] == 2
    assert found["judged"]["samples"] == 20 and found["judged"]["judge"] == "quality, 1 brightness"
    assert 0 <= found["classes"]["policy"]["share"] <= 1 and found["classes"]["real"] > 0.5
    with np.load(workdir / "samples.npz") as arrays:
        light = {name: arrays[name].astype(float).mean() / 255 for name in ("policy", "reference")}
        assert arrays["policy"].shape == (20, 8, 8, 1) and list(arrays["shown"][:12]) == [*range(10), 0, 1]
    assert found["judged"]["policy"]["reward"] == pytest.approx(light["policy"], abs=1e-5)
    assert found["metrics"]["brightness"]["reference"] == pytest.approx(light["reference"], abs=1e-5)
    assert json.loads((workdir / "reward/evaluation.json").read_text())["heldout"]["pairs"] == 8
    assert (workdir / "export/config.json").exists()
    page = (workdir / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * 20 and "Scorer" in page and "the policy" in page.lower()


def test_pairs_are_the_judges_best_and_worst(experiment: str) -> None:
    import io

    import pyarrow.parquet as parquet
    from PIL import Image

    rows = parquet.read_table("runs/demo/pairs.parquet").to_pylist()
    assert len(rows) == 16 and [row["class"] for row in rows[:11]] == [*range(10), 0]
    for row in rows:
        light = [np.asarray(Image.open(io.BytesIO(row[side]))).mean() / 255 for side in ("chosen", "rejected")]
        assert light[0] > light[1]
        assert light == pytest.approx([row["chosen_score"], row["rejected_score"]], abs=1e-5)


def test_held_out_pairs_are_others(experiment: str) -> None:
    setup = opened(experiment)
    ours, theirs = ({row.row_id for row in data.rows} for data in (setup.train_data, setup.eval_data) if data)
    assert len(ours) == 16 and len(theirs) == 8 and not ours & theirs


def test_a_policy_that_did_not_move_samples_what_the_reference_does(experiment: str) -> None:
    cli.main(["train", experiment, "--optimizer.learning_rate", "0"])
    cli.main(["evaluate", experiment, "--optimizer.learning_rate", "0"])
    found = json.loads(Path("runs/demo/evaluation.json").read_text())
    assert found["judged"]["ties"] == found["judged"]["samples"] == 16
    assert found["metrics"]["sharpness"]["difference"] == 0.0
    assert found["heldout"]["errors"]["policy"] == pytest.approx(found["heldout"]["errors"]["reference"], rel=1e-6)


def test_a_scorer_judges_another_run(experiment: str) -> None:
    cli.main(["reward", experiment, "--reward.train.steps", "2", "--reward.first_width", "4"])
    judge = "{name: scorer, model: runs/demo}"
    cli.main(["run", experiment, "--workdir", "runs/next", "--evaluation.judge", judge])
    found = json.loads(Path("runs/next/evaluation.json").read_text())["judged"]
    assert found["judge"].startswith("scorer runs/demo, right on")
    assert "its scores may flatter" in Path("runs/next/report.html").read_text()


def test_a_scorer_alone_needs_no_model(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--data", "{train: [{images: runs/demo/pairs.parquet}], eval: [{images: runs/demo/heldout.parquet}]}"]
    more += ["--pairs", "null", "--sft", "null", "--workdir", "runs/next", "--reward.train.steps", "2"]
    cli.main(["reward", experiment, *more])
    assert json.loads(Path("runs/next/reward/evaluation.json").read_text())["heldout"]["pairs"] == 8
    assert not Path("runs/next/sft").exists()
    with pytest.raises(SystemExit):
        cli.main(["train", experiment, *more])
    assert "there are no weights" in capsys.readouterr().err


def test_stores_of_other_draws_lie_beside_each_other(experiment: str) -> None:
    shutil.copytree("runs/demo", "runs/other")
    for seed, workdir in (("0", "runs/demo"), ("1", "runs/other")):
        flags = ["--seed", seed, "--pairs.seed", "0", "--workdir", workdir, "--reference.store", "stores"]
        Path(workdir, "pairs.json").unlink()
        cli.main(["reference", experiment, *flags, "--reference.draws", "2", "--pairs.groups", "4"])
    assert len(list(Path("stores").iterdir())) == 2


def test_weights_fitted_to_preferences(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = "{train: [{images: runs/demo/pairs.parquet}]}"
    more = ["--data", pairs, "--pairs", "null", "--workdir", "runs/next"]
    cli.main(["train", experiment, *more])
    cli.main(["evaluate", experiment, *more, "--evaluation.judge", "{name: quality, metrics: [brightness]}"])
    assert "weights fitted to 16 pairs: brightness" in capsys.readouterr().err
    judged = json.loads(Path("runs/next/evaluation.json").read_text())["judged"]
    assert float(judged["judge"].split()[1]) > 0  # the brighter one was chosen in all of them


def test_check_data(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet as parquet

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


def test_what_texts_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    from dpo_jax.stages.pictures.pairs import encoded

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
    assert metrics()[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    asked = parquet.read_table("runs/demo/pairs.parquet").to_pylist()
    assert all(len(row["embedding"]) == 4 and "class" not in row for row in asked)
    np.testing.assert_allclose(asked[1]["embedding"], rows[1]["embedding"], rtol=1e-6)
    assert not Path("runs/demo/export").exists()  # Diffusers has no class for it


def test_samples_as_files(experiment: str) -> None:
    cli.main(["sample", experiment, "--model", "reference", "--output", "drawn"])
    assert len(list(Path("drawn").rglob("*.png"))) == 16 and Path("drawn/3/00013.png").exists()


def test_points_of_a_sweep_share_pre_training_and_pairs(experiment: str) -> None:
    grid = ["--grid", "seed=0,1", "--pairs.seed", "0", "--pairs.groups", "8"]
    Path("runs/demo/pairs.json").unlink()
    cli.main(["sweep", experiment, *grid, "--lean"])
    rows = Path("runs/demo/sweep.md").read_text().splitlines()
    assert len(rows) == 3 and "win rate" in rows[0] and "| 2 |" in rows[2]
    assert not list(Path("runs/demo/sweep").rglob("pairs.parquet"))
    assert not list(Path("runs/demo/sweep").rglob("sft"))
    assert len(list(Path("runs/demo/sweep").rglob("report.html"))) == 2
