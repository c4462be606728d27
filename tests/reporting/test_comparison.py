"""Several runs on one page: nothing is lost, nothing that cannot be compared is compared, text stays text."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from dpo_jax.reporting.comparison import Comparison, differences, render_comparison
from dpo_jax.reporting.plots import COMPARED_PLOTS, overlay, style_of
from dpo_jax.reporting.report import RunReport
from tests.reporting.made_up import CONFIG, WHOLE, made_up_run, measured, preference_rows
from tests.reporting.test_report import EVIL, Page
from tests.reporting.test_sweep import Line

SETTINGS = {"max_new_tokens": 64, "temperature": 1.0, "every": 0, "judge": {"name": "http", "model": "m", "retries": 6}}


def run(**at: Any) -> RunReport:
    """A made-up run with other values at places such as evaluation__settings__judge__model."""
    found = {"evaluation": copy.deepcopy(WHOLE | {"settings": SETTINGS, "rows": "d1"}), "config": copy.deepcopy(CONFIG)}
    for place, value in at.items():
        *names, last = place.split("__")
        here: Any = found
        for name in names:
            here = here[name]
        here[last] = value
    return made_up_run()._replace(evaluation=measured(found["evaluation"]), config=found["config"])


def compared(**runs: RunReport) -> Comparison:
    lines = [Line({"run": name}, 1, {"win rate": (0.8, (0.7, 0.9)), "sequence KL": (4.7, None)}, name) for name in runs]
    return Comparison(
        "dpo-jax report a.yaml --compare b", runs, lines, [], [("loss.options.beta", *(["0.1"] * len(runs)))]
    )


def test_runs_measured_alike_are_drawn_together() -> None:
    seed = run(config__seed=1, evaluation__settings__judge__retries=1, evaluation__settings__every=5)
    assert differences({"a": run(), "b": seed}) is None
    page = Page(render_comparison(compared(a=run(), b=seed)))
    for text in ("2 runs compared", "Gain against cost", "Samples side by side", "loss.options.beta", "--compare b"):
        assert text in page.text
    assert "not evaluated alike" not in page.text and page.text.count("The policy is judged better") == 2
    pictures = [attrs["aria-label"] or "" for _, attrs in page.tags if attrs.get("role") == "img"]
    assert len(pictures) == 1 + 5  # nothing was evaluated during training
    assert all("a from" in text and "b from" in text for text in pictures[1:])
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("change", "says", "samples", "heldout"),
    [
        ({"evaluation__settings__judge__model": "n"}, ("evaluation.judge.model", "m", "n"), True, False),
        ({"evaluation__settings__temperature": 0.7}, ("evaluation.temperature", "1.0", "0.7"), True, False),
        ({"evaluation__samples": WHOLE["samples"][:3]}, ("held-out prompts", "prompts A", "prompts B"), True, False),
        ({"evaluation__rows": "d2"}, ("held-out rows", "rows A", "rows B"), False, True),
        ({"config__data__max_tokens": 99}, ("data.max_tokens", "512", "99"), True, True),
        ({"config__model__weights": "other"}, ("model.weights", "package:some-model", "other"), True, True),
        ({"config__sft__train__steps": 7}, ("sft.train.steps", "40", "7"), True, True),
    ],
)
def test_runs_that_were_not_are_never_compared_in_silence(
    change: dict[str, Any], says: tuple[str, str, str], samples: bool, heldout: bool
) -> None:
    found = differences({"a": run(), "b": run(**change)})
    assert found and found.table.rows == [says] and (found.samples, found.heldout) == (samples, heldout)
    text = Page(render_comparison(compared(a=run(), b=run(**change)))).text
    assert "not evaluated alike" in text and says[0] in text
    assert ("Gain against cost" in text) != samples
    assert ("What the judge and the KL say" in text) == samples and ("Nor can held-out" in text) == heldout


def test_rows_that_an_evaluation_did_not_note_are_told_by_their_files() -> None:
    old = run(evaluation__rows=None, config__data__eval=[{"path": "a"}])
    assert differences({"a": old, "b": old}) is None
    assert differences({"a": old, "b": run(evaluation__rows=None, config__data__eval=[{"path": "b"}])})
    assert differences({"a": old, "b": run()})  # nobody knows


def test_a_run_that_did_not_log_a_metric_keeps_its_place_in_the_colours() -> None:
    free = [{name: value for name, value in row.items() if "log_ratios" not in name} for row in preference_rows()]
    curves = {
        curve.title: curve
        for curve in overlay(COMPARED_PLOTS, {"a": free, "b": preference_rows(), "c": free}, prefix="x")
    }
    ratio = curves["Chosen log-ratio"]
    assert ratio.legend == ["a: not logged", "b", "c: not logged"] and "b from" in ratio.description
    assert "var(--line-2)" in ratio.svg and "var(--line-1)" not in ratio.svg and "#0000" not in ratio.svg
    assert overlay(COMPARED_PLOTS, {"a": [], "b": []}, prefix="x") == []


def test_twelve_lines_can_be_told_apart() -> None:
    assert len({str(style_of(number)) for number in range(12)}) == 12


def test_the_same_runs_give_the_same_bytes_and_text_stays_text() -> None:
    odd = run(evaluation__samples=[{"prompt": EVIL, "reference": EVIL, "policy": EVIL, "verdict": 1.0}])._replace(
        command=EVIL
    )
    text = render_comparison(compared(**{EVIL: odd, "b": odd}))
    assert text == render_comparison(compared(**{EVIL: odd, "b": odd}))
    page = Page(text)
    assert not {"script", "img"} & {tag for tag, _ in page.tags} and page.text.count(EVIL) > 8
