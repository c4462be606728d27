"""The evaluation of a diffusion model, and its judges: a sum of quality metrics, or a scorer trained on preferences.

Dimension key: n rows or samples, K draws, P members of a row, M metrics; X stands for all axes of a sample.
"""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.config import load
from dpo_jax.config.pictures import (
    PictureConfig,
    PictureJudgeConfig,
    PicturesConfig,
    QualityJudge,
    ScorerJudge,
)
from dpo_jax.errors import UserError, nearest
from dpo_jax.evaluation.heldout import preference_metrics, unpaired_metrics
from dpo_jax.evaluation.intervals import bounded_interval, in_words, mean_interval
from dpo_jax.evaluation.records import Classes, Evaluation, Heldout, Judged, Quality, Seen, Sides
from dpo_jax.evaluation.winrate import compare_rewards
from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.files import read_json, write_atomic
from dpo_jax.objectives.diffusion import pixels
from dpo_jax.runs.run import Run
from dpo_jax.runtime.progress import Progress, say
from dpo_jax.scorers.quality import METRICS, OF_IMAGES, fit_weights, measured, quality_scores
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
    return dataclasses.replace(of_samples, **experiment.run.measured(), heldout=heldout)


def _heldout(experiment: PictureExperiment, policy: Params, base: Params) -> Heldout:
    """Preferences and mean errors; an error is lower for what a model knows better."""
    rows, draws = experiment.eval_data.rows, experiment.config.evaluation.draws
    policy_nP, base_nP = (
        experiment.scorer(params, rows, draws=draws)[1].errors_nP.reshape(len(rows), draws, -1).mean(axis=1)
        for params in (policy, base)
    )
    desirable_n = np.array([row.desirable for row in rows], bool) if experiment.is_labelled else None
    preferred = heldout_of_errors(policy_nP, base_nP, desirable_n, draws=draws)
    accuracy = f"accuracy {preferred.accuracy:.3f} ({in_words(preferred.accuracy_interval, '.3f')})"
    say("evaluate", f"{preferred.pairs} held-out pairs: {accuracy} over {draws} draws")
    return preferred


def heldout_of_errors(
    policy_nP: np.ndarray, base_nP: np.ndarray, desirable_n: np.ndarray | None, *, draws: int
) -> Heldout:
    """Preferences and means of both models' denoising errors, each the mean of some draws; of pairs, or of labelled."""
    if desirable_n is not None:
        preferred = unpaired_metrics(-policy_nP[:, 0], -base_nP[:, 0], desirable_n, beta=1.0)
    else:
        preferred = preference_metrics(-policy_nP, -base_nP, beta=1.0)
    return Heldout(
        pairs=preferred.pairs,
        accuracy=preferred.accuracy,
        accuracy_interval=preferred.accuracy_interval,
        error_margin=preferred.margin,
        errors=Sides(
            policy=float(policy_nP.mean()),
            policy_interval=mean_interval(policy_nP.mean(axis=1)),
            reference=float(base_nP.mean()),
            reference_interval=mean_interval(base_nP.mean(axis=1)),
        ),
        draws=draws,
    )


def _draw(experiment: PictureExperiment, policy: Params, base: Params) -> Drawn:
    count = experiment.config.evaluation.samples
    shown, sample = experiment.what_to_show(count), experiment.sampler(seed=experiment.config.seed)
    with Progress("evaluate", 2 * count, unit="samples") as progress:
        ours = sample(policy, shown, count, "evaluation", progress.update)
        theirs = sample(base, shown, count, "evaluation", lambda done: progress.update(count + done))
    return Drawn(ours, theirs, shown)


def _of_samples(experiment: PictureExperiment, drawn: Drawn) -> Evaluation:
    options, arrays, judgement, classes = experiment.config.evaluation, drawn.sides, Judged(), Classes()
    numbers = [str(number) for number in range(len(drawn.policy))]  # each its own noise, and so its own prompt
    if drawn.shown is not None:
        arrays["shown"] = drawn.shown
    arrays |= {name: np.array(value) for name, value in experiment.run.measured().items()}
    if options.judge:
        judge = open_judge(options.judge, experiment, "evaluation.judge")
        scores = {name: np.asarray(judge.scores(samples), np.float64) for name, samples in drawn.sides.items()}
        judgement = compare_rewards(scores["policy"], scores["reference"], numbers, judge=judge.name)
        arrays |= {f"{name}_scores": values for name, values in scores.items()}
        wins = f"the policy wins {judgement.win_rate:.1%} of {judgement.samples} comparisons"
        say("evaluate", f"{judge.name}: {wins} ({in_words(judgement.win_rate_interval, '.1%')})")
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
    return {metric: quality_of(ours, of_sides["reference"][metric]) for metric, ours in of_sides["policy"].items()}


