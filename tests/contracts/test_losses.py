"""Properties of every loss of the library, whatever its formula: one battery over all tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import losses
from dpo_jax.losses import AlphaDPOState
from dpo_jax.losses.knobs import Interval, KnobSpec, knobs
from tests.contracts.loss_cases import (
    CASES,
    PAIRS,
    WARM,
    Batch,
    Case,
    as_arrays,
    graded,
    on_device,
    over,
    random_batch,
)

ONES = np.ones(PAIRS)


def other(name: str, spec: KnobSpec) -> float:
    """A value that is not the default: one at which the knob shows."""
    if name in SHOWN_AT:
        return SHOWN_AT[name]
    return next(v for v in (spec.default + 0.07, spec.default - 0.07) if spec.interval.holds(v))


# 5000 saturates; the deviation of `WARM` is below 2; 0.6 of 8 pairs are 4, not 6.
SHOWN_AT = {"beta": 0.17, "std_floor": 2.0, "filter_fraction": 0.4, "clip": 0.1}


@over(CASES)
def test_value_and_gradient_of_the_formula(case: Case):
    """The paper's, in float64: with the defaults, and as each knob alone moves."""
    specs = knobs(case.function)
    kept = {"clip": case.options["clip"]} if "clip" in case.options else {}
    state = {"state": AlphaDPOState(*map(np.float64, WARM))} if case.function.__name__ in losses.STATEFUL else {}
    for seed, moved in enumerate([{}, *({name: other(name, specs[name])} for name in case.options)]):
        with jax.enable_x64(True):
            batch = random_batch(32 + seed % 2, np.float64)
            weights = np.linspace(0.5, 1.5, PAIRS)

            def value(chosen: Any, rejected: Any, batch=batch, options=kept | moved) -> Any:
                return case.losses(on_device(batch)._replace(chosen=chosen, rejected=rejected), **state, **options)

            found, back = jax.vjp(value, jnp.asarray(batch.chosen), jnp.asarray(batch.rejected))
            expected = case.formula(batch, batch, **kept | moved)
            assert found.shape == (PAIRS,) and found.dtype == jnp.float64
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12, err_msg=str(moved))
            gradients = back(jnp.asarray(weights))
            # Differences of numbers of size |loss| know the slope to about |loss| * 1e-16 / step.
            noise = 1e-8 * np.abs(weights * expected).max() + 1e-9
            for field, gradient in zip(("chosen", "rejected"), gradients, strict=True):
                slopes = [
                    weights @ (ahead - behind) / 2e-6
                    for ahead, behind in (
                        (case.formula(nudged(batch, field, i, way), batch, **kept | moved) for way in (1e-6, -1e-6))
                        for i in range(PAIRS)
                    )
                ]
                np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=noise, err_msg=f"{field} {moved}")


def nudged(batch: Batch, field: str, place: int, step: float) -> Batch:
    array = getattr(batch, field).copy()
    array[place] += step
    return batch._replace(**{field: array})


def extreme_batches() -> Iterator[Batch]:
    """Margins of -300 to 300 nats split three ways, and responses that are near certain or near impossible."""
    rows = []
    for h in np.linspace(-300, 300, 13):
        rows += [(-400 + a, -400 + a - h, -400, -400, n, m) for a in (0, h, h / 2) for n, m in ((1, 4000), (7, 5))]
    sums = [(logp, n) for n in (1, 4000) for logp in (0.0, -1e-8 * n, -1e4)]
    for C, n in sums:
        for R, m in sums:
            rows += [(C, R, c, r, n, m) for c, r in ((C, R), (0.0, 0.0), (-1e4, -1e4), (-300.0, 0.0))]
    rows += rows[: -len(rows) % PAIRS]
    table = np.asarray(rows, np.float32).reshape(-1, PAIRS, 6)
    zeros, good = np.zeros(PAIRS, np.float32), np.arange(PAIRS) % 2 == 0
    for columns in table.transpose(0, 2, 1):
        yield Batch(*columns, zeros, zeros + 300, good)
        yield Batch(*columns, zeros + 1e4, zeros, ~good)


@over(CASES)
def test_finite_value_and_gradient_far_out(case: Case):
    for batch in extreme_batches():
        for options in (case.options, case.options | ({"beta": np.float32(1.0)} if "beta" in case.options else {})):
            found, gradients = graded(case)(batch, ONES, as_arrays(options))
            for array in (found, *gradients):
                assert np.isfinite(array).all(), (batch, options, array)


def allowed(interval: Interval) -> list[float]:
    """Numbers at or near the ends of an interval."""
    low = max(interval.low, -2.0) + (1e-3 if interval.without_low else 0.0)
    high = min(interval.high, 2.0) - (1e-3 if interval.without_high else 0.0)
    return [low, high]


