"""What became of a diffusion model: held-out preferences, and samples of policy and reference from the same noise.

Dimension key: n rows or samples, K draws, P members of a row; X stands for all axes of a sample.
"""

from __future__ import annotations

import io
import warnings
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.evaluation.intervals import bootstrap_interval, share_interval
from dpo_jax.evaluation.preference import preference_metrics, unpaired_metrics
from dpo_jax.evaluation.rewards import compare_rewards
from dpo_jax.experiments.picture_judging import members, metrics_of, open_judge
from dpo_jax.experiments.picture_samples import make_sampling, what_to_show
from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.files import write_atomic, write_json
from dpo_jax.runtime.progress import Progress, say
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.types import Params


class Drawn(NamedTuple):
    """Samples, uint8 [n, X], of both models from the same noise, and what they were to show."""

    policy: np.ndarray
    reference: np.ndarray
    shown: np.ndarray | None


def has_work(experiment: PictureExperiment) -> bool:
    """Whether there is anything to measure."""
    return experiment.has_heldout or bool(experiment.config.evaluation.samples)


def run(experiment: PictureExperiment) -> None:
    """Writes WORKDIR/evaluation.json, and the samples as WORKDIR/samples.npz."""
    base = experiment.start_params()
    policy = experiment.trained_params(base)
    found: dict[str, Any] = {"step": Checkpoints(experiment.workdir / "checkpoints").latest()}
    if experiment.has_heldout:
        found["heldout"] = _heldout(experiment, policy, base)
    if experiment.config.evaluation.samples:
        drawn = _draw(experiment, policy, base)
        found |= _of_samples(experiment, drawn)
    write_json(experiment.workdir / "evaluation.json", found)
    say("evaluate", f"wrote {experiment.workdir / 'evaluation.json'}")


def _heldout(experiment: PictureExperiment, policy: Params, base: Params) -> dict[str, Any]:
    """Preferences and mean errors; an error is lower for what a model knows better."""
    rows, draws = experiment.eval_data.rows, experiment.config.evaluation.draws
    policy_nP, base_nP = (
        experiment.scorer(params, rows, draws=draws)[1].errors_nP.reshape(len(rows), draws, -1).mean(axis=1)
        for params in (policy, base)
    )
    if experiment.is_labelled:
        desirable_n = np.array([row.desirable for row in rows], bool)
        found = unpaired_metrics(-policy_nP[:, 0], -base_nP[:, 0], desirable_n, beta=1.0)
    else:
        found = preference_metrics(-policy_nP, -base_nP, beta=1.0)
    kept = {name: found[name] for name in ("pairs", "accuracy", "accuracy_interval")}
    say("evaluate", f"{kept['pairs']} held-out pairs: accuracy {kept['accuracy']:.3f} over {draws} draws")
    errors = {"policy": float(policy_nP.mean()), "reference": float(base_nP.mean())}
    return kept | {"error_margin": found["margin"], "errors": errors, "draws": draws}


def _draw(experiment: PictureExperiment, policy: Params, base: Params) -> Drawn:
    count = experiment.config.evaluation.samples
    shown, sample = what_to_show(experiment, count), make_sampling(experiment, seed=experiment.config.seed)
    with Progress("evaluate", 2 * count, unit="samples") as progress:
        ours = sample(policy, shown, count, "evaluation", progress.update)
        theirs = sample(base, shown, count, "evaluation", lambda done: progress.update(count + done))
    return Drawn(ours, theirs, shown)


