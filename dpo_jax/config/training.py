"""The part of an experiment that says how it is trained: reference, losses, optimizer, length, devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from dpo_jax.config.model import FREE, LoraConfig, Source, free
from dpo_jax.reading import Count, File, NotNegative, Positive, Range, Seed, Share


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """The reference: its store of log-probs, or its moves during training."""

    store: File | None = free(None)  # folder of stores; default: WORKDIR/stores
    batch_pairs: Positive = free(16)  # pairs scored at once
    rows_per_shard: Positive = free(16384)  # rows that a killed pass may lose
    update_every: Count = 0  # steps after which the reference moves to the policy (TR-DPO); 0: it is frozen
    update_share: Share = 1.0  # how far it moves then: 1 all the way, a to (1 - a) reference + a policy


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """One loss of the table; several make a weighted sum."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)  # the loss's keywords
    weight: NotNegative = 1.0
    ld_alpha: Share | None = None  # LD-DPO: weight of the tokens beyond the length of the shorter response
    wpo: bool = False  # WPO: pairs count by how much they look like the policy's own


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    name: Literal["adamw"] = "adamw"
    learning_rate: NotNegative = 1e-6  # at its peak
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after warm-up; the others end at 0
    warmup_steps: Count = 0
    weight_decay: NotNegative = 0.0  # on matrices only
    clip_norm: NotNegative = 1.0  # of the global gradient; 0 turns clipping off
    beta1: Annotated[float, Range(0.0, 0.999999)] = 0.9  # at 1, and with an epsilon of 0, a step divides by 0
    beta2: Annotated[float, Range(0.0, 0.999999)] = 0.999
    epsilon: Annotated[float, Range(1e-30)] = 1e-8
    moment_dtype: Literal["float32", "bfloat16"] = "float32"  # of the first moment; the second is always float32


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length and portions of a training. For supervised fine-tuning a pair is a row."""

    batch_pairs: Positive = 8  # real pairs in a step
    micro_batch_pairs: Positive | None = free(None)  # pairs in memory at once; default: all of the batch
    steps: Positive | None = free(None)  # steps or epochs; without both: one epoch
    epochs: Annotated[float, Range(1e-6, 1e6)] | None = free(None)
    save_every: Positive | None = free(None)  # steps between checkpoints; the last step is always saved
    log_every: Positive = free(1)
    keep: Positive = free(2)  # checkpoints kept
    skips_allowed: Count = free(2)  # steps in a row whose loss or gradient is not finite; one more ends the run
    step_timeout_seconds: Annotated[float, Range(1.0)] = free(1800.0)  # a step that hangs for longer ends the process


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A trace of a few steps of each training, in the folder of its metrics, for TensorBoard and Perfetto."""

    start_step: Count = 2  # the last step before the trace, by its number in the metrics; the first steps compile
    num_steps: Count = 0  # steps traced; 0: none


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; one may be -1 and takes the rest."""

    slice: int = 1  # parts that only a slow network joins: each holds all parameters
    data: int = 1  # copies of the parameters
    fsdp: int = -1  # parts of the parameters; rows are split over slice, data and fsdp
    tensor: int = 1  # parts of heads, MLP and vocabulary
    sequence: int = 1  # parts of long rows


@dataclass(frozen=True, kw_only=True)
class TilesConfig:
    """The part of the logits that exists at one time on one device; a small one is slow, a large one needs memory."""

    tokens: Positive = 2048
    vocabulary: Positive = 16384


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Sinks for metrics beside metrics.jsonl and TensorBoard."""

    wandb: str | None = None  # a project at Weights & Biases; needs the package wandb


@dataclass(frozen=True, kw_only=True)
class SftDataConfig:
    """Rows of prompt and completion; template and lengths are those of `data`."""

    train: tuple[Source, ...]


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Supervised fine-tuning, run first; its result is the start of the policy and the reference."""

    data: SftDataConfig
    seed: Seed | None = None  # default: that of the run; runs that differ by their seed alone can share this part
    lora: LoraConfig | None = None  # trains an adapter, which then becomes part of the weights
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-5)
    train: TrainConfig = TrainConfig()


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """A Bradley-Terry reward model, trained on the preference rows of `data` into WORKDIR/reward."""

    options: Mapping[str, Any] = field(default_factory=dict)  # keywords of the loss: margin, center
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
    train: TrainConfig = TrainConfig()


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """The settings that texts and pictures have in common; some have other defaults there."""

    workdir: File = field(metadata=FREE)  # everything that the run writes
    seed: Seed = 0
    lora: LoraConfig | None = None  # trains an adapter on preferences, and leaves the weights as they are
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = free(MeshConfig())
    logging: LoggingConfig = free(LoggingConfig())
    profile: ProfileConfig = free(ProfileConfig())
    sweep: tuple[Mapping[str, Any], ...] = free(())  # grids of dotted keys and their values; each combination a point