@over(CASES)
def test_finite_value_and_gradient_at_the_ends_of_each_knob(case: Case):
    batch = random_batch(1)
    for name in case.options:
        for end in allowed(knobs(case.function)[name].interval):
            found, gradients = graded(case)(batch, ONES, as_arrays(case.options | {name: end}))
            assert all(np.isfinite(array).all() for array in (found, *gradients)), (name, end)


@over(CASES)
def test_jit_equals_eager_with_defaults(case: Case):
    batch = random_batch(2)
    found, _ = graded(case)(batch, ONES, as_arrays(case.options))
    clip = {"clip": 1.5} if "clip" in case.options else {}
    eager = case.losses(on_device(batch), **clip)
    assert found.shape == eager.shape == (PAIRS,) and found.dtype == eager.dtype == jnp.float32
    np.testing.assert_allclose(found, eager, rtol=2e-6, atol=1e-6)


@over(CASES)
def test_knobs_are_traced_and_may_be_one_per_pair(case: Case):
    """Eight values of each knob cost no new compilation, and one per pair is each pair's own."""
    batch = random_batch(3)
    graded(case)(batch, ONES, as_arrays(case.options))
    compiled = graded(case)._cache_size()
    scalars = {"a", "decay", "filter_fraction", "std_floor"} | ({"beta"} if case.name == "beta_dpo" else set())
    for name in case.options:
        values = np.linspace(*allowed(knobs(case.function)[name].interval), PAIRS, dtype=np.float32)
        alone = [graded(case)(batch, ONES, as_arrays(case.options | {name: value}))[0] for value in values]
        if name not in scalars:
            per_pair = case.losses(on_device(batch), **as_arrays(case.options) | {name: jnp.asarray(values)})
            np.testing.assert_allclose(np.diag(alone), per_pair, rtol=5e-6, atol=1e-6, err_msg=name)
    assert graded(case)._cache_size() == compiled


@over(CASES)
def test_vmap_equals_a_loop(case: Case):
    batches = [on_device(random_batch(seed)) for seed in (4, 5, 6)]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *batches)
    found = jax.jit(jax.vmap(lambda batch: case.losses(batch, **case.options)))(stacked)
    looped = [graded(case)(batch, ONES, as_arrays(case.options))[0] for batch in batches]
    np.testing.assert_allclose(found, looped, rtol=2e-6, atol=1e-6)


@over(CASES)
def test_pairs_are_independent_unless_the_table_says_otherwise(case: Case):
    """The gradient of one loss is exactly 0 at all other pairs, and no pair feels what another holds, NaN included."""
    batch, options = random_batch(7), as_arrays(case.options)
    if not case.entry.batch_global:
        for i in range(PAIRS):
            _, gradients = graded(case)(batch, np.eye(PAIRS)[i], options)
            for gradient in gradients:
                np.testing.assert_array_equal(np.delete(gradient, i), 0.0)
    found, _ = graded(case)(batch, ONES, options)
    changed = Batch(*(array.copy() for array in batch))
    if case.entry.batch_global:
        changed.chosen[2] -= 3.0
    else:
        for array in (changed.chosen, changed.rejected, changed.frozen_chosen, changed.chosen_kl, changed.rejected_kl):
            array[2] = np.nan
    touched, _ = graded(case)(changed, ONES, options)
    alike = np.array_equal(np.delete(touched, 2), np.delete(found, 2))
    assert alike != case.entry.batch_global


@over([case for case in CASES if case.entry.at_reference])
def test_value_where_policy_and_reference_agree(case: Case):
    batch = on_device(random_batch(9))
    batch = batch._replace(chosen=batch.frozen_chosen, rejected=batch.frozen_rejected)
    zeros = jnp.zeros(PAIRS)
    batch = batch._replace(chosen_kl=zeros, rejected_kl=zeros)
    state = {"state": AlphaDPOState()} if case.name.startswith(("alpha_dpo", "beta_dpo")) else {}
    level = {"level": 0.0} if case.name in ("kto", "bco", "diffusion_kto") else {}
    data = batch.desirable if case.name in losses.UNPAIRED else batch.policy
    sizes = case.options if case.name != "kto" else case.options | {"undesirable_weight": 1.7}
    expected = case.entry.at_reference(data, **sizes, **case.choices)
    found = case.losses(batch, **state, **level, **sizes)
    if case.name == "beta_dpo":  # 6 of 8 are drawn: only the mean is what the others' values are
        found, expected = found.mean(), np.float32(expected)
    np.testing.assert_allclose(found, jnp.broadcast_to(expected, found.shape), rtol=1e-6)


@over([case for case in CASES if case.function.__name__ in losses.STATEFUL])
def test_the_state_after_a_batch(case: Case):
    batch = random_batch(13)
    for decay in (0.9, 0.5):
        _, state = case.call(case.function, on_device(batch), decay=decay, **case.choices)
        np.testing.assert_allclose(state, case.next_state(batch, decay), rtol=1e-5)
