"""LoRA from the command line: where it starts, what it leaves alone, what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from dpo_jax import cli
from dpo_jax.stages.setup import Setup
from dpo_jax.training.checkpoint import Checkpoints
from tests.stages.test_pipeline import write_rows
from tests.tiny import make_hf_folder
from tests.tiny_gpt2 import CONFIG, make_gpt2_folder

TIMED = ("tokens_per_second", "pairs_per_second")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, 20 pairs, 6 held-out ones, and an experiment that trains an adapter."""
    folder = tmp_path_factory.mktemp("lora")
    make_hf_folder(folder / "model")
    write_rows(folder / "pairs.jsonl", 20)
    write_rows(folder / "held.jsonl", 6)
    config = {
        "workdir": "runs/demo",
        "model": {"weights": "model"},
        "data": {"train": [{"path": "pairs.jsonl"}], "max_prompt_tokens": 32, "max_tokens": 64},
        "loss": {"name": "dpo"},
        "lora": {"rank": 4, "alpha": 8},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"batch_pairs": 8, "micro_batch_pairs": 4, "steps": 3},
    }
    (folder / "e.yaml").write_text(yaml.safe_dump(config))
    return folder


def run(house: Path, monkeypatch: pytest.MonkeyPatch, command: str, workdir: str, *arguments: str) -> list[dict]:
    monkeypatch.chdir(house)
    cli.main([command, "e.yaml", "--workdir", workdir, *arguments])
    path = Path(workdir, "metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def untimed(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMED} for row in rows]


def test_the_base_is_the_reference_and_no_store_is_needed(house: Path, monkeypatch, capsys):
    found = run(house, monkeypatch, "train", "runs/plain")
    said = capsys.readouterr().err
    assert "policy and reference agree on 4 rows to 0.0e+00 nats" in said
    assert "no store: the reference is the base under the adapter" in said and "trains 4,096 numbers beside 40" in said
    assert found[0]["log_ratios/chosen"] == 0.0 == found[0]["log_ratios/rejected"]  # exactly
    assert found[0]["loss"] == pytest.approx(np.log(2), abs=1e-6) and found[-1]["loss"] < 0.65
    assert not Path("runs/plain/stores").exists()
    saved = {path.parent.name: path.read_text() for path in Path("runs/plain/checkpoints/3").glob("*/_METADATA")}
    assert "adapter" in saved["params"] and "adapter" in saved["rest"]
    assert not any("embedding" in text or "frozen" in text for text in saved.values())


def test_a_store_gives_what_the_base_in_the_step_gives(house: Path, monkeypatch, capsys):
    live = run(house, monkeypatch, "train", "runs/live")
    stored = run(house, monkeypatch, "train", "runs/stored", "--reference.store", "runs/stores")
    assert "policy and reference agree on 4 rows" in capsys.readouterr().err
    for ours, wanted in zip(untimed(stored), untimed(live), strict=True):
        for name in ("log_ratios/chosen_below_reference", "rewards/accuracies"):  # noise decides at step 0
            del ours[name], wanted[name]
        assert ours == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_an_adapter_that_is_not_zero_at_first_is_refused(house: Path, monkeypatch, capsys):
    fresh = Setup.fresh_adapter
    monkeypatch.setattr(
        Setup, "fresh_adapter", lambda self, model, seed: jax.tree.map(lambda x: x + 0.3, fresh(self, model, seed=seed))
    )
    with pytest.raises(SystemExit) as stopped:
        run(house, monkeypatch, "train", "runs/moved")
    assert stopped.value.code == 2 and "in the reference beside it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tdpo1", "kto", "simpo", "aot"])
def test_losses_of_every_kind_train_an_adapter(house: Path, monkeypatch, name: str):
    unpaired = ("--data.train.0.unpair", "true") if name == "kto" else ()
    found = run(house, monkeypatch, "train", f"runs/{name}", "--loss.name", name, *unpaired)
    assert all(np.isfinite(list(row.values())).all() for row in found) and found[-1]["loss"] < found[0]["loss"]
    if name == "kto":
        assert found[0]["loss"] == pytest.approx(0.5, abs=1e-6) and found[0]["log_ratios/mismatched"] == 0.0
        assert found[1]["log_ratios/mismatched"] != 0.0
    assert ("log_ratios/chosen" in found[0]) == (name != "simpo")


