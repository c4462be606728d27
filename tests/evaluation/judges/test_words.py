"""Words looked up: VADER against what it is known for, and a list of one's own by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_jax.errors import UserError
from dpo_jax.evaluation.judges.lexicon import lexicon, read_weights, vader
from dpo_jax.types import Prompt


def prompts(count: int) -> list[Prompt]:
    return [Prompt("", None, "here")] * count


def test_vader_knows_kind_words_and_negation():
    judge = vader()
    kind, cold, turned, empty = judge.scores(prompts(4), ["a lovely film", "a horrible film", "not a lovely film", ""])
    assert kind > 0.5 > 0 > turned > cold and empty == 0.0 == judge.neutral
    assert judge.verdicts(prompts(1), ["a lovely film"], ["a horrible film"]).tolist() == [1.0]


def test_a_list_by_hand(tmp_path: Path):
    (tmp_path / "words.txt").write_text("# words\nLovely 2\n\nwell-made, 1.5 # a compound\ndull\t-1\n")
    weights = read_weights(tmp_path / "words.txt")
    assert weights == {"lovely": 2.0, "well-made": 1.5, "dull": -1.0}
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
