"""Numbers: digits that fit the size, units, and NaN as NaN."""

from __future__ import annotations

import math

import pytest

from dpo_jax.reporting.numbers import GAP, MINUS, interval, nats, percent, plain, points


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (0.69315, "0.693"),
        (4.8, "4.80"),
        (-12.34, f"{MINUS}12.3"),
        (408.31, "408"),
        (12345.6, "12,346"),
        (3e-5, f"3e{MINUS}05"),
        (math.nan, "NaN"),
        (-math.inf, f"{MINUS}infinity"),
    ],
)
def test_plain(value: float, text: str) -> None:
    assert plain(value) == text


def test_units() -> None:
    assert nats(4.8) == f"4.80{GAP}nats"
    assert percent(0.9062) == f"90.6{GAP}%"
    assert points(0.351) == f"+35.1{GAP}points"
    assert points(-0.02) == f"{MINUS}2.0{GAP}points"


@pytest.mark.parametrize("form", [plain, percent, points])
def test_nan_is_shown_as_nan(form) -> None:
    assert form(math.nan) == "NaN"


def test_an_interval_says_its_unit_once() -> None:
    assert interval((0.25, 0.449), points) == f"+25.0 to +44.9{GAP}points"
    assert interval((0.1, 0.2), plain) == "0.100 to 0.200"
    assert interval((-math.inf, math.inf), plain) == "not known: the values are too few, or all alike"
