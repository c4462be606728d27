"""The verdict is read off the data: better, worse or unclear, and each worry in its own case only."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dpo_jax.evaluation.records import Evaluation
from dpo_jax.reporting.numbers import GAP, MINUS
from dpo_jax.reporting.plots import ends, series
from dpo_jax.reporting.tables import result_rows
from dpo_jax.reporting.verdict import verdict
from tests.reporting.made_up import DATA, EVALUATION, measured, preference_rows


def _judged(low: float, high: float) -> Evaluation:
    return measured(EVALUATION | {"judged": EVALUATION["judged"] | {"difference_interval": [low, high]}})


def _rows(**columns: list[float]) -> list[dict[str, Any]]:
    rows = zip(*columns.values(), strict=True)
    names = [name.replace("__", "/") for name in columns]
    return [{"step": step} | dict(zip(names, values, strict=True)) for step, values in enumerate(rows)]


def test_a_good_run_is_better_and_has_no_concerns() -> None:
    found = verdict(measured(EVALUATION), preference_rows())
    assert found.status == "better" and found.concerns == []
    for number in ("90.6", "55.5", "+35.1", "+25.0 to +44.9", "4.83"):
        assert number in found.text


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [
        (0.1, 0.3, "better"),
        (-0.3, -0.1, "worse"),
        (-0.1, 0.1, "unclear"),
        (0.0, 0.2, "unclear"),
        (-0.2, 0.0, "unclear"),
    ],
)
def test_the_interval_decides(low: float, high: float, status: str) -> None:
    found = verdict(_judged(low, high), [])
    assert found.status == status
    assert any("zero" in concern for concern in found.concerns) == (status == "unclear")


def test_a_nan_interval_is_never_better() -> None:
    found = verdict(_judged(math.nan, math.nan), [])
    assert found.status == "unclear" and "NaN" in found.text


@pytest.mark.parametrize(("kl", "worry"), [(8.0, False), (8.1, True), (math.nan, True)])
def test_a_far_policy_is_a_concern(kl: float, worry: bool) -> None:
    found = verdict(measured(EVALUATION | {"kl": {"sequence_kl": kl}}), [])
    assert any("sequence KL" in concern for concern in found.concerns) == worry


def test_accuracy_at_chance_is_a_concern() -> None:
    heldout = EVALUATION["heldout"] | {"accuracy_interval": [0.48, 0.7]}
    (concern,) = verdict(measured(EVALUATION | {"heldout": heldout}), []).concerns
    assert "chance" in concern and f"48.0 to 70.0{GAP}%" in concern


def test_falling_chosen_log_probabilities_are_a_concern() -> None:
    def worries(**columns: list[float]) -> list[str]:
        return verdict(measured(EVALUATION), _rows(**columns)).concerns

    (concern,) = worries(log_ratios__chosen=[0.0] * 5 + [-4.9, -5.0, -5.1, -5.0, -5.0])
    assert f"{MINUS}5.00" in concern and "5 logged steps" in concern and "displaced" in concern
    assert worries(log_ratios__chosen=[0.0] * 5 + [-0.8, -0.9, -0.9, -0.9, -0.9]) == []
    assert worries(log_ratios__chosen=[0.0] * 5 + [-9.0, 7.0, -9.0, 3.0, -2.0]) == []  # -2 on average, of wide spread
    # The log-ratio is believed before the log-prob, which also moves with the lengths in the batch.
    fallen = [-50.0] * 5 + [-70.0] * 5
    assert worries(log_ratios__chosen=[0.0, 0.1] * 5, logps__chosen=fallen) == []
    assert len(worries(logps__chosen=fallen)) == 1
    assert worries(logps__chosen=[-50.0, -60.0, -40.0, -55.0, -45.0, -52.0, -65.0, -48.0, -50.0, -47.0]) == []


def test_two_batches_are_no_trend() -> None:
    for columns in ({"log_ratios__chosen": [0.0, -5.0]}, {"logps__chosen": [-50.0, -70.0]}, {"loss": [0.69, 0.01]}):
        assert verdict(measured(EVALUATION), _rows(**columns)).concerns == []


def test_broken_steps_are_counted() -> None:
    (concern,) = verdict(measured(EVALUATION), _rows(loss=[0.6, math.nan, math.inf, 0.5])).concerns
    assert "2 of 4" in concern and "step 1" in concern


def test_a_memorised_training_set_is_a_concern() -> None:
    (concern,) = verdict(measured(EVALUATION), _rows(loss=[0.69] * 5 + [0.01] * 5)).concerns
    assert "memorised" in concern


def test_without_a_judge_the_pairs_speak() -> None:
    found = verdict(measured({"heldout": EVALUATION["heldout"], "kl": EVALUATION["kl"]}), [])
    assert found.status == "unjudged" and "81.3" in found.text and "4.83" in found.text


@pytest.mark.parametrize("evaluation", [{}, {"judged": None, "heldout": {}, "kl": {}}])
def test_without_an_evaluation_it_says_so(evaluation: dict[str, Any]) -> None:
    assert "not been evaluated" in verdict(measured(evaluation), []).text
    assert result_rows(measured(evaluation)) == []


def test_result_rows_hold_value_unit_interval_and_count() -> None:
    rows = {row.measure: row for row in result_rows(measured(EVALUATION))}
    assert len(rows) == 7
    assert rows["Sequence KL"][1:3] == (f"4.83{GAP}nats", f"4.31 to 5.36{GAP}nats")
    assert rows["Difference"].value == f"+35.1{GAP}points" and "classifier" in rows["Difference"].note
    assert all(number in row.note for name, row in rows.items() for number in ("64" if "Held" in name else "128",))
    assert rows["Held-out loss"].interval == ""


def test_held_out_rows_that_were_trained_on_are_no_unseen_ones() -> None:
    notes = [row.note for row in result_rows(measured(EVALUATION), shared=8) if row.measure.startswith("Held-out")]
    assert len(notes) == 3 and all("64 pairs of data.eval, 8 of the rows also trained on" in note for note in notes)
    unjudged = measured({"heldout": EVALUATION["heldout"]})
    assert "8 of the rows were also trained on" in verdict(unjudged, [], data=[DATA[1]._replace(shared=8)]).text
    for shared in (0, None):
        assert "trained on" not in verdict(unjudged, [], data=[DATA[1]._replace(shared=shared)]).text
    assert not any("trained on" in row.note for row in result_rows(measured(EVALUATION)))


def test_series_skips_rows_without_the_metric_and_ends_skip_nan() -> None:
    steps, values = series([{"step": 1, "loss": 1.0}, {"step": 2}, {"step": 3, "loss": 3.0}], "loss")
    assert steps.tolist() == [1, 3] and values.tolist() == [1, 3]
    assert ends(series([{"step": 1}], "loss")[1])[0] != 0  # NaN, never 0
    # windows of five
    course = [math.nan, *[2.0] * 4, *[9.0] * 10, *[4.0] * 4, math.inf]
    _, column = series([{"step": i, "x": x} for i, x in enumerate(course)], "x")
    assert ends(column) == (2.0, 4.0)


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [(0.55, 0.7, "better"), (0.2, 0.45, "worse"), (0.5, 0.7, "unclear"), (math.nan, math.nan, "unclear")],
)
def test_rewards_are_compared_by_their_win_rate(low: float, high: float, status: str) -> None:
    sides = {"policy": {"reward": 1.5, "interval": [1.0, 2.0]}, "reference": {"reward": -0.5, "interval": [-1.0, 0.0]}}
    judged = {"judge": "reward", "samples": 64, **sides, "win_rate": 0.6, "win_rate_interval": [low, high]}
    found = verdict(measured(EVALUATION | {"judged": judged}), [])
    assert found.status == status and f"its samples win 60.0{GAP}%" in found.text
    assert any("one half" in concern for concern in found.concerns) == (status == "unclear")
    rows = {row.measure: row for row in result_rows(measured({"judged": judged}))}
    assert rows["Mean reward, policy"][1:3] == ("1.50", "1.00 to 2.00") and rows["Win rate"].value == f"60.0{GAP}%"
    assert rows["Mean reward, reference"].value == f"{MINUS}0.500" and len(rows) == 3
