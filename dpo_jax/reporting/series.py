"""Columns of metrics.jsonl as arrays, and what is read off them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Rows = Sequence[Mapping[str, float]]


def series(rows: Rows, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric, over the rows that hold it; both may be empty."""
    pairs = [(row["step"], row[name]) for row in rows if name in row]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def ends(values: np.ndarray) -> tuple[float, float]:
    """Means of the finite values in the first and in the last tenth; NaN where there are none."""
    tenth = max(1, len(values) // 10)
    return _finite_mean(values[:tenth]), _finite_mean(values[-tenth:])


def broken_steps(rows: Rows) -> list[int]:
    """The steps at which any metric is NaN or infinite."""
    return [int(row["step"]) for row in rows if not np.isfinite([float(value) for value in row.values()]).all()]


def _finite_mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
