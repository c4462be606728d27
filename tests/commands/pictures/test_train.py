"""Training on pictures and clips through the command line: resumed, stored, adapted, on several devices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from dpo_jax import cli
from dpo_jax.files import read_sealed, write_sealed
from tests.commands.pictures.digits import CLIPS, adapted, opened, weights_of, written
from tests.tiny_experiment import metrics, read_lines, refused


def series(name: str, workdir: str) -> list[float]:
    return [row[name] for row in metrics(workdir)]


@pytest.mark.slow("a pre-training of its own")
def test_the_start_is_the_moving_average(experiment: str) -> None:
    averaged = weights_of("sft", experiment)
    setup = opened(experiment, "--sft.average", "0")
    with jax.set_mesh(setup.mesh):
        last = jax.device_get(setup.start_params())
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), averaged, last)
    assert max(jax.tree.leaves(apart)) > 1e-4


def test_the_first_step_is_where_policy_and_reference_are_one(policy: str) -> None:
    first = metrics()[0]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    assert metrics()[-1]["loss"] < first["loss"]


def test_damaged_held_out_rows_are_told_before_the_training(
    experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/demo/heldout.parquet").write_bytes(b"no parquet")
    assert "heldout.parquet" in refused(capsys, "train", experiment)
    assert not Path("runs/demo/checkpoints").exists() and not Path("runs/demo/metrics.jsonl").exists()


@pytest.mark.parametrize("stage", ["train", "sft"])
def test_resumed_is_unbroken(stage: str, policy: str) -> None:
    folder = Path("runs/demo" if stage == "train" else "runs/demo/sft")
    unbroken, weights = metrics(folder), weights_of(stage, policy)
    (folder / "checkpoints/4.json").unlink()  # as if it had been killed behind step 2
    shutil.rmtree(folder / "checkpoints/4")
    cli.main([stage, policy])
    assert metrics(folder) == unbroken and len(unbroken) == 4
    assert json.loads((folder / "history.json").read_text())[-1]["from_step"] == 2
    jax.tree.map(np.testing.assert_array_equal, weights_of(stage, policy), weights)


@pytest.mark.slow("three trainings")
def test_stored_errors_are_those_of_the_reference_beside_it(
    trained_pictures: Path, experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [experiment, "--reference.draws", "2", "--reference.store", "stores"]
    cli.main(["train", *flags])  # 4 steps of 8 in 16 pairs: two epochs
    for ours, theirs in zip(metrics(), metrics(trained_pictures / "runs/demo"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["gained/chosen"] == pytest.approx(theirs["gained/chosen"], abs=1e-6)
    (folder,) = Path("stores").iterdir()
    manifest = read_sealed(folder / "manifest.json")
    assert [(shard["rows"], shard["slots"]) for shard in manifest["shards"]] == [(16, 4)]
    capsys.readouterr()
    cli.main(["reference", *flags, "--seed", "1", "--jsonl", "errors.jsonl", "--verify", "4"])
    assert len(list(Path("stores").iterdir())) == 2  # stores of other draws lie beside each other
    assert "4 rows scored again: the largest difference is 0.00e+00" in capsys.readouterr().err
    setup = opened(*flags, "--seed", "1")
    with jax.set_mesh(setup.mesh):
        row_ids, scores = setup.scorer(setup.start_params(), setup.train_data.rows)
    lines = read_lines("errors.jsonl")
    assert [line["row_id"] for line in lines] == row_ids
    np.testing.assert_array_equal([line["errors"] for line in lines], scores.errors_nP.reshape(16, 2, 2))
    manifest["fingerprint"]["weights"] = "0" * 64
    write_sealed(folder / "manifest.json", manifest)
    assert "weights: the store has" in refused(capsys, "train", *flags)


@pytest.mark.slow("a training")
def test_a_policy_that_does_not_move(experiment: str) -> None:
    still = [experiment, "--optimizer.learning_rate", "0", "--reference.draws", "1"]
    cli.main(["train", *still])
    first, second = metrics()[:2], metrics()[2:]  # the second epoch has the rows in another order, with the same draws
    means = [np.mean([row["errors/chosen"] for row in rows]) for rows in (first, second)]
    assert means[0] == pytest.approx(means[1], rel=1e-5)
    cli.main(["evaluate", *still])
    found = json.loads(Path("runs/demo/evaluation.json").read_text())
    assert found["judged"]["ties"] == found["judged"]["samples"] == 16  # it samples what the reference does
    assert found["metrics"]["sharpness"]["difference"] == 0.0
    assert found["heldout"]["errors"]["policy"] == pytest.approx(found["heldout"]["errors"]["reference"], rel=1e-6)


def test_an_adapter_leaves_the_weights(experiment: str) -> None:
    flags = ["--lora.rank", "2", "--lora.targets", "[to_q, to_v]"]
    cli.main(["train", experiment, *flags])
    assert metrics()[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    adapter, base = adapted(experiment, *flags), weights_of("sft", experiment)
    np.testing.assert_array_equal(adapter["layers"]["mlp"]["up"]["weight"], base["layers"]["mlp"]["up"]["weight"])
    thin = adapter["layers"]["attention"]["query"]["adapter"]
    assert thin["a"].shape == (1, 16, 2) and np.abs(thin["b"]).max() > 0


@pytest.mark.slow("a training")
def test_labelled_samples(experiment: str) -> None:
    kto = [experiment, "--loss.name", "diffusion_kto"]
    cli.main(["train", *kto])
    assert metrics()[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    cli.main(["evaluate", *kto])
    assert json.loads(Path("runs/demo/evaluation.json").read_text())["heldout"]["pairs"] == 8 * 8


@pytest.mark.slow("compiles for eight devices")
@pytest.mark.parametrize("loss", ["diffusion_dpo", "diffusion_kto"])  # the second reads the whole batch
def test_eight_devices_and_micro_batches_train_as_one(
    loss: str, experiment: str, eight_devices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("runs/demo", "runs/eight")
    train = ["train", experiment, "--loss.name", loss]
    mesh = ["--mesh", "{data: 2, fsdp: 2, tensor: 2}", "--train.micro_batch_pairs", "4"]
    cli.main([*train, *mesh, "--workdir", "runs/eight"])
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda *_: devices[:1])
    cli.main(train)
    for name, tolerance in (("loss", 2e-5), ("grad_norm", 2e-4)):
        np.testing.assert_allclose(series(name, "runs/eight"), series(name, "runs/demo"), rtol=tolerance)


@pytest.mark.slow("trains a model of its own")
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
    assert opened(config, "--loss.temporal_weight", "0").temporal_weight == 0
