"""An experiment on pictures or clips: its file has a section `pictures`. What texts have too is called the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dpo_jax.config.model import Source, free
from dpo_jax.config.training import CommonConfig, OptimizerConfig, SftDataConfig, TrainConfig
from dpo_jax.errors import UserError
from dpo_jax.reading import Count, File, NotNegative, Origins, Positive, Seed, Share, mistake


@dataclass(frozen=True, kw_only=True)
class PicturesConfig:
    """The size and kind to which every picture or clip is brought."""

    height: Positive
    width: Positive
    channels: Literal[1, 3] = 3  # grey, or red, green and blue
    frames: Positive | None = None  # of a clip; default: pictures
    classes: Count = 0  # they show one of so many classes
    text_width: Count = 0  # or what a text says, whose embedding is of this width; with neither, anything


@dataclass(frozen=True, kw_only=True)
class DiffuserConfig:
    """The diffusion transformer: a folder of weights, or its sizes, and it begins with random ones."""

    weights: File | None = None  # a Diffusers folder of a DiT, which says its sizes; those below are not read then
    patch: Positive = 4  # pixels along a side
    frame_patch: Positive = 1  # frames in a patch
    layers: Positive = 4
    heads: Positive = 4
    head_size: Positive = 32
    mlp_width: Positive = 512
    schedule: Literal["cosine", "linear", "flow"] = "cosine"  # how much noise there is at a time
    prediction: Literal["epsilon", "v", "velocity"] = "v"  # what it predicts
    dtype: Literal["float32", "bfloat16"] = "float32"  # compute; parameters are always float32
    remat: Literal["none", "dots", "full"] = free("none")  # what the backward pass computes again


@dataclass(frozen=True, kw_only=True)
class PictureDataConfig:
    """Preference rows."""

    train: tuple[Source, ...] = ()  # default: the pairs that the model makes itself, see `pairs`
    eval: tuple[Source, ...] = ()
    order: Literal["shuffle", "sequential"] = "shuffle"
    on_error: Literal["stop", "skip"] = "stop"  # a bad row: stop, or skip and count it


@dataclass(frozen=True, kw_only=True)
class DiffusionLossConfig:
    """The loss on pairs, or on labelled samples."""

    name: Literal["diffusion_dpo", "diffusion_kto"] = "diffusion_dpo"
    options: Mapping[str, Any] = field(default_factory=dict)  # the loss's keywords
    temporal_weight: NotNegative | None = None  # of the difference of neighbouring frames; of clips 0.5


@dataclass(frozen=True, kw_only=True)
class PictureReferenceConfig:
    """The reference: it runs in every step, or its errors at a few draws of each row are stored."""

    draws: Count = 0  # of time and noise for each row, with the reference's errors stored; 0: it runs in every step
    store: File | None = free(None)  # folder of stores; default: WORKDIR/stores
    batch_pairs: Positive = free(64)  # pairs scored at once
    rows_per_shard: Positive = free(16384)  # rows that a killed pass may lose


@dataclass(frozen=True, kw_only=True)
class PictureSftConfig:
    """Pre-training, or fine-tuning where there are weights; its result is the start of policy and reference."""

    data: SftDataConfig
    seed: Seed | None = None  # default: that of the run; runs that differ by their seed alone can share this part
    drop_condition: Share = 0.1  # rows that are trained without class or text, which guidance needs
    average: Share = 0.999  # decay of the moving average of the parameters, which is the result; 0: the last ones
    optimizer: OptimizerConfig = field(default=OptimizerConfig(learning_rate=1e-3))
    train: TrainConfig = field(default=TrainConfig(batch_pairs=64))


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """A convolutional scorer of preferences, trained on the pairs of `data` into WORKDIR/reward."""

    options: Mapping[str, Any] = field(default_factory=dict)  # keywords of the loss: beta
    first_width: Positive = 32  # channels of the two blocks
    second_width: Positive = 64
    head_width: Positive = 512
    dtype: Literal["float32", "bfloat16"] = "float32"
    optimizer: OptimizerConfig = field(default=OptimizerConfig(learning_rate=1e-3))
    train: TrainConfig = field(default=TrainConfig(batch_pairs=32))


@dataclass(frozen=True, kw_only=True)
class PictureSamplingConfig:
    """The sampler of pictures."""

    sampler: Literal["ddim", "euler"] = "ddim"
    steps: Positive = 50
    guidance: NotNegative | None = None  # towards the condition; 1: as trained, more shows it more; default: none
    eta: Share = 0.0  # fresh noise of ddim: 0 none, 1 as much as DDPM
    clip: bool = True  # keeps the clean sample within the range of pixels
    batch_rows: Positive = 256  # samples drawn at once


@dataclass(frozen=True, kw_only=True)
class QualityJudge:
    """A weighted sum of quality metrics."""

    name: Literal["quality"] = "quality"
    weights: Mapping[str, float] = field(default_factory=dict)  # metric -> weight in the sum
    metrics: tuple[str, ...] = ()  # without weights: these, with weights fitted to the pairs of data.train


@dataclass(frozen=True, kw_only=True)
class ScorerJudge:
    """A scorer that learned from preferences."""

    name: Literal["scorer"] = "scorer"
    model: File | None = None  # the WORKDIR where it was trained; default: this one


PictureJudgeConfig = QualityJudge | ScorerJudge
"""One of the judges of pictures. To add one: its dataclass, its name here, its line in `PICTURE_JUDGES`."""


@dataclass(frozen=True, kw_only=True)
class PicturePairsConfig:
    """Pairs of the model's own samples, as the judge sees them; WORKDIR/pairs.parquet."""

    groups: Positive = 256  # of samples that show the same; each gives one pair, or all
    samples: Positive = 4  # in a group
    heldout: Count = 64  # groups for WORKDIR/heldout.parquet
    select: Literal["extremes", "all"] = "extremes"  # the best against the worst, or every pair
    min_gap: NotNegative = 0.0  # of the scores in a pair, which must be larger
    seed: Seed | None = None  # default: that of the run
    judge: PictureJudgeConfig | None = None  # default: evaluation.judge


