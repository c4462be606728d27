"""The kinds of numbers that settings are, and sources of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from dpo_jax.reading import Range

Positive = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]
NotNegative = Annotated[float, Range(0.0)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Share = Annotated[float, Range(0.0, 1.0)]
Source = Mapping[str, Any]
"""Where rows come from: {path: FILE}, {hub: ...}, {tfds: ...}, {package: ...}; checked by the reader that it names."""
