"""Numbers as a reader wants them: sensible digits, a unit, a true minus sign, and NaN said aloud."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from dpo_jax.evaluation.intervals import UNKNOWN

MINUS, GAP = "\u2212", "\u00a0"  # a true minus sign; the no-break space between a number and its unit

Format = Callable[[float], str]


def plain(value: float) -> str:
    """Three significant digits: 0.693, 4.80, 3e-05, 12,346."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else _sign(value) + "infinity"
    size = abs(value)
    if size >= 1000:
        return f"{_sign(value)}{size:,.0f}"
    if size and size < 1e-3:
        return f"{_sign(value)}{size:.3g}".replace("e-", f"e{MINUS}")
    digits = 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0
    return f"{_sign(value)}{size:.{digits}f}"


def nats(value: float) -> str:
    """Three significant digits and the unit."""
    return f"{plain(value)}{GAP}nats"


def percent(share: float) -> str:
    """A share between 0 and 1, in percent."""
    return f"{_sign(share)}{abs(100 * share):.1f}{GAP}%" if math.isfinite(share) else plain(share)


def points(difference: float) -> str:
    """A difference of two shares, in percentage points, always signed."""
    if not math.isfinite(difference):
        return plain(difference)
    return f"{_sign(difference) or '+'}{abs(100 * difference):.1f}{GAP}points"


def interval(bounds: Sequence[float], form: Format) -> str:
    """Both ends, the unit once: `+22.1 to +47.9 points`; of all numbers, that nothing is known."""
    if any(math.isinf(bound) for bound in bounds):
        return UNKNOWN
    low, high = (form(bound) for bound in bounds)
    return f"{low.partition(GAP)[0]} to {high}"


def counted(number: int | None, what: str) -> str:
    """`128 samples`; of an unknown number `samples`."""
    return what if number is None else f"{number:,} {what}"


def _sign(value: float) -> str:
    return MINUS if value < 0 else ""
