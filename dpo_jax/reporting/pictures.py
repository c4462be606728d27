"""The report of a run on pictures or clips: verdict, measures before and after, samples side by side, curves.

Dimension key: n samples; X stands for all axes of a sample.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.reporting.concerns import training_concerns
from dpo_jax.reporting.numbers import GAP, interval, percent, plain, points
from dpo_jax.reporting.page import page
from dpo_jax.reporting.plots import STYLE, Curve, Plot, as_svg, draw, style_of
from dpo_jax.reporting.results import Result, part
from dpo_jax.reporting.verdict import Verdict, judgement

_FRAME_SECONDS = 0.12
PLOTS = (
    Plot("Loss", "", (("loss", "loss"),)),
    Plot("Reward accuracy", "%", (("accuracy", "rewards/accuracies"),)),
    Plot("Denoising error", "", (("chosen", "errors/chosen"), ("rejected", "errors/rejected"))),
    Plot("Error less than the reference's by", "", (("chosen", "gained/chosen"), ("rejected", "gained/rejected"))),
    Plot("Difference of neighbouring frames", "", (("clean clips as seen", "temporal_consistency"),)),
    Plot("Gradient norm", "before clipping", (("gradient norm", "grad_norm"),)),
    Plot("Throughput", "pictures or clips a second", (("throughput", "pictures_per_second"),)),
)
SFT_PLOTS = (Plot("Denoising error", "", (("loss", "loss"),)),)
SCORER_PLOTS = (
    Plot("Loss", "", (("loss", "loss"),)),
    Plot("Accuracy", "%", (("accuracy", "rewards/accuracies"),)),
)


class PictureReport(NamedTuple):
    """All that is known of a run."""

    title: str
    command: str
    created: str
    environment: Mapping[str, str]
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    sft_metrics: Sequence[Mapping[str, Any]]
    scorer_metrics: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any] | None
    scorer: Mapping[str, Any] | None  # of its held-out pairs
    samples: Mapping[str, np.ndarray]  # `policy`, `reference` uint8 [n, X], perhaps `shown` and scores, [n] each
    shown: int  # how many of them the page shows


class Shown(NamedTuple):
    """A sample before and after, from the same noise: data URLs, what it was to show, and the scores."""

    before: str
    after: str
    label: str
    scores: tuple[str, str] | None


def render(run: PictureReport) -> str:
    """The report as HTML text. The same run gives the same bytes."""
    import yaml

    evaluation = run.evaluation
    status, text = judgement(evaluation)
    return page(
        "pictures.html.jinja",
        run=run,
        verdict=Verdict(status, text, [*_concerns(evaluation), *training_concerns(run.metrics, None)]),
        results=result_rows(evaluation, run.scorer),
        histograms=_histograms(run),
        samples=shown_samples(run.samples, run.shown),
        clips=bool(run.samples) and run.samples["policy"].ndim == 5,
        sections=[
            ("Preference training", draw(PLOTS, run.metrics, prefix="preference")),
            ("Pre-training", draw(SFT_PLOTS, run.sft_metrics, prefix="sft")),
            ("Scorer", draw(SCORER_PLOTS, run.scorer_metrics, prefix="scorer")),
        ],
        config=yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True, width=100),
    )


def result_rows(evaluation: Mapping[str, Any] | None, scorer: Mapping[str, Any] | None) -> list[Result]:
    """The measures that there are, with their intervals."""
    rows = []
    judged, heldout, classes = (part(evaluation, name) for name in ("judged", "heldout", "classes"))
    if judged:
        bounds = interval(judged["win_rate_interval"], percent)
        rows.append(
            Result("Win rate", percent(judged["win_rate"]), bounds, f"samples from the same noise; {judged['judge']}")
        )
        for side in ("reference", "policy"):
            found = judged[side]
            rows.append(Result(f"Mean score, {side}", plain(found["reward"]), interval(found["interval"], plain), ""))
    for metric, found in (part(evaluation, "metrics") or {}).items():
        name = metric.replace("_", " ").capitalize()
        note = f"{plain(found['reference'])} before, {plain(found['policy'])} after; their difference:"
        rows.append(Result(name, plain(found["difference"]), interval(found["difference_interval"], plain), note))
    if classes:
        before, real = (percent(share) for share in (classes["reference"]["share"], classes["real"]))
        note = f"{before} before; the classifier is right on {real} of real samples"
        found = classes["policy"]
        rows.append(
            Result("Class asked for is seen", percent(found["share"]), interval(found["interval"], percent), note)
        )
    if heldout:
        note = f"{heldout['pairs']} held-out pairs, {heldout['draws']} draws of time and noise each"
        bounds = interval(heldout["accuracy_interval"], percent)
        rows.append(Result("Preference accuracy", percent(heldout["accuracy"]), bounds, note))
        errors = heldout["errors"]
        note = f"of held-out samples, {plain(errors['reference'])} before"
        rows.append(Result("Denoising error", plain(errors["policy"]), "", note))
    if scorer:
        bounds = interval(scorer["accuracy_interval"], percent)
        rows.append(
            Result("Scorer's accuracy", percent(scorer["accuracy"]), bounds, f"{scorer['pairs']} held-out pairs")
        )
    return rows


def _concerns(evaluation: Mapping[str, Any] | None) -> list[str]:
    found = []
    classes = part(evaluation, "classes")
    if classes and classes["difference_interval"][1] < 0:
        found.append(
            f"Fewer of its samples show the class that was asked for, by {points(classes['difference'])} "
            f"(95{GAP}% interval {interval(classes['difference_interval'], points)})."
        )
    errors = part(evaluation, "heldout", "errors")
    if errors and errors["policy"] > 1.5 * errors["reference"]:
        found.append(
            f"It denoises held-out samples worse than before, error {plain(errors['policy'])} against "
            f"{plain(errors['reference'])}: it has moved far."
        )
    judged = part(evaluation, "judged")
    if judged and judged["judge"].startswith("scorer"):
        found.append("The judge learned from preferences like those of the training: its scores may flatter.")
    return found


def shown_samples(samples: Mapping[str, np.ndarray], count: int) -> list[Shown]:
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

    frames = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in _clip(sample_X)]
    sink = io.BytesIO()
    if len(frames) == 1:
        frames[0].save(sink, "PNG")
        return f"data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}"
    duration = round(1000 * _FRAME_SECONDS)
    colours = [frame.convert("RGB") for frame in frames]
    colours[0].save(sink, "WEBP", save_all=True, append_images=colours[1:], duration=duration, loop=0, lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(sink.getvalue()).decode()}"


def _clip(sample_X: np.ndarray) -> np.ndarray:
    return sample_X if sample_X.ndim == 4 else sample_X[None]


def _histograms(run: PictureReport) -> list[Curve]:
    """Of the judge's scores, before and after."""
    if "policy_scores" not in run.samples:
        return []
    import matplotlib as mpl
    from matplotlib.figure import Figure

    sides = {"before": run.samples["reference_scores"], "after": run.samples["policy_scores"]}
    everything = np.concatenate(list(sides.values()))
    edges = np.histogram_bin_edges(everything, bins=24).tolist()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.1, 2.2), layout="constrained")
        axes = figure.add_subplot()
        for number, values in enumerate(sides.values()):
            colour, dash = style_of(number)
            axes.hist(values, bins=edges, histtype="stepfilled", color=colour, alpha=0.25)
            axes.hist(values, bins=edges, histtype="step", color=colour, linestyle=dash, linewidth=1.4)
        axes.set_ylabel("samples")
        svg = as_svg(figure, "scores")
    means = "; ".join(f"{name} on average {plain(values.mean())}" for name, values in sides.items())
    title = "Scores of samples"
    return [Curve(title, "", svg, f"{title}: {means}.", list(sides))]
