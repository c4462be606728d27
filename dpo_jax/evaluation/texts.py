"""Lengths of samples, and how much they repeat themselves."""

from __future__ import annotations

from collections.abc import Sequence

from dpo_jax.evaluation.intervals import mean_interval
from dpo_jax.evaluation.records import Texts

_REPEATED_WORDS = 4


def describe_texts(texts: Sequence[str]) -> Texts:
    """Mean lengths, and repetition by words, of texts.

    `distinct_1` and `distinct_2` are the different words, and pairs of words, of all texts together as a share of all
    of them (Li et al. 2016, arXiv:1510.03055); `repeated` is the mean share of a text's groups of four words that were
    there before in the same text, of those with at least four words. What there is none of is None.
    """
    words = [text.split() for text in texts]
    repeated = [1 - len(set(groups)) / len(groups) for text in words if (groups := _groups(text, _REPEATED_WORDS))]
    return Texts(
        characters=_mean([len(text) for text in texts]),
        words=_mean([len(text) for text in words]),
        words_interval=mean_interval([len(text) for text in words]),
        empty=_mean([not text for text in words]),
        distinct_1=_distinct(words, 1),
        distinct_2=_distinct(words, 2),
        repeated=_mean(repeated),
    )


def _groups(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


def _distinct(texts: Sequence[Sequence[str]], size: int) -> float | None:
    groups = [group for words in texts for group in _groups(words, size)]
    return len(set(groups)) / len(groups) if groups else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
