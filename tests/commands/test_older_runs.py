"""Runs that an older commit has left half way: checkpoints, stores, records and exports are read, and it goes on.

The archives are made by `older/make.py`, which also says to what end the older code itself came.
"""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dpo_jax import cli
from tests.commands.older.make import compiler
from tests.tiny_experiment import metrics, refused

COMMITS = ("4740043",)


@pytest.fixture(params=COMMITS)
def half_way(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(Path(__file__).parent / f"older/{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)


def assert_same_end(name: str) -> None:
    """To the bit where the same compiler, told the same, made the programs; another one rounds otherwise.

    Then the difference of two log-probs of -20 nats, whose float32 steps are 2e-6, is known to 1e-5.
    """
    same = json.loads(Path("ends/compiler.json").read_text()) == compiler()
    of_metrics, of_weights = (0.0, 0.0) if same else (1e-5, 1e-6)
    for ours, wanted in zip(metrics(f"runs/{name}"), metrics(f"ends/{name}"), strict=True):
        assert ours.keys() == wanted.keys()
        np.testing.assert_allclose(list(ours.values()), list(wanted.values()), rtol=of_weights, atol=of_metrics)
    (export,) = Path(f"runs/{name}").glob("export-*-step-4-*")  # beside that of the older code, which stays
    ours, wanted = (load_file(f"{place}/model.safetensors") for place in (export, f"ends/{name}"))
    assert ours.keys() == wanted.keys()
    for tensor, values in wanted.items():
        np.testing.assert_allclose(ours[tensor], values, rtol=of_weights, atol=of_weights, err_msg=tensor)


@pytest.mark.usefixtures("half_way")
def test_a_training_after_sft_goes_on_with_its_store_to_the_same_end(capsys: pytest.CaptureFixture[str]):
    verified = refused(capsys, "verify", "runs")
    for run in ("full", "full/sft", "adapter"):
        assert f"good  runs/{run}/checkpoints/2: " in verified
    assert "3 shards, 16 rows" in verified
    without = re.findall("bad  (.*): damaged, or of an earlier version: .* its own digest. Export it again.", verified)
    assert without == [f"runs/{run}/export/digests.json" for run in ("adapter", "full")] and verified.count("bad") == 2
    cli.main(["train", "full.yaml"])
    said = capsys.readouterr().err
    assert "already done: step 2 in runs/full/sft" in said and "resumes at step 2 of 4" in said
    assert "16 rows in runs/stores" in said and "nothing to score" in said
    for command in ("export", "report"):
        cli.main([command, "full.yaml"])
    report = Path("runs/full/report.html").read_text()
    sample = json.loads(Path("runs/full/evaluation.json").read_text())["samples"][0]
    assert sample["prompt"] in report and "before fine-tuning" in report  # what the older code found
    assert "from step 0" in report and "from step 2" in report
    assert_same_end("full")
    assert refused(capsys, "verify", "runs").count(" bad ") == 2  # the older exports, as before


@pytest.mark.usefixtures("half_way")
def test_an_adapter_goes_on_with_the_state_of_its_loss_to_the_same_end(capsys: pytest.CaptureFixture[str]):
    for command in ("train", "export"):
        cli.main([command, "adapter.yaml"])
    assert "resumes at step 2 of 4" in capsys.readouterr().err
    assert_same_end("adapter")
