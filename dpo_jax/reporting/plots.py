"""Columns of metrics.jsonl, and their curves as inline SVG.

A curve has no file, no font and no colour of its own; the page's style sheet colours both themes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dpo_jax.evaluation.intervals import Interval, mean_interval
from dpo_jax.reporting.numbers import GAP, Format, interval, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, float]]
"""Rows of metrics.jsonl."""

# Colours that matplotlib draws and the page replaces: hex -> CSS.
INK, _WARNING = "#00000a", "#00000b"
LINES = tuple(f"#0000{number:02}" for number in range(11, 17))
_CSS = {INK: "currentColor", _WARNING: "var(--bad)"}
_CSS |= {colour: f"var(--line-{number})" for number, colour in enumerate(LINES, 1)}
DASHES = ("-", (0, (4, 1.5)))
SMOOTH_FROM_ROWS = 20
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dpo_jax",
    "text.parse_math": False,  # a name with a dollar is a name
    "font.size": 8.5,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.5),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.formatter.useoffset"), False),
}


class Plot(NamedTuple):
    """One picture: its title, its unit, and (label, metric) of each of its one or two lines."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    smooth: bool = True


class Curve(NamedTuple):
    """A drawn plot: SVG text, its description in words, and the labels of its lines (none where there is one)."""

    title: str
    unit: str
    svg: str
    description: str
    legend: list[str]


Line = tuple[str, np.ndarray, np.ndarray]
"""Its label, its steps, its values."""

PREFERENCE_PLOTS = (
    Plot("Loss", "", (("loss", "loss"),)),
    Plot("Reward margin", "", (("margin", "rewards/margins"),)),
    Plot("Reward accuracy", "%", (("accuracy", "rewards/accuracies"),)),
    Plot("Response log-probability", "nats", (("chosen", "logps/chosen"), ("rejected", "logps/rejected"))),
    Plot("Log-ratio to the reference", "nats", (("chosen", "log_ratios/chosen"), ("rejected", "log_ratios/rejected"))),
    Plot("Gradient norm", "before clipping", (("gradient norm", "grad_norm"),)),
    Plot("Learning rate", "", (("learning rate", "learning_rate"),), smooth=False),
    Plot("Throughput", "tokens a second", (("throughput", "tokens_per_second"),)),
)
COMPARED_PLOTS = (
    Plot("Reward margin", "", (("margin", "rewards/margins"),)),
    Plot("Reward accuracy", "%", (("accuracy", "rewards/accuracies"),)),
    Plot("Chosen log-ratio", "nats", (("chosen", "log_ratios/chosen"),)),
    Plot("Rejected log-ratio", "nats", (("rejected", "log_ratios/rejected"),)),
    Plot("Held-out accuracy", "%", (("held out", "eval/accuracy"),), smooth=False),
    Plot("Held-out margin", "nats", (("held out", "eval/margin"),), smooth=False),
    Plot("Gradient norm", "before clipping", (("gradient norm", "grad_norm"),)),
)
SFT_PLOTS = (Plot("Supervised loss", "nats a token", (("loss", "loss"),)),)
REWARD_PLOTS = (
    Plot("Loss", "", (("loss", "loss"),)),
    Plot("Accuracy", "%", (("accuracy", "rewards/accuracies"),)),
)
PICTURE_PLOTS = (
    Plot("Loss", "", (("loss", "loss"),)),
    Plot("Reward accuracy", "%", (("accuracy", "rewards/accuracies"),)),
    Plot("Denoising error", "", (("chosen", "errors/chosen"), ("rejected", "errors/rejected"))),
    Plot("Error less than the reference's by", "", (("chosen", "gained/chosen"), ("rejected", "gained/rejected"))),
    Plot("Difference of neighbouring frames", "", (("clean clips as seen", "temporal_consistency"),)),
    Plot("Gradient norm", "before clipping", (("gradient norm", "grad_norm"),)),
    Plot("Throughput", "pictures or clips a second", (("throughput", "pictures_per_second"),)),
)
PRETRAINING_PLOTS = (Plot("Denoising error", "", (("loss", "loss"),)),)


