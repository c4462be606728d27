"""LoRA from the command line: where it starts, what it leaves alone, what it writes, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from dpo_jax.experiments.texts import TextExperiment
from tests.tiny_experiment import forget, make_experiment, read_lines, refused, run
from tests.tiny_gpt2 import CONFIG, make_gpt2_folder


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment that trains an adapter."""
    sections: dict[str, Any] = {"lora": {"rank": 4, "alpha": 8}, "optimizer": {"learning_rate": 1e-2}}
    return make_experiment(tmp_path_factory.mktemp("lora"), reference=None, train={"steps": 3}, **sections)


@pytest.fixture(scope="module")
def plain(house: Path) -> tuple[list[dict], str]:
    """The metrics of the experiment as it is, and what it said."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        return run(house, "train", "runs/plain"), said.getvalue()


@pytest.mark.slow("two trainings")
def test_the_base_is_the_reference_and_no_store_is_needed(house: Path, plain):
    rows, said = plain
    assert "policy and reference agree on 4 rows to 0.0e+00 nats" in said
    assert "no store: the reference is the base under the adapter" in said and "trains 4,096 numbers beside 40" in said
    assert rows[0]["log_ratios/chosen"] == 0.0 == rows[0]["log_ratios/rejected"]  # exactly
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-6) and rows[-1]["loss"] < 0.65
    assert not (house / "runs/plain/stores").exists()
    saved = {path.parent.name: path.read_text() for path in (house / "runs/plain/checkpoints/3").glob("*/_METADATA")}
    assert "adapter" in saved["params"] and "adapter" in saved["rest"]
    assert not any("embedding" in text or "frozen" in text for text in saved.values())


@pytest.mark.slow("a whole command")
def test_a_store_gives_what_the_base_in_the_step_gives(house: Path, plain, capsys):
    found = run(house, "train", "runs/stored", "--reference.store", "runs/stores")
    assert "policy and reference agree on 4 rows" in capsys.readouterr().err
    noise = ("log_ratios/chosen_below_reference", "rewards/accuracies")  # noise decides at step 0
    for ours, wanted in zip(found, plain[0], strict=True):
        assert {name: value for name, value in ours.items() if name not in noise} == pytest.approx(
            {name: value for name, value in wanted.items() if name not in noise}, rel=1e-3, abs=1e-4
        )


def test_an_adapter_that_is_not_zero_at_first_is_refused(house: Path, monkeypatch, capsys):
    fresh = TextExperiment.fresh_adapter
    monkeypatch.setattr(
        TextExperiment,
        "fresh_adapter",
        lambda self, model, seed: jax.tree.map(lambda x: x + 0.3, fresh(self, model, seed=seed)),
    )
    monkeypatch.chdir(house)
    assert "in the reference beside it" in refused(capsys, "train", "e.yaml", "--workdir", "runs/moved")


@pytest.mark.slow("a whole command")
def test_losses_of_every_kind_train_an_adapter(house: Path):
    """The whole distribution of the base, no reference at all, and the whole batch."""
    losses = ("tdpo1", "simpo", "aot")
    rows = run(house, "train", "runs/kinds", "--loss", json.dumps([{"name": name} for name in losses]))
    assert all(np.isfinite(list(row.values())).all() for row in rows) and rows[0]["log_ratios/chosen"] == 0.0
    assert all(rows[-1][f"loss/{name}"] < rows[0][f"loss/{name}"] for name in losses)


@pytest.mark.slow("a whole command")
def test_the_base_scores_mismatched_completions_in_the_step(house: Path):
    rows = run(house, "train", "runs/kto", "--loss.name", "kto", "--data.train.0.unpair", "true")
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-6) and rows[0]["log_ratios/mismatched"] == 0.0
    assert rows[1]["log_ratios/mismatched"] != 0.0 and rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.slow("whole commands")
def test_dropout_acts_in_training_alone_and_a_killed_run_resumes_exactly(house: Path, plain, capsys):
    arguments = ("--lora.dropout", "0.5", "--reference.store", "runs/stores", "--train.save_every", "2")
    whole = run(house, "train", "runs/dropout", *arguments)
    assert whole[0]["loss"] == pytest.approx(plain[0][0]["loss"], abs=1e-5)
    assert abs(whole[1]["loss"] - plain[0][1]["loss"]) > 1e-3
    forget(house / "runs/dropout", 3)
    with contextlib.chdir(house):
        said = refused(capsys, "train", "e.yaml", "--workdir", "runs/dropout", *arguments, "--lora.alpha", "16")
    assert "lora.alpha" in said
    assert run(house, "train", "runs/dropout", *arguments) == whole


@pytest.mark.slow("whole commands")
def test_all_the_rest_reads_the_policy_through_its_adapter(house: Path):
    held = ("--data.eval", "[{path: held.jsonl}]", "--sampling.max_new_tokens", "6", "--sampling.temperature", "0")
    every = ("--evaluation.every", "1", "--evaluation.samples", "4", "--evaluation.max_new_tokens", "6")
    rows = run(house, "run", "runs/all", *held, *every)
    evaluated = json.loads((house / "runs/all/evaluation.json").read_text())
    assert rows[-1]["eval/margin"] == pytest.approx(evaluated["heldout"]["margin"], rel=1e-4) != 0
    assert rows[0]["eval/margin"] != rows[-1]["eval/margin"] and evaluated["kl"]["sequence_kl"] != 0

    # the exported weights say what the adapter says
    run(house, "sample", "runs/all", *held)
    reference = (*held, "--model", "reference")
    run(house, "sample", "runs/all", *reference, "--output", "before.jsonl")
    run(house, "sample", "runs/all2", *reference, "--output", "after.jsonl", "--model.weights", "runs/all/export")
    ours, before, after = (
        [row["output"] for row in read_lines(house / name)]
        for name in ("runs/all/samples.jsonl", "before.jsonl", "after.jsonl")
    )
    assert ours == after != before


@pytest.mark.slow("whole commands")
def test_an_adapter_folder_is_what_the_merged_weights_are(house: Path, capsys):
    targets = ("--lora.targets", "[q_proj, '*.mlp.down_proj']")
    run(house, "train", "runs/export", *targets)
    run(house, "export", "runs/export", *targets)
    folder = house / "runs/export/export"
    merged = load_file(folder / "model.safetensors")
    run(house, "export", "runs/export", *targets, "--lora", "adapter")
    assert (folder / "model.safetensors").exists()  # the merged one stays
    folder = folder.with_name("export-adapter-step-3-float32")
    assert f"this one goes to runs/export/{folder.name}" in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (str((house / "model").resolve()), None)
    thin, base = load_file(folder / "adapter_model.safetensors"), load_file(house / "model/model.safetensors")
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


@pytest.mark.slow("whole commands")
def test_fine_tuning_with_an_adapter_gives_the_base_of_the_next(house: Path, plain):
    data = "{train: [{path: pairs.jsonl, columns: {completion: chosen}}]}"
    sft = f"{{data: {data}, lora: {{rank: 2}}, optimizer: {{learning_rate: 0.01}}, train: {{steps: 2}}}}"
    found = run(house, "train", "runs/sft", "--sft", sft)
    assert found[0]["log_ratios/chosen"] == 0.0 and found[-1]["loss"] < found[0]["loss"]
    assert abs(found[0]["logps/chosen"] - plain[0][0]["logps/chosen"]) > 0.1
    run(house, "export", "runs/sft", "--sft", sft, "--lora", "adapter")
    adapter = json.loads((house / "runs/sft/export/adapter_config.json").read_text())
    base = house / "runs/sft/sft/export"
    assert adapter["base_model_name_or_path"] == str(base.resolve())
    tuned, model = (load_file(folder / "model.safetensors") for folder in (base, house / "model"))
    moved = {name for name in model if not np.array_equal(tuned[name], model[name])}
    assert len(moved) == 14 and all("proj" in name for name in moved)


@pytest.mark.slow("whole commands")
def test_a_base_that_peft_cannot_open_is_exported_as_a_folder(house: Path, monkeypatch):
    run(house, "train", "runs/packed")
    monkeypatch.setattr("dpo_jax.experiments.text_steps.base_of", lambda location: None)  # as of a package
    run(house, "export", "runs/packed", "--lora", "adapter")
    folder = house / "runs/packed/base"
    config = json.loads((house / "runs/packed/export/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder.resolve())
    run(house, "export", "runs/packed", "--base")  # the same by name
    given, written = (load_file(each / "model.safetensors") for each in (house / "model", folder))
    assert given.keys() == written.keys() and all((given[name] == written[name]).all() for name in given)


@pytest.mark.slow("whole commands")
def test_gpt2_and_bfloat16(house: Path, capsys):
    make_gpt2_folder(house / "gpt2")
    positions = ("--data.max_tokens", str(CONFIG["n_positions"]))
    arguments = ("--model.weights", "gpt2", "--lora.targets", "[attn.c_proj]", *positions, "--model.dtype", "bfloat16")
    rows = run(house, "train", "runs/gpt2", *arguments)
    assert rows[0]["log_ratios/chosen"] == 0.0 and rows[-1]["loss"] < rows[0]["loss"]
    assert "0.0 MB frozen" in capsys.readouterr().err  # 0.1 in float32
    run(house, "export", "runs/gpt2", *arguments, "--lora", "adapter")
    config = json.loads((house / "runs/gpt2/export/adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True
    assert config["target_modules"] == r"(transformer[.]h[.][0-9]+[.]attn[.]c_proj)"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--lora.targets", "[q_prj]"], "lora.targets: 'q_prj' names no linear map; an adapter is on that of every"),
        (["--lora.targets", "[q_prj]"], "Did you mean 'q_proj'"),
        (["--lora.targets", "[model.layers.0.self_attn.q_proj]"], "names no linear map"),
        (["--lora.targets", "[]"], "lora.targets: names no linear map"),
        (["--lora.targets", "[lm_head]"], "is the embedding or the head"),
        (["--lora.rank", "0"], "lora.rank"),
        (["--lora.dropout", "1"], "lora.dropout"),
        (["--reference.update_every", "2"], "the base under the adapter, which never moves"),
        (["--export.max_shard_size", "5XB"], "'5XB' is not a size"),
    ],
)
def test_nonsense_is_told(house: Path, monkeypatch, capsys, arguments: list[str], says: str):
    monkeypatch.chdir(house)
    assert says in refused(capsys, "train", "e.yaml", "--workdir", "runs/nonsense", *arguments)


def test_without_an_adapter_none_is_exported(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(make_experiment(tmp_path))
    assert "there is no adapter" in refused(capsys, "export", "e.yaml", "--lora", "adapter")
