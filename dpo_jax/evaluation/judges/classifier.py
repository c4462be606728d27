"""A judge that learns from labelled texts how likely a text is good."""

from __future__ import annotations

from collections.abc import Sequence

from dpo_jax.evaluation.judges.interface import Scoring
from dpo_jax.types import Prompt


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
        return pipeline.predict_proba([response.strip() for response in responses])[:, 1]

    return Scoring("classifier", score, neutral=0.5)
