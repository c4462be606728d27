"""An experiment on texts."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Literal

from dpo_jax.config.evaluation import EvaluationConfig, JudgeConfig, check_evaluation, check_judge
from dpo_jax.config.model import ExportConfig, ModelConfig, ScratchConfig, Source, file_bytes, free
from dpo_jax.config.training import CommonConfig, LossConfig, ReferenceConfig, RewardConfig, SftConfig, TilesConfig
from dpo_jax.reading import Count, File, NotNegative, Origins, Positive, Share, mistake


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Preference rows and how they become tokens."""

    train: tuple[Source, ...]  # may be empty where there is a section sft: then nothing but that is trained
    eval: tuple[Source, ...] = ()
    template: Literal["plain", "tokenizer", "hh"] = "plain"  # prompt + response; the chat template; Human and Assistant
    chat_template: File | None = None  # a file in jinja, or its text, in place of the tokenizer's own
    date: str | None = None  # YYYY-MM-DD, that a chat template reads off the clock; default: the day the run begins
    score: Literal["completion", "assistant"] = "completion"  # all of a response, or only what the assistant says there
    order: Literal["shuffle", "sequential"] = "shuffle"
    layout: Literal["padded", "packed", "shared"] = free("shared")  # of a batch; shared: packed, each prompt once
    max_prompt_tokens: Positive = 512  # a longer prompt keeps its end; default of rows up to 512: half of max_tokens
    max_tokens: Positive = 1024  # prompt and response; a longer response keeps its start
    truncation: Literal["keep", "drop"] = "keep"  # drop: what is longer is left out, and counted
    # <|im_end|> and the like in a row's text are letters; refuse: a bad row; allow: these are meant
    special_tokens: Literal["text", "refuse", "allow"] = "text"
    on_error: Literal["stop", "skip"] = "stop"  # a bad row: stop, or skip and count it


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """The sampler of `dpo-jax sample`; an evaluation has its own settings."""

    max_new_tokens: Positive = 256  # the longest response
    temperature: NotNegative = 1.0  # 0: always the likeliest token
    top_p: Share = 1.0  # draws from the fewest likeliest tokens with this probability together; 1: from all
    top_k: Count = 0  # draws from so many likeliest tokens, before top_p; 0: from all
    samples: Positive = 1  # responses to each prompt
    batch_rows: Positive = 64  # responses sampled at once


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """The pairs of `dpo-jax pairs`: `sampling.samples` responses to each prompt, judged, become preference pairs."""

    prompts: tuple[Source, ...] = ()  # rows with a column `prompt`; default: the prompts of data.train
    judge: JudgeConfig | None = None  # default: evaluation.judge
    select: Literal["extremes", "all"] = "extremes"  # the best against the worst, or every pair
    min_gap: NotNegative = 0.0  # of the scores in a pair, which must be larger


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """The rows that `dpo-jax analyse` looks at."""

    rows: Positive = 512  # pairs whose likelihoods are compared: the first that are held out, else of the training
    pairs: Positive = 16  # pairs of the step that is taken apart; each costs some ten passes


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """One experiment on texts."""

    model: ModelConfig
    data: DataConfig
    reference: ReferenceConfig = field(default=ReferenceConfig())
    loss: tuple[LossConfig, ...]  # in the file one mapping, or a list
    tiles: TilesConfig = free(TilesConfig())
    scratch: ScratchConfig | None = None
    sft: SftConfig | None = None
    reward: RewardConfig | None = None
    evaluation: EvaluationConfig = free(EvaluationConfig())
    sampling: SamplingConfig = free(SamplingConfig())
    pairs: PairsConfig = free(PairsConfig())
    analysis: AnalysisConfig | None = free(None)  # named, be it empty: `dpo-jax run` analyses too
    export: ExportConfig = free(ExportConfig())


def check_texts(config: Config, origins: Origins) -> None:
    """Refuse settings that contradict each other."""
    data = config.data
    try:
        file_bytes(config.export.max_shard_size)
    except ValueError as error:
        raise mistake("export.max_shard_size", origins, f"{error}.") from None
    no_room = f"{data.max_prompt_tokens} leaves no room for a response in data.max_tokens, {data.max_tokens}."
    moves = "with lora the reference is the base under the adapter, which never moves. Leave out one of the two."
    jinja = "is read with data.template: tokenizer only; set that too."
    adapter = config.export.lora == "adapter"
    wrong = (
        ("export.lora", adapter and not config.lora, "there is no adapter; `lora: {rank: 16}` would train one."),
        ("reference.update_every", config.lora and config.reference.update_every, moves),
        ("loss", not config.loss, "name at least one, such as `loss: {name: dpo}`."),
        ("data.train", not data.train and not config.sft, "name at least one source of rows."),
        ("data.chat_template", data.chat_template is not None and data.template != "tokenizer", jinja),
        ("data.max_prompt_tokens", data.max_prompt_tokens >= data.max_tokens, no_room),
    )
    for key, is_wrong, says in wrong:
        if is_wrong:
            raise mistake(key, origins, says)
    check_evaluation(config.evaluation, origins, has_rows=bool(data.eval))
    if config.pairs.judge:
        check_judge(config.pairs.judge, origins, key="pairs.judge")
    if data.date is not None:
        try:
            datetime.date.fromisoformat(data.date)
        except ValueError:
            raise mistake("data.date", origins, f"{data.date!r} is no day; write it as 2026-11-30.") from None