def test_kto_is_the_same_with_a_store(house: Path, monkeypatch):
    arguments = ("--loss.name", "kto", "--data.train.0.unpair", "true")
    live = run(house, monkeypatch, "train", "runs/kto-live", *arguments)
    stored = run(house, monkeypatch, "train", "runs/kto-stored", *arguments, "--reference.store", "runs/stores")
    for ours, wanted in zip(untimed(stored), untimed(live), strict=True):
        assert ours == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_dropout_acts_in_training_alone(house: Path, monkeypatch):
    dropout = ("--lora.dropout", "0.5")
    plain = run(house, monkeypatch, "train", "runs/no-dropout")
    found = run(house, monkeypatch, "train", "runs/dropout", *dropout, "--reference.store", "runs/stores")
    again = run(house, monkeypatch, "train", "runs/dropout-again", *dropout, "--reference.store", "runs/stores")
    assert untimed(found) == untimed(again)
    assert found[0]["loss"] == pytest.approx(plain[0]["loss"], abs=1e-5)
    assert abs(found[1]["loss"] - plain[1]["loss"]) > 1e-3


def test_a_killed_run_resumes_exactly(house: Path, monkeypatch):
    arguments = ("--train.save_every", "2", "--train.steps", "4", "--lora.dropout", "0.2")
    whole = run(house, monkeypatch, "train", "runs/whole", *arguments)
    save = Checkpoints.save

    def killed(self: Checkpoints, number: int, *rest: Any) -> None:
        save(self, number, *rest)
        if number == 2:
            self.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(SystemExit):
        run(house, monkeypatch, "train", "runs/parts", *arguments)
    monkeypatch.setattr(Checkpoints, "save", save)
    assert untimed(run(house, monkeypatch, "train", "runs/parts", *arguments)) == untimed(whole)
    with pytest.raises(SystemExit):
        run(house, monkeypatch, "train", "runs/parts", *arguments, "--lora.alpha", "16")


def test_all_the_rest_reads_the_policy_through_its_adapter(house: Path, monkeypatch):
    held = ("--data.eval", "[{path: held.jsonl}]", "--sampling.max_new_tokens", "6", "--sampling.temperature", "0")
    every = ("--evaluation.every", "1", "--evaluation.samples", "4", "--evaluation.max_new_tokens", "6")
    rows = run(house, monkeypatch, "run", "runs/all", *held, *every)
    evaluated = json.loads(Path("runs/all/evaluation.json").read_text())
    assert rows[-1]["eval/margin"] == pytest.approx(evaluated["heldout"]["margin"], rel=1e-4) != 0
    assert rows[0]["eval/margin"] != rows[-1]["eval/margin"] and evaluated["kl"]["sequence_kl"] != 0

    # the exported weights say what the adapter says
    run(house, monkeypatch, "sample", "runs/all", *held)
    cli.main(["sample", "e.yaml", "--workdir", "runs/all", *held, "--model", "reference", "--output", "before.jsonl"])
    cli.main(["sample", "e.yaml", "--workdir", "runs/all2", *held, "--model", "reference", "--output", "after.jsonl",
              "--model.weights", "runs/all/export"])  # fmt: skip
    ours, before, after = (
        [json.loads(line)["output"] for line in Path(name).read_text().splitlines()]
        for name in ("runs/all/samples.jsonl", "before.jsonl", "after.jsonl")
    )
    assert ours == after != before


