"""The report of runs on pictures and clips, from made-up results."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dpo_jax.evaluation.records import Heldout
from dpo_jax.reporting.pictures import shown_samples
from dpo_jax.reporting.report import PICTURES, RunReport, render
from dpo_jax.reporting.tables import result_rows
from tests.reporting.made_up import measured, supervised_rows

EVALUATION: dict[str, Any] = {
    "heldout": {
        "pairs": 40,
        "accuracy": 0.9,
        "accuracy_interval": [0.77, 0.96],
        "error_margin": 0.01,
        "errors": {"policy": 0.25, "reference": 0.2},
        "draws": 8,
    },
    "judged": {
        "judge": "quality, 1 brightness",
        "policy": {"reward": 0.4, "interval": [0.35, 0.45]},
        "reference": {"reward": 0.3, "interval": [0.25, 0.35]},
        "win_rate": 0.8,
        "win_rate_interval": [0.7, 0.9],
        "samples": 6,
    },
    "metrics": {
        "brightness": {"policy": 0.4, "reference": 0.3, "difference": 0.1, "difference_interval": [0.05, 0.15]}
    },
    "classes": {
        "real": 0.95,
        "policy": {"share": 0.5, "interval": [0.4, 0.6]},
        "reference": {"share": 0.7, "interval": [0.6, 0.8]},
        "difference": -0.2,
        "difference_interval": [-0.3, -0.1],
    },
}


def made_up_pictures(*, clips: bool = False) -> RunReport:
    dice = np.random.default_rng(0)
    size = (6, 3, 8, 8, 1) if clips else (6, 8, 8, 3)
    names = ("errors/chosen", "errors/rejected", "gained/chosen", "gained/rejected", "rewards/accuracies")
    rows = [{"step": step, "loss": 0.7 - step / 100, **dict.fromkeys(names, step / 50)} for step in range(1, 31)]
    return RunReport(
        title="brighter",
        command="dpo-jax run configs/image.yaml",
        created="2026-11-22",
        environment={"python": "3.11"},
        config={"seed": 0},
        metrics=rows,
        sft_metrics=supervised_rows(),
        reward_metrics=rows,
        evaluation=measured(EVALUATION),
        reward=Heldout(pairs=200, accuracy=0.97, accuracy_interval=(0.93, 0.99)),
        pictures={
            "policy": dice.integers(0, 256, size).astype(np.uint8),
            "reference": dice.integers(0, 256, size).astype(np.uint8),
            "shown": np.arange(6),
            "policy_scores": dice.normal(0.4, 0.1, 6),
            "reference_scores": dice.normal(0.3, 0.1, 6),
        },
        shown=4,
        kind=PICTURES,
    )


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_verdict_and_worries():
    page = render(made_up_pictures())
    assert "Better" in page and "win 80.0" in page
    assert "Fewer of its samples show the class that was asked for" in page
    assert render(made_up_pictures()) == page and "it has moved far" not in page
    changes = {
        "classes": EVALUATION["classes"] | {"difference_interval": [-0.3, 0.1]},
        "heldout": EVALUATION["heldout"] | {"errors": {"policy": 0.4, "reference": 0.2}},
    }
    other = render(made_up_pictures()._replace(evaluation=measured(EVALUATION | changes)))
    assert "Fewer of its samples" not in other and "it has moved far" in other


def test_every_measure_has_a_line():
    names = [row.measure for row in result_rows(measured(EVALUATION), made_up_pictures().reward, reward_name="Scorer")]
    assert names == [
        "Win rate",
        "Mean score, reference",
        "Mean score, policy",
        "Brightness",
        "Class asked for is seen",
        "Preference accuracy",
        "Denoising error",
        "Scorer's accuracy",
    ]
    assert result_rows(measured({})) == []


@pytest.mark.parametrize("clips", [False, True])
def test_pictures_are_those_of_the_run(clips: bool):
    run = made_up_pictures(clips=clips)
    shown = shown_samples(run.pictures or {}, run.shown)
    assert [each.label for each in shown] == ["class 0", "class 1", "class 2", "class 3"]
    image = decoded(shown[2].after)
    assert run.pictures
    sample = run.pictures["policy"][2]
    if clips:
        image.seek(1)
        np.testing.assert_array_equal(np.asarray(image.convert("L")), sample[1, ..., 0])
        assert image.n_frames == 3
    else:
        np.testing.assert_array_equal(np.asarray(image), sample)
    urls = re.findall(r'src="(data:image/[^"]+)"', render(run))
    assert len(urls) == 8 and urls[5] == shown[2].after


def test_without_samples_or_evaluation():
    page = render(made_up_pictures()._replace(pictures=None, evaluation=measured({}), reward=Heldout()))
    assert "Not judged" in page and "Samples before and after" not in page
