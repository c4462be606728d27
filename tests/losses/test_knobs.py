"""Knobs: read from signatures, refused outside of their intervals, let through where they cannot be looked at."""

from __future__ import annotations

import functools
import math
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.losses import PAIRWISE, REFERENCE_FREE, STATEFUL, TOKEN_LEVEL, UNPAIRED, chi_po, dpo, f_dpo, ipo, sft
from dpo_jax.losses.knobs import Interval, NotNegative, Positive, Real, Share, Smoothing, check_knobs, knobs
from tests.losses.by_hand import POLICY, REFERENCE

TABLES = {**PAIRWISE, **REFERENCE_FREE, **STATEFUL, **TOKEN_LEVEL, **UNPAIRED}


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "text"),
    [
        (Interval(0.0, 0.5), [0.0, 0.5, [0.1, 0.2]], [-1e-9, 0.6, [0.1, 0.7]], "in [0, 0.5]"),
        (Interval(0.0, 0.5, without_low=True, without_high=True), [0.1], [0.0, 0.5], "in (0, 0.5)"),
        (get_args(Positive)[1], [1e-30, 1e9], [0.0, -1.0, -math.inf, math.inf], "in (0, inf)"),
        (get_args(NotNegative)[1], [0.0, 1e9], [-1e-9, math.inf], "in [0, inf)"),
        (get_args(Share)[1], [0.0, 1.0], [-1e-9, 1.01], "in [0, 1]"),
        (get_args(Smoothing)[1], [0.0, 0.5], [-1e-9, 0.51], "in [0, 0.5]"),
        (get_args(Real)[1], [-1e9, 0, True], [-math.inf, math.inf], "in (-inf, inf)"),
    ],
)
def test_intervals(interval: Interval, inside: list[Any], outside: list[Any], text: str):
    assert all(interval.holds(value) for value in inside)
    assert not any(interval.holds(value) for value in [*outside, math.nan, [0.2, math.nan]])
    assert str(interval) == text


def test_the_signature_is_where_knobs_are_stated():
    specs = knobs(f_dpo)
    assert specs.keys() == {"beta", "divergence", "alpha"}
    assert specs["beta"].default == 0.1 and specs["beta"].interval == get_args(Positive)[1]
    assert specs["divergence"].choices == ("reverse_kl", "forward_kl", "js", "alpha")
    assert specs["divergence"].interval is None
    assert knobs(ipo)["average"].choices == (False, True)
    assert knobs(chi_po)["clip"].choices == (None,) and knobs(chi_po)["clip"].interval is not None


@pytest.mark.parametrize("name", TABLES)
def test_every_knob_has_a_default_that_it_allows_and_arrays_are_no_knobs(name: str):
    specs = knobs(TABLES[name].function)
    assert not specs.keys() & {"where", "axis_name", "key", "state", "mean_tokens"}
    for spec in specs.values():
        assert spec.default in spec.choices or spec.interval.holds(spec.default)


PAGE = {
    "dpo": {"beta": 0.1, "label_smoothing": 0.0},
    "robust_dpo": {"beta": 0.1, "label_smoothing": 0.1},
    "ipo": {"beta": 0.1, "average": True},
    "hinge": {"beta": 0.1},
    "exo_pair": {"beta": 0.1, "label_smoothing": 1e-3},
    "nca_pair": {"beta": 0.1},
    "bco_pair": {"beta": 0.1, "delta": 0.0},
    "sppo_hard": {"beta": 0.001},
    "aot": {"beta": 0.1, "label_smoothing": 0.0},
    "aot_unpaired": {"beta": 0.1, "label_smoothing": 0.0},
    "apo_zero": {"beta": 0.1},
    "apo_down": {"beta": 0.1},
    "discopop": {"beta": 0.05, "temperature": 0.05},
    "f_dpo": {"beta": 0.1, "divergence": "reverse_kl", "alpha": 0.5},
    "chi_po": {"beta": 0.1, "clip": None},
    "dpop": {"beta": 0.3, "penalty": 50.0},
    "length_normalized_dpo": {"beta": 5.0},
    "r_dpo": {"beta": 0.1, "penalty": 0.05},
    "cal_dpo": {"beta": 0.001},
    "tdpo1": {"beta": 0.1},
    "tdpo2": {"beta": 0.1, "alpha": 0.5},
    "alpha_dpo": {"beta": 2.5, "gamma": 1.5, "alpha": 0.2, "decay": 0.9, "std_floor": 1e-4, "bias_correction": False},
    "beta_dpo": {"beta": 0.1, "a": 0.6, "filter_fraction": 0.2, "decay": 0.9},
    "simpo": {"beta": 2.5, "gamma": 1.375, "label_smoothing": 0.0},
    "cpo": {"beta": 0.1, "label_smoothing": 0.0},
    "orpo": {},
    "slic_hf": {"delta": 1.0},
    "alpha_po": {"beta": 2.5, "gamma": 1.375, "alpha": 0.25},
    "sft": {"nll_reduction": "token"},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "apo_zero_unpaired": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "bco": {"beta": 0.1},
}


