"""The course of a run, read from its metrics, and its objective as a loss of one pair.

Dimension key: S points of a path, 2 chosen and rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.analysis.field import PairLoss, pair_loss, unsuited, weighted_sum
from dpo_jax.errors import UserError
from dpo_jax.losses import RunningMean
from dpo_jax.objectives.terms import Term
from dpo_jax.reporting.plots import Rows, ends, series


class Trajectory(NamedTuple):
    """Means over the pairs of each logged step, nats; log-ratios, or log-probs less those of the first steps."""

    kind: str
    steps: np.ndarray
    places_S2: np.ndarray

    @property
    def moved_2(self) -> np.ndarray:
        """Distance that both halves came: the mean of the last tenth of the steps, less the start."""
        return np.array([ends(self.places_S2[:, half])[1] for half in (0, 1)])


def read_trajectory(rows: Rows, *, where: str) -> Trajectory:
    """The course of chosen and rejected in metrics.jsonl.

    Raises:
        UserError: it says nothing; `where` names the file.
    """
    for kind in ("log_ratios", "logps"):
        (steps, chosen), (_, rejected) = (series(rows, f"{kind}/{half}") for half in ("chosen", "rejected"))
        if len(steps):
            places_S2 = np.stack([chosen, rejected], axis=1)
            if kind == "logps":  # no reference: what counts is the change
                places_S2 = places_S2 - [ends(chosen)[0], ends(rejected)[0]]
            return Trajectory(kind, steps, places_S2)
    raise UserError(f"{where}: no step has been logged yet; run `dpo-jax train` first.")


def loss_of_run(terms: Sequence[Term], memory: Sequence[Any], step: int) -> tuple[PairLoss | None, str]:
    """The objective as a loss of one pair, with its numbers at a step; or None, and why there is none."""
    parts = []
    for term, remembered in zip(terms, memory, strict=True):
        reason = unsuited(term.name)
        if term.ld_alpha is not None:
            reason = f"{term.name} with ld_alpha reads the heads of the responses apart"
        if term.wpo:
            reason = f"{term.name} with wpo weighs pairs by the distribution at every token"
        if reason:
            return None, reason
        level = {"delta": float(remembered["state"].mean)} if term.entry.state is RunningMean else {}
        parts.append((term.weight, pair_loss(term.name, **term.static, **term.knobs(step), **level)))
    return weighted_sum(parts), ""
