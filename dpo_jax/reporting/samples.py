"""Samples side by side, each with what the judge said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dpo_jax.evaluation.records import Sample
from dpo_jax.reporting.numbers import plain


class Side(NamedTuple):
    """One response: whose it is, its score (or nothing), the verdict (better, worse, tie or nothing), its text."""

    name: str
    score: str
    verdict: str
    text: str


class Shown(NamedTuple):
    """The responses to one prompt."""

    prompt: str
    sides: list[Side]


def before_and_after(samples: Sequence[Sample]) -> list[Shown]:
    """Of one run, the reference beside the policy."""
    return [
        Shown(sample.prompt, [_reference(sample), Side("After: policy", *_judged(sample), sample.policy)])
        for sample in samples
    ]


def side_by_side(runs: Mapping[str, Sequence[Sample]]) -> list[Shown]:
    """Of several runs, by prompt: the reference where all have the same one, and the policy of each.

    The k-th response to a prompt stands beside the k-th of the others; what a run has not answered is left out.
    """
    table: dict[tuple[str, int], dict[str, Sample]] = {}
    for name, samples in runs.items():
        seen: dict[str, int] = {}
        for sample in samples:
            prompt = sample.prompt
            seen[prompt] = seen.get(prompt, 0) + 1
            table.setdefault((prompt, seen[prompt]), {})[name] = sample
    return [Shown(prompt, _sides(of_runs)) for (prompt, _), of_runs in table.items() if len(of_runs) > 1]


def _sides(of_runs: Mapping[str, Sample]) -> list[Side]:
    first = next(iter(of_runs.values()))
    same = all(sample.reference == first.reference for sample in of_runs.values())
    policies = [Side(name, *_judged(sample), sample.policy) for name, sample in of_runs.items()]
    return [_reference(first), *policies] if same else policies


def _reference(sample: Sample) -> Side:
    score = sample.reference_score
    return Side("Before: reference", "" if score is None else plain(score), "", sample.reference)


def _judged(sample: Sample) -> tuple[str, str]:
    """The policy's score, and how it was judged against the reference."""
    before, after, verdict = sample.reference_score, sample.policy_score, sample.verdict
    if verdict is None and before is not None and after is not None and not math.isnan(after - before):
        verdict = (after > before) + 0.5 * (after == before)
    said = "" if verdict is None else "better" if verdict > 0.5 else "worse" if verdict < 0.5 else "tie"
    return "" if after is None else plain(after), said
