"""Judges: of two responses to a prompt a judge says which one is better.

Responses are given as the model wrote them, with the white space around them. Dimension key: n comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dpo_jax.errors import UserError
from dpo_jax.evaluation.records import Usage
from dpo_jax.types import Prompt

Score = Callable[[Sequence[Prompt], Sequence[str]], Any]
"""Prompts and responses, one each, to as many numbers."""
Compare = Callable[[Sequence[Prompt], Sequence[str], Sequence[str]], Any]
"""Prompts, the responses shown first and those shown second, to as many numbers in [0, 1]: 1 where the first wins."""
Facts = Callable[[], Mapping[str, str]]
"""Tells what decides the answers of a judge beside its settings: digests of its files, or of its weights."""
Ask = Callable[..., np.ndarray]
"""Calls what it is given with prompts and texts, or with those of them whose answers it does not know."""
Through = Callable[[Callable[[], np.ndarray]], np.ndarray]
"""Calls what it is given, or has another process do it, and returns its numbers."""


class Judge(Protocol):
    """The interface of all judges."""

    name: str

    def verdicts(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """The chance that each response of `a` is better than that of `b` to the prompt, float [n]; a tie is 0.5."""
        ...


class Scoring:
    """A judge that gives each response a score by itself; the higher one is better.

    A score above `neutral`, where the judge has such a value, says that a response is good.
    """

    at_once: int | None = None
    """Texts of a call, where their number matters to its scores."""
    rest: Callable[[], object] = staticmethod(lambda: None)
    """Called when all is answered for now, to let go of what the next answers will read again."""

    def __init__(self, name: str, score: Score, *, neutral: float | None = None, facts: Facts = dict):
        self.name, self.neutral, self._score = name, neutral, score
        self.facts = facts

    def remembered(self, ask: Ask) -> Scoring:
        """The same judge, which is asked by `ask`."""
        return Scoring(self.name, lambda *asked: ask(self.scores, *asked), neutral=self.neutral)

    def through(self, call: Through) -> Scoring:
        """The same judge, which is asked through `call`."""
        return Scoring(self.name, lambda *asked: call(lambda: self.scores(*asked)), neutral=self.neutral)

    def scores(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """The score of each response, float [n]. Raises UserError where the judge gives none."""
        return _numbers(self.name, self._score(prompts, responses) if responses else [], len(responses))

    def verdicts(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """1 where the score of `a` is higher, 0.5 where they are the same."""
        scores = self.scores([*prompts, *prompts], [*a, *b])
        return (1 + np.sign(scores[: len(a)] - scores[len(a) :])) / 2


class Orders(NamedTuple):
    """The verdicts on the same comparisons in both orders, each how likely `a` is better, float [n]."""

    a_first: np.ndarray
    b_first: np.ndarray

    @property
    def verdicts(self) -> np.ndarray:
        """The mean of both, in which a liking for the first response cancels."""
        return (self.a_first + self.b_first) / 2


class Comparing:
    """A judge that is shown two responses at once. It is asked in both orders, since it may like the first one more.

    Two responses that are the same are a tie, and nobody is asked.
    """

    at_once: int | None = None
    """Comparisons of a call, where their number matters."""
    rest: Callable[[], object] = staticmethod(lambda: None)
    """Called when all is answered for now."""

    def __init__(self, name: str, compare: Compare, *, usage: Callable[[], Usage] = Usage, facts: Facts = dict):
        self.name, self._compare, self.facts = name, compare, facts
        self.usage = usage  # what was asked so far, and what it cost; empty where nobody counts

    def remembered(self, ask: Ask) -> Comparing:
        """The same judge, which is asked by `ask`."""
        return Comparing(self.name, lambda *asked: ask(self._wins, *asked), usage=self.usage)

    def through(self, call: Through) -> Comparing:
        """The same judge, which is asked through `call`."""
        return Comparing(self.name, lambda *asked: call(lambda: self._wins(*asked)), usage=self.usage)

    def _wins(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """How likely each first one wins, float [n]."""
        wins = _numbers(self.name, self._compare(prompts, first, second), len(first))
        if (wrong := wins[(wins < 0) | (wins > 1)]).size:
            raise UserError(f"judge {self.name}: the verdict {wrong[0]:g} is not within 0 (second) and 1 (first).")
        return wins

    def orders(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> Orders:
        """The verdicts in both orders. Raises UserError where the judge gives none."""
        numbers = np.full((2, len(prompts)), 0.5)
        asked = [i for i, both in enumerate(zip(a, b, strict=True)) if both[0].strip() != both[1].strip()]
        if not asked:
            return Orders(*numbers)
        shown, left, right = [prompts[i] for i in asked], [a[i] for i in asked], [b[i] for i in asked]
        wins = self._wins([*shown, *shown], [*left, *right], [*right, *left])
        numbers[0, asked], numbers[1, asked] = wins[: len(asked)], 1 - wins[len(asked) :]
        return Orders(*numbers)

    def verdicts(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """The mean of both orders."""
        return self.orders(prompts, a, b).verdicts


def _numbers(name: str, raw: Any, count: int) -> np.ndarray:
    """Answers of a judge as finite numbers, float [count]."""
    try:
        entries = np.asarray(raw)
        if entries.dtype.kind in "SUcmM" or any(isinstance(entry, str) for entry in entries.astype(object).flat):
            raise TypeError  # NumPy would read a text, and forget the imaginary part
        numbers = entries.astype(np.float64)
    except Exception:  # whatever its entries raise when they are asked for a number
        raise UserError(f"judge {name}: it gave {type(raw).__name__} with entries that are no numbers.") from None
    if numbers.shape != (count,):
        raise UserError(f"judge {name}: {count} numbers are wanted, one each; it gave {list(numbers.shape)}.")
    if not np.isfinite(numbers).all():
        bad = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise UserError(f"judge {name}: number {bad + 1} of {count} is {numbers[bad]}, not finite.")
    return numbers