def test_an_adapter_folder_is_what_the_merged_weights_are(house: Path, monkeypatch):
    run(house, monkeypatch, "train", "runs/export", "--lora.targets", "[q_proj, '*.mlp.down_proj']")
    run(house, monkeypatch, "export", "runs/export", "--lora.targets", "[q_proj, '*.mlp.down_proj']")
    merged = load_file("runs/export/export/model.safetensors")
    run(
        house,
        monkeypatch,
        "export",
        "runs/export",
        "--lora.targets",
        "[q_proj, '*.mlp.down_proj']",
        "--lora",
        "adapter",
    )
    folder = Path("runs/export/export")
    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert not (folder / "model.safetensors").exists()
    thin, base = load_file(folder / "adapter_model.safetensors"), load_file("model/model.safetensors")
    assert len(thin) == 2 * 2 * 2
    for name, weight in base.items():
        a = thin.pop(f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight", None)
        wanted = weight
        if a is not None:
            b = thin.pop(f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight")
            wanted = weight + 2.0 * b @ a
            assert np.abs(b @ a).max() > 1e-4
        np.testing.assert_allclose(merged[name], wanted, atol=1e-6, rtol=0 if a is None else 1e-6)
    assert not thin


def test_fine_tuning_with_an_adapter_gives_the_base_of_the_next(house: Path, monkeypatch):
    rows = [json.loads(line) for line in (house / "pairs.jsonl").read_text().splitlines()]
    lines = [json.dumps({"prompt": row["prompt"], "completion": row["chosen"]}) + "\n" for row in rows]
    (house / "sft.jsonl").write_text("".join(lines))
    sft = "{data: {train: [{path: sft.jsonl}]}, lora: {rank: 2}, optimizer: {learning_rate: 0.01}, train: {steps: 2}}"
    found = run(house, monkeypatch, "train", "runs/sft", "--sft", sft)
    assert found[0]["log_ratios/chosen"] == 0.0 and found[-1]["loss"] < found[0]["loss"]
    plain = run(house, monkeypatch, "train", "runs/no-sft")
    assert abs(found[0]["logps/chosen"] - plain[0]["logps/chosen"]) > 0.1
    run(house, monkeypatch, "export", "runs/sft", "--sft", sft, "--lora", "adapter")
    base = json.loads(Path("runs/sft/export/adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(Path("runs/sft/sft/export").resolve())
    tuned, model = load_file(Path(base, "model.safetensors")), load_file("model/model.safetensors")
    moved = {name for name in model if not np.array_equal(tuned[name], model[name])}
    assert len(moved) == 14 and all("proj" in name for name in moved)


def test_gpt2_and_bfloat16(house: Path, monkeypatch, capsys):
    make_gpt2_folder(house / "gpt2")
    arguments = (
        "--model.weights",
        "gpt2",
        "--lora.targets",
        "[attn.c_proj]",
        "--data.max_tokens",
        str(CONFIG["n_positions"]),
    )
    found = run(house, monkeypatch, "train", "runs/gpt2", *arguments)
    assert found[0]["log_ratios/chosen"] == 0.0 and found[-1]["loss"] < found[0]["loss"]
    run(house, monkeypatch, "export", "runs/gpt2", *arguments, "--lora", "adapter")
    config = json.loads(Path("runs/gpt2/export/adapter_config.json").read_text())
    assert (
        config["fan_in_fan_out"] is True and config["target_modules"] == r"(transformer[.]h[.][0-9]+[.]attn[.]c_proj)"
    )
    found = run(house, monkeypatch, "train", "runs/bf16", "--model.dtype", "bfloat16")
    assert found[0]["log_ratios/chosen"] == 0.0 and found[-1]["loss"] < found[0]["loss"]
    assert "0.1 MB frozen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--lora.targets", "[q_prj]"],
            "lora.targets: 'q_prj' names no linear map; an adapter is on that of every layer",
        ),
        (["--lora.targets", "[q_prj]"], "Did you mean 'q_proj'"),
        (["--lora.targets", "[model.layers.0.self_attn.q_proj]"], "names no linear map"),
        (["--lora.targets", "[]"], "lora.targets: names no linear map"),
        (["--lora.targets", "[lm_head]"], "is the embedding or the head"),
        (["--lora.rank", "0"], "lora.rank"),
        (["--lora.dropout", "1"], "lora.dropout"),
        (["--lora.rnk", "3"], "Did you mean 'rank'"),
        (["--reference.update_every", "2"], "the base under the adapter, which never moves"),
        (["--export.max_shard_size", "5XB"], "'5XB' is not a size"),
    ],
)
def test_nonsense_is_told(house: Path, monkeypatch, capsys, arguments: list[str], says: str):
    with pytest.raises(SystemExit) as stopped:
        run(house, monkeypatch, "train", "runs/nonsense", *arguments)
    assert stopped.value.code == 2 and says in capsys.readouterr().err


def test_without_an_adapter_none_is_exported(house: Path, monkeypatch, capsys):
    monkeypatch.chdir(house)
    config = yaml.safe_load(Path("e.yaml").read_text())
    del config["lora"]
    Path("full.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        cli.main(["export", "full.yaml", "--lora", "adapter"])
    assert "there is no adapter" in capsys.readouterr().err
