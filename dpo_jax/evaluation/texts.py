"""Lengths of samples, and how much they repeat themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpo_jax.evaluation.intervals import bounded_interval, mean_interval
from dpo_jax.evaluation.records import Texts

_REPEATED_WORDS = 4


def describe_texts(texts: Sequence[str], groups: np.ndarray | None = None) -> Texts:
    """Mean lengths, and repetition by words, of texts.

    `distinct_1` and `distinct_2` are the different words, and pairs of words, of all texts together as a share of all
    of them (Li et al. 2016, arXiv:1510.03055); `repeated` is the mean share of a text's groups of four words that were
    there before in the same text, of those with at least four words. What there is none of is None. `groups` are those
    of the intervals.
    """
    words = [text.split() for text in texts]
    enough = np.array([len(text) >= _REPEATED_WORDS for text in words], bool)
    repeated = [1 - len(set(four)) / len(four) for text in words if (four := _groups(text, _REPEATED_WORDS))]
    empty = [not text for text in words]
    return Texts(
        characters=_mean([len(text) for text in texts]),
        words=_mean([len(text) for text in words]),
        words_interval=mean_interval([len(text) for text in words], groups),
        empty=_mean(empty),
        empty_interval=bounded_interval(empty, groups) if words else None,
        distinct_1=_distinct(words, 1),
        distinct_2=_distinct(words, 2),
        repeated=_mean(repeated),
        repeated_interval=bounded_interval(repeated, None if groups is None else groups[enough]) if repeated else None,
    )


def _groups(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


def _distinct(texts: Sequence[Sequence[str]], size: int) -> float | None:
    groups = [group for words in texts for group in _groups(words, size)]
    return len(set(groups)) / len(groups) if groups else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
