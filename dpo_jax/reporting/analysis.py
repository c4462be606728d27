"""The analysis of a run in words, tables and pictures: which half moved, who was displaced, what one step did."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dpo_jax.evaluation.analysis import Analysis, Displacement, Likeness, OneStep
from dpo_jax.evaluation.records import Halves, Place
from dpo_jax.reporting.numbers import GAP, counted, interval, nats, percent, plain
from dpo_jax.reporting.plots import DASHES, INK, LEAST_STEPS, LINES, Curve, as_svg, smoothed, window_steps
from dpo_jax.reporting.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COORDINATES = {
    "logp": "Steepest in log-probabilities",
    "ratio": "Steepest in ratios to the reference",
    "probability": "Steepest in probabilities",
}
_LIKENESS = {
    "edit_similarity": "By shared tokens (edit similarity, 1: the same)",
    "ches": "By hidden states (CHES, higher: more alike from inside)",
}
_PULLS = {
    "own_chosen": "its own chosen response",
    "own_rejected": "its own rejected response",
    "others": "the other pairs",
}


class Section(NamedTuple):
    """The analysis of a run, ready to be shown."""

    words: list[str]
    curves: list[Curve]
    tables: list[Table]
    pairs: Table  # the step, pair by pair


def analysis_section(analysis: Analysis | None) -> Section | None:
    """None where nobody has analysed the run."""
    if analysis is None:
        return None
    words = [
        _moved(analysis.halves.measured, len(analysis.trajectory.places)),
        _displaced(analysis.displacement),
        _stepped(analysis.one_step),
    ]
    if analysis.field.refused:
        words.append(f"There is no field: {analysis.field.refused}.")
    words.append(f"All of it is of step {analysis.step}.")
    likeness = [_by_likeness(name, each) for name, each in analysis.displacement.by.items()]
    return Section(words, draw_field(analysis), [_halves(analysis.halves), *likeness], _pairs(analysis.one_step))


def _moved(measured: Place, logged: int) -> str:
    chosen, rejected = _both(measured)
    steps = window_steps(logged)
    said = f"Over training the chosen half moved by {chosen} and the rejected half by {rejected}"
    if steps < LEAST_STEPS:
        return f"{said}, by the last {counted(steps, 'logged steps')} alone, which are too few to say which moved more."
    return f"{said}, means of the last {steps} logged steps: {measured.faster} moved more."


def _both(place: Place | None) -> tuple[str, str]:
    """The nats of both halves in words."""
    if place is None or place.chosen is None or place.rejected is None:
        return "never", "never"
    return nats(place.chosen), nats(place.rejected)


def _displaced(lost: Displacement) -> str:
    return (
        f"{percent(lost.fell / lost.pairs)} of the chosen responses ({lost.fell} of {lost.pairs} pairs, {lost.split}) "
        f"are less likely than under the reference (95{GAP}% interval {interval(lost.interval, percent)})."
    )


def _stepped(step: OneStep) -> str:
    """Of the chosen responses that fell in this step: what pulled them down most."""
    pairs = step.pairs
    fell = [pair.chosen for pair in pairs if pair.chosen.happened < 0]
    missed = f"the first order misses {percent(step.unexplained)} of what happened"
    if not fell:
        return f"One more step raises the chosen response of each of {len(pairs)} pairs; {missed}."
    worst = Counter(min(_PULLS, key=lambda pull, half=half: half.pulls[pull]) for half in fell)
    blame = ", ".join(f"{_PULLS[pull]} in {count}" for pull, count in worst.most_common())
    return (
        f"One more step lowers the chosen response of {len(fell)} of {len(pairs)} pairs; {missed}. Under plain "
        f"gradient descent these are pulled down most by {blame}."
    )


def _halves(halves: Halves) -> Table:
    rows = [("This run", *_both(halves.measured))]
    for coordinates, place in halves.predicted.items():
        rows.append((f"Field: {COORDINATES[coordinates].lower()}", *_both(place)))
    return Table("Both halves at the margin that the run came to", ("", "chosen", "rejected"), rows)


def _by_likeness(name: str, likeness: Likeness) -> Table:
    rows = [
        (
            interval((part.low, part.high), plain),
            f"{part.fell} of {part.pairs}",
            interval(part.interval, percent),
            nats(part.chosen),
            nats(part.rejected),
        )
        for part in likeness.bins
    ]
    title = f"{_LIKENESS[name]}; rank correlation with the chosen log-ratio {plain(likeness.correlation)}"
    return Table(title, ("likeness", "chosen fell", f"95{GAP}% interval", "chosen", "rejected"), rows)


def _pairs(step: OneStep) -> Table:
    columns = ("pair", "", "happened", "first order", *(name.replace("_", " ") for name in _PULLS))
    rows = []
    for pair in step.pairs:
        for name, half in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            cells = map(plain, (half.happened, half.first_order, *(half.pulls[pull] for pull in _PULLS)))
            rows.append((half.text.strip(), name, *cells))
    title = (
        "Change of log-probs in one step of the run's optimizer at a learning rate of "
        f"{plain(step.learning_rate)}, nats; pulls are those of plain gradient descent by unit of its rate"
    )
    return Table(title, columns, rows)


def draw_field(analysis: Analysis) -> list[Curve]:
    """One picture for each coordinates in which descent may be steepest; none where the loss has no field."""
    if analysis.field.refused:
        return []
    return [_draw(analysis, coordinates, title) for coordinates, title in COORDINATES.items()]


def _draw(analysis: Analysis, coordinates: str, title: str) -> Curve:
    field, places = analysis.field, np.array(analysis.trajectory.places, float)
    flow = {"logp": field.logp, "ratio": field.ratio, "probability": field.probability}[coordinates]
    own, *others = np.array(flow.lines, float)

    def paint(axes: Axes) -> None:
        for mark in (axes.axvline, axes.axhline):  # the reference
            mark(0, color=INK, alpha=0.25, linewidth=0.5)
        grid, arrows = np.array(field.grid), np.array(flow.arrows, float)
        axes.quiver(*grid.T, *arrows.T, angles="xy", color=INK, alpha=0.3, scale=26, width=0.003, pivot="mid")
        for line in others:
            axes.plot(*line.T, color=INK, alpha=0.35, linewidth=0.6)
        axes.plot(*own.T, color=LINES[1], linestyle=DASHES[1], linewidth=1.4)
        _way(axes, places)
        axes.set_xlim(field.low[0], field.high[0])
        axes.set_ylim(field.low[1], field.high[1])
        axes.set_aspect("equal")
        axes.set_xlabel("chosen, nats")
        axes.set_ylabel("rejected, nats")

    svg = as_svg(paint, f"field-{coordinates}", size=(4.1, 3.7))
    return Curve(title, "", svg, _describe(title, places, own), ["this run", "descent from the reference"])


def _way(axes: Axes, places: np.ndarray) -> None:
    """Logged steps thin and their running mean strong, with a dot where it ends."""
    if means := smoothed(*places.T):
        axes.plot(*places.T, color=LINES[0], alpha=0.3, linewidth=0.6)
        places = np.stack(means, axis=1)
    axes.plot(*places.T, color=LINES[0], linewidth=1.4)
    axes.plot(*places[-1], color=LINES[0], marker="o", markersize=4)


def _describe(title: str, places: np.ndarray, own: np.ndarray) -> str:
    run, descent = (", ".join(map(plain, path[-1])) for path in (places, own))
    return (
        f"{title}: the gradient field over the log-ratios of chosen and rejected, nats. The run ends at {run}; descent "
        f"from the reference at {descent}."
    )
