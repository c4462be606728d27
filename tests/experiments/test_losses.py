"""The lines of `loss:` become terms: defaults, values that move, what is remembered, what they ask of the trainer."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from dpo_jax.config import LossConfig
from dpo_jax.errors import UserError
from dpo_jax.experiments.losses import TRAINED, is_unpaired, needs_mismatched, read_terms
from dpo_jax.losses import AlphaDPOState, RunningMean
from dpo_jax.objectives.terms import Ramp, Term, needs_reference


def term(name: str, **config: Any) -> Term:
    return read_terms([LossConfig(name=name, **config)], {})[0]


def test_a_ramp_is_a_straight_line_that_stays_at_its_end():
    assert [Ramp(1.0, 3.0, 4).at(step) for step in range(7)] == [1.0, 1.5, 2.0, 2.5, 3.0, 3.0, 3.0]
    moving = term("alpha_dpo", options={"alpha": {"start": 0.0, "end": 0.2, "steps": 2}})
    assert [moving.knobs(step)["alpha"] for step in range(4)] == [0.0, 0.1, 0.2, 0.2]
    assert moving.options["alpha"] == 0.0


def test_options_win_over_defaults_and_numbers_are_apart_from_choices():
    plain, asked = term("f_dpo"), term("f_dpo", options={"divergence": "js", "beta": "2e-1"})
    assert plain.options == {"beta": 0.1, "divergence": "reverse_kl", "alpha": 0.5}
    assert asked.options == {"beta": 0.2, "divergence": "js", "alpha": 0.5}
    assert asked.static == {"divergence": "js"} and asked.numbers == {"beta": 0.2, "alpha": 0.5}


def test_alpha_dpo_starts_corrected_and_bco_has_no_level_of_its_own():
    assert term("alpha_dpo").options["bias_correction"] is True
    assert term("alpha_dpo", options={"bias_correction": False}).options["bias_correction"] is False
    assert "delta" not in term("bco_pair").options


def test_a_budget_may_be_below_one_and_its_counts_are_whole():
    asked = {"alpha": "auto", "kl_budget": 0.5, "kl_every": 3.0, "kl_gain": 0.1, "alpha_low": -3}
    budget = term("alpha_dpo", options=asked).budget
    assert (budget.kl_budget, budget.kl_every, budget.kl_gain, budget.alpha_low) == (0.5, 3, 0.1, -3.0)
    assert isinstance(budget.kl_every, int)


def test_soft_labels_are_read_by_losses_on_single_pairs_and_by_sft():
    reads = [name for name in TRAINED if term(name).reads_soft_labels]
    assert reads == ["dpo", "simpo", "cpo", "sft"]


def test_weight_and_token_weights_are_passed_on():
    found = term("dpo", weight=0.3, ld_alpha=0.0, wpo=True)
    assert (found.weight, found.ld_alpha, found.wpo) == (0.3, 0.0, True)


def test_what_is_remembered_before_the_first_batch():
    assert term("dpo").memory() == {}
    assert term("bco_pair").memory() == {"state": RunningMean()}
    assert term("alpha_dpo").memory() == {"state": AlphaDPOState()}
    steered = term("alpha_dpo", options={"alpha": "auto", "kl_budget": 3, "alpha_start": -0.2})
    assert "alpha" not in steered.numbers and steered.options["alpha"] == -0.2
    memory = steered.memory()
    assert memory == {"state": AlphaDPOState(), "alpha": np.float32(-0.2), "kl": 0.0}
    assert all(memory[name].dtype == np.float32 for name in ("alpha", "kl"))


@pytest.mark.parametrize("name", TRAINED)
def test_what_a_loss_asks_of_the_trainer(name: str):
    terms, config = [term(name)], [LossConfig(name=name)]
    assert needs_reference(terms) == (name not in ("simpo", "cpo", "orpo", "slic_hf", "alpha_po", "sft"))
    assert is_unpaired(config) == (name in ("kto", "bco", "apo_zero_unpaired"))
    assert needs_mismatched(config) == (name == "kto")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"name": "dpo", "options": {"beta": -1}}, "is wanted, not -1"),
        ({"name": "dpo", "options": {"beta": 0}}, r"loss.options.beta: a number in (0, inf) is wanted, not 0"),
        ({"name": "dpo", "options": {"beta": float("nan")}}, "is wanted, not nan"),
        ({"name": "dpo", "options": {"beta": True}}, "is wanted, not True"),
        ({"name": "dpo", "options": {"beta": {"start": 0.1, "end": -1, "steps": 3}}}, "is wanted, not -1"),
        ({"name": "dpo", "options": {"beta": {"start": 0.1, "end": 0.2}}}, "a value that moves is written {start:"),
        ({"name": "dpo", "options": {"beta": {"from": 0.1}}}, "loss.options.beta.from: the key is unknown"),
        ({"name": "exo_pair", "options": {"label_smoothing": 0.5}}, "a number in (0, 0.5) is wanted, not 0.5"),
        ({"name": "f_dpo", "options": {"divergence": "kl"}}, "'kl' is unknown. Allowed: reverse_kl, forward_kl, js"),
        ({"name": "ipo", "options": {"average": 1}}, "1 is unknown. Allowed: false, true"),
        ({"name": "chi_po", "options": {"clip": "no"}}, "a number in (0, inf) or null is wanted, not 'no'"),
        ({"name": "dpo", "options": {"gamma": 1}}, "dpo has no such option"),
        ({"name": "bco", "options": {"delta": 1}}, "bco has no such option"),
        ({"name": "bco_pair", "options": {"delta": 0.1}}, "bco_pair has no such option"),
        ({"name": "simpo", "options": {"kl_budget": 3}}, "belongs to alpha_dpo with `alpha: auto`"),
        ({"name": "alpha_dpo", "options": {"kl_budget": 1}}, "belongs to alpha_dpo with `alpha: auto`"),
        ({"name": "simpo", "options": {"alpha": "auto", "kl_budget": 1}}, "belongs to alpha_dpo with `alpha: auto`"),
        ({"name": "alpha_dpo", "options": {"alpha": "auto"}}, "give it as kl_budget"),
        ({"name": "alpha_dpo", "options": {"alpha": "auto", "kl_budget": -1}}, "kl_budget: a number above 0 is wanted"),
        ({"name": "alpha_dpo", "options": {"alpha": "auto", "kl_budget": 1, "kl_every": 1.5}}, "a whole number"),
        ({"name": "alpha_dpo", "options": {"alpha": "auto", "kl_budget": 1, "alpha_start": 9}}, "must lie between"),
        *(
            (
                {"name": "alpha_dpo", "options": {"alpha": "auto", "kl_budget": 1, name: value}},
                f"{name}: {kind} is wanted",
            )
            for name, value, kind in (
                ("kl_every", 0, "a whole number from 1 on"),
                ("kl_samples", 2.5, "a whole number from 1 on"),
                ("kl_gain", 0, "a number above 0"),
                ("alpha_low", "x", "a number"),
            )
        ),
        ({"name": "f_dpo", "options": {"divergence": "x"}}, "Allowed: reverse_kl, forward_kl, js, alpha"),
        ({"name": "sft", "wpo": True}, "belongs to losses on pairs"),
        ({"name": "kto", "wpo": True}, "loss.wpo: belongs to losses on pairs; kto is none"),
        ({"name": "kto", "ld_alpha": 0.0}, "belongs to losses on pairs"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], says: str):
    with pytest.raises(UserError, match=re.escape(says)):
        read_terms([LossConfig(**config)], {})
