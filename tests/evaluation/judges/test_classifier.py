"""The classifier learns to tell good from bad, and the same way each time."""

import random

import numpy as np
import pytest

from dpo_jax.evaluation.judges.classifier import classifier
from dpo_jax.types import Prompt

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


def prompts(count: int) -> list[Prompt]:
    return [Prompt("a film\n", None, "here")] * count


def test_it_scores_unseen_texts():
    judge = classifier(*labelled(300, seed=0))
    texts, labels = labelled(200, seed=1)
    scores = judge.scores(prompts(200), texts)
    assert scores.shape == (200,) and scores.min() >= 0.0 and scores.max() <= 1.0
    assert np.mean((scores > 0.5) == labels) > 0.95
    np.testing.assert_array_equal(scores, classifier(*labelled(300, seed=0)).scores(prompts(200), texts))
    assert judge.scores([], []).shape == (0,)


def test_it_reads_pairs_of_words():
    """The same words in another order: only pairs of words tell them apart."""
    texts, labels = ["good not bad", "bad not good"] * 20, [1, 0] * 20
    judge = classifier(texts, labels)
    good, bad = judge.scores(prompts(2), texts[:2])
    assert good > 0.8 and bad < 0.2
    assert judge.verdicts(prompts(3), [*texts[:2], " good"], [*texts[1::-1], "good\n"]).tolist() == [1.0, 0.0, 0.5]


@pytest.mark.parametrize(("texts", "labels"), [(["a", "b"], [1]), (["a", "b"], [1, 1]), (["a", "b"], [1, 2])])
def test_labels_must_fit(texts, labels):
    with pytest.raises(ValueError, match=f"2 texts, {len(labels)} labels"):
        classifier(texts, labels)
