"""Each worry in its own case, and in no other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dpo_jax.evaluation.records import Fitted
from dpo_jax.reporting.numbers import GAP
from dpo_jax.reporting.verdict import verdict
from tests.reporting.made_up import DATA, FITTED, WHOLE, measured, preference_rows


def changed(where: str, value: Any) -> dict[str, Any]:
    """The whole evaluation with another value somewhere."""
    names = where.split(".")

    def put(found: dict[str, Any], names: list[str]) -> dict[str, Any]:
        first, *rest = names
        return {**found, first: put(found[first], rest) if rest else value}

    return put(WHOLE, names)


def concerns(evaluation: dict[str, Any]) -> list[str]:
    return verdict(measured(evaluation), preference_rows(), fitted=FITTED, data=DATA[:1]).concerns


def test_a_good_run_with_everything_measured_has_none() -> None:
    assert concerns(WHOLE) == []


@pytest.mark.parametrize(
    ("where", "still", "worrying", "says"),
    [
        ("judged.length_controlled.win_rate", 0.86, 0.79, "part of it is length"),
        ("judged.length_controlled.win_rate", 0.90, 0.97, "shorter responses hide part of it"),
        ("judged.order.flipped", 0.2, 0.21, f"in 21.0{GAP}% of the comparisons the order decided"),
        ("judged.usage.not_understood", 0, 2, "2 answers of the judge were not understood"),
        ("judged.win_rate_interval", [0.51, 0.9], [0.5, 0.9], "not clear of one half"),
        ("kl.exact", 8.0, 8.5, "8.50"),
        ("texts.policy.words", 12.5, 12.6, "became longer: 12.6 words against 10.0"),
        ("texts.policy.words", 8.0, 7.9, "became shorter: 7.90 words against 10.0"),
        ("texts.policy.repeated", 0.06, 0.07, f"7.0{GAP}% of their groups of four words"),
        ("texts.policy.empty", 0.05, 0.06, f"6.0{GAP}% of the samples are empty"),
    ],
)
def test_each_has_its_bound(where: str, still: Any, worrying: Any, says: str) -> None:
    assert concerns(changed(where, still)) == []
    (found,) = concerns(changed(where, worrying))
    assert says in found


@pytest.mark.parametrize("missing", ["texts", "kl", "judged"])
def test_what_was_not_measured_is_no_worry(missing: str) -> None:
    assert concerns({name: value for name, value in WHOLE.items() if name != missing}) == []


def test_nan_is_a_worry() -> None:
    for where in ("kl.exact", "judged.length_controlled.win_rate", "judged.order.flipped", "texts.policy.words"):
        (found,) = concerns(changed(where, float("nan")))
        assert "NaN" in found


def test_a_policy_that_was_not_fitted() -> None:
    unfitted = dataclasses.replace(FITTED, perplexity=31.0, fitted=False)
    (found,) = verdict(measured(WHOLE), [], fitted=unfitted).concerns
    assert "31.0 a token, and 32.4 before" in found
    assert (
        verdict(measured(WHOLE), [], fitted=Fitted(responses=64, perplexity=31.0)).concerns == []
    )  # there was no fine-tuning


def test_odd_data_is_one_worry_for_each_split() -> None:
    (found,) = verdict(measured(WHOLE), [], data=DATA).concerns
    assert found == "Odd in data.eval: 3 prompts also in data.train; 64% of the pairs have the longer response chosen."


def test_the_verdict_takes_the_kl_over_the_vocabulary() -> None:
    assert (
        f"KL to the reference is 4.70{GAP}nats (95{GAP}% interval 4.20 to 5.20{GAP}nats)"
        in verdict(measured(WHOLE), []).text
    )
