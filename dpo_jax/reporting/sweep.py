"""A sweep on one page: a table of its points, and one plot of what was gained against what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dpo_jax.evaluation.seeds import MEASURES, Line
from dpo_jax.reporting.markdown import text
from dpo_jax.reporting.numbers import Format, interval, nats, percent, plain
from dpo_jax.reporting.page import page
from dpo_jax.reporting.plots import INK, LINES, as_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORMS: dict[str, Format] = {"share": percent, "nats": nats, "": plain}
_OF_THE_START = "positive before"

_GAINED = ("mean score", "mean reward", "win rate", "held-out accuracy")
_COST = ("sequence KL", "held-out margin")
_MARKS = "os^DvPX*"
_OVER_SEEDS = (
    "Intervals of several seeds are Student's over the seeds alone: the held-out rows and prompts are the same, and so "
    "are not what they tell of."
)


class Table(NamedTuple):
    """Names of the columns; of each row its cells, each a value and what stands small below it."""

    heads: Sequence[str]
    rows: Sequence[Sequence[tuple[str, str]]]
    left_out: Sequence[tuple[str, str]]  # the point, and why
    note: str = ""


def make_table(lines: Sequence[Line], left_out: Sequence[tuple[str, str]]) -> Table:
    """The table of the measures of each point."""
    keys = list(dict.fromkeys(key for line in lines for key in line.settings))
    measures = [name for name in MEASURES if any(name in line.measures for line in lines)]
    starts = {line.measures[_OF_THE_START] for line in lines if _OF_THE_START in line.measures}
    if len(starts) == 1:  # all from the same start
        measures.remove(_OF_THE_START)
    several = any(line.runs > 1 for line in lines)
    rows = []
    for line in lines:
        cells = [(_written(line.settings.get(key, "")), "") for key in keys]
        cells += [(str(line.runs), "")] if several else []
        for name in measures:
            value, bounds = line.measures.get(name, (None, None))
            form = _FORMS[MEASURES[name].unit]
            below = [interval(bounds, form)] if bounds else []
            below += [f"n = {line.counts[name]}"] if name in line.counts else []
            cells.append(("", "") if value is None else (form(value), ", ".join(below)))
        rows.append(cells)
    last = [key.rpartition(".")[2] for key in keys]
    heads = [name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)]
    return Table([*heads, *(["seeds"] if several else []), *measures], rows, left_out, _OVER_SEEDS if several else "")


def _written(value: object) -> str:
    """A setting as one would write it in a file."""
    from dpo_jax.reading import as_yaml

    nested = isinstance(value, Mapping | list)
    return as_yaml(value, default_flow_style=True).strip() if nested else str(value)


def as_markdown(table: Table) -> str:
    """The table for a README; intervals in brackets."""
    lines = [f"| {' | '.join(map(text, table.heads))} |", f"|{' --- |' * len(table.heads)}"]
    for row in table.rows:
        cells = [f"{value} ({below})" if below else value for value, below in row]
        lines.append(f"| {' | '.join(map(text, cells))} |")
    lines += [f"\n{table.note}"] if table.note else []
    lines += [f"\nLeft out: {text(point)}: {text(why)}" for point, why in table.left_out]
    return "\n".join(lines) + "\n"


def as_html(title: str, command: str, table: Table, lines: Sequence[Line]) -> str:
    """The page; it needs nothing beside itself."""
    return page("sweep.html.jinja", title=title, command=command, table=table, plot=draw(lines))


class Frontier(NamedTuple):
    """The plot, and what its axes are."""

    svg: str
    gained: str
    cost: str
    series: Sequence[str]


def draw(lines: Sequence[Line]) -> Frontier | None:
    """Gains against their cost, a curve for each loss; None where no two measures were taken everywhere."""
    gained, cost = (_first(names, lines) for names in (_GAINED, _COST))
    if not lines or gained is None or cost is None:
        return None
    series: dict[str, list[Line]] = {}
    for line in lines:
        series.setdefault(line.curve, []).append(line)

    def paint(axes: Axes) -> None:
        for number, (name, members) in enumerate(series.items()):
            members = sorted(members, key=lambda line: line.measures[cost][0])
            x, y = ([line.measures[measure][0] for line in members] for measure in (cost, gained))
            colour, mark = LINES[number % len(LINES)], _MARKS[number % len(_MARKS)]
            dash = "-" if number < len(LINES) else "--"
            bars = {"xerr": _bars(members, cost), "yerr": _bars(members, gained), "elinewidth": 0.5}
            look: dict[str, Any] = {"color": colour, "marker": mark, "linestyle": dash, "linewidth": 1.0}
            axes.errorbar(x, y, **bars, **look, markersize=5, label=name or None)
        axes.set_xlabel(f"{cost}, {MEASURES[cost].unit}")
        axes.set_ylabel(gained)
        axes.grid(color=INK, alpha=0.12, linewidth=0.5)
        if len(series) > 1:
            axes.legend(frameon=False, labelcolor=INK)

    return Frontier(as_svg(paint, "frontier", size=(4.6, 3.4)), gained, cost, list(series))


def _first(names: Sequence[str], lines: Sequence[Line]) -> str | None:
    return next((name for name in names if all(name in line.measures for line in lines)), None)


def _bars(members: Sequence[Line], measure: str) -> list[list[float]] | None:
    """Reach of the intervals below and above."""
    figures = [line.measures[measure] for line in members]
    if any(bounds is None for _, bounds in figures):
        return None
    below = [max(0.0, value - bounds[0]) for value, bounds in figures if bounds]
    above = [max(0.0, bounds[1] - value) for value, bounds in figures if bounds]
    return [[reach if math.isfinite(reach) else math.nan for reach in each] for each in (below, above)]
