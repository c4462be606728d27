"""Samples of pictures and clips side by side, and the histogram of their scores.

Dimension key: n samples; X stands for all axes of a sample.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dpo_jax.reporting.numbers import plain
from dpo_jax.reporting.plots import Curve, as_svg, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FRAME_SECONDS = 0.12
Arrays = Mapping[str, np.ndarray]
"""Samples `policy` and `reference`, uint8 [n, X], perhaps what is `shown`, and `policy_scores`, `reference_scores`."""


class Shown(NamedTuple):
    """A sample before and after, from the same noise: data URLs, what it was to show, and the scores."""

    before: str
    after: str
    label: str
    scores: tuple[str, str] | None


def shown_samples(samples: Arrays, count: int) -> list[Shown]:
    """The first samples, which are also the first noises: none is picked."""
    if not samples:
        return []
    labels = samples.get("shown")
    has_scores = "policy_scores" in samples
    return [
        Shown(
            data_url(samples["reference"][number]),
            data_url(samples["policy"][number]),
            "" if labels is None or labels.ndim > 1 else f"class {labels[number]}",
            (plain(samples["reference_scores"][number]), plain(samples["policy_scores"][number]))
            if has_scores
            else None,
        )
        for number in range(min(count, len(samples["policy"])))
    ]


def data_url(sample_X: np.ndarray) -> str:
    """A picture as PNG, a clip as an animation that repeats itself."""
    from PIL import Image

    clip = sample_X if sample_X.ndim == 4 else sample_X[None]
    frames = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in clip]
    sink = io.BytesIO()
    if len(frames) == 1:
        kind = "png"
        frames[0].save(sink, kind)
    else:
        kind, duration = "webp", round(1000 * _FRAME_SECONDS)
        first, *others = (frame.convert("RGB") for frame in frames)
        first.save(sink, kind, save_all=True, append_images=others, duration=duration, loop=0, lossless=True)
    return f"data:image/{kind};base64,{base64.b64encode(sink.getvalue()).decode()}"


def histograms(samples: Arrays) -> list[Curve]:
    """The histogram of the judge's scores, before and after; none where nobody judged."""
    if "policy_scores" not in samples:
        return []
    sides = {"before": samples["reference_scores"], "after": samples["policy_scores"]}
    edges = np.histogram_bin_edges(np.concatenate(list(sides.values())), bins=24).tolist()

    def paint(axes: Axes) -> None:
        for number, values in enumerate(sides.values()):
            colour, dash = style_of(number)
            axes.hist(values, bins=edges, histtype="stepfilled", color=colour, alpha=0.25)
            axes.hist(values, bins=edges, histtype="step", color=colour, linestyle=dash, linewidth=1.4)
        axes.set_ylabel("samples")

    means = "; ".join(f"{name} on average {plain(values.mean())}" for name, values in sides.items())
    title = "Scores of samples"
    return [Curve(title, "", as_svg(paint, "scores"), f"{title}: {means}.", list(sides))]
