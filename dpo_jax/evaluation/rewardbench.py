"""Accuracy as RewardBench counts it (Lambert et al. 2024, arXiv:2403.13787).

Dimension key: n rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dpo_jax.evaluation.intervals import average_interval, share_interval
from dpo_jax.evaluation.records import Benchmark, Section, Share

_CODE = 164
SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 250,
        "xstest-should-respond": 154,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 6 * _CODE,  # 447 rows, which count as much as all code
        **{f"hep-{language}": _CODE for language in ("cpp", "go", "java", "js", "python", "rust")},
    },
}
"""Section -> its subsets -> the weight of each in the section, as the benchmark's own code has them."""


def rewardbench(right_n: np.ndarray, subsets: Sequence[str], *, name: str | None = None) -> Benchmark:
    """Accuracy by subset, the sections' averages over their subsets weighted by prompts, and the score, their mean.

    A section is there where any of its subsets is, and says which it lacks; the score only where all are whole.

    Args:
        right_n: bool: chosen scored above rejected (a tie is wrong).
        subsets: of each row; what is of no section counts in `accuracy` and `subsets` alone.
        name: the judge's.

    Raises:
        ValueError: they are not as many, or there are none.
    """
    right_n, names = np.asarray(right_n, bool), np.asarray(subsets, object)
    if right_n.shape != names.shape or not len(names):
        raise ValueError(f"{len(right_n)} verdicts of {len(names)} rows: need one each")
    by_subset = {subset: _share(right_n[names == subset]) for subset in dict.fromkeys(subsets)}
    sections = {
        section: _average(by_subset, weights) for section, weights in SECTIONS.items() if weights.keys() & by_subset
    }
    whole = len(sections) == len(SECTIONS) and not any(section.lacks for section in sections.values())
    score = float(np.mean([section.accuracy or 0.0 for section in sections.values()])) if whole else None
    return Benchmark(name=name, **vars(_share(right_n)), subsets=by_subset, sections=sections, score=score)


def _share(right_n: np.ndarray) -> Share:
    right, rows = int(right_n.sum()), len(right_n)
    return Share(rows=rows, accuracy=right / rows, accuracy_interval=share_interval(right, rows))


def _average(by_subset: Mapping[str, Share], weights: Mapping[str, int]) -> Section:
    present = [name for name in weights if name in by_subset]
    of_each = [weights[name] for name in present]
    accuracies = [by_subset[name].accuracy or 0.0 for name in present]
    rows = [by_subset[name].rows or 0 for name in present]
    return Section(
        rows=sum(rows),
        accuracy=float(np.average(accuracies, weights=of_each)),
        accuracy_interval=average_interval(accuracies, rows, of_each),
        lacks=tuple(name for name in weights if name not in by_subset),
    )
