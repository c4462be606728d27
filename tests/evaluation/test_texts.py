"""Lengths and repetition of samples by hand."""

import pytest

from dpo_jax.evaluation.texts import describe_texts


def test_by_hand():
    found = describe_texts(["a b a b a b", "warm day", ""])
    # groups of four of the first: abab baba abab: one of three was there before
    assert found.repeated == pytest.approx(1 / 3)
    assert found.words == pytest.approx(8 / 3) and found.characters == pytest.approx(19 / 3)
    assert found.empty == pytest.approx(1 / 3)
    assert found.distinct_1 == 4 / 8  # a b warm day of 8
    assert found.distinct_2 == 3 / 6  # ab, ba, warm-day of 5 + 1


def test_what_there_is_none_of_is_none():
    found = describe_texts(["word", ""])
    assert found.distinct_2 is None and found.repeated is None and found.distinct_1 == 1.0
