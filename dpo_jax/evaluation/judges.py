"""Judges: how likely a text is good. A stage gives them the texts and labels they learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np


class Judge(Protocol):
    """Scores texts."""

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """The probability that each text is good, float [n] in [0, 1]."""
        ...


class _Classifier:
    """A fitted scikit-learn pipeline whose second class is good."""

    def __init__(self, pipeline):
        self._pipeline = pipeline

    def score(self, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros(0)
        return self._pipeline.predict_proba(texts)[:, 1]


def classifier(texts: Sequence[str], labels: Sequence[int]) -> Judge:
    """Logistic regression on TF-IDF of words and pairs of words; those that only one text has are left out.

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
    pipeline = make_pipeline(features, LogisticRegression(C=4.0, max_iter=300))
    return _Classifier(pipeline.fit(texts, labels))


JUDGES: dict[str, Callable[[Sequence[str], Sequence[int]], Judge]] = {
    "classifier": classifier,
}
"""Name in a configuration -> what makes the judge from labelled texts."""
