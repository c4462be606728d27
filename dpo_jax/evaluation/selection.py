"""From several judged responses to each prompt to preference pairs.

Dimension key: N prompts, S responses to each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Selected(NamedTuple):
    """Pairs as places in the responses of a prompt, and how many prompts gave none, since no response is better."""

    prompts: np.ndarray  # int [pairs]
    chosen: np.ndarray  # int [pairs]
    rejected: np.ndarray  # int [pairs]
    without: int


def select_pairs(
    scores_NS: np.ndarray, responses_NS: Sequence[Sequence[str]], *, select: str = "extremes", min_gap: float = 0.0
) -> Selected:
    """The pairs whose scores differ by more than `min_gap`, the higher one chosen; no equal texts, no empty one.

    Args:
        scores_NS: how good each response is.
        responses_NS: their texts.
        select: "extremes" takes the best and the worst of each prompt, "all" all S (S - 1) / 2 pairs.
        min_gap: in the unit of the scores.

    Raises:
        ValueError: an unknown `select`, or shapes that differ.
    """
    if select not in SELECTIONS:
        raise ValueError(f"select is {select!r}. Allowed: {', '.join(SELECTIONS)}")
    scores_NS = np.asarray(scores_NS, np.float64)
    if scores_NS.ndim != 2 or [len(row) for row in responses_NS] != [scores_NS.shape[1]] * len(scores_NS):
        raise ValueError(f"scores {scores_NS.shape} do not fit {len(responses_NS)} prompts with as many responses each")
    pairs: list[tuple[int, int, int]] = []
    for prompt, (scores_S, texts) in enumerate(zip(scores_NS, responses_NS, strict=True)):
        written = np.array([place for place, text in enumerate(texts) if text.strip()], np.int64)
        places = SELECTIONS[select](scores_S[written]) if len(written) > 1 else []
        for first, second in ((int(written[a]), int(written[b])) for a, b in places):
            chosen, rejected = (first, second) if scores_S[first] > scores_S[second] else (second, first)
            if scores_S[chosen] - scores_S[rejected] > min_gap and texts[chosen].strip() != texts[rejected].strip():
                pairs.append((prompt, chosen, rejected))
    table = np.array(pairs, np.int64).reshape(-1, 3)
    return Selected(*table.T, without=len(scores_NS) - len(np.unique(table[:, 0])))


SELECTIONS: dict[str, Callable[[np.ndarray], list[tuple[int, int]]]] = {
    "extremes": lambda scores_S: [(int(scores_S.argmax()), int(scores_S.argmin()))],
    "all": lambda scores_S: comparisons(len(scores_S)),
}
"""Name -> the pairs of places that are looked at."""


def win_shares(verdicts: np.ndarray, *, prompts: int, samples: int) -> np.ndarray:
    """Quality of each response by comparisons: the mean verdict against the others to its prompt, float [N, S].

    Args:
        verdicts: how likely the first of two is better, of all pairs in the order of `comparisons`.
        prompts: N.
        samples: S.
    """
    shares_NS = np.zeros((prompts, samples))
    first, second = (np.array(places) for places in zip(*comparisons(samples), strict=True))
    verdicts_NC = np.asarray(verdicts, np.float64).reshape(prompts, len(first))
    for row_S, won_C in zip(shares_NS, verdicts_NC, strict=True):
        np.add.at(row_S, first, won_C)
        np.add.at(row_S, second, 1 - won_C)
    return shares_NS / (samples - 1)


def comparisons(samples: int) -> list[tuple[int, int]]:
    """Which responses to a prompt are compared: all with all, each pair once."""
    return list(itertools.combinations(range(samples), 2))