def quality_of(policy_n: np.ndarray, reference_n: np.ndarray) -> Quality:
    """The means of one metric of both models' samples, and their difference."""
    difference_n = np.asarray(policy_n - reference_n, np.float64)
    return Quality(
        policy=float(policy_n.mean()),
        reference=float(reference_n.mean()),
        difference=float(difference_n.mean()),
        difference_interval=mean_interval(difference_n),
        samples=len(difference_n),
    )


def _classes(rows: Sequence[PictureRow], sides: Mapping[str, np.ndarray], shown_n: np.ndarray) -> Classes:
    """Shares of samples in which a classifier trained on real rows sees the class that was asked for."""
    labels_n, pixels_nX = np.array([row.shown for row in rows]), members(rows, 0)
    kept = len(rows) - max(1, len(rows) // 10)  # the last tenth says how good it is
    classify = _classifier(pixels_nX[:kept], labels_n[:kept])
    right = {name: classify(samples) == shown_n for name, samples in sides.items()}
    right_of_real = classify(pixels_nX[kept:]) == labels_n[kept:]
    classes = shares_seen(right["policy"], right["reference"], right_of_real)
    spread = {"policy": classes.policy.interval, "reference": classes.reference.interval}
    spread = {name: in_words(interval, ".1%") for name, interval in spread.items()}
    say(
        "evaluate",
        f"the class asked for is seen in {classes.policy.share:.1%} ({spread['policy']}) of the policy's "
        f"{len(shown_n)} samples, {classes.reference.share:.1%} ({spread['reference']}) of the reference's, and in "
        f"{classes.real:.1%} ({in_words(classes.real_interval, '.1%')}) of {len(right_of_real)} real ones",
    )
    return classes


def shares_seen(policy_n: np.ndarray, reference_n: np.ndarray, real_n: np.ndarray) -> Classes:
    """How often the class is the one asked for, from which samples of both models, and which real ones, show it."""
    difference_n = policy_n.astype(float) - reference_n
    policy, reference = (
        Seen(share=float(right_n.mean()), interval=bounded_interval(right_n)) for right_n in (policy_n, reference_n)
    )
    return Classes(
        real=float(real_n.mean()),
        real_samples=len(real_n),
        real_interval=bounded_interval(real_n),
        samples=len(policy_n),
        policy=policy,
        reference=reference,
        difference=float(difference_n.mean()),
        difference_interval=bounded_interval(difference_n, low=-1.0),
    )


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


_AT_ONCE = 256


class PictureJudge(NamedTuple):
    """Its name for people, and scores [n] of uint8 samples [n, X], higher for what is preferred."""

    name: str
    scores: Callable[[np.ndarray], np.ndarray]


class JudgeContext(NamedTuple):
    """The surroundings of a judge: its place in the configuration, pictures, training rows, and runs with a scorer."""

    at: str  # file, line and key
    pictures: PicturesConfig
    train_rows: Callable[[], Sequence[PictureRow]]
    owner: Callable[[str | None], PictureExperiment]  # of the scorer in a WORKDIR, by default of this one


def open_judge(config: PictureJudgeConfig, experiment: PictureExperiment, key: str) -> PictureJudge:
    """The judge that the configuration names at `key`.

    Raises:
        UserError: an unknown metric, one that pictures do not have, or there is no scorer yet.
    """

    def owner(model: str | None) -> PictureExperiment:
        return experiment if model is None else other_run(experiment, model)

    at, pictures = f"{experiment.at(key)}: {key}", experiment.config.pictures
    context = JudgeContext(at, pictures, lambda: experiment.train_data.rows, owner)
    return PICTURE_JUDGES[config.name](config, context)


def check_quality(config: QualityJudge, pictures: PicturesConfig, at: str) -> None:
    """Refuse a quality metric that such samples do not have, as a UserError; `at` is the judge's place."""
    for name in (*config.weights, *config.metrics):
        allowed = METRICS if (pictures.frames or 1) > 1 else OF_IMAGES
        if name not in allowed:
            raise UserError(f"{at}: quality metric {name!r} is unknown here. {nearest(name, allowed)}")


def _quality(config: QualityJudge, context: JudgeContext) -> PictureJudge:
    check_quality(config, context.pictures, context.at)
    weights = {name: float(weight) for name, weight in config.weights.items()}
    weights = weights or _fitted(context.train_rows(), config.metrics)
    told = " + ".join(f"{weight:.4g} {name}" for name, weight in weights.items())

    @jax.jit
    def scores(samples_nX: jax.Array) -> jax.Array:
        return quality_scores(samples_nX.astype(jnp.float32) / 255.0, weights)

    return PictureJudge(f"quality, {told}", lambda samples: in_parts(scores, samples))


def metrics_of(samples_nX: np.ndarray) -> dict[str, np.ndarray]:
    """Every quality metric that says something of samples of this shape, [n] each."""
    names = list(METRICS if samples_nX.ndim == 5 and samples_nX.shape[1] > 2 else OF_IMAGES)
    silent = {"sharpness": min(samples_nX.shape[-3:-1]) < 3, "saturation": samples_nX.shape[-1] == 1}
    names = [name for name in names if not silent.get(name)]

    @jax.jit
    def of(samples: jax.Array) -> jax.Array:
        return measured(samples.astype(jnp.float32) / 255.0, names)

    return dict(zip(names, in_parts(of, samples_nX).T, strict=True))


def in_parts(function: Callable[[np.ndarray], jax.Array], samples_nX: np.ndarray) -> np.ndarray:
    """A function of samples, a few at a time, the last ones filled up so that it is compiled once."""
    values = []
    for start in range(0, len(samples_nX), _AT_ONCE):
        part = samples_nX[start : start + _AT_ONCE]
        whole = np.concatenate([part, np.repeat(part[-1:], _AT_ONCE - len(part), axis=0)])
        values.append(np.asarray(function(whole))[: len(part)])
    return np.concatenate(values)


def members(rows: Sequence[PictureRow], slot: int) -> np.ndarray:
    """The decoded samples of a slot of all rows, uint8 [n, X]."""
    return np.stack([row.samples[slot]() for row in rows])


def _fitted(rows: Sequence[PictureRow], metrics: Sequence[str]) -> dict[str, float]:
    """Weights under which the preferences of the training rows are likeliest."""
    if len(rows[0].samples) < 2:
        raise UserError("quality metrics are fitted to pairs, and data.train has labelled samples; give weights.")
    sides = [
        in_parts(lambda samples: measured(samples / jnp.float32(255), metrics), members(rows, slot)) for slot in (0, 1)
    ]
    weights_M = np.asarray(fit_weights(jnp.asarray(sides[0]), jnp.asarray(sides[1])))
    weights = {name: float(weight) for name, weight in zip(metrics, weights_M, strict=True)}
    told = ", ".join(f"{name} {weight:.4g}" for name, weight in weights.items())
    say("quality", f"weights fitted to {len(rows)} pairs: {told}")
    return weights


def other_run(experiment: PictureExperiment, model: str) -> PictureExperiment:
    """The experiment whose scorer lies in the WORKDIR `model`."""
    path = Run(Path(model)).reward.config
    if not path.exists() or Run(Path(model)).reward.newest_checkpoint() is None:
        raise UserError(f"{model}: there is no scorer; `dpo-jax reward` trains one into the WORKDIR of a run.")
    config, origins = load(str(path))
    assert isinstance(config, PictureConfig)
    theirs, ours = config.pictures, experiment.config.pictures
    if (theirs.channels, theirs.frames is None) != (ours.channels, ours.frames is None):
        raise UserError(f"{model}: its scorer is of other samples: {theirs}, not {ours}.")
    owner = PictureExperiment(config, origins, command=experiment.command)
    owner.workdir = Path(model)
    return owner


def reward_scores(experiment: PictureExperiment) -> Callable[[np.ndarray], np.ndarray]:
    """The trained scorer of an experiment: samples [n, X] to scores [n]."""
    model = experiment.reward_model
    params = experiment.restored(experiment.run.reward.folder, "reward", model)
    score = jax.jit(lambda samples_nX: model.scores(params, pixels(samples_nX)))
    return lambda samples_nX: in_parts(score, samples_nX)


def _scorer(config: ScorerJudge, context: JudgeContext) -> PictureJudge:
    """The scorer of this run, or of another one's WORKDIR."""
    owner = context.owner(config.model)
    scores = reward_scores(owner)
    path = owner.run.reward.evaluation
    measured = Evaluation.from_json(read_json(path), where=str(path)) if path.exists() else Evaluation()
    heldout, told = measured.heldout, ""
    if heldout.accuracy is not None:
        right = f"right on {heldout.accuracy:.1%} of {heldout.pairs} held-out pairs"
        told = f", {right} ({in_words(heldout.accuracy_interval, '.1%')})"
    return PictureJudge(f"scorer {owner.workdir}{told}", scores)


PICTURE_JUDGES: dict[str, Callable[..., PictureJudge]] = {"quality": _quality, "scorer": _scorer}
"""Name in a configuration -> the opener of the judge."""
