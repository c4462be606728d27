"""What is odd about rows of tokens: what was cut, what is there twice, what was labelled both ways, which is longer.

Reads each row once and remembers three digests of it, 24 bytes, so that it goes through any number of rows.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from dpo_jax.data.encoding import common_prefix
from dpo_jax.data.tokens import sizes_of
from dpo_jax.types import TokenRow

PERCENTILES = (50, 90, 99, 100)
NEAR = 0.9
"""Two responses of which a longer share of tokens than this is the same at both ends are nearly identical."""

_ODD = 0x9E3779B97F4A7C15


class Findings(NamedTuple):
    """Findings in the rows of one split; counts are of rows, of responses where it says so."""

    rows: int
    lengths: Mapping[str, Sequence[int]]  # prompt, chosen, rejected (completion) -> token counts at PERCENTILES
    nearly_identical: int
    responses_without_end: int  # last or, before the line end of a template, last but one; truncated, mostly
    prompts_with_two_bos: int
    repeated: int  # rows that stood there before
    both_orders: int  # rows whose pair stood there before with chosen and rejected exchanged, or with the other label
    longer_chosen: float | None  # share of the pairs of unequal length in which the chosen response is the longer


class Split(NamedTuple):
    """The findings of one split, and what it takes to compare it with another: digests, uint64, each once."""

    findings: Findings
    rows: np.ndarray
    prompts: np.ndarray


class Overlap(NamedTuple):
    """Number of different rows, and prompts, that stand in two splits."""

    rows: int
    prompts: int


def check_rows(
    rows: Sequence[TokenRow], *, ends: Collection[int], bos: int | None, desirable: np.ndarray | None = None
) -> Split:
    """Look through the rows of one split.

    Args:
        ends: the tokens that end a response.
        bos: the token that begins a text, if there is one.
        desirable: the labels of unpaired completions, bool [rows]; only the first response of such a row is looked at.
            Rows with one response and no label are completions too.
    """
    sizes = sizes_of(rows)
    single = desirable is not None or sizes.responses.shape[1] == 1
    names = ("prompt", "completion") if single else ("prompt", "chosen", "rejected")
    counts = np.column_stack([sizes.prompt, sizes.responses])[:, : len(names)]
    odd, ends = Counter[str](), frozenset(ends)
    texts, labels, prompts = array("Q"), array("Q"), array("Q")  # what is compared, how it is labelled
    for number, row in enumerate(rows):
        responses = row.responses[: len(names) - 1]
        odd["without end"] += sum(ends.isdisjoint(response[-2:].tolist()) for response in responses)
        odd["two bos"] += bos is not None and len(row.prompt) > 1 and row.prompt[0] == row.prompt[1] == bos
        odd["near"] += len(responses) > 1 and _same_share(*responses[:2]) > NEAR
        prompts.append(xxhash.xxh3_64_intdigest(row.prompt.tobytes()))
        digests = [xxhash.xxh3_64_intdigest(np.ascontiguousarray(each).tobytes(), prompts[-1]) for each in responses]
        texts.append(sum(digests) % 2**64)  # the same in either order
        labels.append(digests[0] if desirable is None else int(desirable[number]))
    different, labelled = _different(texts), _different(texts, labels)
    percentiles = np.percentile(counts, PERCENTILES, axis=0, method="higher").T.astype(int).tolist()
    longer = np.empty(0, bool) if single else (counts[:, 1] > counts[:, 2])[counts[:, 1] != counts[:, 2]]
    findings = Findings(
        rows=len(counts),
        lengths=dict(zip(names, percentiles, strict=True)),
        nearly_identical=odd["near"],
        responses_without_end=odd["without end"],
        prompts_with_two_bos=odd["two bos"],
        repeated=len(counts) - len(labelled),
        both_orders=len(labelled) - len(different),
        longer_chosen=float(longer.mean()) if longer.size else None,
    )
    return Split(findings, different, _different(prompts))


def overlap(one: Split, other: Split) -> Overlap:
    """Count the different rows, and prompts, that stand in both."""
    return Overlap(*(len(np.intersect1d(*both, assume_unique=True)) for both in zip(one[1:], other[1:], strict=True)))


def _different(digests: array[int], labels: array[int] | None = None) -> np.ndarray:
    """Each digest once, or with labels each that stands for a digest with its label."""
    values = np.frombuffer(digests, np.uint64)
    return np.unique(values if labels is None else values ^ np.frombuffer(labels, np.uint64) * np.uint64(_ODD))


def _same_share(a: np.ndarray, b: np.ndarray) -> float:
    """The tokens at the beginning and at the end that two responses share, as a share of the longer one."""
    shorter = min(len(a), len(b))
    head = common_prefix(a, b)
    tail = min(common_prefix(a[::-1], b[::-1]), shorter - head)
    return (head + tail) / max(len(a), len(b))
