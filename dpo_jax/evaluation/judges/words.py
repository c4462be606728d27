"""Judges that know words: by VADER, by a list of the user's own, or learned from labelled texts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dpo_jax.errors import UserError, fits_float32, told
from dpo_jax.evaluation.judges.interface import Scoring
from dpo_jax.types import Prompt

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")  # noqa: RUF001 - the curly apostrophe is meant


def vader() -> Scoring:
    """VADER's compound score of a response, from -1 to 1 (Hutto and Gilbert 2014); it does not read the prompt.

    Raises:
        UserError: the package vaderSentiment is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise UserError(
            "judge lexicon: VADER is not installed; `pip install vaderSentiment`, or name a list of words of your own "
            "in the judge's `words`."
        ) from None
    analyzer = SentimentIntensityAnalyzer()

    def score(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return [analyzer.polarity_scores(response)["compound"] for response in responses]

    return Scoring("lexicon", score, neutral=0.0)


def lexicon(weights: Mapping[str, float]) -> Scoring:
    """The mean weight of the words of a response; those that are not in the list weigh 0, and so does an empty text."""
    known = {word.casefold(): weight for word, weight in weights.items()}

    def score(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        words = [_WORD.findall(response.casefold()) for response in responses]
        return [sum(known.get(word, 0.0) for word in found) / max(1, len(found)) for found in words]

    return Scoring("lexicon", score, neutral=0.0)


def read_weights(path: Path) -> dict[str, float]:
    """A list of words: on each line a word, white space or a comma, and its weight; empty lines and # are left out.

    Raises:
        UserError: the file cannot be read, or a line is not such a line or holds a word again.
    """
    try:
        lines = path.read_text(encoding="utf8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the list of words cannot be read: {error}") from None
    weights: dict[str, float] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        word = words[0].casefold()
        try:
            weight = float(words[1]) if len(words) == 2 else math.nan
        except ValueError:
            weight = math.nan
        if not fits_float32(weight) or not _WORD.fullmatch(word):
            raise UserError(f"{path}:{number}: '{told(line, 100)}' is not a word and its weight, such as `lovely 1.5`.")
        if word in weights:
            raise UserError(f"{path}:{number}: the word '{told(word, 100)}' is there twice.")
        weights[word] = weight
    if not weights:
        raise UserError(f"{path}: the list holds no word.")
    return weights


def classifier(texts: Sequence[str], labels: Sequence[int]) -> Scoring:
    """Logistic regression on TF-IDF of words and pairs of words; those that only one text has are left out.

    It scores a response by the probability that it is good, and does not read the prompt.

    Args:
        texts: what it learns from.
        labels: 1 good, 0 bad, one per text; both must occur.

    Raises:
        ValueError: the labels are not as many as the texts, or not both 0 and 1.
    """
    if len(texts) != len(labels) or set(labels) != {0, 1}:
        raise ValueError(f"{len(texts)} texts, {len(labels)} labels {sorted(set(labels))}: need one each, both 0 and 1")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    pipeline = make_pipeline(features, LogisticRegression(C=4.0, max_iter=300)).fit(texts, labels)

    def score(prompts: Sequence[Prompt], responses: Sequence[str]):
        return pipeline.predict_proba(responses)[:, 1]

    return Scoring("classifier", score, neutral=0.5)
