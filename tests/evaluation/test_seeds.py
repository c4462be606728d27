from __future__ import annotations

import dataclasses
import math

import pytest

from dpo_jax.evaluation.records import BestOf, Evaluation, Trial
from dpo_jax.evaluation.seeds import Line, across_seeds, best_of_lines, lines_of


def evaluation(accuracy: float, kl: float, **more: object) -> Evaluation:
    heldout = {"accuracy": accuracy, "accuracy_interval": [accuracy - 0.1, accuracy + 0.1]}
    return Evaluation.from_json({"heldout": heldout, "kl": {"exact": kl, "exact_interval": [kl - 1, kl + 1]}, **more})


def trial(settings: dict, of: Evaluation, **more: object) -> Trial:
    return Trial(label="", settings=settings, evaluation=of, **more)


def test_three_seeds_by_hand() -> None:
    mean, (low, high) = across_seeds([1.0, 2.0, 6.0])
    # Deviations -2, -1, 3: variance 7; t(0.975, 2) = 4.30265; half = 4.30265 * sqrt(7 / 3).
    assert mean == 3.0
    assert high - mean == pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-6)
    assert mean - low == pytest.approx(high - mean)


def test_one_run_says_nothing_of_seeds() -> None:
    assert across_seeds([2.0]) == (2.0, (-math.inf, math.inf))
    with pytest.raises(ValueError, match="no runs"):
        across_seeds([])


def test_seeds_of_a_setting_are_one_line() -> None:
    results = [
        trial({"loss.options.beta": beta, "seed": seed}, evaluation(accuracy, seed))
        for beta, seed, accuracy in ((0.1, 0, 0.5), (0.1, 1, 0.7), (0.5, 0, 0.6), (0.5, 1, 0.6))
    ]
    results.append(Trial(label="", settings={"loss.options.beta": 0.9, "seed": 0}, failed="no"))
    lines = lines_of(results)
    assert [dict(line.settings) for line in lines] == [{"loss.options.beta": 0.1}, {"loss.options.beta": 0.5}]
    assert [line.runs for line in lines] == [2, 2]
    assert lines[0].measures["held-out accuracy"][0] == pytest.approx(0.6)
    assert lines[1].measures["held-out accuracy"] == (0.6, (-math.inf, math.inf))
    assert "win rate" not in lines[0].measures


def test_a_measure_that_one_seed_lacks_is_not_that_of_the_others() -> None:
    judged = evaluation(0.5, 2.0, judged={"win_rate": 0.7})
    results = [trial({"seed": 0}, judged), trial({"seed": 1}, judged)]
    assert lines_of(results)[0].measures["win rate"][0] == 0.7
    results[1] = trial({"seed": 1}, evaluation(0.5, 2.0))
    assert "win rate" not in lines_of(results)[0].measures


def test_a_single_run_has_its_own_interval() -> None:
    (line,) = lines_of([trial({"seed": 3}, evaluation(0.5, 2.0))])
    assert line.measures["sequence KL"] == (2.0, (1.0, 3.0))
    assert line.measures["held-out accuracy"] == (0.5, (0.4, 0.6))


def test_runs_with_the_same_words_lie_on_one_curve() -> None:
    results = [
        trial({"loss.name": name, "loss.options.beta": 0.1, "seed": 0}, evaluation(0.5, 1.0)) for name in ("dpo", "ipo")
    ]
    assert [line.curve for line in lines_of(results)] == ["dpo", "ipo"]
    mixture = {"loss": [{"name": "sft"}, {"name": "orpo", "weight": 0.1}]}
    settings = {**mixture, "data.train.0.unpair": True, "data.eval.0.unpair": True}
    assert [line.curve for line in lines_of([trial(settings, evaluation(0.5, 1.0), config=mixture)])] == [
        "sft + orpo unpair"
    ]


def test_the_best_of_n_are_lines_beside_the_points() -> None:
    best = BestOf(n=4, score=0.7, interval=(0.6, 0.8), kl=0.64)
    soft = dataclasses.replace(best, beta=0.05)
    settings = {"loss.name": "dpo", "loss.options.beta": 0.1}
    for measure in ("mean score", "mean reward"):
        (line,) = best_of_lines([best], Line(settings, 1, {measure: (0.5, None)}, "dpo"))
        assert line.settings == {"loss.name": "best of 4 (KL: at most)", "loss.options.beta": ""}
        assert line.measures == {measure: (0.7, (0.6, 0.8)), "sequence KL": (0.64, None)}
        assert line.curve == "best of n"
    (line,) = best_of_lines([soft], Line(settings, 1, {"mean score": (0.5, None)}, "dpo"))
    assert line.settings == {"loss.name": "soft best of 4 (KL: at most)", "loss.options.beta": "0.05"}
    assert line.curve == "soft best of n"
    (line,) = best_of_lines([soft], Line({"loss.options.beta": 0.1}, 1, line.measures, ""))
    assert line.settings == {"loss.options.beta": "soft best of 4 (KL: at most)"}  # a name before a number
