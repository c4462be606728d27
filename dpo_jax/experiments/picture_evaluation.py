"""The evaluation of a diffusion model: held-out preferences, and samples of both models from the same noise.

Dimension key: n rows or samples, K draws, P members of a row; X stands for all axes of a sample.
"""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.evaluation.heldout import preference_metrics, unpaired_metrics
from dpo_jax.evaluation.intervals import bootstrap_interval, in_words, share_interval
from dpo_jax.evaluation.records import Classes, Evaluation, Heldout, Judged, Quality, Seen, Sides
from dpo_jax.evaluation.winrate import compare_rewards
from dpo_jax.experiments.picture_judging import judge_context, members, metrics_of, open_judge
from dpo_jax.experiments.picture_samples import make_sampling, what_to_show
from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.files import write_atomic
from dpo_jax.runtime.progress import Progress, say
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.types import Params, PictureRow


class Drawn(NamedTuple):
    """Samples, uint8 [n, X], of both models from the same noise, and what they were to show."""

    policy: np.ndarray
    reference: np.ndarray
    shown: np.ndarray | None

    @property
    def sides(self) -> dict[str, np.ndarray]:
        """The samples of both by name."""
        return {"policy": self.policy, "reference": self.reference}


def evaluate(experiment: PictureExperiment) -> Evaluation:
    """The evaluation of the newest checkpoint; the samples go into WORKDIR/samples.npz."""
    base = experiment.start_params()
    policy = experiment.trained_params(base)
    heldout = _heldout(experiment, policy, base) if experiment.has_heldout else Heldout()
    of_samples = Evaluation()
    if experiment.config.evaluation.samples:
        of_samples = _of_samples(experiment, _draw(experiment, policy, base))
    step = Checkpoints(experiment.run.checkpoints).latest()
    return dataclasses.replace(of_samples, step=step, heldout=heldout)


def _heldout(experiment: PictureExperiment, policy: Params, base: Params) -> Heldout:
    """Preferences and mean errors; an error is lower for what a model knows better."""
    rows, draws = experiment.eval_data.rows, experiment.config.evaluation.draws
    policy_nP, base_nP = (
        experiment.scorer(params, rows, draws=draws)[1].errors_nP.reshape(len(rows), draws, -1).mean(axis=1)
        for params in (policy, base)
    )
    if experiment.is_labelled:
        desirable_n = np.array([row.desirable for row in rows], bool)
        preferred = unpaired_metrics(-policy_nP[:, 0], -base_nP[:, 0], desirable_n, beta=1.0)
    else:
        preferred = preference_metrics(-policy_nP, -base_nP, beta=1.0)
    say("evaluate", f"{preferred.pairs} held-out pairs: accuracy {preferred.accuracy:.3f} over {draws} draws")
    return Heldout(
        pairs=preferred.pairs,
        accuracy=preferred.accuracy,
        accuracy_interval=preferred.accuracy_interval,
        error_margin=preferred.margin,
        errors=Sides(policy=float(policy_nP.mean()), reference=float(base_nP.mean())),
        draws=draws,
    )


def _draw(experiment: PictureExperiment, policy: Params, base: Params) -> Drawn:
    count = experiment.config.evaluation.samples
    shown, sample = what_to_show(experiment, count), make_sampling(experiment, seed=experiment.config.seed)
    with Progress("evaluate", 2 * count, unit="samples") as progress:
        ours = sample(policy, shown, count, "evaluation", progress.update)
        theirs = sample(base, shown, count, "evaluation", lambda done: progress.update(count + done))
    return Drawn(ours, theirs, shown)


