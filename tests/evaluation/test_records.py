"""The records of an evaluation: the same file comes out as went in, damage is named, and what is missing is false."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dpo_jax.errors import UserError
from dpo_jax.evaluation.records import (
    Benchmark,
    BestOf,
    Divergence,
    Evaluation,
    Halves,
    Heldout,
    Place,
    Sample,
    Texts,
    Trial,
)
from dpo_jax.evaluation.seeds import losses_of
from tests.reporting.made_up import EVALUATION, WHOLE
from tests.reporting.test_pictures import EVALUATION as PICTURES

CALIBRATION = {"expected_error": 0.1, "bins": [{"from": 0.5, "pairs": 3, "confidence": 0.6, "accuracy": 0.5}]}


@pytest.mark.parametrize(
    "written",
    [
        EVALUATION,
        PICTURES,
        {name: part for name, part in WHOLE.items() if name != "texts"},
        {"heldout": {"rows": 4, "pairs": 0, "calibration": CALIBRATION}, "best_of": [{"n": 1, "kl": 0.0}]},
    ],
)
def test_the_same_file_comes_out_as_went_in(written: dict[str, Any]):
    again = Evaluation.from_json(written).to_json()
    assert json.loads(json.dumps(again)) == written


def test_the_fields_are_in_the_order_of_the_file():
    record = Heldout(loss=0.4, pairs=8, accuracy=0.5)
    assert json.dumps(record.to_json()) == '{"pairs": 8, "accuracy": 0.5, "loss": 0.4}'


def test_what_was_not_measured_is_false_and_not_written():
    for nothing in ({}, {"judged": None, "heldout": {}, "kl": {}}):
        evaluation = Evaluation.from_json(nothing)
        assert not evaluation and evaluation.to_json() == {} and evaluation.judged.policy.positive is None
    assert Evaluation.from_json({"heldout": {"loss": 0.0}}).heldout


def test_what_is_always_written_is_so_even_where_it_is_empty():
    assert Texts(words=1.0).to_json() == {"words": 1.0, "distinct_1": None, "distinct_2": None, "repeated": None}
    assert Benchmark(rows=2).to_json() == {"rows": 2, "sections": {}} and Benchmark().to_json() == {}
    assert Sample(prompt="", reference="", policy="").to_json() == {"prompt": "", "reference": "", "policy": ""}
    assert BestOf(n=2).to_json() == {"n": 2}


def test_a_point_of_a_sweep_keeps_its_settings_and_why_it_failed():
    failed = Trial(label="a", settings={}, failed="no")
    assert failed.to_json() == {"label": "a", "settings": {}, "failed": "no"}
    trial = Trial.from_json({"label": "a", "settings": {"seed": 1}, "config": {"loss": [{"name": "dpo"}]}})
    assert trial.settings == {"seed": 1} and losses_of(trial) == ["dpo"]


def test_a_place_that_is_never_reached_is_null():
    halves = {"predicted": {"logp": None, "ratio": {"chosen": -1.0}}}
    read = Halves.from_json(halves)
    assert read.predicted == {"logp": None, "ratio": Place(chosen=-1.0)} and read.to_json() == halves


def test_the_best_divergence_is_the_exact_one_where_it_was_measured():
    sampled = {"sequence_kl": 2.0, "interval": (1.0, 3.0)}
    assert Divergence(**sampled).best == (2.0, (1.0, 3.0)) and Divergence().best is None
    assert Divergence(**sampled, exact=0.0, exact_interval=(0.0, 0.1)).best == (0.0, (0.0, 0.1))


@pytest.mark.parametrize(
    ("damaged", "says"),
    [
        ({"heldout": 3}, "e.json: heldout: damaged: a mapping is wanted, not '3'"),
        ({"heldout": {"accuracy": "high"}}, "e.json: heldout: accuracy: damaged: float is wanted, not 'high'"),
        ({"heldout": {"pairs": 3.5}}, "e.json: heldout: pairs: damaged: int is wanted, not '3.5'"),
        ({"judged": {"judge": 3}}, "e.json: judged: judge: damaged: str is wanted, not '3'"),
        ({"kl": {"interval": [1.0]}}, "e.json: kl: interval: damaged"),
        ({"samples": [{"prompt": "p", "policy": "q"}]}, "e.json: samples: damaged: reference is missing"),
    ],
)
def test_damage_is_named(damaged: dict[str, Any], says: str):
    with pytest.raises(UserError) as stop:
        Evaluation.from_json(damaged, where="e.json")
    assert says in str(stop.value)


def test_what_a_later_version_writes_is_left_out():
    assert Evaluation.from_json({"heldout": {"pairs": 3, "new": {}}, "newer": 1}).to_json() == {"heldout": {"pairs": 3}}
