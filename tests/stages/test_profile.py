"""A run that is traced, as a user asks for it: the files, the names in them, and that nothing else changes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import yaml

from dpo_jax import cli
from tests.tiny import make_hf_folder

SCOPES = ("embed", "layers", "attention", "mlp", "logprobs", "loss", "optimizer", "reference")


@pytest.fixture(autouse=True)
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_hf_folder(tmp_path / "model")
    rows = [{"prompt": "say\n", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(8)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "workdir": "run",
        "model": {"weights": "model"},
        "data": {"train": [{"path": "pairs.jsonl"}], "max_prompt_tokens": 16, "max_tokens": 32},
        "loss": {"name": "dpo"},
        "reference": {"update_every": 8},  # the reference runs in the step
        "train": {"batch_pairs": 2, "steps": 4, "save_every": 2},
        "profile": {"start_step": 1, "num_steps": 2},
    }
    Path("e.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def _compiled_anew() -> Iterator[None]:
    """The compile cache takes programs that differ in names alone for one."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.mark.usefixtures("_compiled_anew")
def test_a_traced_run_names_its_parts_and_goes_on_untraced():
    cli.main(["train", "e.yaml"])
    (space,) = Path("run/profile").rglob("plugins/profile/*/*.xplane.pb")
    # the compiled program is in the trace: jit(step)/transpose(jvp(layers))/while/body/attention/dot_general
    paths = re.findall(rb"jit\(step\)/[\w/().-]+", space.read_bytes())
    assert set(SCOPES) <= {part.decode() for path in paths for part in re.findall(rb"\w+", path)}
    cli.main(
        ["train", "e.yaml", "--profile.num_steps", "9", "--train.steps", "6"]
    )  # resumed: allowed, and no new trace
    assert list(Path("run/profile").rglob("*.xplane.pb")) == [space]
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 6


def test_a_stage_too_short_to_be_traced_says_so(capsys):
    cli.main(["train", "e.yaml", "--train", "{batch_pairs: 2, epochs: 1}", "--profile.start_step", "4"])
    assert "no trace: profile.start_step is 4, and there are 4 steps" in capsys.readouterr().err
    assert not Path("run/profile").exists()


def test_nothing_is_traced_unless_it_is_asked_for():
    cli.main(["train", "e.yaml", "--profile.num_steps", "0"])
    assert not Path("run/profile").exists()
