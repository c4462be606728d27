"""The gradient field of a run's loss with its flow lines, and on it the way that the run took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo_jax.reporting.numbers import plain
from dpo_jax.reporting.plots import DASHES, INK, LINES, SMOOTH_FROM_ROWS, STYLE, Curve, as_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COORDINATES = {
    "logp": "Steepest in log-probabilities",
    "ratio": "Steepest in ratios to the reference",
    "probability": "Steepest in probabilities",
}


def draw_field(analysis: Mapping[str, Any]) -> list[Curve]:
    """One picture for each coordinates in which descent may be steepest; none where the loss has no field."""
    if "refused" in analysis["field"]:
        return []
    return [_draw(analysis, coordinates, title) for coordinates, title in COORDINATES.items()]


def _draw(analysis: Mapping[str, Any], coordinates: str, title: str) -> Curve:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    field, places = analysis["field"], np.array(analysis["trajectory"]["places"], float)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.1, 3.7), layout="constrained")
        axes = figure.add_subplot()
        for mark in (axes.axvline, axes.axhline):  # the reference
            mark(0, color=INK, alpha=0.25, linewidth=0.5)
        grid, arrows = np.array(field["grid"]), np.array(field[coordinates]["arrows"], float)
        axes.quiver(*grid.T, *arrows.T, angles="xy", color=INK, alpha=0.3, scale=26, width=0.003, pivot="mid")
        own, *others = np.array(field[coordinates]["lines"], float)
        for line in others:
            axes.plot(*line.T, color=INK, alpha=0.35, linewidth=0.6)
        axes.plot(*own.T, color=LINES[1], linestyle=DASHES[1], linewidth=1.4)
        _way(axes, places)
        axes.set_xlim(field["low"][0], field["high"][0])
        axes.set_ylim(field["low"][1], field["high"][1])
        axes.set_aspect("equal")
        axes.set_xlabel("chosen, nats")
        axes.set_ylabel("rejected, nats")
        svg = as_svg(figure, f"field-{coordinates}")
    return Curve(title, "", svg, _describe(title, places, own), ["this run", "descent from the reference"])


def _way(axes: Axes, places: np.ndarray) -> None:
    """Logged steps thin and their running mean strong, with a dot where it ends."""
    window = len(places) // 10 if len(places) >= SMOOTH_FROM_ROWS else 1
    if window > 1:
        axes.plot(*places.T, color=LINES[0], alpha=0.3, linewidth=0.6)
        mean = np.full(window, 1 / window)
        places = np.stack([np.convolve(half, mean, mode="valid") for half in places.T], axis=1)
    axes.plot(*places.T, color=LINES[0], linewidth=1.4)
    axes.plot(*places[-1], color=LINES[0], marker="o", markersize=4)


def _describe(title: str, places: np.ndarray, own: np.ndarray) -> str:
    run, descent = (", ".join(map(plain, path[-1])) for path in (places, own))
    return (
        f"{title}: the gradient field over the log-ratios of chosen and rejected, nats. The run ends at {run}; descent "
        f"from the reference at {descent}."
    )
