"""The judges of pictures: a weighted sum of quality metrics, or a scorer that learned from preferences.

Dimension key: n samples, B pairs, M metrics; X stands for all axes of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    ScorerConfig,
    ScorerJudge,
)
from dpo_jax.errors import UserError, nearest
from dpo_jax.evaluation.records import Evaluation
from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.files import read_json
from dpo_jax.objectives.diffusion import pixels
from dpo_jax.runs.run import Run
from dpo_jax.runtime.progress import say
from dpo_jax.scorers.networks import Scorer, ScorerSpec, make_scorer
from dpo_jax.scorers.quality import METRICS, OF_IMAGES, fit_weights, measured, quality_scores
from dpo_jax.types import PictureRow

_AT_ONCE = 256


class PictureJudge(NamedTuple):
    """Its name for people, and scores [n] of uint8 samples [n, X], higher for what is preferred."""

    name: str
    scores: Callable[[np.ndarray], np.ndarray]


class JudgeContext(NamedTuple):
    """The surroundings of a judge: its key in the configuration, pictures, training rows, and runs with a scorer."""

    key: str
    at: str  # file and line of the key
    pictures: PicturesConfig
    train_rows: Callable[[], Sequence[PictureRow]]
    owner: Callable[[str | None], PictureExperiment]  # of the scorer in a WORKDIR, by default of this one


def open_judge(config: PictureJudgeConfig, context: JudgeContext) -> PictureJudge:
    """The judge that the configuration names.

    Raises:
        UserError: an unknown metric, one that pictures do not have, or there is no scorer yet.
    """
    return PICTURE_JUDGES[config.name](config, context)


def judge_context(experiment: PictureExperiment, key: str) -> JudgeContext:
    """The surroundings of the judge that the configuration names there."""

    def owner(model: str | None) -> PictureExperiment:
        return experiment if model is None else _other(experiment, model)

    pictures = experiment.config.pictures
    return JudgeContext(key, experiment.at(key), pictures, lambda: experiment.train_data.rows, owner)


def _quality(config: QualityJudge, context: JudgeContext) -> PictureJudge:
    for name in (*config.weights, *config.metrics):
        allowed = METRICS if (context.pictures.frames or 1) > 1 else OF_IMAGES
        if name not in allowed:
            raise UserError(
                f"{context.at}: {context.key}: quality metric {name!r} is unknown here. {nearest(name, allowed)}"
            )
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


def scorer_of(pictures: PicturesConfig, config: ScorerConfig) -> Scorer:
    """The network that `reward` asks for, for such pictures."""
    spec = ScorerSpec(
        channels=pictures.channels,
        clips=pictures.frames is not None,
        widths=(config.first_width, config.second_width),
        head_width=config.head_width,
    )
    return make_scorer(spec, dtype=config.dtype)


def _other(experiment: PictureExperiment, model: str) -> PictureExperiment:
    """The experiment whose scorer lies in the WORKDIR `model`."""
    path = Run(Path(model)).reward.config
    if not path.exists():
        raise UserError(f"{model}: there is no scorer; `dpo-jax reward` trains one into the WORKDIR of a run.")
    config, origins = load(str(path))
    assert isinstance(config, PictureConfig)
    theirs, ours = config.pictures, experiment.config.pictures
    if (theirs.channels, theirs.frames is None) != (ours.channels, ours.frames is None):
        raise UserError(f"{model}: its scorer is of other samples: {theirs}, not {ours}.")
    owner = PictureExperiment(config, origins, command=experiment.command)
    owner.workdir = Path(model)
    return owner


def _scorer(config: ScorerJudge, context: JudgeContext) -> PictureJudge:
    """The scorer of this run, or of another one's WORKDIR."""
    owner = context.owner(config.model)
    assert owner.config.reward is not None
    scorer = scorer_of(owner.config.pictures, owner.config.reward)
    params = owner.restored(owner.run.reward.folder, "reward", scorer)

    @jax.jit
    def scores(samples_nX: jax.Array) -> jax.Array:
        return scorer.scores(params, pixels(samples_nX))

    path = owner.run.reward.evaluation
    measured = Evaluation.from_json(read_json(path), where=str(path)) if path.exists() else Evaluation()
    accuracy = measured.heldout.accuracy
    told = "" if accuracy is None else f", right on {accuracy:.1%} of held-out pairs"
    return PictureJudge(f"scorer {owner.workdir}{told}", lambda samples: in_parts(scores, samples))


PICTURE_JUDGES: dict[str, Callable[..., PictureJudge]] = {"quality": _quality, "scorer": _scorer}
"""Name in a configuration -> the opener of the judge."""
