"""Words looked up, VADER against what it is known for and a list by hand; and the classifier, which learns them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from dpo_jax.errors import UserError
from dpo_jax.evaluation.judges.words import classifier, lexicon, read_weights, vader
from dpo_jax.types import Prompt

GOOD, BAD = ("lovely", "warm", "clever", "moving"), ("dull", "stale", "clumsy", "hollow")
FILLER = "the a film story with its of and about actors scenes music that is very"


def prompts(count: int) -> list[Prompt]:
    return [Prompt("a film\n", None, "here")] * count


def test_vader_knows_kind_words_and_negation():
    judge = vader()
    kind, cold, turned, empty = judge.scores(prompts(4), ["a lovely film", "a horrible film", "not a lovely film", ""])
    assert kind > 0.5 > 0 > turned > cold and empty == 0.0 == judge.neutral
    assert judge.verdicts(prompts(1), ["a lovely film"], ["a horrible film"]).tolist() == [1.0]


def test_a_list_by_hand(tmp_path: Path):
    (tmp_path / "words.txt").write_text("# words\nLovely 2\n\nwell-made, 1.5 # a compound\ndull\t-1\n")
    weights = read_weights(tmp_path / "words.txt")
    assert weights == {"lovely": 2.0, "well-made": 1.5, "dull": -1.0}
    assert lexicon({"Lovely": 2.0}).scores(prompts(1), ["LOVELY"]).tolist() == [2.0]
    # (2 - 1 + 0) / 3; 1.5 of two words, the second unknown; no word
    found = lexicon(weights).scores(prompts(3), ["lovely, DULL film!", "Well-made lovelyx", " "])
    assert found.tolist() == [pytest.approx(1 / 3), 0.75, 0.0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lovely\n", r"words.txt:1: 'lovely' is not a word and its weight"),
        ("a 1\nlovely warm\n", r"words.txt:2: "),
        ("lovely nan\n", r"words.txt:1: "),
        ("a b 1\n", r"words.txt:1: "),
        ("Warm 1\nwarm 2\n", r"words.txt:2: the word 'warm' is there twice"),
        ("# nothing\n", "holds no word"),
        (None, "cannot be read"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, text: str | None, says: str):
    if text is not None:
        (tmp_path / "words.txt").write_text(text)
    with pytest.raises(UserError, match=says):
        read_weights(tmp_path / "words.txt")


def labelled(count: int, *, seed: int) -> tuple[list[str], list[int]]:
    dice = random.Random(seed)
    labels = [dice.randrange(2) for _ in range(count)]
    texts = [
        " ".join(dice.sample([*dice.choices(FILLER.split(), k=8), *dice.choices((BAD, GOOD)[label], k=2)], k=10))
        for label in labels
    ]
    return texts, labels


def test_the_classifier_scores_unseen_texts():
    judge = classifier(*labelled(300, seed=0))
    texts, labels = labelled(200, seed=1)
    scores = judge.scores(prompts(200), texts)
    assert scores.shape == (200,) and scores.min() >= 0.0 and scores.max() <= 1.0
    assert np.mean((scores > 0.5) == labels) > 0.95
    np.testing.assert_array_equal(scores, classifier(*labelled(300, seed=0)).scores(prompts(200), texts))
    assert judge.scores([], []).shape == (0,)


def test_the_classifier_reads_pairs_of_words():
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
