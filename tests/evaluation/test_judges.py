"""Every judge of the table learns to tell good from bad, and the same way each time."""

import random

import numpy as np
import pytest

from dpo_jax.evaluation.judges import JUDGES

GOOD, BAD = ("lovely", "warm", "clever", "moving"), ("dull", "stale", "clumsy", "hollow")
FILLER = "the a film story with its of and about actors scenes music that is very"


def labelled(count: int, *, seed: int) -> tuple[list[str], list[int]]:
    dice = random.Random(seed)
    labels = [dice.randrange(2) for _ in range(count)]
    texts = [
        " ".join(dice.sample([*dice.choices(FILLER.split(), k=8), *dice.choices((BAD, GOOD)[label], k=2)], k=10))
        for label in labels
    ]
    return texts, labels


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_scores_unseen_texts(name):
    judge = JUDGES[name](*labelled(300, seed=0))
    texts, labels = labelled(200, seed=1)
    scores = judge.score(texts)
    assert scores.shape == (200,) and scores.min() >= 0.0 and scores.max() <= 1.0
    assert np.mean((scores > 0.5) == labels) > 0.95
    np.testing.assert_array_equal(scores, JUDGES[name](*labelled(300, seed=0)).score(texts))
    assert judge.score([]).shape == (0,)


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_reads_pairs_of_words(name):
    """The same words in another order: only pairs of words tell them apart."""
    texts, labels = ["good not bad", "bad not good"] * 20, [1, 0] * 20
    good, bad = JUDGES[name](texts, labels).score(texts[:2])
    assert good > 0.8 and bad < 0.2


@pytest.mark.parametrize("name", JUDGES)
@pytest.mark.parametrize(("texts", "labels"), [(["a", "b"], [1]), (["a", "b"], [1, 1]), (["a", "b"], [1, 2])])
def test_labels_must_fit(name, texts, labels):
    with pytest.raises(ValueError, match=f"2 texts, {len(labels)} labels"):
        JUDGES[name](texts, labels)
