from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from dpo_jax.evaluation.best_of import best_of, best_of_table, kl_bound


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
    assert [row["n"] for row in table] == [1, 2, 4]
    assert table[0]["score"] == pytest.approx(5.5)
    assert [row["score"] for row in table] == sorted(row["score"] for row in table)
    low, high = table[2]["interval"]
    assert low < table[2]["score"] < high


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="the best of 3: there are 2"):
        best_of(np.zeros((1, 2)), 3)