def series(rows: Rows, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric, over the rows that hold it; both may be empty."""
    pairs = [(row["step"], row[name]) for row in rows if name in row]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def ends(values: np.ndarray) -> tuple[float, float]:
    """Means of the finite values in the first and in the last window; NaN where there are none."""
    steps = window_steps(len(values))
    return _finite_mean(values[:steps]), _finite_mean(values[-steps:])


LEAST_STEPS = 5
"""Logged steps of a window: two batches show no trend."""


def window_steps(logged: int) -> int:
    """How many of the logged steps are one end of a course: a tenth, `LEAST_STEPS` at least, but half at most."""
    return min(max(LEAST_STEPS, logged // 10), max(1, logged // 2))


class Window(NamedTuple):
    """The mean of some logged steps, each a batch, and its interval."""

    mean: float
    interval: Interval
    steps: int

    @property
    def most(self) -> float:
        """The upper end of the interval, or the mean itself where all steps are alike."""
        return self.mean if math.isinf(self.interval[1]) else self.interval[1]

    @property
    def least(self) -> float:
        """The lower end of the interval, or the mean itself where all steps are alike."""
        return self.mean if math.isinf(self.interval[0]) else self.interval[0]

    def words(self, form: Format) -> str:
        """The mean and its interval."""
        return f"{form(self.mean)} (95{GAP}% interval {interval(self.interval, form)})"


def windows(values: np.ndarray) -> tuple[Window, Window] | None:
    """The first and the last window; None of too few steps to tell one end from the other."""
    steps = window_steps(len(values))
    if steps < LEAST_STEPS:
        return None
    first, last = (Window(float(part.mean()), mean_interval(part), steps) for part in (values[:steps], values[-steps:]))
    return first, last


def finite(values: np.ndarray) -> np.ndarray:
    """The values that are neither NaN nor infinite."""
    return values[np.isfinite(values)]


def broken_steps(rows: Rows) -> list[int]:
    """The steps at which any metric is NaN or infinite."""
    return [int(row["step"]) for row in rows if not np.isfinite([float(value) for value in row.values()]).all()]


def _finite_mean(values: np.ndarray) -> float:
    kept = finite(values)
    return float(kept.mean()) if len(kept) else float("nan")


def draw(plots: tuple[Plot, ...], rows: Rows, *, prefix: str) -> list[Curve]:
    """The plots for which `rows` hold values. `prefix` keeps the ids of several drawings on one page apart."""
    known = {name for row in rows for name in row}
    drawn = [plot for plot in plots if all(metric in known for _, metric in plot.lines)]
    return [
        _draw(plot, [(label, *series(rows, metric)) for label, metric in plot.lines], f"{prefix}-{number}")
        for number, plot in enumerate(drawn)
    ]


def overlay(plots: tuple[Plot, ...], runs: Mapping[str, Rows], *, prefix: str) -> list[Curve]:
    """Plots of one line each, in which every run has its line; left out is what none of them logged."""
    known = {name for rows in runs.values() for row in rows for name in row}
    curves = []
    for number, plot in enumerate(plots):
        ((_, metric),) = plot.lines
        if metric in known:
            lines = [(run, *series(rows, metric)) for run, rows in runs.items()]
            lines = [(run if len(steps) else f"{run}: not logged", steps, values) for run, steps, values in lines]
            curves.append(_draw(plot, lines, f"{prefix}-{number}"))
    return curves


def _draw(plot: Plot, lines: Sequence[Line], prefix: str) -> Curve:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    def paint(axes: Axes) -> None:
        for number, (_, steps, values) in enumerate(lines):
            _line(axes, steps, values, *style_of(number), smooth=plot.smooth)
        if plot.unit == "%":
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.5)

    legend = [label for label, *_ in lines] if len(lines) > 1 else []
    return Curve(plot.title, plot.unit, as_svg(paint, prefix), _describe(plot, lines), legend)


def style_of(number: int) -> tuple[str, Any]:
    """The colour and the dashes of a line, of which 12 can be told apart; the style sheet's legend has the same."""
    return LINES[number % len(LINES)], DASHES[(number + number // len(LINES)) % 2]


def as_svg(paint: Callable[[Axes], None], prefix: str, *, size: tuple[float, float] = (4.1, 2.2)) -> str:
    """SVG of what `paint` draws, for a page; `prefix` keeps its ids apart from those of others there."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.add_subplot())
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return _inline(buffer.getvalue(), prefix)


def _line(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str, dash: Any, *, smooth: bool) -> None:
    """Raw values thin and a running mean strong, once there are enough; NaN leaves a gap and an upright mark."""
    finite = np.isfinite(values)
    for step in steps[~finite]:
        axes.axvline(step, color=_WARNING, linewidth=1)
    values = np.where(finite, values, np.nan)
    means = smoothed(steps, values) if smooth else None
    if means:
        axes.plot(steps, values, color=colour, alpha=0.35, linewidth=0.7)
        steps, values = means
    axes.plot(steps, values, color=colour, linestyle=dash, linewidth=1.4, marker="o" if len(values) == 1 else None)


def smoothed(*columns: np.ndarray) -> list[np.ndarray] | None:
    """The running means of columns over a tenth of the rows; None of too few rows."""
    window = len(columns[0]) // 10 if len(columns[0]) >= SMOOTH_FROM_ROWS else 1
    return [np.convolve(each, np.full(window, 1 / window), mode="valid") for each in columns] if window > 1 else None


def _describe(plot: Plot, lines: Sequence[Line]) -> str:
    said = []
    for label, steps, values in lines:
        if not len(steps):
            said.append(label)
            continue
        first, last = (f"at step {steps[end]:.0f}" for end in (0, -1))
        broken, ends_of = np.count_nonzero(~np.isfinite(values)), windows(values)
        if not plot.smooth or len(values) == 1:  # no means of batches
            course = f"from {plain(values[0])} {first} to {plain(values[-1])} {last}"
        elif ends_of is None:
            kept = finite(values)
            between = f"between {plain(kept.min())} and {plain(kept.max())}" if len(kept) else "NaN or infinite"
            course = f"{between}, the first {first}, the last {last}"
        else:
            course = f"from {ends_of[0].words(plain)} over {ends_of[0].steps} logged steps, the first {first}, "
            course += f"to {ends_of[1].words(plain)} over as many, the last {last}"
        said.append(f"{label} {course}" + (f", not finite at {broken} logged steps" if broken else ""))
    return f"{plot.title} by step: {'; '.join(said)}."


def _inline(svg: str, prefix: str) -> str:
    """Of a drawing in `COLOURS` and `INK` what belongs on the page: unique ids, and colours of its style sheet."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"|font-family: [^;"]+; ', "", svg)
    for hex_colour, css in _CSS.items():
        svg = svg.replace(hex_colour, css)
    return svg
