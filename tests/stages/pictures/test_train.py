"""Training on pictures and clips through the command line: resumed, stored, adapted, on several devices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dpo_jax import cli
from tests.stages.pictures.digits import CLIPS, metrics, opened, trained, weights_of, written

MIXED = {"mesh": {"fsdp": 4, "tensor": 2}}


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
