"""Which rows are drawn, and how often: where a source has a weight, or wrong labels."""

from __future__ import annotations

from dpo_jax import files


def copies(weight: float, row: str) -> int:
    """`weight` rounded up or down, so that it is the mean over many rows; `row` (seed, source, number) decides."""
    whole, rest = divmod(weight, 1.0)
    return int(whole) + is_drawn(rest, row)


def is_drawn(share: float, row: str) -> bool:
    """Whether this row is among that share of many; one that is drawn is drawn for every larger share too."""
    return int(files.digest(row.encode()), 16) < share * 2.0**128
