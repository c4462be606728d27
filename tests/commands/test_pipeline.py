"""The commands from rows to report, as a user runs them, on a tiny Llama folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from dpo_jax import cli
from dpo_jax.experiments import experiment
from dpo_jax.mesh import make_mesh
from dpo_jax.reference import score
from dpo_jax.reference.store import Store
from tests.tiny_experiment import EVAL_ROWS, TRAIN_ROWS, amend, metrics, read_lines, refused


def run(command: str, *arguments: str) -> None:
    cli.main([command, "e.yaml", *arguments])


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts batches at the boundary where the reference's scorer is called."""
    calls = [0]
    make = score.make_scorer

    def counting(apply, **tiles):
        inner = make(apply, **tiles)

        def scored(params, batch):
            calls[0] += 1
            return inner(params, batch)

        return scored

    monkeypatch.setattr("dpo_jax.experiments.texts.make_scorer", counting)
    return calls


@pytest.fixture
def store_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every log-prob that is looked up is 0.1 too high."""
    lookup = Store.lookup

    def shifted(self, row_ids):
        found = lookup(self, row_ids)
        return found._replace(logps_nP=found.logps_nP + np.float32(0.1))

    monkeypatch.setattr(Store, "lookup", shifted)


def test_a_killed_pass_goes_on_at_the_shard_in_flight_and_writes_one_line_per_row_in_data_order(
    scored: str, forwards: list[int], monkeypatch: pytest.MonkeyPatch
):
    shutil.rmtree("runs")
    lines = Path("pairs.jsonl").read_text().splitlines()
    Path("pairs.jsonl").write_text("\n".join([*lines, lines[3]]) + "\n")  # a duplicate is there twice
    append = Store.append

    def killed(self, *args):
        if len(self) == 8:
            raise KeyboardInterrupt
        append(self, *args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(Store, "append", killed)
        run("reference")
    assert stopped.value.code == 130 and forwards[0] == 2
    run("reference", "--jsonl", "scores.jsonl")
    assert forwards[0] == 2 + 3  # shards of 8 and 4 rows were missing, and the held-out rows
    rows = read_lines("scores.jsonl")
    assert len(rows) == TRAIN_ROWS + 1 and rows[TRAIN_ROWS] == rows[3]
    assert list(rows[0]) == ["row_id", "chosen_logps", "rejected_logps", "chosen_tokens", "rejected_tokens"]
    assert all(row["chosen_logps"] < 0 and isinstance(row["chosen_tokens"], int) for row in rows)


def test_train_alone_does_the_reference_pass_and_starts_at_log_two(scored: str, capsys):
    shutil.rmtree("runs")
    run("train")
    found = metrics("runs/demo")
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert found[0]["loss"] == pytest.approx(np.log(2), abs=1e-5) and found[0]["rewards/accuracies"] <= 0.5
    assert found[-1]["loss"] < found[0]["loss"] and found[-1]["rewards/margins"] > 0
    wanted = "rewards/chosen rewards/rejected logps/chosen logps/rejected log_ratios/chosen log_ratios/rejected"
    assert set(wanted.split()) | {"grad_norm", "learning_rate"} <= found[0].keys()
    said = capsys.readouterr().err
    assert f"scores {TRAIN_ROWS + sum(EVAL_ROWS.values())} rows" in said and "policy and reference agree" in said
    assert list(Path("runs/demo/tensorboard").iterdir()) and not Path("runs/demo/profile").exists()


def test_a_run_with_another_loss_beta_and_seed_scores_nothing(scored: str, forwards: list[int], capsys):
    run("reference", "--seed", "5", "--loss.options.beta", "0.5")
    assert forwards[0] == 0
    run("train", "--loss.name", "ipo", "--loss.options.beta", "0.5", "--seed", "5", "--train.steps", "1")
    assert forwards[0] == 1 and capsys.readouterr().err.count("nothing to score") == 2  # the check of step 0 alone
    refused(capsys, "train", "e.yaml", "--loss.name", "ipo", "--loss.options.beta", "0.3", "--seed", "5")
    assert yaml.safe_load(Path("runs/demo/config.yaml").read_text())["loss"][0]["options"] == {"beta": 0.5}
    assert len(list(Path("runs/stores").glob("*/manifest.json"))) == 1
    cli.main(["store", "ls", "runs"])
    said = capsys.readouterr().out
    assert said.count(": 28 rows") == 1 and "demo" in said


def test_a_refused_training_leaves_the_configuration_of_the_run(trained: str, capsys):
    """Of one with a fine-tuning too, which is looked at before."""
    kept = Path("runs/demo/config.yaml").read_bytes()
    assert "holds the beginning of another run" in refused(capsys, "train", "e.yaml", "--loss.options.beta", "0.3")
    assert Path("runs/demo/config.yaml").read_bytes() == kept


def test_rows_are_scored_again_to_verify_a_store(scored: str, forwards: list[int], capsys, request):
    run("reference", "--verify", "5")
    assert forwards[0] == 1 and "5 rows scored again: the largest difference is 0.0" in capsys.readouterr().err
    request.getfixturevalue("store_is_off")
    assert "has log-probs" in refused(capsys, "reference", "e.yaml", "--verify", "7")
    for count in ("some", "0"):
        assert "give the number of rows" in refused(capsys, "reference", "e.yaml", "--verify", count)


def test_listing_stores_tells_mistakes(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["store", "ls"])
    assert "no reference store in . or below" in capsys.readouterr().out
    for argument, says in (("nowhere", "nowhere is not a folder"), ("--x", "not understood")):
        assert says in refused(capsys, "store", "ls", argument)


@pytest.mark.usefixtures("store_is_off")
def test_step_zero_catches_a_store_whose_numbers_are_not_the_policys(scored: str, capsys):
    said = refused(capsys, "train", scored)
    assert "step 0: row" in said and "check" in said


def test_resuming_is_bit_exact_and_refuses_another_experiment(finished: str, capsys):
    broken = ("--workdir", "runs/broken")
    shutil.copytree("runs/demo/sft", "runs/broken/sft")
    run("train", *broken, "--train.steps", "2")
    said = refused(capsys, "train", "e.yaml", *broken, "--loss.options.beta", "0.3", "--optimizer.learning_rate", "0.5")
    assert "loss.0.options.beta: was 0.1, is 0.3" in said and "optimizer.learning_rate: was 0.01, is 0.5" in said
    run("train", *broken, "--profile.start_step", "1", "--profile.num_steps", "2")  # allowed, but that step is done
    assert not Path("runs/broken/profile").exists()
    assert "resumes at step 2 of 4" in capsys.readouterr().err
    run("export", *broken)
    assert metrics("runs/broken") == metrics("runs/demo")
    exports = [Path(f"runs/{name}/export/model.safetensors").read_bytes() for name in ("broken", "demo")]
    assert exports[0] == exports[1]


def test_one_device_and_eight_give_the_same_losses(trained: str, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree("runs/demo/sft", "runs/one/sft")
    monkeypatch.setattr(experiment, "make_mesh", lambda **axes: make_mesh(**axes, devices=jax.devices()[:1]))
    run("train", "--workdir", "runs/one", "--train.steps", "2")
    losses = [[row["loss"] for row in metrics(f"runs/{name}")[:2]] for name in ("one", "demo")]
    np.testing.assert_allclose(*losses, rtol=2e-5)


def test_the_whole_job(finished: str):
    found = json.loads(Path("runs/demo/evaluation.json").read_text())
    assert found["heldout"]["pairs"] == 8 and 0 <= found["heldout"]["accuracy"] <= 1
    assert found["settings"]["max_new_tokens"] == 6
    assert found["kl"]["samples"] == 6 and len(found["samples"]) == 6
    assert sum(each["pairs"] for each in found["heldout"]["calibration"]["bins"]) == 8
    assert found["judged"]["length_controlled"]["win_rate"] > 0
    assert [row["step"] for row in metrics("runs/demo") if "eval/accuracy" in row] == [2, 4]
    assert len(metrics("runs/demo/sft")) == 2
    exported = Path("runs/demo/export")
    assert {"model.safetensors", "config.json", "README.md", "tokenizer.json"} <= {p.name for p in exported.iterdir()}
    assert "<svg" in Path("runs/demo/report.html").read_text()
    before = (exported / "model.safetensors").stat().st_mtime_ns
    amend(evaluation={"samples": 0, "judge": None})
    run("run")  # again: nothing is trained, the rest is made anew
    assert len(metrics("runs/demo")) == 4 and (exported / "model.safetensors").stat().st_mtime_ns != before
    assert "kl" not in json.loads(Path("runs/demo/evaluation.json").read_text())