@dataclass(frozen=True, kw_only=True)
class PictureEvaluationConfig:
    """Measurements on held-out pairs, and on samples of policy and reference from the same noise."""

    samples: Count = 256  # drawn from the policy and from the reference; 0: none
    judge: PictureJudgeConfig | None = None
    classifier: tuple[Source, ...] = ()  # labelled samples, for a classifier that says whether classes are kept
    draws: Positive = 8  # of time and noise, over which errors of held-out pairs are meant
    shown: Count = 24  # samples in the report


@dataclass(frozen=True, kw_only=True)
class PictureExportConfig:
    """The Diffusers folder."""

    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class PictureConfig(CommonConfig):
    """One experiment on pictures or clips."""

    pictures: PicturesConfig
    model: DiffuserConfig = DiffuserConfig()
    data: PictureDataConfig = PictureDataConfig()
    reference: PictureReferenceConfig = PictureReferenceConfig()
    loss: tuple[DiffusionLossConfig, ...] = (DiffusionLossConfig(),)  # in the file one mapping
    optimizer: OptimizerConfig = field(default=OptimizerConfig(learning_rate=1e-4))
    train: TrainConfig = field(default=TrainConfig(batch_pairs=32))
    sft: PictureSftConfig | None = None
    reward: ScorerConfig | None = None
    sampling: PictureSamplingConfig = PictureSamplingConfig()
    pairs: PicturePairsConfig | None = None
    evaluation: PictureEvaluationConfig = free(PictureEvaluationConfig())
    export: PictureExportConfig = free(PictureExportConfig())


def check_pictures(config: PictureConfig, origins: Origins) -> None:
    """Refuse settings that contradict each other."""

    def refuse(key: str, says: str) -> UserError:
        return mistake(key, origins, says)

    shape, model = config.pictures, config.model
    if shape.classes and shape.text_width:
        raise refuse("pictures.text_width", "samples show classes or what a text says; leave out one of the two.")
    if shape.frames is None and model.frame_patch != 1:
        raise refuse("model.frame_patch", "pictures have no frames; set pictures.frames for clips.")
    sides = {"height": shape.height, "width": shape.width}
    for name, size in sides.items() if model.weights is None else ():
        if size % model.patch:
            raise refuse("model.patch", f"{model.patch} does not divide pictures.{name}, {size}.")
    if shape.frames and shape.frames % model.frame_patch:
        raise refuse("model.frame_patch", f"{model.frame_patch} does not divide pictures.frames, {shape.frames}.")
    if model.weights is None and config.sft is None and (config.pairs or not config.reward):
        raise refuse("model", "there are no weights; name a folder in model.weights, or pre-train: add `sft:`.")
    if (model.schedule == "flow") != (model.prediction == "velocity"):
        raise refuse("model.prediction", "velocity is what schedule flow predicts, and only there.")
    if len(config.loss) != 1:
        raise refuse("loss", "name one loss, such as `loss: {name: diffusion_dpo}`.")
    if config.loss[0].temporal_weight and (shape.frames or 1) < 2:
        raise refuse("loss.0.temporal_weight", "pictures have no neighbouring frames.")
    if not config.data.train and config.pairs is None:
        raise refuse("data.train", "name sources of pairs, or let the model make them: add `pairs:`.")
    if config.data.train and config.pairs is not None:
        raise refuse("pairs", "data.train names other pairs; leave out one of the two.")
    if config.pairs and config.pairs.samples < 2:
        raise refuse("pairs.samples", "a pair takes two samples.")
    _check_judges(config, refuse)


def _check_judges(config: PictureConfig, refuse: Callable[[str, str], UserError]) -> None:
    judges = {"evaluation.judge": config.evaluation.judge}
    if config.pairs:
        judges["pairs.judge"] = config.pairs.judge or config.evaluation.judge
        if judges["pairs.judge"] is None:
            raise refuse("pairs", "needs somebody who judges; name pairs.judge or evaluation.judge.")
    for key, judge in judges.items():
        if judge is None:
            continue
        if judge.name == "quality" and bool(judge.weights) == bool(judge.metrics):
            raise refuse(key, "quality takes `weights: {brightness: 1.0}`, or `metrics: [brightness]` to be fitted.")
        own = judge.name == "scorer" and judge.model is None
        if own and config.reward is None:
            raise refuse(f"{key}.model", "name the WORKDIR of a scorer, or train one here: add `reward:`.")
        learns = own or (judge.name == "quality" and judge.metrics)
        if key == "pairs.judge" and learns:
            raise refuse(key, "learns from data.train, which is what it is to make; give weights or another WORKDIR.")
