"""Experiments on pictures and clips through the command line, on digits that come with scikit-learn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from dpo_jax import cli
from dpo_jax.config import load
from dpo_jax.stages.pictures.setup import PictureSetup

PICTURES: dict[str, Any] = {
    "workdir": "runs/demo",
    "pictures": {"height": 8, "width": 8, "channels": 1, "classes": 10},
    "model": {"patch": 4, "layers": 1, "heads": 2, "head_size": 8, "mlp_width": 64},
    "sft": {
        "seed": 0,
        "data": {"train": [{"package": "digits", "split": "train", "limit": 64}]},
        "average": 0.9,
        "train": {"batch_pairs": 16, "steps": 4, "save_every": 2},
    },
    "pairs": {"groups": 16, "samples": 2, "heldout": 8},
    "loss": {"name": "diffusion_dpo", "options": {"beta": 100.0}},
    "train": {"batch_pairs": 8, "steps": 4, "save_every": 2},
    "sampling": {"steps": 3},
    "evaluation": {"samples": 16, "judge": {"name": "quality", "weights": {"brightness": 1.0}}, "draws": 2},
}
CLIPS = {
    **PICTURES,
    "pictures": {"height": 8, "width": 8, "channels": 1, "frames": 4, "classes": 10},
    "model": {**PICTURES["model"], "frame_patch": 2},
    "sft": {**PICTURES["sft"], "data": {"train": [{"package": "moving-digits", "limit": 32}]}},
    "data": {"train": [{"package": "moving-digits", "pairs": "smooth", "limit": 16}]},
    "evaluation": {"samples": 8, "judge": {"name": "quality", "weights": {"flicker": -1.0}}},
}
del CLIPS["pairs"]  # type: ignore[attr-defined]
MIXED = {"mesh": {"fsdp": 4, "tensor": 2}}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a run whose pre-training and pairs are done."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "e.yaml").write_text(yaml.safe_dump(PICTURES))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["pairs", "e.yaml"])
    return folder


@pytest.fixture
def experiment(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of it, as the current directory."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return "e.yaml"


def written(config: dict[str, Any], folder: Path) -> str:
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    return "c.yaml"


def metrics(folder: str = "runs/demo") -> list[dict[str, Any]]:
    lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if "per_second" not in key} for line in lines]


def opened(config: str, *overrides: str) -> PictureSetup:
    return PictureSetup(*load(config, list(overrides)), command="test")


def trained(config: str, *overrides: str) -> Any:
    setup = opened(config, *overrides)
    with jax.set_mesh(setup.mesh):
        return jax.device_get(setup.trained_params())


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


def test_the_first_step_is_where_policy_and_reference_are_one(experiment: str) -> None:
    cli.main(["train", experiment])
    first = metrics()[0]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    assert metrics()[-1]["loss"] < first["loss"]


@pytest.mark.parametrize("stage", ["train", "sft"])
def test_resumed_is_unbroken(stage: str, experiment: str) -> None:
    folder = Path("runs/demo" if stage == "train" else "runs/demo/sft")
    cli.main([stage, experiment])
    unbroken, weights = metrics(str(folder)), weights_of(stage, experiment)
    (folder / "checkpoints/4.json").unlink()  # as if it had been killed behind step 2
    shutil.rmtree(folder / "checkpoints/4")
    cli.main([stage, experiment])
    assert metrics(str(folder)) == unbroken and len(unbroken) == 4
    assert json.loads((folder / "history.json").read_text())[-1]["from_step"] == 2
    jax.tree.map(np.testing.assert_array_equal, weights_of(stage, experiment), weights)


def weights_of(stage: str, experiment: str) -> Any:
    if stage == "train":
        return trained(experiment)
    setup = opened(experiment)
    with jax.set_mesh(setup.mesh):
        return jax.device_get(setup.start_params())


def test_the_start_is_the_moving_average(experiment: str) -> None:
    averaged = weights_of("sft", experiment)
    setup = opened(experiment, "--sft.average", "0")
    with jax.set_mesh(setup.mesh):
        last = jax.device_get(setup.start_params())
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), averaged, last)
    assert max(jax.tree.leaves(apart)) > 1e-4


def test_stored_errors_are_those_of_the_reference_beside_it(experiment: str) -> None:
    cli.main(["train", experiment, "--workdir", "runs/demo"])
    beside = metrics()
    shutil.rmtree("runs/demo/checkpoints")
    Path("runs/demo/metrics.jsonl").unlink()
    cli.main(["train", experiment, "--reference.draws", "2"])  # 4 steps of 8 in 16 pairs: two epochs
    for ours, theirs in zip(metrics(), beside, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["gained/chosen"] == pytest.approx(theirs["gained/chosen"], abs=1e-6)
    (folder,) = Path("runs/demo/stores").iterdir()
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    assert [(shard["rows"], shard["slots"]) for shard in shards] == [(16, 4)]


def test_stored_errors_repeat_after_their_draws(experiment: str) -> None:
    cli.main(["train", experiment, "--reference.draws", "1", "--optimizer.learning_rate", "0"])
    first, second = metrics()[:2], metrics()[2:]  # the second epoch has the rows in another order, with the same draws
    means = [np.mean([row["errors/chosen"] for row in rows]) for rows in (first, second)]
    assert means[0] == pytest.approx(means[1], rel=1e-5)


def test_a_store_of_other_weights_is_refused(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["reference", experiment, "--reference.draws", "2"])
    (folder,) = Path("runs/demo/stores").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["fingerprint"]["weights"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit):
        cli.main(["train", experiment, "--reference.draws", "2"])
    assert "weights: the store has" in capsys.readouterr().err


def test_an_adapter_leaves_the_weights(experiment: str) -> None:
    cli.main(["train", experiment, "--lora.rank", "2", "--lora.targets", "[to_q, to_v]"])
    assert metrics()[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    adapter = trained(experiment, "--lora.rank", "2", "--lora.targets", "[to_q, to_v]")
    base = weights_of("sft", experiment)
    np.testing.assert_array_equal(adapter["layers"]["mlp"]["up"]["weight"], base["layers"]["mlp"]["up"]["weight"])
    thin = adapter["layers"]["attention"]["query"]["adapter"]
    assert thin["a"].shape == (1, 16, 2) and np.abs(thin["b"]).max() > 0


def test_labelled_samples(experiment: str) -> None:
    cli.main(["train", experiment, "--loss.name", "diffusion_kto"])
    assert metrics()[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    cli.main(["evaluate", experiment, "--loss.name", "diffusion_kto"])
    assert json.loads(Path("runs/demo/evaluation.json").read_text())["heldout"]["pairs"] == 8 * 8


@pytest.mark.parametrize("more", [MIXED, {"mesh": {"data": 2, "fsdp": 4}}])
def test_eight_devices_train_as_one(more: dict[str, Any], experiment: str, tmp_path: Path) -> None:
    one = [f"--mesh={json.dumps({'fsdp': 1})}"]
    devices = jax.devices()
    setup = opened(experiment)
    del setup
    losses = []
    for workdir, mesh in (("runs/one", None), ("runs/eight", more["mesh"])):
        shutil.copytree("runs/demo", workdir)
        with pytest.MonkeyPatch.context() as patch:
            if mesh is None:
                patch.setattr(jax, "devices", lambda *_: devices[:1])
            flags = one if mesh is None else [f"--mesh={json.dumps(mesh)}"]
            cli.main(["train", experiment, "--workdir", workdir, *flags])
        losses.append([row["loss"] for row in metrics(workdir)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)


def test_micro_batches_change_nothing(experiment: str) -> None:
    for loss in ("diffusion_dpo", "diffusion_kto"):
        found = []
        for size in ("8", "2"):
            workdir = f"runs/{loss}{size}"
            shutil.copytree("runs/demo", workdir)
            cli.main(
                ["train", experiment, "--workdir", workdir, "--loss.name", loss, "--train.micro_batch_pairs", size]
            )
            found.append([(row["loss"], row["grad_norm"]) for row in metrics(workdir)])
        np.testing.assert_allclose(found[0], found[1], rtol=2e-4)


def test_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = written(CLIPS, tmp_path)
    cli.main(["run", config])
    first = metrics()[0]
    assert first["temporal_consistency"] > 0
    assert first["loss"] == pytest.approx(np.log(2) + 0.5 * first["temporal_consistency"], abs=1e-4)
    found = json.loads(Path("runs/demo/evaluation.json").read_text())
    assert {"flicker", "temporal_consistency", "motion_smoothness"} <= found["metrics"].keys()
    assert "data:image/webp;base64," in Path("runs/demo/report.html").read_text()
    assert not Path("runs/demo/export").exists()
    cli.main(["train", config, "--workdir", "runs/plain", "--loss.temporal_weight", "0"])
    assert "temporal_consistency" not in metrics("runs/plain")[0]


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


def test_pairs_of_other_settings_are_refused(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", experiment, "--pairs.samples", "3"])
    assert "pairs.samples" in capsys.readouterr().err
    cli.main(["train", experiment])
    with pytest.raises(SystemExit):
        cli.main(["train", experiment, "--loss.options.beta", "7"])
    assert "holds the beginning of another run" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["--pictures.classes", "5", "--pictures.text_width", "4"], "leave out one of the two"),
        (["--model.patch", "3"], "3 does not divide pictures.height, 8"),
        (["--model.schedule", "flow"], "velocity is what schedule flow predicts"),
        (["--loss.temporal_weight", "0.5"], "pictures have no neighbouring frames"),
        (["--loss.name", "dpo"], "'dpo' is unknown"),
        (["--loss.options.beta", "-1"], "a number in (0, inf)"),
        (["--loss.options.gamma", "1"], "diffusion_dpo has no such option"),
        (["--sft", "null"], "there are no weights"),
        (["--pairs", "null"], "name sources of pairs"),
        (["--data.train", "[{images: here}]"], "names other pairs"),
        (["--evaluation.judge", "{name: quality, weights: {flicker: 1}}"], "'flicker' is unknown here"),
        (["--evaluation.judge", "{name: scorer}"], "add `reward:`"),
        (["--model.weights", "nowhere"], "nowhere"),
        (["--sft.train.micro_batch_pairs", "3"], "does not divide"),
        (["--lora.rank", "2", "--lora.targets", "[q_proj]"], "'q_proj' names no linear map"),
        (["--optimiser.learning_rate", "1"], "the key is unknown"),
    ],
)
def test_mistakes_are_one_sentence(
    overrides: list[str], says: str, experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["train", experiment, "--workdir", "runs/next", *overrides])
    told = capsys.readouterr().err
    assert left.value.code == 2 and says in told.splitlines()[-1], told


@pytest.mark.parametrize("command", ["plan", "analyse", "scratch"])
def test_what_is_of_texts_says_so(command: str, experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--topology", "gpu:8"] if command == "plan" else []
    with pytest.raises(SystemExit):
        cli.main([command, experiment, *flags])
    assert f"{command} is not for experiments on pictures" in capsys.readouterr().err
