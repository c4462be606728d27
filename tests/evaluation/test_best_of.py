from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from dpo_jax.evaluation.best_of import best_of, best_of_table, kl_bound, soft_best_of, soft_best_of_table


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_it_is_the_mean_over_all_choices(n: int) -> None:
    scores = np.random.default_rng(0).normal(size=(3, 5))
    wanted = [np.mean([max(choice) for choice in itertools.combinations(row, n)]) for row in scores]
    np.testing.assert_allclose(best_of(scores, n), wanted)


def test_of_normal_scores_it_is_the_known_expectation() -> None:
    scores = np.random.default_rng(1).normal(size=(4000, 8))
    assert best_of(scores, 2).mean() == pytest.approx(1 / math.sqrt(math.pi), abs=0.02)


def test_the_bound_by_hand() -> None:
    assert kl_bound(1) == 0.0
    assert kl_bound(4) == pytest.approx(math.log(4) - 0.75)


def test_the_table_doubles_n() -> None:
    table = best_of_table(np.arange(12.0).reshape(2, 6))
    assert [row.n for row in table] == [1, 2, 4]
    assert table[0].score == pytest.approx(5.5)
    assert [row.score for row in table] == sorted(row.score for row in table)
    low, high = table[2].interval
    assert low < table[2].score < high


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="the best of 3: there are 2"):
        best_of(np.zeros((1, 2)), 3)


def test_the_soft_choice_by_hand() -> None:
    score, kl = soft_best_of(np.array([[0.0, math.log(3.0)]]), 1.0)  # weights 1/4 and 3/4
    assert score[0] == pytest.approx(0.75 * math.log(3.0))
    assert kl[0] == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_the_soft_choice_ends_at_all_and_at_the_best() -> None:
    scores = np.random.default_rng(2).normal(size=(50, 8))
    (score, kl), (sharp, most) = soft_best_of(scores, 1e6), soft_best_of(scores, 1e-6)
    np.testing.assert_allclose(score, scores.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(kl, 0, atol=1e-9)
    np.testing.assert_allclose(sharp, best_of(scores, 8))
    np.testing.assert_allclose(most, math.log(8))


def test_of_many_responses_it_is_the_optimum_of_score_less_beta_kl() -> None:
    # Normal scores tilted by exp(score / beta): mean 1 / beta, KL 1 / (2 beta^2).
    scores = np.random.default_rng(3).normal(size=(40, 20_000))
    score, kl = soft_best_of(scores, 2.0)
    assert score.mean() == pytest.approx(0.5, abs=0.01) and kl.mean() == pytest.approx(0.125, abs=0.01)


def test_the_soft_table_goes_from_little_to_much() -> None:
    table = soft_best_of_table(np.random.default_rng(4).normal(size=(30, 16)))
    for name in ("score", "kl"):
        values = [getattr(row, name) for row in table]
        assert values == sorted(values) and len(set(values)) == 6
    assert all(row.n == 16 and row.interval[0] < row.score < row.interval[1] for row in table)
    assert soft_best_of_table(np.ones((3, 4))) == []
    louder = soft_best_of_table(
        7 * np.random.default_rng(4).normal(size=(30, 16))
    )  # the unit of the scores is no matter
    np.testing.assert_allclose([row.kl for row in louder], [row.kl for row in table])


def test_a_choice_needs_a_temperature() -> None:
    with pytest.raises(ValueError, match="beta is 0"):
        soft_best_of(np.zeros((1, 2)), 0)
