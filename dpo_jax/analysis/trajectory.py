"""The course of a run on the field of its own loss: which half of the pairs moved, and what the field says of that.

Places are log-ratios to the reference, nats: chosen, rejected. Log-probs differ from them by a constant, so descent in
either is the same.

Dimension key: N points, S points of a path, 2 chosen and rejected.
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from dpo_jax.analysis.field import Coordinates, PairLoss, directions, flow_lines, gradient
from dpo_jax.losses import PairLogps

_GRID = 13  # arrows along each side
_STARTS = 6  # flow lines from each of two sides
_LEAST_WIDTH = 2.0  # nats


def field_of(loss: PairLoss, reference: PairLogps, places_N2: np.ndarray) -> dict[str, Any]:
    """Arrows and flow lines around places [N, 2], for each coordinates; `reference` is a typical pair."""
    low_2, high_2 = _extent(places_N2)
    axes = [np.linspace(low, high, _GRID) for low, high in zip(low_2, high_2, strict=True)]
    grid_N2 = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    sides = [np.linspace(low, high, _STARTS) for low, high in zip(low_2, high_2, strict=True)]
    # Pairs start somewhere and move to the lower right: chosen up, rejected down.
    starts_N2 = np.array([[0.0, 0.0], *((low_2[0], b) for b in sides[1]), *((a, high_2[1]) for a in sides[0][1:])])
    frozen_2 = np.array([reference.chosen, reference.rejected])
    slope_N2 = gradient(loss, grid_N2 + frozen_2, coordinates="logp", reference=reference)
    field: dict[str, Any] = {"low": low_2.tolist(), "high": high_2.tolist(), "grid": _rounded(grid_N2)}
    field["slope"] = _rounded(np.linalg.norm(slope_N2, axis=1))
    for coordinates in get_args(Coordinates):
        asked: Any = {"coordinates": coordinates, "reference": reference}
        length = float(np.linalg.norm(high_2 - low_2))
        lines_SN2 = np.asarray(flow_lines(loss, starts_N2 + frozen_2, length=length, steps=120, **asked)) - frozen_2
        field[coordinates] = {
            "arrows": _rounded(directions(loss, grid_N2 + frozen_2, **asked)),
            "lines": _rounded(lines_SN2[::3].swapaxes(0, 1)),
        }
    return field


def _extent(places_N2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A square window around the places and the reference, with some air: a nat is as long on both axes."""
    low_2, high_2 = np.minimum(places_N2.min(axis=0), 0.0), np.maximum(places_N2.max(axis=0), 0.0)
    half = 0.6 * max(_LEAST_WIDTH, *(high_2 - low_2))
    return (low_2 + high_2) / 2 - half, (low_2 + high_2) / 2 + half


def halves(moved_2: np.ndarray, loss: PairLoss | None, reference: PairLogps) -> dict[str, Any]:
    """Distances that both halves moved, and that the field would have moved them from the reference to the same margin.

    None in place of a prediction: descent in these coordinates never comes to that margin.
    """
    chosen, rejected = moved_2.tolist()
    faster = "rejected" if abs(rejected) > abs(chosen) else "chosen"
    both: dict[str, Any] = {"measured": {"chosen": chosen, "rejected": rejected, "faster": faster}, "predicted": {}}
    if loss:
        for coordinates in get_args(Coordinates):
            both["predicted"][coordinates] = _at_margin(loss, reference, chosen - rejected, coordinates)
    return both


def _at_margin(
    loss: PairLoss, reference: PairLogps, margin: float, coordinates: Coordinates
) -> dict[str, float] | None:
    if not margin > 0:
        return None
    frozen_2 = np.array([reference.chosen, reference.rejected])
    # Where one half moves alone, the margin grows by a nat for each nat of the line.
    asked: Any = {"coordinates": coordinates, "reference": reference, "length": 2 * margin, "steps": 400}
    line_S2 = np.asarray(flow_lines(loss, frozen_2[None], **asked))[:, 0] - frozen_2
    margins_S = line_S2[:, 0] - line_S2[:, 1]
    (reached,) = np.nonzero(margins_S >= margin)
    if not len(reached):
        return None
    last = slice(reached[0] - 1, reached[0] + 1)
    chosen, rejected = (float(np.interp(margin, margins_S[last], line_S2[last, half])) for half in (0, 1))
    return {"chosen": chosen, "rejected": rejected}


def _rounded(values: Any) -> list[Any]:
    return np.round(np.asarray(values, np.float64), 4).tolist()