def test_names_and_defaults_are_those_that_outside_code_relies_on():
    assert {name: {k: s.default for k, s in knobs(TABLES[name].function).items()} for name in PAGE} == PAGE


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, np.float32(-1), np.array([0.1, 0.0]), jnp.array([0.1, -0.1])])
def test_a_concrete_value_out_of_range_is_refused_by_name(value: Any):
    with pytest.raises(ValueError, match=r"dpo: beta must be in \(0, inf\), got"):
        dpo(POLICY, REFERENCE, beta=value)


@pytest.mark.parametrize(
    ("loss", "knob", "value", "allowed"),
    [
        (f_dpo, "divergence", "jsd", "reverse_kl.*forward_kl.*js.*alpha"),
        (f_dpo, "divergence", 0.5, "reverse_kl"),
        (f_dpo, "beta", None, "in"),
        (f_dpo, "beta", "0.1", "in"),
        (chi_po, "clip", 0.0, "in"),
        (chi_po, "clip", "none", "in"),
        (ipo, "average", "yes", "False, True"),
        (ipo, "average", None, "False, True"),
        (sft, "nll_reduction", "mean", "token.*sequence.*sum"),
    ],
)
def test_a_choice_that_is_none_is_refused_with_those_there_are(loss: Any, knob: str, value: Any, allowed: str):
    with pytest.raises(ValueError, match=rf"{loss.__name__}: {knob} must be .*{allowed}"):
        check_knobs(loss, **{knob: value})


@pytest.mark.parametrize("name", [name for name, loss in TABLES.items() if loss.reads_soft_labels])
def test_each_pair_may_have_the_smoothing_of_its_soft_label(name: str):
    """Outside a jit as inside; of one number for all it is still refused."""
    function = functools.partial(TABLES[name].function, *[POLICY, REFERENCE][: 1 + TABLES[name].needs_reference])
    given = jnp.linspace(0, 1, len(POLICY.chosen))
    traced = jax.jit(lambda each_B: function(label_smoothing=each_B))(given)
    np.testing.assert_allclose(function(label_smoothing=given), traced, rtol=1e-6)
    for value, allowed in ((0.7, r"\[0, 0\.5\]"), (given - 0.01, r"\[0, 1\]"), (given + 0.01, r"\[0, 1\]")):
        with pytest.raises(ValueError, match=f"{name}: label_smoothing must be in {allowed}"):
            function(label_smoothing=value)


@pytest.mark.parametrize("name", ["robust_dpo", "exo_pair", "aot"])
def test_a_loss_that_reads_no_soft_labels_has_one_range_for_all(name: str):
    with pytest.raises(ValueError, match="label_smoothing must be"):
        TABLES[name].function(POLICY, REFERENCE, label_smoothing=jnp.full(len(POLICY.chosen), 0.7))


def test_a_traced_value_cannot_be_looked_at_but_a_concrete_one_beside_it_is():
    traced = jax.jit(lambda beta: dpo(POLICY, REFERENCE, beta=beta))(-1.0)
    assert jnp.isfinite(traced).all()
    with pytest.raises(ValueError, match="label_smoothing"):
        jax.jit(lambda beta: dpo(POLICY, REFERENCE, beta=beta, label_smoothing=0.7))(0.1)
