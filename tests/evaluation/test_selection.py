from __future__ import annotations

import numpy as np
import pytest

from dpo_jax.evaluation.selection import comparisons, select_pairs, win_shares

TEXTS = [["a", "b", "c"], ["d", "e", "f"]]


def as_set(found) -> set[tuple[int, int, int]]:
    return set(zip(found.prompts.tolist(), found.chosen.tolist(), found.rejected.tolist(), strict=True))


def test_extremes_are_the_best_and_the_worst() -> None:
    found = select_pairs(np.array([[0.2, 0.9, 0.1], [3.0, 2.0, 1.0]]), TEXTS)
    assert as_set(found) == {(0, 1, 2), (1, 0, 2)}
    assert found.without == 0


def test_all_pairs_have_the_higher_score_first() -> None:
    found = select_pairs(np.array([[0.2, 0.9, 0.1], [1.0, 1.0, 1.0]]), TEXTS, select="all")
    assert as_set(found) == {(0, 1, 0), (0, 0, 2), (0, 1, 2)}
    assert found.without == 1


def test_a_gap_must_be_larger_than_asked() -> None:
    scores = np.array([[0.0, 0.5, 0.2], [0.0, 0.6, 0.1]])
    assert as_set(select_pairs(scores, TEXTS, min_gap=0.5)) == {(1, 1, 0)}
    assert select_pairs(scores, TEXTS, min_gap=0.7).without == 2


@pytest.mark.parametrize("select", ["all", "extremes"])
def test_an_empty_response_is_in_no_pair(select: str) -> None:
    scores = np.array([[0.0, 0.5, 0.7, 0.2], [0.1, 0.2, 0.9, 0.3]])
    found = select_pairs(scores, [["", "a", " ", "b"], ["", "a", "", ""]], select=select)
    assert as_set(found) == {(0, 1, 3)} and found.without == 1


def test_equal_texts_are_no_pair_even_if_the_judge_says_otherwise() -> None:
    assert as_set(select_pairs(np.array([[0.0, 1.0]]), [[" same", "same"]])) == set()


@pytest.mark.parametrize(
    ("scores", "texts", "select"),
    [([[1.0, 2.0]], [["a"]], "all"), ([[1.0]], [["a"], ["b"]], "all"), ([1.0, 2.0], [["a", "b"]], "all")],
)
def test_shapes_that_differ_are_refused(scores, texts, select) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        select_pairs(np.array(scores), texts, select=select)


def test_an_unknown_selection_is_refused() -> None:
    with pytest.raises(ValueError, match="Allowed: extremes, all"):
        select_pairs(np.zeros((1, 2)), [["a", "b"]], select="some")


def test_win_shares_by_hand() -> None:
    assert comparisons(3) == [(0, 1), (0, 2), (1, 2)]
    # First prompt: 0 beats 1, ties 2; 2 beats 1. Second: 2 beats all, 0 beats 1.
    shares = win_shares(np.array([1.0, 0.5, 0.0, 1.0, 0.0, 0.0]), prompts=2, samples=3)
    np.testing.assert_allclose(shares, [[0.75, 0.0, 0.75], [0.5, 0.0, 1.0]])
