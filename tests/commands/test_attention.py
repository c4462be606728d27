"""The form of attention from the experiment file to the step: chosen, told what it must know, and the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpo_jax.errors import UserError
from dpo_jax.experiments import texts as stage
from dpo_jax.models.attention import Choice, kernels
from tests.tiny_experiment import make_experiment, opened, run


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    make_experiment(tmp_path, rows=16, mesh={"data": 2, "fsdp": 2, "tensor": 2}, train={"steps": 2})
    return "e.yaml"


def test_auto_is_blocks_on_a_cpu(experiment: str, capsys: pytest.CaptureFixture):
    setup = opened()
    assert setup.model.attention == setup.attention == "blocks" and setup.packing.unpack is None
    assert "attention" not in capsys.readouterr().err
    assert opened("--model.attention", "dense").model.attention == "dense"


def test_what_the_machine_cannot_do_is_refused_where_it_was_asked_for(experiment: str):
    says = r"command line: model.attention: splash attention needs a TPU, and this is a cpu. Possible here: auto, dense"
    with pytest.raises(UserError, match=says):
        _ = opened("--model.attention", "splash").model


def test_what_auto_falls_back_from_is_said_once(experiment: str, monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(stage, "choose_attention", lambda *_: Choice("blocks", "cudnn attention has no soft cap"))
    setup = opened()
    _ = setup.model, setup.sft_model, setup.packing
    said = "".join(capsys.readouterr())
    assert said.count("attention: blocks, because cudnn attention has no soft cap") == 1


@pytest.mark.slow("whole commands on eight devices")
@pytest.mark.parametrize(("name", "layout"), [("cudnn", "packed"), ("splash", "shared")])
def test_training_is_the_same_whatever_the_form(experiment: str, name: str, layout: str, monkeypatch):
    """With jax.nn's own form in place of cuDNN, and the splash kernel interpreted: four parts of rows, two of heads."""
    monkeypatch.setattr(kernels, "CUDNN_IMPLEMENTATION", "xla")
    monkeypatch.setattr(kernels, "SPLASH_INTERPRET", True)
    losses = []
    for form in ("blocks", name):
        monkeypatch.setattr(stage, "choose_attention", lambda *_, form=form: Choice(form))
        layouts = ("--data.layout", layout, "--reference.store", f"{form}/store")
        rows = run(Path(), "train", form, *layouts)
        losses.append([(row["loss"], row["grad_norm"]) for row in rows])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
