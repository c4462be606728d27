"""The numbers that a loss is called with. Their ranges stand in its signature, and nowhere else."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import jax
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike


class Interval(NamedTuple):
    """Range of a knob: between two numbers, each of which may itself be left out.

    Where each pair has a number of its own, `high_of_each`, if there is one, stands for `high`.
    """

    low: float = -np.inf
    high: float = np.inf
    without_low: bool = False
    without_high: bool = False
    high_of_each: float | None = None

    @property
    def of_each(self) -> Interval:
        """The range of the numbers of single pairs."""
        return self if self.high_of_each is None else self._replace(high=self.high_of_each)

    def holds(self, value: ArrayLike) -> bool:
        """True if every number of `value` lies inside; NaN does not."""
        numbers = np.asarray(value, np.float64)
        with np.errstate(over="ignore"):
            given = numbers, numbers.astype(np.float32)  # as it is computed with: 1e39 is infinite there, 1e-50 is 0
        return all(self._holds(each) for each in given)

    def _holds(self, numbers: np.ndarray) -> bool:
        above = numbers > self.low if self.without_low else numbers >= self.low
        below = numbers < self.high if self.without_high else numbers <= self.high
        return bool(np.all(above & below))

    def __str__(self) -> str:
        return f"in {'(' if self.without_low else '['}{self.low:g}, {self.high:g}{')' if self.without_high else ']'}"


Knob = float | jax.Array
"""A scalar or one number per pair, [B]; it may be traced, so a sweep over it does not recompile."""

Real = Annotated[Knob, Interval(without_low=True, without_high=True)]
Positive = Annotated[Knob, Interval(low=0.0, without_low=True, without_high=True)]
NotNegative = Annotated[Knob, Interval(low=0.0, without_high=True)]
Share = Annotated[Knob, Interval(0.0, 1.0)]
Smoothing = Annotated[Knob, Interval(0.0, 0.5, high_of_each=1.0)]
"""The probability that a label is wrong; above 0.5 for a pair whose soft label prefers the rejected response."""


class KnobSpec(NamedTuple):
    """One keyword of a loss: its default, its interval if it is a number, else the values it may have."""

    default: object
    interval: Interval | None
    choices: tuple[object, ...]


@functools.cache
def knobs(function: Callable[..., Any]) -> Mapping[str, KnobSpec]:
    """The keywords of a loss that a configuration may set, as its signature states them.

    A number may also have choices: `float | None` allows None beside its interval.
    """
    hints = get_type_hints(function, include_extras=True)
    specs = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            interval, choices = _read(hints[name])
            if interval or choices:
                specs[name] = KnobSpec(parameter.default, interval, choices)
    return specs


def _read(hint: object) -> tuple[Interval | None, tuple[object, ...]]:
    if get_origin(hint) is Annotated:
        return get_args(hint)[1], ()
    if hint is bool:
        return None, (False, True)
    arguments = get_args(hint)
    if arguments and all(isinstance(argument, str) for argument in arguments):  # Literal["a", "b"]
        return None, arguments
    if type(None) in arguments:
        intervals = [interval for interval, _ in map(_read, arguments) if interval]
        return (intervals[0], (None,)) if intervals else (None, ())
    return None, ()


def check_knobs(function: Callable[..., Any], **values: Any) -> None:
    """Refuse concrete values that the signature of `function` does not allow; a traced one cannot be looked at.

    Raises:
        ValueError: names the knob, the value and what is allowed.
    """
    specs = knobs(function)
    for name, value in values.items():
        interval, choices = specs[name].interval, specs[name].choices
        if isinstance(value, Tracer) or (isinstance(value, jax.Array) and not value.is_fully_addressable):
            continue
        if choices and (isinstance(value, str | bool) or value is None) and value in choices:
            continue
        if interval is not None and np.ndim(value):  # pyright: ignore[reportArgumentType]
            interval = interval.of_each
        if interval is None:
            raise ValueError(f"{function.__name__}: {name} must be one of {list(choices)}, got {value!r}")
        if value is None or isinstance(value, str) or not interval.holds(value):
            raise ValueError(f"{function.__name__}: {name} must be {interval}, got {value!r}")
