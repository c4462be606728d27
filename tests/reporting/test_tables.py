"""The tables of a report hold what was measured, and nothing where nothing was."""

from __future__ import annotations

from typing import Any

import pytest

from dpo_jax.evaluation.records import Sample
from dpo_jax.reporting.numbers import GAP
from dpo_jax.reporting.report import render
from dpo_jax.reporting.samples import before_and_after, side_by_side
from dpo_jax.reporting.tables import benchmark_table, data_table, heldout_table, judged_table, samples_table
from tests.reporting.made_up import DATA, EVALUATION, FITTED, WHOLE, made_up_run, measured
from tests.reporting.test_report import EVIL, Page


def test_who_won_raw_at_equal_lengths_and_in_either_order() -> None:
    table = judged_table(measured(WHOLE))
    assert table and table.title == "Judged by http"
    assert [(row[0], row[1].partition(GAP)[0], row[2].partition(GAP)[0]) for row in table.rows] == [
        ("as judged, ties half", "87.5", "81.0 to 93.0"),
        ("at equal lengths", "85.0", "77.0 to 92.0"),
        ("policy shown first", "93.0", "88.0 to 97.0"),
        ("policy shown second", "82.0", "75.0 to 88.0"),
    ]
    for part in ("110 were won, 4 tied and 14 lost", f"order in 8.0{GAP}%", "256 requests, at a cost of 0.0123"):
        assert part in table.note
    scores = {**WHOLE["judged"], "order": None, "usage": None, "length_controlled": None}
    only = judged_table(measured({"judged": scores}))
    assert only and len(only.rows) == 1 and "order" not in only.note


def test_distance_length_and_repetition_of_both_sides() -> None:
    table = samples_table(measured(WHOLE))
    assert table
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["words"] == ("11.0 (9.00 to 11.0)", "10.0 (9.00 to 11.0)")
    assert rows["groups of 4 words that repeat within a response"] == (f"2.0{GAP}%", f"1.0{GAP}%")
    assert rows["k3"] == (f"4.90{GAP}nats", "") and rows["entropy a token"][0] == f"2.31{GAP}nats"
    assert next(iter(rows)) == "KL a response, over the vocabulary"


def test_held_out_parts_and_the_benchmark() -> None:
    heldout, benchmark = heldout_table(measured(WHOLE)), benchmark_table(measured(WHOLE))
    assert heldout and [row[:2] for row in heldout.rows] == [("chosen longer", "40")]  # one source is no part
    assert benchmark and benchmark.columns == ("", "implicit reward", "judge: http")
    assert [row[0] for row in benchmark.rows] == ["all rows", "Chat", "Safety"]


def test_the_data_in_short() -> None:
    table = data_table(DATA)
    assert table and table.columns == ("", "data.train", "data.eval")
    assert [row for row in table.rows if row[0].startswith(("rows", "prompts", "of the"))] == [
        ("rows kept", "1,256", "64"),
        ("prompts also in data.train", "0", "! 3"),
        ("of the pairs have the longer response chosen", "52%", "! 64%"),
    ]
    assert ("tokens of chosen, median / longest", "16 / 1,200", "16 / 1,200") in table.rows
    assert table.note == "There were no pairs labelled both ways."
    assert data_table([]) is None


@pytest.mark.parametrize("evaluation", [{}, {"heldout": {"pairs": 3, "accuracy": 0.5}}])
def test_no_table_where_nothing_was_measured(evaluation: dict[str, Any]) -> None:
    for make in (judged_table, samples_table, heldout_table, benchmark_table):
        assert make(measured(evaluation)) is None


def test_each_sample_has_its_verdict() -> None:
    judged = [shown.sides[1].verdict for shown in before_and_after(measured(WHOLE).samples)]
    assert judged == ["better", "better", "tie", "worse", *["better"] * 4]
    (same, worse, unknown) = (
        before_and_after([Sample(prompt="p", reference="r", policy="q", reference_score=0.5, policy_score=score)])[
            0
        ].sides
        for score in (0.5, 0.25, float("nan"))
    )
    assert [sides[1][1:3] for sides in (same, worse, unknown)] == [("0.500", "tie"), ("0.250", "worse"), ("NaN", "")]
    assert same[0][1:3] == ("0.500", "")  # the reference is what it is compared with


def test_several_runs_answer_the_same_prompt() -> None:
    def rows(*of: tuple[str, str, str]) -> list[Sample]:
        return [Sample(prompt=prompt, reference=before, policy=after) for prompt, before, after in of]

    a = rows(("p", "r1", "a1"), ("q", "r2", "a2"), ("p", "r3", "a3"))
    b = rows(("p", "r1", "b1"), ("p", "r4", "b3"), ("z", "r5", "b5"))
    first, second = side_by_side({"a": a, "b": b})
    assert [(side.name, side.text) for side in first.sides] == [("Before: reference", "r1"), ("a", "a1"), ("b", "b1")]
    assert [(side.name, side.text) for side in second.sides] == [("a", "a3"), ("b", "b3")]  # other references


def test_the_page_has_all_of_it_and_text_stays_text() -> None:
    odd = [DATA[1]._replace(name=EVIL, facts=[(EVIL, "4", True)])]
    page = Page(render(made_up_run()._replace(evaluation=measured(WHOLE), fitted=FITTED, data=odd)))
    for text in (
        "policy shown second",
        "RewardBench",
        "judged better",
        "18.2 a token on 64",
        "Distance, length",
        "! 4",
    ):
        assert text in page.text
    assert page.text.count(EVIL) == 4 and not {"script", "img"} & {tag for tag, _ in page.tags}
    without = Page(render(made_up_run()._replace(evaluation=measured(EVALUATION)))).text
    assert "Data check" not in without and "policy shown second" not in without and "perplexity" not in without
