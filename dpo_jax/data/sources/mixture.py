"""How often a row comes in one epoch, where its source has a weight."""

from __future__ import annotations

from dpo_jax import files


def copies(weight: float, row: str) -> int:
    """`weight` rounded up or down, so that it is the mean over many rows; `row` (seed, source, number) decides."""
    whole, rest = divmod(weight, 1.0)
    return int(whole) + (int(files.digest(row.encode()), 16) < rest * 2.0**128)
