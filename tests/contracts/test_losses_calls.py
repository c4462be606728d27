"""Calls of losses: what is refused, what is asked for, which types come back, and how often a step compiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses
from dpo_jax.losses import AlphaDPOState, RunningMean
from dpo_jax.losses.knobs import Interval, knobs
from tests.contracts.loss_cases import CASES, PAIRS, WARM, Batch, Case, on_device, over, random_batch

WITHOUT_COUNTS = {"ipo-average=False", "sft-nll_reduction=sum"}  # forms of losses that otherwise average


def test_every_function_that_returns_losses_is_in_the_battery():
    covered = {case.function.__name__ for case in CASES}
    others = {"diffusion_baseline", "f_scores", "implicit_rewards", "kl_estimates", "ld_reduce", "mismatched_kl"}
    others |= {"preference_metrics", "running_mean", "wpo_weights"}
    functions = {name for name in losses.__all__ if name.islower()}
    assert functions == covered | others


def test_the_tables_name_their_functions_and_state_them_rightly():
    for table in (losses.PAIRWISE, losses.REFERENCE_FREE, losses.TOKEN_LEVEL, losses.STATEFUL, losses.UNPAIRED):
        for name, entry in table.items():
            keywords = entry.function.__kwdefaults__ or {}
            assert entry.function.__name__ == name and getattr(losses, name) is entry.function
            assert entry.key == ("key" in entry.function.__annotations__)
            assert not entry.batch_global or {"where", "axis_name"} <= keywords.keys()
            assert (entry.at_reference is None) == (name in losses.REFERENCE_FREE)
            assert entry.beside_sft == (name in ("cpo", "orpo", "slic_hf"))
            assert entry.mismatched == (name == "kto")
            assert (entry.state is RunningMean) == (name in ("bco", "bco_pair"))
            assert (entry.state is AlphaDPOState) == (name in losses.STATEFUL)


@over(CASES)
@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
def test_narrow_types_are_widened_to_float32(case: Case, narrow: Any):
    batch = on_device(random_batch(8))
    rounded = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(narrow), batch)
    found = case.losses(rounded, **case.options)
    wide = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(jnp.float32), rounded)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, case.losses(wide, **case.options), rtol=1e-6, atol=1e-6)


def outside(interval: Interval) -> list[float]:
    """Numbers that no knob may be, and those just beyond the ends of this one."""
    values = [np.nan, np.inf, -np.inf]
    if interval.low > -np.inf:
        values += [interval.low - 0.1] + [interval.low] * interval.without_low
    if interval.high < np.inf:
        values += [interval.high + 0.1] + [interval.high] * interval.without_high
    return values


@over(CASES)
def test_knobs_out_of_range_are_refused_in_and_out_of_jit(case: Case):
    batch = on_device(random_batch(10))
    for name in case.options:
        interval = knobs(case.function)[name].interval
        numbers = [number for value in outside(interval) for number in (value, np.float32(value))]
        numbers += [np.where(np.arange(PAIRS) == 3, value, 0.2) for value in outside(interval.of_each)]
        for number in numbers:
            with pytest.raises(ValueError, match=rf"{case.function.__name__}: {name} must be in"):
                case.losses(batch, **case.options | {name: number})
        with pytest.raises(ValueError, match=rf"{case.function.__name__}: {name} must be in"):
            jax.eval_shape(lambda b, name=name: case.losses(b, **case.options | {name: np.nan}), batch)


@over(CASES)
def test_a_choice_that_is_none_is_refused(case: Case):
    batch = on_device(random_batch(10))
    for name in case.choices:
        with pytest.raises(ValueError, match=rf"{case.function.__name__}: {name} must be"):
            replace(case, choices=case.choices | {name: "neither"}).losses(batch)


@over(CASES)
def test_token_counts_are_asked_for_only_where_they_are_needed(case: Case):
    batch = on_device(random_batch(11))._replace(chosen_tokens=None, rejected_tokens=None)
    if case.entry.averages and case.name not in WITHOUT_COUNTS:
        with pytest.raises(ValueError, match="token counts"):
            case.losses(batch, **case.options)
    else:
        assert jnp.isfinite(case.losses(batch, **case.options)).all()


@over(CASES)
def test_counts_below_one_are_taken_as_one(case: Case):
    batch = on_device(random_batch(12))
    empty, one = (
        batch._replace(chosen_tokens=jnp.full(PAIRS, n), rejected_tokens=jnp.full(PAIRS, n)) for n in (0.0, 1.0)
    )
    np.testing.assert_array_equal(case.losses(empty, **case.options), case.losses(one, **case.options))


@pytest.mark.parametrize("start", [AlphaDPOState, RunningMean])
def test_states_are_float32_arrays(start: type):
    for leaf in jax.tree.leaves(start()):
        assert isinstance(leaf, np.ndarray | jax.Array) and leaf.dtype == np.float32 and leaf.shape == ()


def compilations(caplog: pytest.LogCaptureFixture, name: str) -> int:
    return sum(f"Finished XLA compilation of jit({name})" in record.getMessage() for record in caplog.records)


@over([case for case in CASES if case.function.__name__ in losses.STATEFUL])
def test_a_step_with_a_state_compiles_once(case: Case, caplog: pytest.LogCaptureFixture):
    @jax.jit
    def one_step(batch: Batch, state: AlphaDPOState) -> Any:
        return case.call(case.function, batch, state=state, **case.choices)

    state = AlphaDPOState()
    with jax.log_compiles():
        for seed in range(4):
            _, state = one_step(random_batch(seed), state)
    assert compilations(caplog, "one_step") == 1
    assert state.count == 4 and all(leaf.dtype == jnp.float32 for leaf in state)
    _, state = one_step(jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), random_batch(0)), WARM)
    assert all(leaf.dtype == jnp.float32 for leaf in state)


def test_a_step_with_a_running_mean_compiles_once(caplog: pytest.LogCaptureFixture):
    step, state = jax.jit(losses.running_mean), RunningMean()
    with jax.log_compiles():
        for seed in range(4):
            _, state = step(random_batch(seed).chosen, state)
    assert compilations(caplog, "running_mean") == 1
    assert state.count == 4 * PAIRS and all(leaf.dtype == jnp.float32 for leaf in state)