def _of_samples(experiment: PictureExperiment, drawn: Drawn) -> Evaluation:
    options, arrays, judgement, classes = experiment.config.evaluation, drawn.sides, Judged(), Classes()
    numbers = [str(number) for number in range(len(drawn.policy))]  # each its own noise, and so its own prompt
    if drawn.shown is not None:
        arrays["shown"] = drawn.shown
    if options.judge:
        judge = open_judge(options.judge, judge_context(experiment, "evaluation.judge"))
        scores = {name: np.asarray(judge.scores(samples), np.float64) for name, samples in drawn.sides.items()}
        judgement = compare_rewards(scores["policy"], scores["reference"], numbers, judge=judge.name)
        arrays |= {f"{name}_scores": values for name, values in scores.items()}
        wins = f"the policy wins {judgement.win_rate:.1%} ({in_words(judgement.win_rate_interval, '.1%')})"
        say("evaluate", f"{judge.name}: {wins}")
    if options.classifier and drawn.shown is not None and drawn.shown.ndim == 1:
        rows = experiment.read("evaluation.classifier", options.classifier, "samples", seed=0).rows
        classes = _classes(rows, drawn.sides, drawn.shown)
    sink = io.BytesIO()
    np.savez_compressed(sink, allow_pickle=False, **arrays)
    write_atomic(experiment.run.samples_arrays, sink.getvalue())
    return Evaluation(metrics=_qualities(drawn.sides), judged=judgement, classes=classes)


def _qualities(sides: Mapping[str, np.ndarray]) -> dict[str, Quality]:
    """Of each quality metric the means, and the mean difference from the same noise with its interval."""
    of_sides = {name: metrics_of(samples) for name, samples in sides.items()}
    qualities = {}
    for metric, ours in of_sides["policy"].items():
        theirs = of_sides["reference"][metric]
        difference = np.asarray(ours - theirs, np.float64)
        qualities[metric] = Quality(
            policy=float(ours.mean()),
            reference=float(theirs.mean()),
            difference=float(difference.mean()),
            difference_interval=bootstrap_interval(difference, np.arange(len(difference))),
        )
    return qualities


def _classes(rows: Sequence[PictureRow], sides: Mapping[str, np.ndarray], shown_n: np.ndarray) -> Classes:
    """Shares of samples in which a classifier trained on real rows sees the class that was asked for."""
    labels_n, pixels_nX = np.array([row.shown for row in rows]), members(rows, 0)
    kept = len(rows) - max(1, len(rows) // 10)  # the last tenth says how good it is
    classify = _classifier(pixels_nX[:kept], labels_n[:kept])
    right = {name: classify(samples) == shown_n for name, samples in sides.items()}
    seen = {
        name: Seen(share=float(right_n.mean()), interval=share_interval(int(right_n.sum()), len(right_n)))
        for name, right_n in right.items()
    }
    difference = right["policy"].astype(float) - right["reference"].astype(float)
    classes = Classes(
        real=float(np.mean(classify(pixels_nX[kept:]) == labels_n[kept:])),
        **seen,
        difference=float(difference.mean()),
        difference_interval=bootstrap_interval(difference, np.arange(len(difference))),
    )
    say(
        "evaluate",
        f"the class asked for is seen in {classes.policy.share:.1%} of the policy's samples, "
        f"{classes.reference.share:.1%} of the reference's (of real ones {classes.real:.1%})",
    )
    return classes


def _classifier(samples_nX: np.ndarray, labels_n: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A network of one hidden layer on pixels; the same for every run on the same rows.

    It sees a clip as the mean of its frames, each moved so that its centre of brightness is in the middle.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    def flat(samples: np.ndarray) -> np.ndarray:
        pictures = samples if samples.ndim == 4 else np.stack([_aligned(clip) for clip in samples])
        return pictures.reshape(len(samples), -1).astype(np.float32) / 255.0

    network = MLPClassifier((128,), max_iter=30, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 30 passes are enough to tell classes apart
        network.fit(flat(samples_nX), labels_n)
    return lambda samples: np.asarray(network.predict(flat(samples)))


def _aligned(clip_FHWC: np.ndarray) -> np.ndarray:
    light_FHW = clip_FHWC.astype(np.float64).mean(axis=-1) + 1e-9
    size_2 = np.array(light_FHW.shape[1:])
    places = np.stack(np.meshgrid(*map(np.arange, size_2), indexing="ij"), axis=-1)
    centres_F2 = np.einsum("fhw,hwx->fx", light_FHW, places) / light_FHW.sum(axis=(1, 2))[:, None]
    moves_F2 = np.rint(size_2 // 2 - centres_F2).astype(int)
    return np.mean([np.roll(frame, move, axis=(0, 1)) for frame, move in zip(clip_FHWC, moves_F2, strict=True)], axis=0)
