"""NaN and infinity, in a batch, in gradients, in parameters: skipped and counted, then stopped with the rows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import cli
from dpo_jax.data.batches import Batches
from dpo_jax.training import step as step_module
from dpo_jax.types import HostBatch
from tests.faults import tiny_run
from tests.tiny_experiment import read_lines

OPTIONS = ("--train.steps", "12", "--train.log_every", "5", "--train.keep", "9")
BAD = {"nan": np.nan, "infinity": np.inf, "minus infinity": -np.inf}


@pytest.fixture
def scored(run: Path) -> None:
    """The current folder has an experiment and its store, and nothing is trained."""
    shutil.rmtree(run)


def poison_batches(monkeypatch: pytest.MonkeyPatch, steps: set[int], value: float) -> list[tuple[str, ...]]:
    """The reference's log-probs of one pair are not finite in these steps; gives the row ids of every batch read."""
    read, seen = Batches.batch, {}

    def poisoned(self: Batches, step: int) -> HostBatch:
        batch = read(self, step)
        seen[step] = batch.row_ids
        if step not in steps:
            return batch
        logps = np.array(batch.arrays.reference_logps_BP)
        logps[0, 1, 1] = value
        return batch._replace(arrays=batch.arrays._replace(reference_logps_BP=logps))

    monkeypatch.setattr(Batches, "batch", poisoned)
    return seen  # type: ignore[return-value]


def poison_gradients(monkeypatch: pytest.MonkeyPatch, steps: set[int], value: float) -> None:
    """One number of the gradient is not finite in these steps, with a loss that is."""
    inner = step_module.gradients

    def poisoned(objective: Any, state: Any, batch: Any, knobs: Any, key: Any) -> tuple:
        found, gradient = inner(objective, state, batch, knobs, key)
        hit = jnp.isin(state.step, jnp.asarray(sorted(steps)))
        leaves, tree = jax.tree.flatten(gradient)
        leaves[0] = leaves[0].at[(0,) * leaves[0].ndim].set(jnp.where(hit, value, leaves[0].ravel()[0]))
        return found, jax.tree.unflatten(tree, leaves)

    monkeypatch.setattr(step_module, "gradients", poisoned)


def train(*arguments: str) -> int:
    try:
        cli.main(["train", "e.yaml", *OPTIONS, *arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


@pytest.mark.fault("NaN or infinity in a batch or in gradients")
@pytest.mark.parametrize("where", ["batch", "gradient"])
@pytest.mark.parametrize("value", BAD)
def test_a_step_is_skipped_and_counted(
    where: str, value: str, scored: None, monkeypatch: pytest.MonkeyPatch, capsys: Any, trials: Callable, held: Callable
):
    trials(0, 1)
    poison = {"batch": poison_batches, "gradient": poison_gradients}[where]
    poison(monkeypatch, {2, 3, 7}, BAD[value])
    assert train("--train.steps", "10") == 0
    assert_skipped(capsys.readouterr().err, {3: 1, 4: 2, 5: 2, 8: 3, 10: 3})
    held(1, "skipped, counted, parameters untouched; logged as it is")


def assert_skipped(said: str, counted: dict[int, int]) -> None:
    """Steps 3, 4 and 8 were skipped; every fifth is logged, the last, and those that were skipped."""
    logged = {int(row["step"]): row for row in read_lines("runs/demo/metrics.jsonl")}
    assert {number: row["skipped_steps"] for number, row in logged.items()} == counted
    for number in (3, 4, 8):
        assert not np.isfinite(logged[number]["loss"] + logged[number]["grad_norm"])
        assert f"step {number} is skipped" in said
    states = {number: tiny_run.arrays(Path(f"runs/demo/checkpoints/{number}/params")) for number in (2, 4, 6, 8)}
    assert all(np.array_equal(states[2][name], states[4][name]) for name in states[2])  # steps 3 and 4
    assert not all(np.array_equal(states[4][name], states[6][name]) for name in states[2])
    assert all(np.isfinite(array).all() for array in states[8].values())


@pytest.mark.fault("NaN steps in a row")
def test_after_some_in_a_row_it_stops_with_the_rows(
    scored: None, monkeypatch: pytest.MonkeyPatch, capsys: Any, held: Callable
):
    seen = poison_batches(monkeypatch, {2, 3, 7, 8, 9, 10}, np.nan)
    assert train() == 2
    said = capsys.readouterr().err
    assert "lower optimizer.learning_rate, or allow more in a row with train.skips_allowed" in said
    assert "steps 8 to 10 were skipped" in said and "Traceback" not in said  # the fourth would be one too many
    assert all(row_id in said for row_id in seen[9])  # type: ignore[index]
    assert tiny_run.Checkpoints(Path("runs/demo/checkpoints")).latest() == 8
    assert_skipped(said, {3: 1, 4: 2, 5: 2, 8: 3, 9: 4, 10: 5})
    assert train("--train.skips_allowed", "4") == 0 and read_lines("runs/demo/metrics.jsonl")[-1]["skipped_steps"] == 6
    held(1, "stops after train.skips_allowed with the row ids; goes on if more are allowed")


@pytest.mark.fault("NaN in parameters")
def test_parameters_that_are_not_finite_are_never_saved(
    scored: None, monkeypatch: pytest.MonkeyPatch, capsys: Any, held: Callable
):
    inner = step_module.make_step

    def make(*arguments: Any, **options: Any) -> Any:
        step = inner(*arguments, **options)

        def harmed(state: Any, batch: Any, knobs: Any) -> tuple:
            if int(state.step) == 4:  # as if a bit of memory had flipped
                params = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), state.params)
                state = state._replace(params=params)
            return step(state, batch, knobs)

        return harmed

    monkeypatch.setattr("dpo_jax.training.training.make_step", make)
    assert train() == 2
    said = capsys.readouterr().err
    assert re.search(r"step 6: params\.[\w.]+ is NaN or infinite; this state is not saved. Step 4 is the last", said)
    assert "lower optimizer.learning_rate" in said
    assert tiny_run.Checkpoints(Path("runs/demo/checkpoints")).latest() == 4
    held(1, "never saved; the run stops")


def test_a_report_of_a_run_with_skipped_steps(trials: Callable, scored: None, monkeypatch: pytest.MonkeyPatch):
    trials(0, 1)
    poison_batches(monkeypatch, {0, 4}, np.nan)
    assert train("--train.log_every", "1") == 0
    cli.main(["report", "e.yaml"])
    text = Path("runs/demo/report.html").read_text()
    assert "NaN or infinite values at 2 of 12 logged steps, first at step 1." in text
    assert "Steps skipped because their loss or gradient was not finite: 2." in text
