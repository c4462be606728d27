"""The analysis in a report: words that follow from the numbers, the run drawn where it was, and any text as text."""

from __future__ import annotations

import copy
import functools
import math
import re
from typing import Any

import numpy as np
import pytest

from dpo_jax.analysis.field import pair_loss
from dpo_jax.analysis.trajectory import field_of
from dpo_jax.evaluation.analysis import Analysis
from dpo_jax.losses import PairLogps
from dpo_jax.reporting.analysis import analysis_section, draw_field
from dpo_jax.reporting.report import render
from tests.reporting.made_up import made_up_run
from tests.reporting.test_report import EVIL, Page


def half(happened: float, *pulls: float, text: str = "a response") -> dict[str, Any]:
    names = ("first_order", "own_chosen", "own_rejected", "others")
    return {"text": text, "happened": happened, **dict(zip(names, (happened, *pulls), strict=True))}


PLACES = np.stack([np.linspace(0, 1, 30), np.linspace(0, -9, 30)], axis=1)
FIELD = functools.cache(lambda: field_of(pair_loss("dpo"), PairLogps(*map(np.asarray, (-70.0, -68.0))), PLACES))


def made_up_analysis(**changes: Any) -> Analysis:
    bins = [{"low": 0.1, "high": 0.4, "pairs": 8, "fell": 2, "chosen": 0.5, "rejected": -7.0, "interval": [0.07, 0.59]}]
    likeness = {"correlation": -0.25, "bins": bins}
    pairs = [
        {"chosen": half(-0.2, 3.0, -4.0, 1.0), "rejected": half(-1.0, 4.0, -9.0, 0.5)},
        {"chosen": half(-0.1, 3.0, -1.0, -2.5), "rejected": half(-2.0, 1.0, -9.0, 0.5)},
        {"chosen": half(0.3, 3.0, -1.0, 2.5, text=EVIL), "rejected": half(-2.0, 1.0, -9.0, 0.5, text=EVIL)},
    ]
    found = {
        "step": 30,
        "trajectory": {"kind": "log_ratios", "steps": list(range(30)), "places": PLACES.tolist()},
        "field": copy.deepcopy(FIELD()),
        "halves": {
            "measured": {"chosen": 1.0, "rejected": -9.0, "faster": "rejected"},
            "predicted": {"logp": {"chosen": 5.0, "rejected": -5.0}, "ratio": None, "probability": None},
        },
        "displacement": {
            **{"split": "held out", "pairs": 8, "fell": 2, "interval": [0.07, 0.59], "chosen": 0.5, "rejected": -7.0},
            "by": {"edit_similarity": likeness, "ches": likeness},
        },
        "one_step": {"step": 30, "learning_rate": 1e-5, "unexplained": 0.013, "pairs": pairs},
    }
    return Analysis.from_json(found | changes)


@pytest.fixture(scope="module")
def html() -> str:
    return render(made_up_run()._replace(analysis=made_up_analysis()))


def test_the_page_holds_the_analysis(html: str):
    page = Page(html)
    for text in ("rejected moved more", "2 of 8 pairs", "25.0", "never", "edit similarity", "CHES", "a response"):
        assert text in page.text
    pictures = [attrs["aria-label"] or "" for _, attrs in page.tags if attrs.get("role") == "img"]
    assert sum("gradient field" in text for text in pictures) == 3
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert page.text.count(EVIL) == 2 and not {"script", "img"} & {tag for tag, _ in page.tags}
    assert "#0000" not in html  # every colour is the style sheet's
    assert "Why the log-probabilities moved" not in render(made_up_run())


def test_it_is_said_what_pulls_chosen_responses_down():
    section = analysis_section(made_up_analysis())
    assert section
    (step,) = [words for words in section.words if words.startswith("One more step")]
    assert "lowers the chosen response of 2 of 3 pairs" in step and "misses 1.3" in step
    assert "its own rejected response in 1" in step and "the other pairs in 1" in step
    step: Any = made_up_analysis().to_json()["one_step"]
    risen = analysis_section(made_up_analysis(one_step={**step, "pairs": step["pairs"][2:]}))
    assert risen and any("raises the chosen response of each of 1 pairs" in words for words in risen.words)
    assert [row[0] for row in section.pairs.rows[:2]] == ["a response"] * 2 and len(section.pairs.rows) == 6


def test_a_loss_without_a_field_says_so():
    section = analysis_section(made_up_analysis(field={"refused": "aot depends on others"}))
    assert section and section.curves == [] and any("aot depends on others" in words for words in section.words)


def test_the_run_is_drawn_where_it_was():
    """Its end is the marker in the window: from low to high, y upwards."""
    found = made_up_analysis()
    (curve, *_) = draw_field(found)
    low, high = np.array(found.field.low), np.array(found.field.high)
    numbers = r"x=\"([\d.]+)\" y=\"([\d.]+)\""
    markers = [
        (float(x), float(y))
        for use in re.findall(r"<use [^>]*var\(--line-1\)[^>]*>", curve.svg)
        for x, y in re.findall(numbers, use)
    ]
    frame = [float(x) for x in re.findall(r"patch_2\">\s*<path d=\"([^\"]+)\"", curve.svg)[0].split() if x[0].isdigit()]
    left, right, top, bottom = min(frame[::2]), max(frame[::2]), min(frame[1::2]), max(frame[1::2])
    share = (np.array([0.95, -8.7]) - low) / (high - low)  # the mean of the last three of thirty steps
    (x, y) = markers[-1]
    assert (x - left) / (right - left) == pytest.approx(share[0], abs=0.02)
    assert (bottom - y) / (bottom - top) == pytest.approx(share[1], abs=0.02)


def test_numbers_that_are_none_do_not_stop_it():
    nothing = {"correlation": math.nan, "bins": []}
    written: Any = made_up_analysis().to_json()
    lost, field = written["displacement"] | {"by": {"ches": nothing}}, written["field"]
    field["logp"]["arrows"][0] = [math.nan, math.nan]
    one = {"kind": "logps", "steps": [1], "places": [[0.0, 0.0]]}
    assert "NaN" in render(
        made_up_run()._replace(analysis=made_up_analysis(displacement=lost, field=field, trajectory=one))
    )
