"""An experiment: frozen dataclasses, one YAML file each, dotted overrides on top. Only `experiments` reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from dpo_jax.config.evaluation import EvaluationConfig, JudgeConfig, check_evaluation, check_judge
from dpo_jax.config.kinds import Count, NotNegative, Positive, Seed, Share, Source
from dpo_jax.config.model import ExportConfig, LoraConfig, ModelConfig, ScratchConfig, file_bytes
from dpo_jax.config.pictures import PictureConfig, PictureJudgeConfig, check_pictures
from dpo_jax.config.training import (
    LoggingConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    ProfileConfig,
    ReferenceConfig,
    RewardConfig,
    SftConfig,
    TilesConfig,
    TrainConfig,
)
from dpo_jax.errors import UserError
from dpo_jax.masking import masked
from dpo_jax.reading import Origins, locate, options_of_all, override, read_yaml, typed


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Preference rows and how they become tokens."""

    train: tuple[Source, ...]
    eval: tuple[Source, ...] = ()
    template: Literal["plain", "tokenizer", "hh"] = "plain"  # prompt + response; the chat template; Human and Assistant
    chat_template: str | None = None  # a file in jinja, or its text, in place of the tokenizer's own
    score: Literal["completion", "assistant"] = "completion"  # all of a response, or only what the assistant says there
    order: Literal["shuffle", "sequential"] = "shuffle"
    layout: Literal["padded", "packed", "shared"] = "shared"  # of rows in a batch; shared: packed, each prompt once
    max_prompt_tokens: Positive = 512  # a longer prompt keeps its end
    max_tokens: Positive = 1024  # prompt and response; a longer response keeps its start
    truncation: Literal["keep", "drop"] = "keep"  # drop: what is longer is left out, and counted
    special_tokens: Literal["text", "refuse", "allow"] = (
        "text"  # <|im_end|> and the like in a row's text are letters; refuse: a bad row; allow: these are meant
    )
    on_error: Literal["stop", "skip"] = "stop"  # a bad row: stop, or skip and count it


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What `dpo-jax sample` draws; an evaluation has its own settings."""

    max_new_tokens: Positive = 256  # the longest response
    temperature: NotNegative = 1.0  # 0: always the likeliest token
    top_p: Share = 1.0  # draws from the fewest likeliest tokens with this probability together; 1: from all
    top_k: Count = 0  # draws from so many likeliest tokens, before top_p; 0: from all
    samples: Positive = 1  # responses to each prompt
    batch_rows: Positive = 64  # responses sampled at once


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """What `dpo-jax pairs` makes: `sampling.samples` responses to each prompt, judged, become preference pairs."""

    prompts: tuple[Source, ...] = ()  # rows with a column `prompt`; default: the prompts of data.train
    judge: JudgeConfig | None = None  # default: evaluation.judge
    select: Literal["extremes", "all"] = "extremes"  # the best against the worst, or every pair
    min_gap: NotNegative = 0.0  # of the scores in a pair, which must be larger


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """What `dpo-jax analyse` looks at."""

    rows: Positive = 512  # pairs whose likelihoods are compared: the first that are held out, else of the training
    pairs: Positive = 16  # pairs of the step that is taken apart; each costs some ten passes


@dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment."""

    workdir: str  # everything that the run writes
    seed: Seed = 0
    model: ModelConfig
    data: DataConfig
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    loss: tuple[LossConfig, ...]  # in the file one mapping, or a list
    lora: LoraConfig | None = None  # trains an adapter on preferences, and leaves the weights as they are
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    tiles: TilesConfig = field(default_factory=TilesConfig)
    scratch: ScratchConfig | None = None
    sft: SftConfig | None = None
    reward: RewardConfig | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sampling: SamplingConfig = SamplingConfig()
    pairs: PairsConfig = PairsConfig()
    sweep: tuple[Mapping[str, Any], ...] = ()  # grids of dotted keys and their values; each combination is a point
    analysis: AnalysisConfig | None = None  # named, be it empty: `dpo-jax run` analyses too
    export: ExportConfig = field(default_factory=ExportConfig)


AnyConfig = Config | PictureConfig
_NAMED = (JudgeConfig, PictureJudgeConfig)
"""A file with a section `pictures` is an experiment on pictures or clips."""


def load(path: str, overrides: Sequence[str] = ()) -> tuple[AnyConfig, Origins]:
    """Reads one experiment file, applies the overrides, checks everything. Raises `UserError`."""
    return _finished(*read_yaml(_find(path)), overrides)


