"""The records of an analysis: all that analysis.json holds. Log-probs and log-ratios are in nats."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from dpo_jax.evaluation.intervals import Interval
from dpo_jax.evaluation.record import Record
from dpo_jax.evaluation.records import Halves, Settings

Point = tuple[float, float]
"""Chosen and rejected."""


class Course(Record):
    """The run as its steps were logged: `log_ratios`, or `logps` less those of the first steps."""

    kind: str
    steps: Sequence[float]
    places: Sequence[Point]


class Flow(Record):
    """Directions of steepest descent at the points of a grid, and lines along them, the first from the reference."""

    arrows: Sequence[Point] = ()
    lines: Sequence[Sequence[Point]] = ()


class Field(Record):
    """The gradient field of the loss in a window from `low` to `high`, by coordinates; or why there is none."""

    refused: str | None = None
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    grid: Sequence[Point] = ()
    slope: Sequence[float] = ()
    probability: Flow = Flow()
    ratio: Flow = Flow()
    logp: Flow = Flow()


class LikenessBin(Record):
    """Pairs whose responses are about equally alike: how many chosen ones fell, and the mean log-ratios."""

    low: float
    high: float
    pairs: int
    fell: int
    chosen: float
    rejected: float
    interval: Interval


class Likeness(Record):
    """Displacement by how alike the two responses are: rank correlation with the chosen log-ratio, and bins."""

    correlation: float
    bins: Sequence[LikenessBin]


class Displacement(Record):
    """Chosen responses that fell below the reference, with the interval of their share, and the mean log-ratios.

    Of a policy that is one table, rejected falls faster than chosen rises where chosen is the likelier one.
    """

    split: str
    pairs: int
    fell: int
    interval: Interval
    chosen: float
    rejected: float
    chosen_likelier: float | None = None
    by: Mapping[str, Likeness]


class Pulled(Record):
    """One response in a step: its log-prob before, what happened to it, and the pulls of `displacement.Pulls`."""

    text: str
    before: float | None = None
    happened: float
    first_order: float
    own_chosen: float
    own_rejected: float
    others: float

    @property
    def pulls(self) -> dict[str, float]:
        """The pulls of plain gradient descent by name."""
        return {"own_chosen": self.own_chosen, "own_rejected": self.own_rejected, "others": self.others}


class PulledPair(Record):
    """A pair in a step."""

    row_id: str | None = None
    edit_similarity: float | None = None
    prompt: str | None = None
    chosen: Pulled
    rejected: Pulled


class OneStep(Record):
    """One more step of the run, taken apart; `unexplained` is the share that the first order misses."""

    step: int
    learning_rate: float
    grad_norm: float | None = None
    unexplained: float
    pairs: Sequence[PulledPair]


class Analysis(Record):
    """Why a run moved its log-probs as it did: its course on the field of its loss, displacement, one step.

    `step` and `checkpoint`, a digest of its seal, say whose weights were taken apart.
    """

    settings: Settings = dataclasses.field(default_factory=dict)
    step: int
    checkpoint: str | None = None
    trajectory: Course
    field: Field
    halves: Halves
    displacement: Displacement
    one_step: OneStep
