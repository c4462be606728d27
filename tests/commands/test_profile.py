"""A run that is traced, as a user asks for it: the files, and the names in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from dpo_jax import cli
from tests.tiny_experiment import amend

SCOPES = ("embed", "layers", "attention", "mlp", "logprobs", "loss", "optimizer", "reference")


@pytest.fixture
def _compiled_anew() -> Iterator[None]:
    """The compile cache takes programs that differ in names alone for one."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.mark.slow("a traced training")
@pytest.mark.usefixtures("_compiled_anew")
def test_a_traced_run_names_its_parts(scored: str):
    amend(
        reference={"update_every": 8},  # the reference runs in the step
        profile={"start_step": 1, "num_steps": 1},
        train={"steps": 2},
    )
    cli.main(["train", scored])
    (space,) = Path("runs/demo/profile").rglob("plugins/profile/*/*.xplane.pb")
    # the compiled program is in the trace: jit(step)/transpose(jvp(layers))/while/body/attention/dot_general
    paths = re.findall(rb"jit\(step\)/[\w/().-]+", space.read_bytes())
    assert set(SCOPES) <= {part.decode() for path in paths for part in re.findall(rb"\w+", path)}


@pytest.mark.slow("a training")
def test_a_stage_too_short_to_be_traced_says_so(scored: str, capsys):
    epoch = ("--train", "{batch_pairs: 8, micro_batch_pairs: 4, epochs: 0.4}")
    cli.main(["train", scored, *epoch, "--profile.start_step", "1", "--profile.num_steps", "1"])
    assert "no trace: profile.start_step is 1, and there are 1 steps" in capsys.readouterr().err
    assert not Path("runs/demo/profile").exists()
