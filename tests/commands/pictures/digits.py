"""Tiny experiments on digits that come with scikit-learn, and what they leave behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import yaml

from dpo_jax.config import load
from dpo_jax.experiments.picture_steps import PictureSteps

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
    "pairs": {"groups": 16, "samples": 2, "heldout": 8, "seed": 0},
    "loss": {"name": "diffusion_dpo", "options": {"beta": 100.0}},
    "train": {"batch_pairs": 8, "steps": 4, "save_every": 2},
    "sampling": {"steps": 3},
    "evaluation": {"samples": 16, "judge": {"name": "quality", "weights": {"brightness": 1.0}}, "draws": 2},
}
SCORER = ["--reward.train.steps", "2", "--reward.train.batch_pairs", "8", "--reward.first_width", "4"]

CLIPS = {
    **PICTURES,
    "pictures": {"height": 8, "width": 8, "channels": 1, "frames": 4, "classes": 10},
    "model": {**PICTURES["model"], "frame_patch": 2},
    "sft": {**PICTURES["sft"], "data": {"train": [{"package": "moving-digits", "limit": 32}]}},
    "data": {"train": [{"package": "moving-digits", "pairs": "smooth", "limit": 16}]},
    "evaluation": {"samples": 8, "judge": {"name": "quality", "weights": {"flicker": -1.0}}},
}
del CLIPS["pairs"]  # type: ignore[attr-defined]


def written(config: dict[str, Any], folder: Path) -> str:
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    return "c.yaml"


def opened(config: str, *overrides: str) -> PictureSteps:
    return PictureSteps(*load(config, list(overrides)), command="test")


def adapted(config: str, *overrides: str) -> Any:
    setup = opened(config, *overrides)
    with jax.set_mesh(setup.mesh):
        return jax.device_get(setup.trained_params())


def weights_of(stage: str, experiment: str) -> Any:
    if stage == "train":
        return adapted(experiment)
    setup = opened(experiment)
    with jax.set_mesh(setup.mesh):
        return jax.device_get(setup.start_params())