def changed(config: AnyConfig, origins: Origins, overrides: Sequence[str]) -> tuple[Any, Origins]:
    """The same experiment with overrides on top, checked like a file's. Raises `UserError`."""
    mapping = _plain(config)
    if len(mapping["loss"]) == 1:  # as most files have it
        mapping["loss"] = mapping["loss"][0]
        origins = {key.replace("loss.0.", "loss.", 1): at for key, at in origins.items()}
    return _finished(mapping, dict(origins), overrides)


def _finished(mapping: dict[str, Any], origins: Origins, overrides: Sequence[str]) -> tuple[AnyConfig, Origins]:
    override(mapping, origins, overrides)
    if isinstance(mapping.get("loss"), dict):
        mapping["loss"] = [mapping["loss"]]
        origins |= {key.replace("loss.", "loss.0.", 1): at for key, at in origins.items() if key.startswith("loss.")}
    if "pictures" in mapping:
        pictures = typed(PictureConfig, mapping, origins)
        _check_lengths(pictures, origins)
        check_pictures(pictures, origins)
        return pictures, origins
    config = typed(Config, mapping, origins)
    _check_lengths(config, origins)
    _check(config, origins)
    return config, origins


def _find(path: str) -> Path:
    """The file itself, or the configuration of that name that comes with the package."""
    if Path(path).exists() or Path(path).parent.name != "configs":
        return Path(path)
    shipped = Path(str(resources.files("dpo_jax"))) / "configs" / Path(path).name
    return shipped if shipped.exists() else Path(path)


def _check_lengths(config: AnyConfig, origins: Origins) -> None:
    """Refuses lengths and portions of trainings that contradict each other."""
    parts = [("train", config.train)] + ([("sft.train", config.sft.train)] if config.sft else [])
    parts += [("reward.train", config.reward.train)] if config.reward else []
    for key, train in parts:
        if train.steps is not None and train.epochs is not None:
            raise UserError(f"{locate(key + '.epochs', origins)}: {key}: give steps or epochs, not both.")
        micro = train.micro_batch_pairs or train.batch_pairs
        if train.batch_pairs % micro:
            raise UserError(
                f"{locate(key + '.micro_batch_pairs', origins)}: {key}.micro_batch_pairs: {micro} does not divide "
                f"{key}.batch_pairs, {train.batch_pairs}."
            )
    profile = config.profile
    if profile.num_steps and config.train.steps is not None and profile.start_step >= config.train.steps:
        raise UserError(
            f"{locate('profile.start_step', origins)}: profile.start_step: {profile.start_step} steps before the trace "
            f"leave none of train.steps, {config.train.steps}, to be traced."
        )


def _check(config: Config, origins: Origins) -> None:
    try:
        file_bytes(config.export.max_shard_size)
    except ValueError as error:
        raise UserError(f"{locate('export.max_shard_size', origins)}: export.max_shard_size: {error}.") from None
    if config.export.lora == "adapter" and not config.lora:
        at = locate("export.lora", origins)
        raise UserError(f"{at}: export.lora: there is no adapter; `lora: {{rank: 16}}` would train one.")
    if config.lora and config.reference.update_every:
        raise UserError(
            f"{locate('reference.update_every', origins)}: reference.update_every: with lora the reference is the base "
            "under the adapter, which never moves. Leave out one of the two."
        )
    if not config.loss:
        raise UserError(f"{locate('loss', origins)}: loss: name at least one, such as `loss: {{name: dpo}}`.")
    if not config.data.train:
        raise UserError(f"{locate('data.train', origins)}: data.train: name at least one source of rows.")
    check_evaluation(config.evaluation, origins, has_rows=bool(config.data.eval))
    if config.pairs.judge:
        check_judge(config.pairs.judge, origins, key="pairs.judge")
    if config.data.chat_template is not None and config.data.template != "tokenizer":
        at = locate("data.chat_template", origins)
        raise UserError(f"{at}: data.chat_template: is read with data.template: tokenizer only; set that too.")
    if config.data.max_prompt_tokens >= config.data.max_tokens:
        raise UserError(
            f"{locate('data.max_prompt_tokens', origins)}: data.max_prompt_tokens ({config.data.max_prompt_tokens}) "
            f"leaves no room for a response in data.max_tokens ({config.data.max_tokens})."
        )


def as_mapping(config: AnyConfig) -> dict[str, Any]:
    """The whole configuration as plain data to be kept and shown: defaults filled in, secrets hidden."""
    return masked(_plain(config))


def _plain(config: AnyConfig) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            # A judge is written with the options of all judges: that is the form of every file that holds one.
            kinds = next((get_args(union) for union in _NAMED if isinstance(value, union)), ())
            return plain({**options_of_all(kinds), **vars(value)})
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(config)
