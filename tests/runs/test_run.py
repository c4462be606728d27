"""A working directory: where its parts lie, and the two questions about it."""

from __future__ import annotations

from pathlib import Path

from dpo_jax.runs.run import Place, Run


def test_a_place_has_a_path_and_a_name():
    run = Run(Path("runs/demo"))
    assert run.metrics == Path("runs/demo/metrics.jsonl") and Run.metrics.name == "metrics.jsonl"
    assert run.sft.checkpoints == Path("runs/demo/sft/checkpoints")
    assert run.reward.evaluation == Path("runs/demo/reward/evaluation.json")
    assert (run.name, Run(Path(".")).name) == ("demo", ".")


def test_no_name_is_given_twice():
    names = [place.name for place in vars(Run).values() if isinstance(place, Place)]
    assert len(names) == len(set(names))
    assert not {"sft", "reward"} & set(names)


def test_a_folder_becomes_a_run_and_then_a_trained_one(tmp_path: Path):
    run = Run(tmp_path)
    (tmp_path / "config.json").touch()  # as in a folder of weights
    assert not run.exists and not run.is_trained
    run.config.touch()
    assert run.exists and not run.is_trained
    run.metrics.touch()
    assert run.is_trained
    other = Run(tmp_path / "other")
    other.reward.folder.mkdir(parents=True)
    assert other.exists and not other.is_trained