def _of_samples(experiment: PictureExperiment, drawn: Drawn) -> dict[str, Any]:
    options, sides = experiment.config.evaluation, {"policy": drawn.policy, "reference": drawn.reference}
    numbers = [str(number) for number in range(len(drawn.policy))]  # each its own noise, and so its own prompt
    arrays = {name: samples for name, samples in sides.items()} | (
        {} if drawn.shown is None else {"shown": drawn.shown}
    )
    found: dict[str, Any] = {"metrics": _metrics(sides)}
    if options.judge:
        judge = open_judge(experiment, options.judge, "evaluation.judge")
        scores = {name: np.asarray(judge.scores(samples), np.float64) for name, samples in sides.items()}
        found["judged"] = {"judge": judge.name, **compare_rewards(scores["policy"], scores["reference"], numbers)}
        arrays |= {f"{name}_scores": values for name, values in scores.items()}
        low, high = found["judged"]["win_rate_interval"]
        say(
            "evaluate",
            f"{judge.name}: the policy wins {found['judged']['win_rate']:.1%} (95 % interval {low:.1%} to {high:.1%})",
        )
    if options.classifier and drawn.shown is not None and drawn.shown.ndim == 1:
        found["classes"] = _classes(experiment, sides, drawn.shown)
    sink = io.BytesIO()
    np.savez_compressed(sink, allow_pickle=False, **arrays)
    write_atomic(experiment.workdir / "samples.npz", sink.getvalue())
    return found


def _metrics(sides: dict[str, np.ndarray]) -> dict[str, Any]:
    """Of each quality metric the means, and the mean difference from the same noise with its interval."""
    of_sides = {name: metrics_of(samples) for name, samples in sides.items()}
    found = {}
    for metric, ours in of_sides["policy"].items():
        difference = np.asarray(ours - of_sides["reference"][metric], np.float64)
        found[metric] = {
            "policy": float(ours.mean()),
            "reference": float(of_sides["reference"][metric].mean()),
            "difference": float(difference.mean()),
            "difference_interval": bootstrap_interval(difference, np.arange(len(difference))),
        }
    return found


def _classes(experiment: PictureExperiment, sides: dict[str, np.ndarray], shown_n: np.ndarray) -> dict[str, Any]:
    """How often a classifier that learned from real samples sees the class that was asked for."""
    rows = experiment.read("evaluation.classifier", experiment.config.evaluation.classifier, "samples", seed=0).rows
    labels_n, pixels_nX = np.array([row.shown for row in rows]), members(rows, 0)
    kept = len(rows) - max(1, len(rows) // 10)  # the last tenth says how good it is
    classify = _classifier(pixels_nX[:kept], labels_n[:kept])
    found: dict[str, Any] = {"real": float(np.mean(classify(pixels_nX[kept:]) == labels_n[kept:]))}
    right = {name: classify(samples) == shown_n for name, samples in sides.items()}
    for name, right_n in right.items():
        found[name] = {"share": float(right_n.mean()), "interval": share_interval(int(right_n.sum()), len(right_n))}
    difference = right["policy"].astype(float) - right["reference"].astype(float)
    found["difference"] = float(difference.mean())
    found["difference_interval"] = bootstrap_interval(difference, np.arange(len(difference)))
    say(
        "evaluate",
        f"the class asked for is seen in {found['policy']['share']:.1%} of the policy's samples, "
        f"{found['reference']['share']:.1%} of the reference's (of real ones {found['real']:.1%})",
    )
    return found


def _classifier(samples_nX: np.ndarray, labels_n: np.ndarray) -> Any:
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
    return lambda samples: network.predict(flat(samples))


def _aligned(clip_FHWC: np.ndarray) -> np.ndarray:
    light_FHW = clip_FHWC.astype(np.float64).mean(axis=-1) + 1e-9
    size_2 = np.array(light_FHW.shape[1:])
    places = np.stack(np.meshgrid(*map(np.arange, size_2), indexing="ij"), axis=-1)
    centres_F2 = np.einsum("fhw,hwx->fx", light_FHW, places) / light_FHW.sum(axis=(1, 2))[:, None]
    moves_F2 = np.rint(size_2 // 2 - centres_F2).astype(int)
    return np.mean([np.roll(frame, move, axis=(0, 1)) for frame, move in zip(clip_FHWC, moves_F2, strict=True)], axis=0)
